"""Preparing: histories hold exactly the plays strictly before, whatever the log looks like."""

import hashlib
import json
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from random_logs import START, TITLES, RandomLog

import keyart
from datamodules.prepare.assemble import _history_ends, member_time_order
from datamodules.prepare.prepare import PrepareConfig, prepare
from datamodules.shards.shard import TEST, TRAIN, VALIDATION, Shards
from foundation.errors import UserError

MEMBERS = ["a", "b", "\N{GRINNING FACE}", "d'e\nf"]


def splits_apart(log: RandomLog) -> bool:
    """Whether each of the three periods has an impression."""
    times = sorted(at for *_, at, _ in log.impressions)
    return times[0] < times[int(0.7 * len(times))] < times[int(0.85 * len(times))]


MINUTES = st.integers(0, 12)  # few, so that plays and impressions fall on the same instant
LOGS = st.builds(
    RandomLog,
    st.lists(st.tuples(st.sampled_from(MEMBERS), st.integers(0, 2), MINUTES), max_size=25),
    st.lists(
        st.tuples(st.sampled_from(MEMBERS), st.integers(0, 2), st.integers(0, 3), MINUTES, st.booleans()),
        min_size=4,
        max_size=25,
    ),
).filter(splits_apart)


def histories_and_splits(shards: Shards) -> dict[str, tuple[list[str], int]]:
    """impression id -> (titles of its history in order, split), read from the arrays."""
    names = ["?", *shards.vocabularies["titles"].values]
    stored = {}
    for shard in shards.shards:
        for n, impression in enumerate(shard.ids()):
            rows = shard.play_title[shard.history_start[n] : shard.history_end[n]]
            stored[impression.decode()] = [names[row] for row in rows], int(shard.split[n])
    return stored


@settings(max_examples=25, deadline=None)
@given(log=LOGS, shard_count=st.integers(1, 3))
def test_a_history_is_the_plays_strictly_before(log: RandomLog, shard_count: int) -> None:
    with TemporaryDirectory() as folder:
        log.write(Path(folder) / "log")
        prepare(Path(folder) / "log", Path(folder) / "shards", PrepareConfig(shards=shard_count))
        stored = histories_and_splits(Shards.open(Path(folder) / "shards"))
    assert sorted(stored) == sorted(log.ids)
    for impression, (member, _, _, at, _) in zip(log.ids, log.impressions, strict=True):
        before = sorted((minute, TITLES[t]) for m, t, minute in log.plays if m == member and minute < at)
        assert stored[impression][0] == [title for _, title in before]


@settings(max_examples=10, deadline=None)
@given(log=LOGS, late=st.integers(0, 3))
def test_a_future_play_changes_nothing(log: RandomLog, late: int) -> None:
    last = max(at for *_, at, _ in log.impressions)
    future = RandomLog([*log.plays, (MEMBERS[late], 1, last), (MEMBERS[late], 2, last + 500)], log.impressions)
    with TemporaryDirectory() as folder:
        answers = []
        for name, one in (("log", log), ("future", future)):
            one.write(Path(folder) / name)
            prepare(Path(folder) / name, Path(folder) / f"{name}-shards")
            shards = Shards.open(Path(folder) / f"{name}-shards")
            answers.append(
                (histories_and_splits(shards), {k: v.values[: v.trained] for k, v in shards.vocabularies.items()})
            )
    assert answers[0] == answers[1]


def test_time_decides_the_split(tmp_path: Path) -> None:
    log = RandomLog([], [("a", 0, 0, minute, False) for minute in range(20)])
    log.write(tmp_path / "log")
    manifest = prepare(tmp_path / "log", tmp_path / "shards")
    split = np.array(
        [
            s
            for _, (_, s) in sorted(
                histories_and_splits(Shards.open(tmp_path / "shards")).items(), key=lambda x: int(x[0][1:])
            )
        ]
    )
    assert split.tolist() == [TRAIN] * 14 + [VALIDATION] * 3 + [TEST] * 3
    assert manifest["test_from"] == START.replace(minute=17).isoformat()


def test_a_members_shard_follows_from_the_id_alone(service: Path, tmp_path: Path) -> None:
    prepare(service, tmp_path / "shards", PrepareConfig(shards=7))
    log = pq.read_table(service / "impressions", columns=["impression_id", "member_id"]).to_pylist()
    member = {row["impression_id"]: row["member_id"] for row in log}
    for index, shard in enumerate(Shards.open(tmp_path / "shards").shards):
        members = {member[impression.decode()] for impression in shard.ids()}
        assert {int(hashlib.md5(name.encode()).hexdigest()[:3], 16) % 7 for name in members} == {index}
        assert len(members) == (np.diff(shard.member_impressions) > 0).sum()


def test_vocabularies_are_of_the_training_period(tmp_path: Path) -> None:
    log = RandomLog(
        [("a", 0, 0), ("a", 1, 19)], [("a", 0, 0, minute, False) for minute in range(19)] + [("a", 2, 0, 19, True)]
    )
    log.write(tmp_path / "log")
    prepare(tmp_path / "log", tmp_path / "shards")
    words = Shards.open(tmp_path / "shards").vocabularies
    assert words["titles"].values[: words["titles"].trained] == ["t0"]
    assert sorted(words["titles"].values) == sorted(TITLES)
    assert words["genres"].values == ["Drama"]
    assert words["titles"].row("nobody has heard of it") == 0


def arrays(shards: Shards) -> dict[str, dict[str, object]]:
    """impression id -> everything the arrays say of it, its history's plays included."""
    stored: dict[str, dict[str, object]] = {}
    for shard in shards.shards:
        start = shard.candidate_start
        of_impressions = [f for f in fields(shard) if f.name not in OTHERWISE and len(getattr(shard, f.name))]
        for n, impression in enumerate(shard.ids()):
            columns: dict[str, object] = {f.name: getattr(shard, f.name)[n].item() for f in of_impressions}
            columns |= {name: values[n].item() for name, values in shard.context.items()}
            history = slice(shard.history_start[n], shard.history_end[n])
            for name in ("play_title", "play_artwork", "play_watched", "play_rating", "play_time"):
                columns[name] = getattr(shard, name)[history].tobytes()
            past = slice(shard.past_start[n], shard.past_end[n])
            for name in ("past_artwork", "past_clicked", "past_time"):
                columns[name] = getattr(shard, name)[past].tobytes()
            for name in ("candidate", "candidate_propensity"):
                columns[name] = getattr(shard, name)[start[n] : start[n + 1]].tobytes()
            stored[impression.decode()] = columns
    return stored


OTHERWISE = {
    "context",
    "features",
    "member_plays",
    "member_impressions",
    "impression_id",
    "impression_id_start",
    "history_start",
    "past_start",
    "past_end",
    "history_end",
    "candidate_start",
    "candidate",
    "candidate_propensity",
    "play_title",
    "play_artwork",
    "play_watched",
    "play_rating",
    "play_time",
}
"""Columns that are compared as what they point to, or that are not of impressions."""


def test_a_new_day_has_the_arrays_of_a_whole_preparation(service: Path, tmp_path: Path) -> None:
    times = pq.read_table(service / "impressions", columns=["shown_at"])["shown_at"].sort().to_pylist()
    dates = PrepareConfig(validation_from=str(times[-300]), test_from=str(times[-100]), shards=2)
    prepare(service, tmp_path / "whole", dates)
    since = times[-900]
    words = ["--like", str(tmp_path / "whole"), "--since", since.isoformat(), "--shards", "3"]
    words += ["--validation-from", dates.validation_from, "--test-from", dates.test_from]
    assert keyart.main(["prepare", str(service), str(tmp_path / "day"), *words]) == 0
    full, day = arrays(Shards.open(tmp_path / "whole")), arrays(Shards.open(tmp_path / "day"))
    assert len(day) >= 900
    assert {i: columns for i, columns in full.items() if i in day} == day
    opened = Shards.open(tmp_path / "day")
    assert opened.vocabularies == Shards.open(tmp_path / "whole").vocabularies
    rows = opened.manifest["rows"]["impressions"]
    assert rows["in"] == rows["left_out"] + rows["out"] == len(full)
    assert rows["out"] == len(day)


def test_a_new_day_without_dates_is_split_by_its_own_shares(service: Path, shards: Path, tmp_path: Path) -> None:
    since = datetime.fromisoformat(Shards.open(shards).manifest["test_from"])
    manifest = prepare(service, tmp_path / "day", like=shards, since=since)
    count = manifest["impressions"]
    assert manifest["splits"]["test"]["impressions"] == pytest.approx(0.15 * count, abs=2)
    assert manifest["splits"]["train"]["impressions"] == pytest.approx(0.7 * count, abs=2)
    assert (tmp_path / "day" / "embedding" / "embedding.npy").is_file(), "the encoder comes along"


def test_what_the_catalogue_gained_stands_behind(tmp_path: Path) -> None:
    log = RandomLog([("a", 0, 0)], [("a", 0, 0, minute, minute % 3 == 0) for minute in range(1, 21)])
    log.write(tmp_path / "log")
    prepare(tmp_path / "log", tmp_path / "old")
    before = Shards.open(tmp_path / "old").vocabularies
    titles = pq.read_table(tmp_path / "log" / "titles.parquet")
    more = pa.table({"title_id": ["a new one"], "name": ["New"], "genres": [["Drama"]]}, titles.schema)
    pq.write_table(pa.concat_tables([more, titles]), tmp_path / "log" / "titles.parquet")
    prepare(tmp_path / "log", tmp_path / "new", like=tmp_path / "old", since=START)
    opened = Shards.open(tmp_path / "new")
    assert opened.vocabularies["titles"].values == [*before["titles"].values, "a new one"]
    assert opened.vocabularies["titles"].trained == before["titles"].trained
    row = opened.vocabularies["titles"].row("a new one")
    assert opened.catalogue.title_genres[row].tolist()[0] == before["genres"].row("Drama")


def test_two_dates_split(service: Path, tmp_path: Path) -> None:
    times = pq.read_table(service / "impressions", columns=["shown_at"])["shown_at"].sort().to_pylist()
    config = PrepareConfig(validation_from=times[4000].isoformat(), test_from=times[5000].isoformat())
    manifest = prepare(service, tmp_path / "shards", config)
    late = [sum(times[a] <= t < times[b] for t in times) for a, b in ((0, 4000), (4000, 5000))]
    assert [split["impressions"] for split in manifest["splits"].values()][:2] == late
    assert manifest["test_from"] == times[5000].isoformat()
    assert manifest["config"]["test_from"] == config.test_from


def test_the_counts_are_those_of_the_log(service: Path, tmp_path: Path) -> None:
    manifest = prepare(service, tmp_path / "shards", PrepareConfig(shards=3))
    log = pq.read_table(service / "impressions").to_pandas()
    plays = pq.read_table(service / "plays").to_pandas()
    lengths = [
        int((of_member.played_at.to_numpy() < at).sum())
        for member, shown in log.groupby("member_id")
        for of_member in [plays[plays.member_id == member]]
        for at in shown.shown_at.to_numpy()
    ]
    quantiles = manifest["history_length_quantiles"]
    assert (quantiles["0"], quantiles["1"]) == (min(lengths), max(lengths))
    assert quantiles["0.5"] == np.quantile(lengths, 0.5, method="inverted_cdf")
    assert quantiles["0.99"] == np.quantile(lengths, 0.99, method="inverted_cdf")
    assert manifest["members"] == len(set(log.member_id) | set(plays.member_id))
    even = [np.ptp(p) < 1e-6 and len(p) > 1 for p in log.propensities]
    assert manifest["share_randomised"] == pytest.approx(np.mean(even))
    trained = Shards.open(tmp_path / "shards").vocabularies["titles"]
    known = set(trained.values[: trained.trained])
    assert manifest["unknown"]["play_title"] == int((~plays.title_id.isin(known)).sum())
    late = log.shown_at >= pd.Timestamp(manifest["test_from"])
    split = manifest["splits"]["test"]
    assert (split["impressions"], split["clicks"]) == (int(late.sum()), int(log.clicked[late].sum()))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-(2**62), 2**62) | st.integers(0, 2)), max_size=12))
@example([(0, 2**62), (0, -(2**62))])
def test_order_and_histories_hold_for_times_too_far_apart_to_pack(rows: list[tuple[int, int]]) -> None:
    member = np.array([m for m, _ in rows], np.int64)
    time = np.array([t for _, t in rows], np.int64)
    order = member_time_order(member, time, lambda tied: (tied,))
    assert order.tolist() == sorted(range(len(rows)), key=lambda n: (member[n], time[n], n))
    member, time = member[order], time[order]
    start = np.searchsorted(member, np.arange(5))
    for n, end in enumerate(_history_ends(time // 2, start, time, start)):
        mine = slice(start[member[n]], start[member[n] + 1])
        assert end == start[member[n]] + (time[mine] // 2 < time[n]).sum()


def test_other_versions_and_strangers_are_refused(tmp_path: Path) -> None:
    RandomLog([], [("a", 0, 0, minute, False) for minute in range(8)]).write(tmp_path / "log")
    prepare(tmp_path / "log", tmp_path / "shards")
    path = tmp_path / "shards" / "manifest.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"contract_version": 7}), encoding="utf-8"
    )
    with pytest.raises(UserError, match="contract version 7"):
        Shards.open(tmp_path / "shards")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        Shards.open(tmp_path)
    (tmp_path / "shards" / "shard-00000" / "title.npy").write_bytes(b"cut short")
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"contract_version": 1}), encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"title\.npy: cannot be mapped"):
        _ = Shards.open(tmp_path / "shards").shards
