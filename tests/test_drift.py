"""Drift: an honest log of the same period raises no alarm, a shifted one does, and the histogram that moved is named."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import keyart
from datamodules.shards.shard import VALIDATION, Shards
from export.reference import reference_of
from serving.bundle.bundle import Bundle
from serving.bundle.metadata import BUNDLE_FILE, Reference
from serving.bundle.reference import BOUNDS
from serving.bundle.seal import write_record
from serving.scoring.drift import MODERATE, chi_square_quantile, compare, names_of_drift, psi
from serving.scoring.drift_counts import Counted, Observations, observe, sampled
from serving.scoring.drift_log import DriftRecord
from tests.test_unknown_ids import renamed


@pytest.fixture(scope="module")
def reference(bundle: Path) -> Reference:
    recorded = Bundle.open(bundle).metadata.get("reference")
    assert recorded is not None
    return recorded


@pytest.fixture(scope="module")
def observations(bundle: Path, shards: Path) -> Observations:
    """The whole period, by impression."""
    opened = Shards.open(shards)
    return observe(Bundle.open(bundle), opened.shards, [np.arange(shard.impressions) for shard in opened.shards])


def edited(service: Path, folder: Path, files: str, edit: Callable[[pa.Table], pa.Table]) -> Path:
    """The dataset with some of its files changed."""
    shutil.copytree(service, folder, ignore=shutil.ignore_patterns("truth", "images"))
    (folder / "images").symlink_to(service / "images")
    for path in sorted(folder.glob(files)):
        pq.write_table(edit(pq.read_table(path)), path)
    return folder


def drift_of(bundle: Path, dataset: Path, out: Path, *words: str) -> DriftRecord:
    """What the command writes."""
    assert keyart.main(["drift", str(bundle), str(dataset), "--json", str(out), *words]) == 0
    return json.loads(out.read_text(encoding="utf-8"))


def test_the_reference_counts_validation(bundle: Path, shards: Path, reference: Reference) -> None:
    lengths: list[int] = []
    titles = unknown = 0
    for shard in Shards.open(shards).shards:
        rows = np.flatnonzero(shard.split == VALIDATION)
        lengths += (shard.history_end[rows] - shard.history_start[rows]).tolist()
        titles, unknown = titles + len(rows), unknown + int((shard.title[rows] == 0).sum())
    assert reference["impressions"] == reference["sampled_from"] == len(lengths)
    clipped = np.minimum(lengths, Bundle.open(bundle).history_length)
    edges = [-np.inf, *BOUNDS["history_length"], np.inf]
    by_hand = [int(((clipped > low) & (clipped <= high)).sum()) for low, high in pairwise(edges)]
    histograms = reference["histograms"]
    assert histograms["history_length"]["counts"] == by_hand
    assert histograms["unknown_titles"]["counts"] == [titles - unknown, unknown]
    for name in ("click_probability", "chosen_rank", "propensity"):
        assert sum(histograms[name]["counts"]) == len(lengths)
        assert np.count_nonzero(histograms[name]["counts"]) > 2, name
    assert histograms["history_length"]["design_effect"] > 1.5, "a member's histories resemble each other"


def test_ranks_agree_with_scores(bundle: Path, service: Path, scores: Path, tmp_path: Path) -> None:
    """Against the scores table, which ranks the same impressions by another way through the same graph."""
    log = pa.concat_tables([pq.read_table(path) for path in sorted((service / "impressions").glob("*.parquet"))])
    shown = dict(zip(log["impression_id"].to_pylist(), log["artwork_id"].to_pylist(), strict=True))
    ranks: list[int] = []
    for path in sorted(scores.glob("part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            order = sorted(range(len(row["candidates"])), key=lambda index: -row["click_probability"][index])
            ranks.append([row["candidates"][index] for index in order].index(shown[row["impression_id"]]) + 1)
    record = drift_of(bundle, service, tmp_path / "drift.json")
    bins = np.searchsorted(BOUNDS["chosen_rank"], ranks)
    assert record["histograms"]["chosen_rank"]["log"]["counts"] == np.bincount(bins, minlength=11).tolist()
    # the next period of the same service
    assert record["drift"] == []
    assert record["bundle"] == Bundle.open(bundle).digest


def test_the_sample_is_bounded_and_seeded(bundle: Path, shards: Path) -> None:
    rows = [np.arange(0, 50, 2), np.arange(7), np.arange(100)]
    first, again = sampled(rows, 40), sampled(rows, 40)
    assert sum(len(some) for some in first) == 40
    for some, same, all_rows in zip(first, again, rows, strict=True):
        assert some.tolist() == same.tolist() == sorted(set(some.tolist()) & set(all_rows.tolist()))
    assert [some.tolist() for some in sampled(rows, 40, seed=1)] != [some.tolist() for some in first]
    assert [some.tolist() for some in sampled(rows, 1000)] == [some.tolist() for some in rows]
    opened = Shards.open(shards)
    bounded = reference_of(Bundle.open(bundle), opened, most=100)
    assert bounded is not None
    assert (bounded["impressions"], sum(bounded["histograms"]["propensity"]["counts"])) == (100, 100)
    assert bounded["sampled_from"] > 1000


@pytest.mark.parametrize(("members", "splits"), [(12, 100), (20, 150), (75, 50)])
def test_an_honest_log_raises_no_alarm(observations: Observations, members: int, splits: int) -> None:
    """The false alarms of logs of few members against the others of the same period, where the plain rule cries wolf."""
    alarms = by_plain_rule = 0
    everyone = np.unique(observations.member)
    for seed in range(splits):
        few = np.isin(observations.member, np.random.default_rng(seed).permutation(everyone)[:members])
        log, rest = observations.at(few).counted(), observations.at(~few).counted()
        alarms += bool(names_of_drift(compare(BOUNDS, rest, log)))
        by_plain_rule += any(psi(rest[name].counts, log[name].counts).sum() > MODERATE for name in BOUNDS)
    print(f"{members} members, {splits} splits: {alarms} alarms, {by_plain_rule} by the plain rule")
    assert alarms <= 0.05 * splits
    assert by_plain_rule >= (alarms if members > 20 else 0.3 * splits)


def test_a_shorter_history_is_named(
    bundle: Path, service: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def every_eighth(plays: pa.Table) -> pa.Table:
        return plays.take(np.arange(0, len(plays), 8))

    dataset = edited(service, tmp_path / "dataset", "plays/*.parquet", every_eighth)
    record = drift_of(bundle, dataset, tmp_path / "drift.json")
    assert "history_length" in record["drift"]
    assert "unknown_titles" not in record["drift"]
    row = record["histograms"]["history_length"]
    assert row["verdict"] == "large"
    assert row["psi"] is not None
    assert row["limit"] is not None
    assert row["psi"] > row["limit"] >= MODERATE
    output = capfd.readouterr().out
    assert f"warning large drift of {row['words']}" in output
    assert "(reference " in row["words"]


def test_other_titles_are_named(bundle: Path, service: Path, tmp_path: Path) -> None:
    """Half of each file's rows are of a catalogue that the bundle does not know; it is no reason to refuse the comparison."""
    rows = sum(pq.read_metadata(path).num_rows for path in (service / "impressions").glob("*.parquet"))
    files = len(list((service / "impressions").glob("*.parquet")))
    ids = {"title_id", "artwork_id", "candidates"}
    dataset = renamed(service, tmp_path / "dataset", ids, keep=rows // files // 2, files="[!p]*/**/*.parquet")
    shutil.copytree(service / "plays", dataset / "plays", dirs_exist_ok=True)
    merge_catalogues(service, dataset)
    record = drift_of(bundle, dataset, tmp_path / "drift.json")
    assert {"unknown_titles", "unknown_artworks"} <= set(record["drift"])
    assert "unknown_plays" not in record["drift"]
    assert "% unknown (reference 0%)" in record["histograms"]["unknown_titles"]["words"]


def merge_catalogues(service: Path, dataset: Path) -> None:
    """The renamed titles and artworks beside the known ones."""
    for name, ids in (("titles", ["title_id"]), ("artworks", ["artwork_id", "title_id"])):
        known = pq.read_table(service / f"{name}.parquet")
        other = known
        for column in ids:
            values = pa.array(
                [f"other-{value}" for value in known[column].to_pylist()], known.schema.field(column).type
            )
            other = other.set_column(other.schema.get_field_index(column), column, values)
        pq.write_table(pa.concat_tables([known, other]), dataset / f"{name}.parquet")


def test_another_policy_is_named(bundle: Path, service: Path, scores: Path, tmp_path: Path) -> None:
    """The bundle's own best artwork always shown, where the reference's log explored."""
    best = {}
    for path in sorted(scores.glob("part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            best[row["impression_id"]] = (row["candidates"][int(np.argmax(row["policy"]))], row["policy"])

    def show_best(log: pa.Table) -> pa.Table:
        rows = log.select(["impression_id", "artwork_id", "propensities"]).to_pylist()
        chosen = [best.get(row["impression_id"], (row["artwork_id"], row["propensities"])) for row in rows]
        for name, values in zip(("artwork_id", "propensities"), zip(*chosen, strict=True), strict=True):
            index = log.schema.get_field_index(name)
            log = log.set_column(index, name, pa.array(list(values), log.schema.field(name).type))
        return log

    dataset = edited(service, tmp_path / "dataset", "impressions/*.parquet", show_best)
    record = drift_of(bundle, dataset, tmp_path / "drift.json")
    assert {"chosen_rank", "propensity"} <= set(record["drift"])
    assert not {"click_probability", "history_length", "unknown_titles"} & set(record["drift"])
    assert record["histograms"]["chosen_rank"]["words"].startswith("chosen_rank: 100% at 1 (reference ")


def test_since_and_a_missing_reference(
    bundle: Path, service: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    everything = drift_of(bundle, service, tmp_path / "drift.json", "--since", "2000-01-01")
    newest = drift_of(bundle, service, tmp_path / "drift.json")
    assert everything["impressions"] > 5 * newest["impressions"]
    own = shutil.copytree(bundle, tmp_path / "own")
    record = json.loads((own / BUNDLE_FILE).read_text(encoding="utf-8"))
    del record["reference"]
    write_record(own, record)
    capfd.readouterr()
    for words, said in (
        ([str(own), str(service)], "has no reference histograms: the run was exported without its shards"),
        ([str(bundle), str(service), "--since", "2100-01-01"], "no impression since 2100-01-01"),
        ([str(bundle), str(service), "--json", str(tmp_path)], "is a folder, and the output is a file"),
    ):
        assert keyart.main(["drift", *words]) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert said in line


def test_the_index_and_its_noise() -> None:
    """By the definition, and by chi-square's table; independent values have no design effect."""
    p, q = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    many = 10_000_000
    assert psi(p * many, q * many).sum() == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-4)
    for probability, freedom, quantile in ((0.95, 1, 3.841), (0.99, 5, 15.086), (0.999, 10, 29.588)):
        assert chi_square_quantile(probability, freedom) == pytest.approx(quantile, rel=0.03)
    rng = np.random.default_rng(0)
    one_hot = np.eye(5, dtype=np.int64)[rng.integers(0, 5, 4000)]
    assert Counted.of_members(one_hot).design_effect == pytest.approx(1, abs=0.05)
    tenfold = Counted.of_members(10 * one_hot)
    assert tenfold.design_effect == pytest.approx(10, rel=0.05)
    assert tenfold.effective == pytest.approx(4000, rel=0.05)


def test_too_little_is_said() -> None:
    bounds = {"propensity": BOUNDS["propensity"]}
    many, few, none = (Counted(n * np.eye(15, dtype=np.int64)[3]) for n in (1000, 7, 0))
    for log, verdict in ((few, "too few"), (none, "not logged"), (many, "steady")):
        (compared,) = compare(bounds, {"propensity": many}, {"propensity": log})
        assert (compared.verdict, compared.words()) == (verdict, "")
    (moved,) = compare(bounds, {"propensity": many}, {"propensity": Counted(300 * np.eye(15, dtype=np.int64)[9])})
    assert moved.words() == "propensity: 100% above 0.105 (reference 0%); 0% up to 0.105 (reference 100%)"
