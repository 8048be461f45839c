"""The bundle says what the model says, over a whole period and in every corner; and runs without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch

from export.parity import compare
from foundation.errors import UserError
from models.ranking import Ranking
from serving.bundle.bundle import Bundle
from serving.scoring.compare_members import rank_histories
from serving.scoring.policies import ServingPolicy
from serving.scoring.score import score
from tests.test_explain import request_of
from train.run import Run


def test_onnx_is_torch_over_the_test_period(bundle: Path, run: Path, shards: Path, scores: Path) -> None:
    """Two ways that share no code: members stored once in torch, one request per impression in ONNX Runtime."""
    assert compare(Run.open(run).model, shards, scores) < 1e-5
    assert json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["parity"]["largest_difference"] < 1e-5


def test_comparing_finds_a_difference(run: Path, shards: Path, scores: Path) -> None:
    model = Run.open(run).model
    with torch.no_grad():
        model.calibration[0, 1] += 0.5
    assert compare(model, shards, scores) > 1e-3


def test_an_empty_history_is_the_learned_state(bundle: Path, run: Path) -> None:
    opened, model = Bundle.open(bundle), Run.open(run).model
    request = {name: np.zeros(1, np.int64) for name in Ranking(Run.open(run).model).inputs}
    request |= {name: np.zeros((1, 3), np.int64) for name in ("history_title", "history_artwork")}
    request |= {"history_watched": np.full((1, 3), np.nan, np.float32), "artworks": np.arange(1, 5)[None]}
    empty = opened.rank(request)
    # with length 0 nothing in the history counts, whatever the values
    request["history_title"] = np.array([[1, 2, 3]])
    np.testing.assert_array_equal(opened.rank(request)["click_probability"], empty["click_probability"])
    request["history_length"] = np.array([3])
    assert not np.array_equal(opened.rank(request)["click_probability"], empty["click_probability"])
    with torch.no_grad():
        from models.context import zero_context
        from models.two_tower import States

        zero = torch.zeros(1, dtype=torch.int64)
        content = sum(model.content_widths())
        coplay = torch.zeros(1, model.config.coplay.rank)
        state = States(
            model.sequence_tower.history.no_history_D[None], torch.zeros(1, content), coplay, torch.zeros(1, 0)
        )
        nowhere, again = zero_context(model.sizes.context, 1), torch.zeros(1, dtype=torch.bool)
        terms = model.rank(state, nowhere, zero, torch.arange(1, 5)[None], again)
        expected = model.probabilities(terms)[0].numpy()
    np.testing.assert_allclose(empty["click_probability"], expected, atol=1e-6)


def test_unknown_ids_meet_the_unknown_row(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    known = opened.vocabularies["artworks"].values[0]
    one, other = rank_histories(
        opened,
        [["never heard of"], ["nor of this"]],
        ["no such title"] * 2,
        [["no such artwork", known]] * 2,
        device="fridge",
    )
    np.testing.assert_array_equal(one, other)
    assert np.isfinite(one).all()
    assert one[0] != one[1]


def test_unknown_ids_in_a_log_are_scored(service: Path, bundle: Path, tmp_path: Path) -> None:
    """A newer log has titles, artworks, countries and devices that the bundle never saw; its candidates keep their names."""
    newer = tmp_path / "newer"
    shutil.copytree(service, newer)
    titles, artworks = pq.read_table(newer / "titles.parquet"), pq.read_table(newer / "artworks.parquet")
    new_title = titles.slice(0, 1).set_column(
        titles.column_names.index("title_id"), "title_id", pa.array(["brand-new"])
    )
    pq.write_table(pa.concat_tables([titles, new_title.cast(titles.schema)]), newer / "titles.parquet")
    renamed = artworks.slice(0, 2)
    renamed = renamed.set_column(renamed.column_names.index("artwork_id"), "artwork_id", pa.array(["new-a", "new-b"]))
    renamed = renamed.set_column(renamed.column_names.index("title_id"), "title_id", pa.array(["brand-new"] * 2))
    pq.write_table(pa.concat_tables([artworks, renamed.cast(artworks.schema)]), newer / "artworks.parquet")
    for part in (newer / "impressions").glob("*.parquet"):
        part.unlink() if part.name != "part-0.parquet" else None
    path = sorted((newer / "impressions").glob("*.parquet"))[0]
    rows = pq.read_table(path).slice(0, 1).to_pylist()
    rows[0] |= {"title_id": "brand-new", "artwork_id": "new-a", "candidates": ["new-a", "new-b"], "country": "Atlantis"}
    rows[0] |= {"propensities": [0.5, 0.5], "device": "fridge", "impression_id": "newest"}
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    assert score(Bundle.open(bundle), newer, tmp_path / "scores") == 1
    (row,) = pads.dataset(sorted((tmp_path / "scores").glob("*.parquet"))).to_table().to_pylist()
    assert row["impression_id"] == "newest"
    assert row["candidates"] == ["new-a", "new-b"]
    assert all(0 < p < 1 for p in row["click_probability"])
    assert sum(row["policy"]) == 1


def test_scores_follow_the_contract(service: Path, scores: Path, bundle: Path) -> None:
    table = pads.dataset(sorted(scores.glob("*.parquet"))).to_table()
    since = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["test_from"]
    log = pads.dataset(sorted((service / "impressions").glob("*.parquet"))).to_table(
        columns=["impression_id", "candidates", "shown_at"]
    )
    log = {r["impression_id"]: r["candidates"] for r in log.to_pylist() if r["shown_at"].isoformat() >= since}
    assert {r["impression_id"]: r["candidates"] for r in table.to_pylist()} == log
    for row in table.slice(0, 200).to_pylist():
        assert len(row["candidates"]) == len(row["click_probability"]) == len(row["policy"])
        assert row["policy"].index(1.0) == int(np.argmax(row["click_probability"]))


ABSURD_POLICIES = [
    f"{kind}{number}"
    for kind in ("softmax:", "epsilon:", "thompson:", "thompson:10:", "thompson:10:1:")
    for number in ("nan", "inf", "-inf", "-1", "1e300", "-1e300")
] + [f"{kind}{number}" for kind in ("softmax:", "thompson:", "thompson:10:") for number in ("0", "1e-300")]


def test_policies() -> None:
    click = np.array([[0.1, 0.3, 0.2, 0.9], [0.5, 0.5, 0.1, 0.1]], np.float32)
    mask = np.array([[True, True, True, False], [True, True, True, True]])
    np.testing.assert_array_equal(
        ServingPolicy.parse("greedy").probabilities(click, mask), [[0, 1, 0, 0], [1, 0, 0, 0]]
    )
    epsilon = ServingPolicy.parse("epsilon:0.3").probabilities(click, mask)
    np.testing.assert_allclose(epsilon, [[0.1, 0.8, 0.1, 0], [0.775, 0.075, 0.075, 0.075]], atol=1e-6)
    soft = ServingPolicy.parse("softmax:2").probabilities(click, mask)
    odds = np.sqrt(click[0, :3] / (1 - click[0, :3]))
    np.testing.assert_allclose(soft[0], [*(odds / odds.sum()), 0], rtol=1e-5)
    for bad in ("greed", "softmax:0", "softmax:x", "epsilon:1.5", "epsilon", "greedy:1", *ABSURD_POLICIES):
        with pytest.raises(UserError, match=f"policy={bad}"):
            ServingPolicy.parse(bad)


def test_a_changed_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(bundle, broken)
    content = bytearray((broken / "rank_rows.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (broken / "rank_rows.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"rank_rows\.onnx: is missing or is not the file"):
        Bundle.open(broken)
    with pytest.raises(UserError, match=r"is not a bundle: no bundle\.json"):
        Bundle.open(tmp_path)


def test_appeal_is_what_an_artwork_has_above_its_titles_mean(run: Path, bundle: Path) -> None:
    """The click's probability is the model's all the same, and what the artworks share counts as the title's."""
    opened, model = Bundle.open(bundle), Run.open(run).model
    request = request_of(opened, n=25, candidates=40)
    of_title = model.title_artworks_IL[torch.from_numpy(request["title"])].numpy()
    request["artworks"] = of_title[:, : (of_title > 0).sum(1).max()]
    mask = request["artworks"] > 0
    outputs = opened.rank(request)
    mean = (outputs["appeal"] * mask).sum(1) / np.maximum(1, mask.sum(1))
    assert np.abs(mean).max() < 1e-4
    assert np.abs(outputs["appeal"][mask]).max() > 0.1
    scale, shift = model.calibration[0, :2].tolist()
    if not model.calibration[0, 2:].any():  # a line that does not bend: the terms add up to the logit
        p = outputs["click_probability"]
        logit = (np.log(p / (1 - p)) - shift) / scale - outputs["appeal"] - outputs["affinity"][:, None]
        presentation = np.where(mask, logit, np.nan)
        np.testing.assert_allclose(np.nanmax(presentation, 1) - np.nanmin(presentation, 1), 0, atol=1e-3)


def test_scoring_needs_no_torch(service: Path, bundle: Path, tmp_path: Path) -> None:
    """In a process where importing torch, torchvision or Lightning fails."""
    program = f"""
import sys
for name in ("torch", "torchvision", "pytorch_lightning", "lightning"):
    sys.modules[name] = None
from pathlib import Path
from serving.bundle.bundle import Bundle
from serving.scoring.score import score
to = Path({str(tmp_path / "scores")!r})
print(score(Bundle.open(Path({str(bundle)!r})), Path({str(service)!r}), to, policy="thompson:16"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[1], encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 0
