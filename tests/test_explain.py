"""Explanations are exact: what plays, people and context add is what appeal is."""

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.evaluate import evaluate
from serving.bundle.bundle import Bundle
from serving.scoring.explain import reasons, total
from tests.test_evaluation import since_of


def request_of(bundle: Bundle, n: int = 40, plays: int = 20, candidates: int = 6) -> dict[str, np.ndarray]:
    rng, words = np.random.default_rng(3), bundle.vocabularies
    request = {
        "history_title": rng.integers(0, len(words["titles"]), (n, plays)),
        "history_artwork": rng.integers(0, len(words["artworks"]), (n, plays)) * (rng.random((n, plays)) < 0.5),
        "history_watched": rng.random((n, plays)).astype(np.float32),
        "history_length": rng.integers(0, plays + 1, n),
        "country": rng.integers(0, len(words["country"]), n),
        "device": rng.integers(0, len(words["device"]), n),
        "hour": rng.integers(0, 24, n),
        "title": rng.integers(0, len(words["titles"]), n),
        "artworks": rng.integers(0, len(words["artworks"]), (n, candidates)),
    }
    request |= {name: np.zeros(n, np.int64) for name in ("row", "column")}
    request["play_count"] = rng.integers(0, 3000, n)
    request |= {
        "past_artwork": rng.integers(0, len(words["artworks"]), (n, plays)),
        "past_clicked": (rng.random((n, plays)) < 0.2).astype(np.float32),
        "past_hours": np.where(rng.random((n, plays)) < 0.1, np.nan, 500 * rng.random((n, plays))).astype(np.float32),
    }
    request["history_length"][:2] = 0
    request["history_watched"][:, ::3] = np.nan
    return request


def test_the_terms_are_the_appeal(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    request = request_of(opened)
    terms = opened.explain(request)
    assert np.abs(total(terms) - opened.rank(request)["appeal"]).max() < 1e-5
    assert np.abs(terms["of_state"]).max() == 0, "of the mean nothing is left over"
    assert np.abs(terms["by_person"].sum(-1) - terms["by_people"].sum(1)).max() < 1e-5
    assert np.abs(terms["by_play"][:2]).max() == 0, "an empty history adds nothing"
    past = np.arange(request["history_title"].shape[1]) >= request["history_length"][:, None]
    for name in ("by_play", "by_image", "by_people", "by_genres"):
        assert np.abs(terms[name][past]).max() == 0, "what was not played adds nothing"
        assert np.abs(terms[name]).max() > 0


def test_what_attention_reads_is_one_term(attending: Path) -> None:
    """Export holds the sum of the terms to the graph's appeal."""
    bundle = Bundle.open(attending)
    assert "reference" not in bundle.metadata, "made without a validation period"
    assert bundle.metadata["explanations"]["largest_difference"] < 1e-5
    terms = bundle.explain(request_of(bundle))
    assert np.abs(terms["of_state"]).max() > 0


def test_reasons_add_up_and_stand_beside_the_scores(scores: Path, service: Path, bundle: Path, tmp_path: Path) -> None:
    written = json.loads((scores / "_reasons.json").read_text(encoding="utf-8"))
    assert 10 <= len(written) <= 40
    titles = set(Bundle.open(bundle).vocabularies["titles"].values)
    for row in written:
        assert {play["title"] for play in row["plays"]} <= titles
        plays = [sum(play[part] for part in ("learned", "image", "people", "genres")) for play in row["plays"]]
        assert [abs(p) for p in plays] == sorted((abs(p) for p in plays), reverse=True), "the largest first"
    evaluate(service, scores, tmp_path / "report", since=since_of(bundle))
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert page.count("Above the others by") >= 10


def test_reasons_are_those_of_the_choice(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    request = request_of(opened, plays=3)
    mask = np.ones(request["artworks"].shape, bool)
    mask[:, 4:] = False
    chosen = np.full(len(mask), 1)
    appeal = opened.rank(request)["appeal"]
    for n, row in enumerate(reasons(opened, request, mask, chosen)):
        assert row["appeal"] == pytest.approx(appeal[n, 1] - appeal[n, [0, 2, 3]].mean(), abs=1e-5)
        of_plays = sum(play[part] for play in row["plays"] for part in ("learned", "image", "people", "genres"))
        assert of_plays + row["itself"] + row["context"] + row["state"] == pytest.approx(row["appeal"], abs=1e-5)
    with pytest.raises(ValueError, match="two candidates"):
        reasons(opened, request, np.arange(6) < np.ones((len(mask), 1)), chosen)
