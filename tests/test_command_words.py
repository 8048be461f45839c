"""Words and recipes that are nearly right end in one line that names them; names in brackets are printed as they are."""

from pathlib import Path

import pytest

import keyart
from configs.terminal import print_next_command
from foundation.errors import describe_fault
from models.image_encoder import make_backbone


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epoch", "3"], "--epoch: unknown option. Did you mean --epochs?"),
        (["--model.widht", "3"], "--model.widht: unknown option. Did you mean --model.width?"),
        (["--validations-per-epochs=3"], "unknown option. Did you mean --validations-per-epoch?"),
        (["--xyzzy"], "--xyzzy: unknown option. keyart fit --help lists all."),
        (["--seed", "-5"], "seed=-5: must lie in 0 .. 4294967295."),
        (["--seed", "1" + "0" * 30], "must lie in 0 .. 4294967295."),
        (["--from", ""], "a path is empty"),
        (["--config", ""], "a path is empty"),
    ],
)
def test_words_that_are_nearly_right(
    words: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert keyart.main(["fit", str(tmp_path), str(tmp_path / "run"), *words]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    "words", [["fit", "", "run"], ["score", "b", "d", ""], ["embed", "", "s"], ["value", "d", "s", ""]]
)
def test_an_unset_variable_of_a_shell_is_not_the_current_folder(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert keyart.main(words) == 1
    assert "a path is empty, as an unset variable of a shell is" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("# país\nfit: {epochs: 1}".encode("latin-1"), "is not text in UTF-8 (byte 4)"),
        ("fit: {epochs: 1}".encode("utf-16"), "is not text in UTF-8 (byte 0)"),
        (b"fit: {epochs: 1}\nfit: {epochs: 2}\n", "fit is written twice"),
        (b"fit:\n  epochs: 1\n  seed: 0\n  epochs: 2\n", "epochs is written twice"),
        (b"fit: {seed: -1}", "seed=-1: must lie in 0 .."),
    ],
)
def test_recipes_that_cannot_be_meant(
    content: bytes, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(content)
    for command in (["fit", "shards", "run"], ["pipeline", "dataset", "out"]):
        words = [command[0], *(str(tmp_path / name) for name in command[1:]), "--config", str(recipe)]
        assert keyart.main(words) == 1
        assert said in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_backbone_that_is_no_class() -> None:
    with pytest.raises(ValueError, match=r"backbone=os\.path: is not a class"):
        make_backbone("os.path", 48, 32)


def test_names_in_brackets_are_printed_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    print_next_command("out/[brackets] written", "keyart verify out/[bold]b[/bold]")
    assert capfd.readouterr().out == "out/[brackets] written\nNext: keyart verify out/[bold]b[/bold]\n"


def test_torch_on_a_full_disk() -> None:
    error = RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 999616 vs 999504")
    assert "The disk is full: free some space. Finished work is kept" in describe_fault(error, resumes=True)
