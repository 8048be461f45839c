"""A bundle says whose its weights are and what its files hold, and keeps the results of evaluation: all of them, or none."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

import foundation.atomic
import keyart
import serving.bundle.record
from evaluation.evaluate import evaluate
from evaluation.record.records import Report
from foundation.errors import UserError
from pipeline import evaluation_of, run_pipeline
from serving.bundle.bundle import BUNDLE_FILE, CARD, Bundle
from serving.bundle.card import licence_terms
from serving.bundle.contents import TENSOR_DESCRIPTIONS
from serving.bundle.hard_links import file_checksums
from serving.bundle.metadata import BUNDLE_VERSION, BundleRecord
from serving.bundle.record import record_verdict
from serving.bundle.seal import write_record
from serving.bundle.verdict import NOT_EVALUATED
from serving.bundle.verify import verify
from serving.scoring.score import scores_fingerprint
from tests.conftest import TINY_EMBEDDING
from tests.test_explain import request_of
from train.config import FitConfig
from train.embed import EMBEDDING_RECORD, embed
from train.recipe import Recipe


@pytest.fixture(scope="module")
def report(service: Path, bundle: Path, scores: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    since = Bundle.open(bundle).test_from
    return evaluate(service, scores, tmp_path_factory.mktemp("judged") / "report", since=since)


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle to write into."""
    return shutil.copytree(bundle, tmp_path / "bundle")


def record_of(folder: Path) -> dict[str, Any]:
    """The record as JSON."""
    return json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))


def test_the_verdict_is_kept_and_nothing_else_changes(
    own: Path, report: Report, service: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, sealed, old = Bundle.open(own), file_checksums(own), record_of(own)
    assert NOT_EVALUATED in (own / CARD).read_text("utf-8")
    assert record_verdict(own, evaluation_of(report), Bundle.open(own))
    after, now = Bundle.open(own), file_checksums(own)
    assert {name for name in now if now[name] != sealed[name]} == {BUNDLE_FILE, CARD}
    assert now.keys() == sealed.keys()
    new = record_of(own)
    kept = new.pop("evaluation")
    assert new.pop("sha256") | {CARD: ""} == old.pop("sha256") | {CARD: ""}
    assert new.pop("digest") == after.digest != old.pop("digest")
    assert new == old
    assert kept["policy"] == "keyart greedy"
    assert kept["verdict"] == report["value"]["verdict"]
    assert (kept["metrics"]["log_loss"], kept["captured_lift"]) == (
        report["metrics"]["log_loss"],
        report["captured_lift"],
    )
    card = (own / CARD).read_text("utf-8")
    assert NOT_EVALUATED not in card
    assert f"**{kept['verdict']['verdict']}**: {kept['verdict']['reason']}" in card
    assert f"captures {kept['captured_lift']:.2f} of the possible lift" in card
    assert keyart.main(["verify", str(own)]) == 0
    assert f"{len(after.metadata['sha256'])} files unchanged" in capfd.readouterr().out
    policy, since = "greedy", after.test_from
    same = [scores_fingerprint(bundle, service, policy, since) for bundle in (before, after)]
    assert same[0] == same[1], "a bundle's recorded verdict makes no scores stale"


def test_lifts_are_those_of_the_report(own: Path, report: Report) -> None:
    record_verdict(own, evaluation_of(report), Bundle.open(own))
    rows = {(r["policy"], r["reward"]): r for r in record_of(own)["evaluation"]["per_1000"]}
    difference_of = {
        (d["policy"], d["base"], d["reward"], d["estimator"]): d
        for d in json.loads(json.dumps(report["value"]["differences"]))
    }
    estimator = report["value"]["verdict"]["estimator"]
    scored, lift = rows["scored", "clicked"], difference_of["scored", "uniform", "clicked", estimator]
    assert [scored["above_uniform"][n] for n in ("value", "low", "high")] == pytest.approx(
        [1000 * lift[n] for n in ("value", "low", "high")]
    )
    # which the report has the other way about: uniform above it
    fixed, lift = rows["best_fixed", "clicked"], difference_of["uniform", "best_fixed", "clicked", estimator]
    assert [fixed["above_uniform"][n] for n in ("value", "low", "high")] == pytest.approx(
        [-1000 * lift[n] for n in ("value", "high", "low")]
    )
    assert fixed["above_uniform"]["low"] < fixed["above_uniform"]["value"] < fixed["above_uniform"]["high"]
    assert rows["uniform", "clicked"]["above_uniform"] is None
    true = {r["policy"]: r["true_value"] or 0.0 for r in report["policies"] if r["reward"] == "clicked"}
    assert scored["true"] == pytest.approx(1000 * true["scored"])


def test_what_is_kept_already_is_left_alone(own: Path, report: Report) -> None:
    assert record_verdict(own, evaluation_of(report), Bundle.open(own))
    before = {path: path.stat().st_ino for path in own.rglob("*")}
    assert not record_verdict(own, json.loads(json.dumps(evaluation_of(report))), Bundle.open(own))
    assert {path: path.stat().st_ino for path in own.rglob("*")} == before
    assert record_verdict(own, {**evaluation_of(report), "policy": "keyart epsilon:0.1"}, Bundle.open(own))
    assert record_of(own)["evaluation"]["policy"] == "keyart epsilon:0.1"
    assert not list(own.parent.glob(".*")), "nothing beside it is left over"


def test_a_kill_leaves_the_old_bundle_whole(own: Path, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = file_checksums(own)

    def killed(*words: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # the card is written, the record is not
        patched.setattr(serving.bundle.record, "sha256", killed)
        with pytest.raises(KeyboardInterrupt):
            record_verdict(own, evaluation_of(report), Bundle.open(own))
    assert file_checksums(own) == sealed
    rename = os.rename

    def between(old: Path, new: Path) -> None:  # the old bundle is moved aside, the new one not yet renamed
        if Path(old).name.endswith(".partial"):
            raise KeyboardInterrupt
        rename(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(foundation.atomic, "exchanged", lambda one, other: False)
        patched.setattr(os, "rename", between)
        with pytest.raises(KeyboardInterrupt):
            record_verdict(own, evaluation_of(report), Bundle.open(own))
    assert file_checksums(own) == sealed
    assert [path.name for path in own.parent.iterdir()] == [own.name]
    verify(own)


def test_a_kill_between_two_renames_is_put_back(own: Path, report: Report) -> None:
    """What kill -9 leaves: the old bundle moved aside, and no new one."""
    opened = Bundle.open(own)
    own.rename(own.with_name(f".{own.name}.replaced"))
    assert record_verdict(own, evaluation_of(report), opened)
    verify(own)


def test_a_verdict_is_kept_by_what_was_scored_alone(own: Path, report: Report) -> None:
    scored = Bundle.open(own)
    other = replace(scored, metadata=scored.metadata | {"sha256": scored.metadata["sha256"] | {"rank.onnx": "another"}})
    sealed = file_checksums(own)
    with pytest.raises(UserError, match="changed since it was scored"):
        record_verdict(own, evaluation_of(report), other)
    assert file_checksums(own) == sealed


def test_a_link_to_a_bundle_stays_one(own: Path, report: Report) -> None:
    current = own.with_name("current")
    current.symlink_to(own.name)
    assert record_verdict(current, evaluation_of(report), Bundle.open(current))
    assert current.is_symlink()
    assert record_of(own)["evaluation"]


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"schema_version": BUNDLE_VERSION - 1}, f"schema version {BUNDLE_VERSION - 1}, and this keyart reads"),
        (None, "cannot be read"),
        ([], "holds no object with fields"),
    ],
)
def test_a_bundle_of_another_version_is_refused_by_name(
    own: Path, capfd: pytest.CaptureFixture[str], record: dict | list | None, named: str
) -> None:
    path = own / BUNDLE_FILE
    changed = (
        "{"
        if record is None
        else json.dumps(json.loads(path.read_text(encoding="utf-8")) | record if record else record)
    )
    path.write_text(changed, encoding="utf-8")
    assert keyart.main(["verify", str(own)]) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"keyart verify: {path}: ")
    assert named in error
    assert error.endswith("Export the run again.\n")
    assert error.count("\n") == 1


def test_evaluate_records_where_it_is_asked_to(
    own: Path, run: Path, service: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words, sealed = [str(service), str(tmp_path / "report")], file_checksums(own)
    assert keyart.main(["evaluate", str(run), *words, "--record"]) == 1
    error = capfd.readouterr().err
    assert f"keyart evaluate: {run}: is not a bundle; only a bundle records a verdict." in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "report").exists()
    assert keyart.main(["evaluate", str(own), *words]) == 0
    assert file_checksums(own) == sealed
    assert keyart.main(["evaluate", str(own), *words, "--record"]) == 0
    kept = record_of(own)["evaluation"]
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert (kept["since"], kept["until"], kept["dataset"]) == (report["since"], report["until"], report["dataset"])


@pytest.mark.slow
def test_the_whole_way_records_and_then_rests(service: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        embed=replace(TINY_EMBEDDING, views=64), fit=FitConfig(epochs=1, validations_per_epoch=1, batch=512)
    )
    out, console = tmp_path / "out", Console(quiet=True)
    run_pipeline(service, out, recipe, console)
    opened = Bundle.open(out / "bundle")
    kept = record_of(out / "bundle")["evaluation"]
    assert kept["policy"] == "keyart greedy"
    assert kept["onnx_torch_largest_difference"] < 1e-4
    assert kept["dataset"] == record_of(out / "bundle")["log_fingerprint"]
    assert record_of(out / "bundle")["log_fingerprint"] in opened.metadata["licences"]["image_encoder"]
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    run_pipeline(service, out, recipe, console)
    after = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    assert after == before, "no file is written again"
    # cut short after the report and before its verdict was kept
    metadata = record_of(out / "bundle")
    del metadata["evaluation"]
    write_record(out / "bundle", cast(BundleRecord, metadata))
    run_pipeline(service, out, recipe, console)
    assert record_of(out / "bundle")["evaluation"] == kept


def test_licences_follow_where_the_encoder_came_from(service: Path, shards: Path, tmp_path: Path) -> None:
    def licence_of(image_encoder: str) -> str:
        return licence_terms({"log_fingerprint": "abc", "image_encoder": image_encoder})["image_encoder"]

    here = json.loads((shards / "embedding" / EMBEDDING_RECORD).read_text(encoding="utf-8"))["weights"]
    assert "drawn at random and fitted to the catalogue of log abc: yours" in licence_of(here)
    assert "trained on the catalogue of log abc: yours" in licence_of("resnet18, trained here on 60 images")
    assert "yours" in licence_of(f"{here}, fine-tuned on clicks")
    hub = licence_of("resnet18, torchvision's pretrained weights")
    assert "BSD-3-Clause" in hub
    assert "ImageNet" in hub
    own = tmp_path / "shards"
    shutil.copytree(shards, own)
    shutil.rmtree(own / "embedding")
    # an encoder handed on: whose it is was said where it came from
    handed = embed(service, own, replace(TINY_EMBEDDING, weights=str(shards / "embedding")))["weights"]
    assert here in handed
    assert "yours" in licence_of(handed)
    assert "as the run says" in licence_of("resnet18 and projection of the run /somewhere/run")
    assert "owner of the file" in licence_of("resnet18, weights of mine.pth")
    assert "not recorded" in licence_terms({})["image_encoder"]


def test_every_file_is_described_and_every_tensor_as_it_is(bundle: Path) -> None:
    metadata, card = record_of(bundle), (bundle / CARD).read_text("utf-8")
    assert set(metadata["files"]) == {path.name for path in bundle.iterdir()} - {BUNDLE_FILE, CARD}
    assert all(described["what"] for described in metadata["files"].values())
    axes: dict[str, int] = {}
    for name in TENSOR_DESCRIPTIONS:
        tensors = load_file(bundle / name)
        described = metadata["files"][name]["tensors"]
        assert described.keys() == tensors.keys()
        for tensor, row in described.items():
            values = tensors[tensor]
            assert (row["dtype"], row["shape"]) == (str(values.dtype), list(values.shape))
            letters = row["axes"].split()
            assert len(letters) == values.ndim, tensor
            for letter, length in zip(letters, values.shape, strict=True):
                assert axes.setdefault(letter, length) == length, f"{tensor}: {letter} is one number everywhere"
                assert not letter.isdigit() or int(letter) == length
            assert f"| {tensor} | {row['dtype']} |" in card
    assert axes["F"] == axes["D"] + 3
    assert axes["D+G"] == axes["C"] - axes["D"]
    assert (axes["I"], axes["A"]) == tuple(len(Bundle.open(bundle).vocabularies[n]) for n in ("titles", "artworks"))


def test_what_the_record_says_of_the_tables_is_enough(bundle: Path) -> None:
    """Appeal by the sentence in `files` alone."""
    opened = Bundle.open(bundle)
    request, table = request_of(opened), load_file(bundle / "explain.safetensors")
    outputs, title = opened.rank(request), request["title"]
    artwork_query, content_query = outputs["artwork_query"], outputs["content_query"]
    appeal = np.einsum("nd,nkd->nk", artwork_query, table["artwork_vector"][request["artworks"]])
    appeal += np.einsum("nc,nkc->nk", content_query, table["artwork_content"][request["artworks"]])
    appeal += table["artwork_bias"][request["artworks"]]
    mean = (artwork_query * table["mean_vector"][title]).sum(1) + (content_query * table["mean_content"][title]).sum(1)
    np.testing.assert_allclose(appeal - (mean + table["mean_bias"][title])[:, None], outputs["appeal"], atol=1e-5)
