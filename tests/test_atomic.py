"""Output appears whole or not at all, and never replaces files that keyart did not write."""

import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread, Timer

import pytest

from foundation import atomic
from foundation.atomic import atomic_file, atomic_folder, is_half_replaced, restore_replaced
from foundation.errors import UserError
from foundation.replacement import exchanged

ROOT = Path(__file__).parents[1]


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


FOUR_PROCESSES = """
import os, sys, time
from pathlib import Path
from foundation.atomic import ClaimedError, exclusive_lock

lock, inside, end = Path(sys.argv[1], "lock"), Path(sys.argv[1], "inside"), time.monotonic() + float(sys.argv[2])
for _ in range(3):
    if not os.fork():
        break
entries = overlaps = 0
while time.monotonic() < end:
    try:
        with exclusive_lock(lock, lock):
            entries += 1
            try:
                inside.mkdir()
            except FileExistsError:
                overlaps += 1
            else:
                inside.rmdir()
    except ClaimedError:
        pass
Path(sys.argv[1], f"{os.getpid()}.count").write_text(f"{entries} {overlaps}", encoding="utf-8")
"""


def test_a_lock_lets_one_in_at_a_time(tmp_path: Path) -> None:
    """Four processes enter and leave for a second; the file of the lock is made and removed each time."""
    process = subprocess.run([sys.executable, "-c", FOUR_PROCESSES, str(tmp_path), "1"], cwd=ROOT, check=True)
    assert process.returncode == 0
    counts: list[list[int]] = []
    for _ in range(100):  # the parent does not wait for the others
        files = list(tmp_path.glob("*.count"))
        counts = [[int(word) for word in path.read_text(encoding="utf-8").split()] for path in files]
        if len(counts) == 4 and all(counts):
            break
        time.sleep(0.1)
    entries, overlaps = (sum(column) for column in zip(*counts, strict=True))
    assert len(counts) == 4
    assert entries > 100
    assert overlaps == 0


def write(target: Path, number: int) -> None:
    with atomic_folder(target, marker="0") as folder:
        for name in range(8):
            (folder / f"{name}").write_text(f"{number}", encoding="utf-8")


def test_a_folder_is_replaced_in_one_step(tmp_path: Path) -> None:
    """A reader of the name meets a whole folder at every moment; where the system cannot, it is told to wait."""
    target, over, missing, met = tmp_path / "out", Event(), [], set()
    write(target, 0)

    def read() -> None:
        while not over.is_set():
            try:
                met.add((target / "0").read_text(encoding="utf-8"))
            except FileNotFoundError:
                missing.append(is_half_replaced(target))

    reader = Thread(target=read)
    reader.start()
    for number in range(1, 60):
        write(target, number)
    over.set()
    reader.join()
    assert len(met) > 1, "it read while the folder was replaced"
    assert not missing
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_an_exchange_a_reader_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    write(target, 0)
    renamed, waited, rename = Event(), Event(), os.rename

    def slowly(old: Path, new: Path) -> None:  # the old folder is moved aside, and the reader comes
        if Path(old).name == ".out.partial":
            renamed.set()
            assert waited.wait(60)
        rename(old, new)

    monkeypatch.setattr(atomic, "exchanged", lambda one, other: False)
    monkeypatch.setattr(os, "rename", slowly)
    writer = Thread(target=write, args=(target, 1))
    writer.start()
    assert renamed.wait(60)
    assert is_half_replaced(target)
    Timer(0.1, waited.set).start()
    restore_replaced(target)
    assert (target / "0").read_text(encoding="utf-8") == "1"
    writer.join()


def test_an_exchange_is_refused_where_one_is_missing(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "file").touch()
    assert not exchanged(tmp_path / "one", tmp_path / "other")
    (tmp_path / "other").mkdir()
    assert exchanged(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "other" / "file").exists()
