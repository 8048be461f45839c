"""Output appears whole or not at all, and never replaces files that keyart did not write."""

from pathlib import Path

import pytest

from foundation.atomic import atomic_file, atomic_folder
from foundation.errors import UserError


def test_replaces_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_folder(target, marker="done.json") as folder:
        (folder / "done.json").write_text("1", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), atomic_folder(target, marker="done.json") as folder:
        (folder / "done.json").write_text("2", encoding="utf-8")
        raise KeyboardInterrupt
    assert (target / "done.json").read_text(encoding="utf-8") == "1"
    with atomic_folder(target, marker="done.json") as folder:
        (folder / "done.json").write_text("3", encoding="utf-8")
    assert (target / "done.json").read_text(encoding="utf-8") == "3"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_refuses_a_folder_it_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="holds files"), atomic_folder(tmp_path, marker="done.json"):
        pass
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_a_failed_file_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "table.json"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(ValueError, match="broken"), atomic_file(target) as partial:
        partial.write_text("half", encoding="utf-8")
        raise ValueError("broken")
    assert target.read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]
