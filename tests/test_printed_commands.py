"""Commands that keyart prints: whatever a path is called, a shell reads it back as that one path, and it is on one line."""

import ast
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import keyart
from configs.paths import local_path
from datamodules.contract.check import PARTS
from foundation.errors import UserError
from foundation.shell import one_line, shell_command, shell_word
from tests import small_dataset
from tests.test_architecture import ROOT, modules

NAMES = (
    "plain",
    "two words",
    "it's",
    'say "so"',
    "$HOME `id` $(id)",
    "a;b|c&d>e<f",
    "back\\slash",
    "*?[ab]{c,d}~!#",
    "%s 100%",
    "new\nline\ttab",
    "it's\n\\n\x1b[31m red\x07",
    "\u00e9\u6f22\u2028\u202e",
    "not utf-8 \udcff\udce9",
    "-rf",
    "--help",
    "=x",
    "",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_reads_the_path_back(name: str) -> None:
    path = Path(name)
    command = shell_command("printf '%s\\0' --like", path, "END")
    assert command.isprintable(), "on one line"
    printed = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout
    read = [os.fsdecode(word) for word in printed.split(b"\0")]
    assert [read[0], read[2:]] == ["--like", ["END", ""]]
    assert Path(read[1]) == path
    assert not read[1].startswith("-"), "no option"


def test_plain_words_stay_as_they_are() -> None:
    assert shell_command("keyart check", Path("out/data-set_1.parquet")) == "keyart check out/data-set_1.parquet"
    assert shell_word("User Id") == "'User Id'"


@pytest.mark.parametrize("name", ["two words", "it's $(id)", "new\nline", "%s[a]*"])
def test_the_next_command_is_one(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every part of the dataset has a next command; it names the folder."""
    (tmp_path / name).mkdir()
    dataset = small_dataset.write(tmp_path / name)
    assert keyart.main(["check", str(dataset)]) == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("Next: ")]
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line.removeprefix('Next: ')}"], capture_output=True, check=True
    ).stdout.split(b"\0")
    assert [os.fsdecode(word) for word in words[:-1]] == ["keyart", "pipeline", str(dataset), "OUT"]


def test_a_refusal_is_one_line_whatever_the_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("new\nline", "\x1b[31mred", "\u2028"):
        assert keyart.main(["fit", str(tmp_path / name), str(tmp_path / "run")]) == 1
        error = capfd.readouterr().err
        assert error.endswith("\n")
        assert error[:-1].isprintable(), error
    assert one_line("a\nb\x1b\udcff") == "a\\nb\\x1b\\udcff"


def test_urls_are_quoted_in_the_command_that_copies_them() -> None:
    with pytest.raises(UserError, match=re.escape("aws s3 sync 's3://bucket/a b;id' FOLDER")):
        local_path("s3://bucket/a b;id")


COMMAND = re.compile(
    rf"keyart ({'|'.join(keyart.COMMANDS)}) |--[a-z][a-z-]* ?(\w+=)?$| (-k|-d|-dk|sync|-get|-LO) "
    r"|\b(Remove|Move|Copy|Delete|Make) $"
)
"""Text after which a placeholder of a format is a word of a command, or what a user will paste after `rm` and its like."""
UNQUOTED = {
    "next(iter(BACKBONES))",
    "EFFICIENTNET",
    "ENCODER",
    "EXTRA",
    "PACKAGE",
    "ROW_NUMBER",
    "column.name",
    "name",
    "likely",
    "package",
    "label",
    "min(filled)",
    "body",
    "len(given)",
    "shard_count(size)",
    "config.time_format",
    "' ' + ' '.join(words)",
}
"""Expressions whose values keyart itself chooses, or that stand in a sentence that no command is in."""


def test_every_placeholder_of_a_printed_command_is_a_word_of_a_shell() -> None:
    """All sources: text in which a placeholder follows `keyart COMMAND`, or an option, in one sentence."""
    bare, quoted = [], 0
    for path in modules().values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.JoinedStr):
                continue
            sentence = ""
            for part in node.values:
                if isinstance(part, ast.Constant):
                    sentence = re.split(r"[.;:)] ", sentence + str(part.value))[-1]
                    continue
                assert isinstance(part, ast.FormattedValue)
                expression = ast.unparse(part.value)
                if COMMAND.search(sentence) and expression not in UNQUOTED:
                    safe = "shell_word(" in expression or expression.startswith("'' if ")
                    quoted += safe
                    if not safe:
                        bare.append(f"{path.relative_to(ROOT)}:{node.lineno}: {expression}")
                sentence += "X"
    assert bare == []
    assert quoted > 20, "they are seen"


def test_commands_are_never_put_together_as_text_alone() -> None:
    """What ends a command is given as words, of which paths are quoted; templates are filled with words of a shell."""
    tree = ast.parse((ROOT / "keyart.py").read_text(encoding="utf-8"))
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print_next_command", "print_outputs")
    ]
    assert len(calls) > 12
    for call in calls:
        first = 1 if ast.unparse(call.func) == "print_next_command" else 2
        assert not [word for word in call.args[first:] if isinstance(word, ast.JoinedStr)], ast.unparse(call)
    for template in PARTS.values():
        words = shlex.split(template.format(dataset=shell_word(Path("two words"))))
        assert "two words" in words
