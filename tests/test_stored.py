"""Files of shards, runs, bundles and scores that are damaged, missing or exchanged: refused by name, or made again."""

import ast
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

import keyart
from datamodules.shards.shard import EMBEDDING, Shards
from foundation.errors import UserError
from tests.conftest import TINY_EMBEDDING, TINY_FIT
from tests.test_architecture import ROOT, modules
from train.checkpoint import BEST_WEIGHTS, load_best, save_best
from train.embed import embed, load_embedding
from train.embed_config import EMBEDDING_RECORD, ENCODER, VECTORS
from train.fit import fit
from train.run import CONFIG, METRICS, VOCABULARIES, WEIGHTS, Run

DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "overwritten": lambda path: path.write_bytes(b"\xff\xfe\x00 not what it was"),
    "missing": Path.unlink,
    "list": lambda path: path.write_text("[1, 2]", encoding="utf-8"),
}


def refused(words: list[str], path: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command refuses a file, or the folder that lacks it."""
    assert keyart.main(words) == 1
    said = capfd.readouterr().err.splitlines()
    assert said[-1].startswith(f"keyart {words[0]}: {path}") or said[-1].startswith(
        f"keyart {words[0]}: {path.parent}: "
    )
    assert "defect" not in said[-1]
    assert len(said) == 1
    return said[-1]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [CONFIG, METRICS, VOCABULARIES, WEIGHTS, "context.json", EMBEDDING_RECORD, ENCODER])
def test_a_damaged_run_is_not_exported(
    run: Path, tmp_path: Path, name: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    DAMAGES[damage](copied / name)
    refused(["export", str(copied), str(tmp_path / "bundle")], copied / name, capfd)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_config_that_is_cut_anywhere_is_refused(run: Path, tmp_path: Path) -> None:
    """Half a YAML file is mostly YAML, and what it lacks would be read as defaults."""
    copied = shutil.copytree(run, tmp_path / "run")
    text = (run / CONFIG).read_text(encoding="utf-8")
    for end in range(0, text.index("\n  seed:"), 97):
        (copied / CONFIG).write_text(text[:end], encoding="utf-8")
        with pytest.raises(UserError, match=CONFIG):
            Run.open(copied)


def test_files_of_another_run_are_refused(shards: Path, run: Path, tmp_path: Path) -> None:
    """They have the shapes of its own."""
    other = tmp_path / "other"
    fit(shards, other, replace(TINY_FIT, epochs=1, seed=1))
    for name, said in (
        (WEIGHTS, "are the weights of another run"),
        (VOCABULARIES, "is missing or is not the file of this run"),
    ):
        copied = shutil.copytree(run, tmp_path / name)
        shutil.copy(other / name, copied / name)
        if name == WEIGHTS:
            with pytest.raises(UserError, match=f"{copied / name}: is missing or is not the file of this run"):
                Run.open(copied)
            without_digests(copied)
        if name == VOCABULARIES:
            (copied / name).write_text((run / name).read_text(encoding="utf-8").replace("a", "b"), encoding="utf-8")
        with pytest.raises(UserError, match=f"{copied / name}: {said}"):
            Run.open(copied)


def without_digests(run: Path) -> None:
    """As versions wrote it that kept none."""
    config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    (run / CONFIG).write_text(yaml.safe_dump({n: v for n, v in config.items() if n != "files"}), encoding="utf-8")


def flip(path: Path) -> None:
    """Change one bit in the middle of a file; a second call changes it back."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_one_bit_in_any_file_is_named(shards: Path, run: Path, tmp_path: Path) -> None:
    """Its size and its end stay as they were. The records that hold the digests are the exception."""
    copied, trained = shutil.copytree(shards, tmp_path / "shards"), shutil.copytree(run, tmp_path / "run")
    records = {"manifest.json", f"{EMBEDDING}/{EMBEDDING_RECORD}"}
    names = {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()} - records
    assert {"vocabularies.json", "context.json", "shard-00000/play_title.npy", f"{EMBEDDING}/{VECTORS}"} <= names
    for name in sorted(names):
        flip(copied / name)
        with pytest.raises(UserError, match=re.escape(str(copied / name))):
            load_embedding(copied) if name.startswith(EMBEDDING) else Shards.open(copied).verify()
        flip(copied / name)
    Shards.open(copied).verify()
    for name in (METRICS, WEIGHTS, VOCABULARIES, "context.json", ENCODER, EMBEDDING_RECORD):
        flip(trained / name)
        with pytest.raises(UserError, match=re.escape(str(trained / name))):
            Run.open(trained)
        flip(trained / name)
    assert Run.open(trained).metrics == Run.open(run).metrics


def test_shards_are_verified_before_training(shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    copied = shutil.copytree(shards, tmp_path / "shards")
    flip(copied / "shard-00000/play_title.npy")
    said = refused(["fit", str(copied), str(tmp_path / "run")], copied / "shard-00000/play_title.npy", capfd)
    assert said.endswith("is missing or is not the file that keyart prepare wrote. Run keyart prepare again.")
    assert not (tmp_path / "run").exists()


def test_the_best_weights_are_whole_or_refused(tmp_path: Path) -> None:
    """At any bit: the header's too, in which names, types and shapes are."""
    weights = {"scale": torch.tensor(2.0), "a.weight": torch.arange(6.0).reshape(2, 3), "rows": torch.arange(3)}
    save_best(tmp_path, weights)
    for name, values in load_best(tmp_path).items():
        torch.testing.assert_close(values, weights[name], rtol=0, atol=0)
    whole = (tmp_path / BEST_WEIGHTS).read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        (tmp_path / BEST_WEIGHTS).write_bytes(damaged)
        try:
            read = load_best(tmp_path)
        except UserError as error:
            assert str(error).startswith(f"{tmp_path / BEST_WEIGHTS}: ")  # noqa: PT017
        else:
            assert all(torch.equal(read[name], values) for name, values in weights.items()), at


def test_runs_that_do_not_say_whose_their_files_are_can_be_read(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    without_digests(copied)
    assert Run.open(copied).vocabularies == Run.open(run).vocabularies
    (line,) = capfd.readouterr().err.splitlines()  # of the copy alone
    assert line.startswith(f"warning: {copied / CONFIG}: an older keyart wrote it, without fingerprints")
    assert line.endswith("cannot be verified. Train again with keyart fit.")


def test_an_embedding_without_fingerprints_is_used_and_named(
    simulated: Path, few_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As versions before fingerprints wrote it: embed and fit say so in one line, with the remedy, and go on."""
    copied = shutil.copytree(few_shards, tmp_path / "shards")
    path = copied / EMBEDDING / EMBEDDING_RECORD
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["files"]
    path.write_text(json.dumps(record), encoding="utf-8")
    said = f"warning: {path}: an older keyart wrote it, without fingerprints of the files beside it"
    console = Console(stderr=True, width=1000)
    embed(simulated, copied, TINY_EMBEDDING, console)
    fit(copied, tmp_path / "run", replace(TINY_FIT, epochs=1), stop_after=1, console=console)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(said)
        assert "Remove its folder and run the command that wrote it again" in line


SHARDS_FILES = (
    "manifest.json",
    "vocabularies.json",
    "context.json",
    "catalogue/title_year.npy",
    f"{EMBEDDING}/{VECTORS}",
)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*SHARDS_FILES, f"{EMBEDDING}/{EMBEDDING_RECORD}", f"{EMBEDDING}/{ENCODER}"])
def test_damaged_shards_are_not_trained_on(
    shards: Path, tmp_path: Path, name: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(shards, tmp_path / "shards")
    DAMAGES[damage](copied / name)
    words = ["fit", str(copied), str(tmp_path / "run"), "--batch", "512", "--epochs", "1"]
    if (name, damage) == (f"{EMBEDDING}/{EMBEDDING_RECORD}", "missing"):
        assert keyart.main(words) == 1
        assert "artworks are not embedded yet" in capfd.readouterr().err
    else:
        refused(words, copied / name, capfd)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [VECTORS, ENCODER, EMBEDDING_RECORD])
def test_a_damaged_embedding_is_made_again(
    simulated: Path, few_shards: Path, tmp_path: Path, name: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """What fit advises helps: the call says that it is needed, and ends with the same numbers."""
    copied = shutil.copytree(few_shards, tmp_path / "shards")
    DAMAGES[damage](copied / EMBEDDING / name)
    if (name, damage) == (EMBEDDING_RECORD, "missing"):
        with pytest.raises(UserError, match=rf"{EMBEDDING}: holds files, but no {EMBEDDING_RECORD}"):
            embed(simulated, copied, TINY_EMBEDDING)
        return
    embed(simulated, copied, TINY_EMBEDDING, Console(stderr=True, width=1000))
    assert f"{name} is missing or damaged" in capfd.readouterr().err
    assert (copied / EMBEDDING / VECTORS).read_bytes() == (few_shards / EMBEDDING / VECTORS).read_bytes()
    assert load_embedding(copied)[1] == load_embedding(few_shards)[1]


@pytest.mark.parametrize("damage", ["cut", "empty", "overwritten", "list"])
def test_damaged_reasons_are_named(
    service: Path, scores: Path, tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(scores, tmp_path / "scores")
    DAMAGES[damage](copied / "_reasons.json")
    assert keyart.main(["value", str(service), str(copied), str(tmp_path / "value")]) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"keyart value: {copied / '_reasons.json'}: cannot be read")
    assert said.endswith("Score the dataset again.")


def test_manifests_that_lack_a_field(shards: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(shards, tmp_path / "shards")
    manifest = json.loads((shards / "manifest.json").read_text(encoding="utf-8"))
    del manifest["splits"]
    (copied / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest.json: lacks 'splits'. Run keyart prepare again."):
        Shards.open(copied)


READERS = ("np.load", "load_file", "safe_open", "yaml.safe_load", "json.loads")


def test_whatever_reads_a_file_names_it_where_it_is_damaged() -> None:
    """Every call of a reader is inside `reading` or handles its exceptions; a bundle's files are checked when it is opened."""
    bare = []
    for name, path in modules().items():
        if name.split(".")[0] in ("serving", "benchmarks", "export"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        guarded = {
            id(call)
            for node in ast.walk(tree)
            if isinstance(node, ast.Try)
            or (isinstance(node, ast.With) and any("reading(" in ast.unparse(item) for item in node.items))
            for call in ast.walk(node)
        }
        for node in ast.walk(tree):
            read = isinstance(node, ast.Call) and ast.unparse(node.func) in READERS and id(node) not in guarded
            if read and ("json.loads" not in ast.unparse(node) or "read" in ast.unparse(node)):
                bare.append(f"{path.relative_to(ROOT)}: {ast.unparse(node)}")
    assert bare == []
