"""Past impressions as history: what they sum up to, what is learned from them, and that every way of serving says the same.

The service of these tests has strong tastes of members' own, which no viewing history tells, and fatigue.
"""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

import keyart
from datamodules.feed.impression_feed import Feed
from datamodules.prepare.prepare import PrepareConfig, prepare
from datamodules.shards.shard import TEST, VALIDATION, Shards
from datamodules.simulator.click_law import EffectSizes
from datamodules.simulator.simulate import simulate
from evaluation.report.artwork_sections import reason_in_words
from export.export import export
from foundation.errors import UserError
from models.own_taste import OwnTaste, Past
from pipeline import embedded_artworks
from serving.bundle.bundle import Bundle
from serving.bundle.refresh import refresh
from serving.bundle.requests import no_past
from serving.http.answers import ArtworkRanker
from serving.http.fields import RequestError
from serving.http.requests import RequestReader
from serving.scoring.explain import total
from serving.scoring.score import score
from serving.scoring.scorer import shard_requests
from tests.conftest import TINY, TINY_EMBEDDING, TINY_FIT, Once
from tests.grown_catalogue import grow
from train.embed import embed
from train.fit import fit
from train.posterior import appeal_features
from train.run import Run
from train.task import impression_states

HOUR = 3_600_000_000
OWN = replace(TINY, members=500, mean_impressions=70, strengths=EffectSizes(own=1.5, fatigue=0.8, mood=0.2, person=0.2))
SECONDS = 1e6


@pytest.fixture(scope="module")
def own_service(once: Once) -> Path:
    return once("own_service", lambda out: simulate(out, OWN))


@pytest.fixture(scope="module")
def own_shards(own_service: Path, once: Once) -> Path:
    def make(out: Path) -> None:
        prepare(own_service, out)
        embed(own_service, out, TINY_EMBEDDING)

    return once("own_shards", make)


@pytest.fixture(scope="module")
def own_run(own_shards: Path, once: Once) -> Path:
    return once("own_run", lambda out: fit(own_shards, out, replace(TINY_FIT, epochs=3)))


@pytest.fixture(scope="module")
def own_bundle(own_run: Path, once: Once) -> Path:
    def make(out: Path) -> None:
        opened = Run.open(own_run)
        export(opened.model, opened.vocabularies, out, origin={}, images=embedded_artworks(own_run)[0])

    return once("own_bundle", make)


@pytest.mark.parametrize("delay", ["1s", "1h", "3d"])
def test_past_impressions_are_those_whose_outcome_was_known(own_service: Path, tmp_path: Path, delay: str) -> None:
    """By the log itself: the member's, shown strictly before, by the delay or more."""
    prepare(own_service, tmp_path / "shards", PrepareConfig(outcome_delay=delay, shards=2))
    log = pq.read_table(own_service / "impressions").to_pylist()
    vocabulary = Shards.open(tmp_path / "shards").vocabularies["artworks"]
    row_of = {value: row for row, value in enumerate(vocabulary.values, 1)}
    of_member: dict[str, list[dict[str, Any]]] = {}
    for row in log:
        of_member.setdefault(row["member_id"], []).append(row)
    by_id = {row["impression_id"]: row for row in log}
    seconds = {"1s": 1, "1h": 3600, "3d": 259_200}[delay]
    checked = 0
    for shard in Shards.open(tmp_path / "shards").shards:
        for n, impression in enumerate(shard.ids()[::40]):
            n *= 40
            row = by_id[impression.decode()]
            past = [
                (other["shown_at"], row_of[other["artwork_id"]], other["clicked"])
                for other in of_member[row["member_id"]]
                if (row["shown_at"] - other["shown_at"]).total_seconds() >= seconds
            ]
            columns = [getattr(shard, name)[shard.past_start[n] : shard.past_end[n]] for name in PAST_COLUMNS]
            times = [datetime.fromtimestamp(time / SECONDS, UTC) for time in columns[0].tolist()]
            assert list(zip(times, columns[1].tolist(), columns[2].tolist(), strict=True)) == sorted(past)
            checked += len(past)
    assert checked > 1000


PAST_COLUMNS = ("past_time", "past_artwork", "past_clicked")


def test_impressions_of_one_moment_are_no_history_of_each_other(own_service: Path, tmp_path: Path) -> None:
    """Even where outcomes are known after a microsecond."""
    dataset = tmp_path / "service"
    shutil.copytree(own_service, dataset)
    for path in (dataset / "impressions").rglob("*.parquet"):
        table = pq.read_table(path)
        hours = table["shown_at"].to_numpy().astype("datetime64[D]").astype("datetime64[us]")
        index = table.schema.get_field_index("shown_at")
        pq.write_table(table.set_column(index, "shown_at", _utc(hours)), path)
    prepare(dataset, tmp_path / "shards", PrepareConfig(outcome_delay="0.000001s"))
    for shard in Shards.open(tmp_path / "shards").shards:
        last = np.where(shard.past_end > shard.past_start, shard.past_time[np.maximum(shard.past_end - 1, 0)], -1)
        assert (last < shard.shown_at).all()
        assert (shard.past_end > shard.past_start).any()


def test_shards_like_others_have_their_outcome_delay(own_service: Path, tmp_path: Path) -> None:
    """What was known of an impression in training is what is known of new ones."""
    prepare(own_service, tmp_path / "old", PrepareConfig(outcome_delay="3d"))
    prepare(own_service, tmp_path / "new", like=tmp_path / "old")
    old, new = (Shards.open(tmp_path / name) for name in ("old", "new"))
    assert new.manifest["outcome_delay"] == "3d"
    for one, other in zip(old.shards, new.shards, strict=True):
        np.testing.assert_array_equal(one.past_end, other.past_end)
    with pytest.raises(UserError, match=r"outcome_delay=2h: .*prepared with 3d.*Leave --outcome-delay out"):
        prepare(own_service, tmp_path / "other", PrepareConfig(outcome_delay="2h"), like=tmp_path / "old")


def _utc(values: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.array(values, pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))


def test_own_taste_is_the_posterior_of_a_linear_model() -> None:
    """Exact where the artworks' covariance is diagonal: one Newton step from the shared query, solved as a whole matrix."""
    taste, rng = OwnTaste(9, 4), np.random.default_rng(0)
    taste.expected_A.fill_(0.3)
    taste.basis_DR.copy_(torch.linalg.qr(torch.from_numpy(rng.normal(size=(4, 4))).float())[0])
    taste.variance_S.copy_(torch.tensor([0.5, 1.0, 2.0, 0.1, 0.7]))
    # all combinations of signs: their second moments are the identity, those with the constant included
    signs_JR = torch.tensor([[a, b, c, d] for a in (-1.0, 1) for b in (-1.0, 1) for c in (-1.0, 1) for d in (-1.0, 1)])
    taste.spread_S.fill_(1.0)
    taste.mean_query_R.copy_(torch.tensor([0.1, 0.2, -0.1, 0.0]))
    clicked_J = torch.from_numpy(rng.random(16) < 0.4).float()
    past = Past(torch.full((1, 16), 3), clicked_J[None], torch.zeros(1, 16))
    features_JS = taste.features(signs_JR @ taste.basis_DR.T)
    evidence = taste.evidence(past, features_JS[None])
    query_ND = torch.from_numpy(rng.normal(size=(1, 4))).float()
    shared_S = torch.cat([query_ND @ taste.basis_DR - taste.mean_query_R, torch.zeros(1, 1)], 1)[0]
    precision_SS = torch.diag(1 / taste.variance_S) + 0.21 * features_JS.T @ features_JS
    gradient_S = features_JS.T @ (clicked_J - 0.3) - 0.21 * features_JS.T @ features_JS @ shared_S
    torch.testing.assert_close(
        taste.components(evidence, query_ND)[0], torch.linalg.solve(precision_SS, gradient_S), atol=1e-5, rtol=1e-5
    )
    none = Past(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0), torch.zeros(1, 0))
    assert not taste.components(taste.evidence(none, torch.zeros(1, 0, 5)), query_ND).any()


def test_what_is_known_of_members_and_what_is_not(own_run: Path, run: Path) -> None:
    """Both terms are metrics where they are, and own taste is small where no member has any."""
    metrics = Run.open(own_run).metrics["past_impressions"]
    losses = metrics["validation_log_loss"]
    assert metrics["taken"] == "own taste and fatigue"
    assert losses["own taste and fatigue"] < losses["own taste"] < losses["none"] - 0.003
    assert metrics["own_taste_std"] > 0.4
    assert 0.2 < metrics["fatigue_of_artwork"] < 1.4, "0.8 by the law"
    without = Run.open(run).metrics["past_impressions"]
    assert without["taken"] == "none" or without["own_taste_std"] < metrics["own_taste_std"] / 2


def test_the_posterior_is_of_the_appeal_that_is_served(own_run: Path, own_shards: Path) -> None:
    """Its features sum up to appeal with own taste, so that Thompson sampling draws around it."""
    model, shards = Run.open(own_run).model, Shards.open(own_shards)
    feed = Feed(shards.shards, VALIDATION, reach=model.config.history.reach, impressions=300, shuffle=False)
    with torch.no_grad():
        for b in feed:
            states = model.states(b.play_title, b.play_artwork, b.play_watched)
            state, artwork = impression_states(model, b, states), model.artworks(b.artworks)
            queries = model.appeal_queries(state, b.context)[:2]
            features_NK = appeal_features(model, *queries, artwork).sum(-1) + artwork.bias
            preferences_N = (model.own_preferences(b.artworks)[:, 0] * model.own_preferences.indicators(b.context)).sum(
                1
            )
            rewatch_N = torch.zeros(len(b.title), dtype=torch.bool)
            appeal_NK = model.rank(state, b.context, b.title, b.artworks, rewatch_N).appeal_NK
            torch.testing.assert_close(features_NK[:, 0] + preferences_N, appeal_NK[:, 0], atol=1e-4, rtol=1e-4)
            assert state.evidence.abs().sum() > 0


def test_choices_follow_own_clicks(own_service: Path, own_bundle: Path, tmp_path: Path) -> None:
    """True values of the test period: by past impressions, and by the same bundle without them."""
    bundle = Bundle.open(own_bundle)
    truth = {
        row["impression_id"]: np.array(row["p_click"])
        for row in pq.read_table(own_service / "truth").select(["impression_id", "p_click"]).to_pylist()
    }
    shards_folder = tmp_path / "shards"
    prepare(own_service, shards_folder, vocabularies=bundle.vocabularies, features=bundle.context)
    values: dict[str, list[float]] = {"with": [], "without": [], "uniform": [], "best": []}
    for shard in Shards.open(shards_folder).shards:
        rows = np.flatnonzero(shard.split == TEST)
        ids, begin = shard.ids()[rows], 0
        for request, mask_NK in shard_requests(shard, bundle.request_lengths, rows):
            answers = {
                "with": bundle.rank(request)["click_probability"],
                "without": bundle.rank(request | no_past(len(mask_NK)))["click_probability"],
            }
            for n, mask_K in enumerate(mask_NK):
                p_K = truth[ids[begin + n].decode()]
                for name, click_NK in answers.items():
                    values[name].append(float(p_K[click_NK[n, mask_K].argmax()]))
                values["uniform"].append(float(p_K.mean()))
                values["best"].append(float(p_K.max()))
            begin += len(mask_NK)
    mean = {name: np.mean(of_all) for name, of_all in values.items()}
    captured = {name: (mean[name] - mean["uniform"]) / (mean["best"] - mean["uniform"]) for name in ("with", "without")}
    assert captured["with"] > captured["without"] + 0.1, captured


def requests_of(bundle: Bundle, shards: Path, rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Those of some of the newest impressions, which have a past."""
    shard = Shards.open(shards).shards[0]
    at = np.flatnonzero((shard.split == TEST) & (shard.past_end - shard.past_start > 8))[:rows]
    return next(shard_requests(shard, bundle.request_lengths, at))


def test_a_kept_vector_is_updated(own_bundle: Path, own_shards: Path) -> None:
    """update.onnx, one impression after the other from none, gives what member.onnx gives of all at once."""
    bundle = Bundle.open(own_bundle)
    request, _ = requests_of(bundle, own_shards, 20)
    member, update = (ort.InferenceSession(own_bundle / f"{name}.onnx") for name in ("member", "update"))
    artworks = np.array(["", *bundle.vocabularies["artworks"].values], object)
    titles = np.array(["", *bundle.vocabularies["titles"].values], object)
    history = {name: values for name, values in request.items() if name.startswith(("history_", "past_"))}
    history |= {name: artworks[history[name]] for name in ("history_artwork", "past_artwork")}
    history["history_title"] = titles[history["history_title"]]

    def encoded(given: dict[str, np.ndarray]) -> np.ndarray:
        read = {part.name: given[part.name] for part in member.get_inputs()}
        return np.asarray(member.run(["member"], read)[0])

    nothing = no_past(20)
    vector = encoded(history | nothing | {"past_artwork": nothing["past_artwork"].astype(object)})
    start = vector.copy()
    for j in range(history["past_artwork"].shape[1]):
        event = {"member": vector, "artwork": history["past_artwork"][:, j], "clicked": history["past_clicked"][:, j]}
        vector = np.asarray(update.run(["updated"], event)[0])
    np.testing.assert_allclose(vector, encoded(history), atol=1e-4)
    assert np.abs(vector - start).max() > 0.1


def test_terms_add_up_and_name_own_clicks(own_bundle: Path, own_shards: Path) -> None:
    bundle = Bundle.open(own_bundle)
    request, mask_NK = requests_of(bundle, own_shards, 30)
    terms = bundle.explain(request)
    assert np.abs(total(terms) - bundle.rank(request)["appeal"])[mask_NK].max() < 1e-4
    assert np.abs(terms["by_past"]).max() > 0.05
    assert (terms["by_fatigue"][mask_NK] <= 0).all()
    assert terms["by_fatigue"].min() < -0.1
    unknown = request | {"past_artwork": np.zeros_like(request["past_artwork"])}
    alone = request | no_past(len(mask_NK))
    for name, values in bundle.rank(unknown).items():
        np.testing.assert_allclose(values, bundle.rank(alone)[name], atol=1e-6, err_msg="unknown artworks tell nothing")


def test_later_scores_know_what_came_before(own_service: Path, own_bundle: Path, tmp_path: Path) -> None:
    """With `since`, past impressions from before it are history all the same."""
    bundle = Bundle.open(own_bundle)
    score(bundle, own_service, tmp_path / "all")
    times = pq.read_table(own_service / "impressions", columns=["shown_at"])["shown_at"].sort().to_pylist()
    score(bundle, own_service, tmp_path / "new", since=times[-300])

    def probabilities(folder: Path) -> dict[str, list[float]]:
        table = pq.read_table(folder, columns=["impression_id", "click_probability"])
        return {row["impression_id"]: row["click_probability"] for row in table.to_pylist()}

    every, new = probabilities(tmp_path / "all"), probabilities(tmp_path / "new")
    assert len(new) >= 300
    for impression, values in new.items():
        np.testing.assert_allclose(values, every[impression], atol=1e-6)


def test_a_request_over_http(own_bundle: Path) -> None:
    """Order by time; later and undecided impressions are left out and counted; what is wrong is named."""
    bundle = Bundle.open(own_bundle)
    reader, answers = RequestReader(bundle), ArtworkRanker(bundle)
    owner = bundle.tables["artwork_title"]
    title = int(owner[1])
    names = [bundle.vocabularies["artworks"].values[row - 1] for row in np.flatnonzero(owner == title)]
    others = bundle.vocabularies["artworks"].values[::7]
    body: dict[str, Any] = {"title": bundle.vocabularies["titles"].values[title - 1], "artworks": names}
    now = 1_735_000_000.0
    past = [{"artwork": name, "clicked": i % 3 == 0, "time": now - 86_400 * (i + 1)} for i, name in enumerate(others)]
    past += [{"artwork": names[0], "time": now - 7_200}] * 3

    def answer(**fields: Any) -> dict[str, Any]:
        requests, _ = reader.read(json.dumps(body | {"time": now} | fields).encode(), now)
        return answers.answer(requests)[0]

    alone, known = answer(), answer(impressions=past)
    assert alone["impressions"] == {"read": 0, "left_out": 0}
    assert known["impressions"] == {"read": len(past), "left_out": 0}
    assert known["artworks"] != alone["artworks"]
    assert answer(impressions=past[::-1])["artworks"] == known["artworks"]
    later = [{"artwork": names[0], "clicked": True, "time": now + 5}, {"artwork": names[0], "time": now - 1800}]
    assert answer(impressions=past + later)["impressions"] == {"read": len(past), "left_out": 2}
    assert answer(impressions=past + later)["artworks"] == known["artworks"]
    many = [past[0]] * (bundle.past_length + 88)
    assert answer(impressions=many)["impressions"]["read"] == bundle.past_length
    explanation = answer(impressions=past, explain=True)["explanation"]
    assert {"own_clicks", "fatigue"} <= explanation.keys()
    parts = [explanation[name] for name in ("itself", "context", "state", "own_clicks", "fatigue")]
    assert abs(sum(parts) - explanation["appeal"]) < 1e-4, "without plays"
    words = reason_in_words(explanation)
    assert f"what the member clicked and left before {explanation['own_clicks']:+.2f}" in words
    assert "all other plays +0.00" in words.replace("-0.00", "+0.00")
    for wrong, words in (
        ("x", 'impressions="x"'),
        ([3], "impressions[0]"),
        ([{"clicked": True}], "impressions[0].artwork"),
        ([{"artwork": "a", "clicked": 1}], "impressions[0].clicked=1"),
        ([{"artwork": "a", "time": "soon"}], "impressions[0].time"),
        ([{"artwork": "a", "minutes": 3}], "minutes"),
    ):
        with pytest.raises(RequestError, match=words.replace("[", r"\[").replace("]", r"\]")):
            answer(impressions=wrong)


def test_new_artworks_have_a_past_too(own_service: Path, own_bundle: Path, tmp_path: Path) -> None:
    grow(own_service, tmp_path / "grown")
    folder = shutil.copytree(own_bundle, tmp_path / "bundle")
    before = Bundle.open(folder).tables["artwork_expected"]
    refresh(folder, tmp_path / "grown", Console(quiet=True))
    bundle = Bundle.open(folder)
    after = bundle.tables["artwork_expected"]
    assert len(after) > len(before)
    np.testing.assert_array_equal(after[: len(before)], before)
    assert (after[len(before) :] == before[0]).all(), "the click rate of all"
    request = {
        "past_artwork": np.full((1, 1), len(after) - 1),
        "past_clicked": np.ones((1, 1), np.float32),
        "past_hours": np.ones((1, 1), np.float32),
    }
    session = bundle.member_session
    history = {
        "history_title": np.zeros((1, 1), np.int64),
        "history_artwork": np.zeros((1, 1), np.int64),
        "history_watched": np.full((1, 1), np.nan, np.float32),
        "history_length": np.zeros(1, np.int64),
    }
    vectors = [
        np.asarray(session.run(["member"], {p.name: (history | past)[p.name] for p in session.get_inputs()})[0])
        for past in (request, no_past(1))
    ]
    assert np.abs(vectors[0] - vectors[1]).max() > 0.1


def test_titles_are_recommended_from_plays_alone(own_service: Path, own_bundle: Path, tmp_path: Path) -> None:
    assert keyart.main(["recommend", str(own_bundle), str(own_service), str(tmp_path / "titles"), "--top", "3"]) == 0
    assert pq.read_table(tmp_path / "titles").num_rows > 100
