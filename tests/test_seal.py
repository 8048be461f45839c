"""A bundle is what its seal says: every byte of its record, exactly its files, and nothing that leads out of its folder."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyart
from foundation.errors import UserError
from serving.bundle.bundle import BUNDLE_FILE, Bundle
from serving.bundle.metadata import BUNDLE_VERSION, GOLDEN_BOUND
from serving.bundle.seal import digest_of, read_record, text_of


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    """A copy to change, by hard links: changed files are replaced, never written into."""
    return shutil.copytree(bundle, tmp_path / "bundle", copy_function=os.link)


def replace_record(folder: Path, text: bytes) -> None:
    (folder / BUNDLE_FILE).unlink(missing_ok=True)
    (folder / BUNDLE_FILE).write_bytes(text)


def resealed(record: dict[str, Any]) -> bytes:
    """The text of a record by somebody who knows how it is sealed."""
    return text_of(record | {"digest": digest_of(record)}).encode()


def refused(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """What a command says that refuses a bundle, in one line."""
    assert keyart.main(words) == 1
    said = capfd.readouterr().err
    assert said.startswith(f"keyart {words[0]}: ")
    assert said.count("\n") == 1, said
    return said


def changed_bytes(text: bytes, samples: int, rng: np.random.Generator) -> list[bytes]:
    """The text with one byte changed, dropped or doubled, a blank among them."""
    changed = []
    for at in rng.choice(len(text), samples, replace=False).tolist():
        other = bytes([rng.choice([byte for byte in range(256) if byte != text[at]])])
        changed.append(text[:at] + (other, b"", text[at : at + 1] * 2)[at % 3] + text[at + 1 :])
    blank = text.index(b": ") + 1
    return [*changed, text[:blank] + b"\t" + text[blank + 1 :], text + b"\n", text.replace(b": ", b":", 1)]


def require_refused(folder: Path, texts: list[bytes]) -> None:
    for text in texts:
        replace_record(folder, text)
        with pytest.raises(UserError, match=r"^[^\n]*[A-Z][^\n]*\.$"):
            read_record(folder)


def test_a_changed_byte_of_the_record_is_refused(own: Path) -> None:
    text = (own / BUNDLE_FILE).read_bytes()
    require_refused(own, changed_bytes(text, 100, np.random.default_rng(0)))
    replace_record(own, text)
    assert Bundle.open(own).digest == read_record(own)["digest"] == digest_of(json.loads(text))


@pytest.mark.slow
def test_a_thousand_changed_bytes_are_refused(own: Path) -> None:
    require_refused(own, changed_bytes((own / BUNDLE_FILE).read_bytes(), 1000, np.random.default_rng(1)))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: json.dumps(json.loads(text)).encode(),
        lambda text: json.dumps(json.loads(text), indent=1, sort_keys=True).encode(),
        lambda text: text.decode().encode("utf-16"),
        lambda text: text.replace(b"{", b'{\n "history_length": 1,', 1),
        lambda text: text.replace(b'"schema_version": %d' % BUNDLE_VERSION, b'"schema_version": %d.0' % BUNDLE_VERSION),
        lambda text: text.replace(b'"history_span"', b'"history\\u005fspan"'),
        lambda text: re.sub(rb'"digest": "(.)', lambda match: b'"digest": "' + match[1].upper() + b"x", text),
        lambda text: re.sub(rb'"bound": [^,\n]*', b'"bound": NaN', text, count=1),
    ],
)
def test_another_text_of_the_same_record_is_refused(own: Path, change: Any) -> None:
    text = (own / BUNDLE_FILE).read_bytes()
    assert change(text) != text
    require_refused(own, [change(text)])


def test_what_is_no_record_is_refused_in_a_line(own: Path, capfd: pytest.CaptureFixture[str]) -> None:
    deep = b"[" * 100_000
    for text in (b"", b"{", b"[]", b"9", b"null", b"\xff\xfe\x00", b"{" * 100_000, deep, b'{"schema_version": ' + deep):
        replace_record(own, text)
        said = refused(["verify", str(own)], capfd)
        assert str(own / BUNDLE_FILE) in said
        assert said.endswith("Export the run again.\n")


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: part for key, part in record.items() if key != name}


def with_file(record: dict[str, Any], name: Any, checksum: Any = "0" * 64) -> dict[str, Any]:
    return record | {"sha256": {**record["sha256"], name: checksum}}


def with_histogram(record: dict[str, Any], **changed: Any) -> dict[str, Any]:
    histograms = record["reference"]["histograms"]
    histograms |= {"chosen_rank": {**histograms["chosen_rank"], **changed}}
    return record


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda r: r | {"history_length": "many"}, "history_length is 'many', not a whole number"),
        (lambda r: r | {"history_length": True}, "history_length is True, not a whole number"),
        (lambda r: r | {"history_length": 0}, "history_length is 0, below 1"),
        (lambda r: r | {"history_span": None}, "history_span is None, not a whole number"),
        (lambda r: r | {"layout": "flat"}, "layout is not a field that this keyart knows"),
        (lambda r: without(r, "golden"), "golden is missing"),
        (lambda r: r | {"graphs": []}, "graphs is [], not an object"),
        (lambda r: r | {"graphs": {"rank.onnx": {"inputs": [3], "outputs": []}}}, "graphs.rank.onnx.inputs[0] is 3"),
        (
            lambda r: r | {"golden": {**r["golden"], "bound": 1e9}},
            f"golden.bound is 1e+09, and differences above {GOLDEN_BOUND:g}",
        ),
        (lambda r: r | {"golden": {**r["golden"], "bound": True}}, "golden.bound is True, not a number"),
        (lambda r: r | {"golden": {**r["golden"], "cases": 0}}, "golden.cases is below 1"),
        (lambda r: r | {"precisions": [{**r["precisions"][0], "precision": "fp4"}]}, "precisions names 'fp4'"),
        (
            lambda r: (
                r
                | {
                    "precisions": [
                        {"precision": "fp16", "ships": True, "reasons": [], "bounds": {"golden_difference": 9.0}}
                    ]
                }
            ),
            "the bound of the golden cases of fp16 is not in 0 .. 0.004",
        ),
        (
            lambda r: r | {"reference": {**r["reference"], "impressions": 0}},
            "reference.impressions is not in 1 .. ",
        ),
        (lambda r: r | {"reference": {**r["reference"], "histograms": {}}}, "reference.histograms are not those of"),
        (lambda r: with_histogram(r, bounds=[1.0]), "reference.histograms.chosen_rank.bounds are not those"),
        (lambda r: with_histogram(r, counts=[-1] * 11), "counts are not 11 numbers of 0 or more"),
        (lambda r: with_histogram(r, design_effect=0.5), "chosen_rank.design_effect is below 1"),
        (lambda r: with_histogram(r, counts=["1"]), "reference.histograms.chosen_rank.counts[0] is '1'"),
        (lambda r: r | {"sha256": {}}, "has no checksum of rank.onnx"),
        (lambda r: r | {"sha256": None}, "sha256 is None, not an object"),
        (lambda r: with_file(r, "weights.bin", 7), "sha256.weights.bin is 7, not text"),
        (lambda r: with_file(r, "weights.bin", "G" * 64), "not 64 hexadecimal digits"),
        (lambda r: with_file(r, "../secret"), "sha256 names '../secret', which is no path of a file in the bundle"),
        (lambda r: with_file(r, "triton/../../secret"), "which is no path of a file in the bundle"),
        (lambda r: with_file(r, "/etc/passwd"), "which is no path of a file in the bundle"),
        (lambda r: with_file(r, "triton//rank"), "which is no path of a file in the bundle"),
        (lambda r: with_file(r, "C:\\secret"), "which is no path of a file in the bundle"),
        (lambda r: with_file(r, ""), "which is no path of a file in the bundle"),
        (lambda r: with_file(r, BUNDLE_FILE), "which is no path of a file in the bundle"),
        (lambda r: r | {"contract_version": 7}, "contract version 7, and this keyart reads"),
        (lambda r: r | {"schema_version": 8}, f"schema version 8, and this keyart reads version {BUNDLE_VERSION}"),
    ],
)
def test_a_sealed_record_of_no_bundle_is_refused(
    own: Path, edit: Any, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever can seal a record still cannot write one that leads out of the folder, or by which nothing is checked."""
    record = json.loads((own / BUNDLE_FILE).read_text(encoding="utf-8"))
    replace_record(own, resealed(edit(record)))
    words = refused(["verify", str(own)], capfd)
    assert said in words
    assert str(own / BUNDLE_FILE) in words
    assert words.endswith("Export the run again.\n")


def test_a_record_without_a_seal_is_refused(own: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record = json.loads((own / BUNDLE_FILE).read_text(encoding="utf-8"))
    replace_record(own, text_of(without(record, "digest")).encode())
    assert "is not sealed: it has no digest. Export the run again." in refused(["verify", str(own)], capfd)


def test_a_bundle_holds_exactly_the_recorded_files(
    own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def said() -> str:
        return refused(["verify", str(own)], capfd)

    (own / "triton" / "more").mkdir()  # an empty folder is no file
    assert Bundle.open(own)
    (own / "triton" / "more" / "model.onnx").write_bytes(b"x")
    assert "holds 1 files that its bundle.json does not name (first: triton/more/model.onnx). Remove them." in said()
    (own / "triton" / "more" / "model.onnx").unlink()
    (own / "example.py").rename(tmp_path / "example.py")
    assert "example.py: is missing or is not the file that was exported" in said()
    (own / "example.py").symlink_to(tmp_path / "example.py")  # the very bytes, from out of the folder
    assert "example.py: is a link or no file" in said()
    (own / "example.py").unlink()
    os.mkfifo(own / "example.py")
    assert "example.py: is a link or no file" in said()
    (own / "example.py").unlink()
    (tmp_path / "example.py").rename(own / "example.py")
    (own / "triton").rename(tmp_path / "triton")
    (own / "triton").symlink_to(tmp_path / "triton")
    assert "triton: is a link or no file" in said()
    (own / BUNDLE_FILE).rename(tmp_path / BUNDLE_FILE)
    (own / BUNDLE_FILE).mkdir()
    assert f"{own / BUNDLE_FILE}: cannot be read" in said()


def test_verify_expects_a_digest(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    digest = Bundle.open(bundle).digest
    assert keyart.main(["verify", str(bundle), "--expect", digest.upper()]) == 0
    assert f"digest {digest}\n" in capfd.readouterr().out
    other = "0" * 64
    said = refused(["verify", str(bundle), "--expect", other], capfd)
    assert f"is another bundle: its digest is {digest}, and {other} was expected" in said
    assert "is no digest" in refused(["verify", str(bundle), "--expect", digest[:12]], capfd)
