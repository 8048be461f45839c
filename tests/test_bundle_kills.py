"""A bundle whose writer is killed at any moment, with two readers at it: they meet the old one or the new one, whole."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from foundation.atomic import atomic_folder
from foundation.errors import UserError
from serving.bundle.bundle import BUNDLE_FILE, TITLE_VECTORS, Bundle
from serving.bundle.verify import verify

ROOT = Path(__file__).parents[1]
MEASURES = "KEYART_BENCHMARK" in os.environ
KILLS, LEAST_ALIVE = (20, 11) if MEASURES else (4, 1)
"""Moments at which a writer is killed, and how many of them must meet it alive: 13 minutes with KEYART_BENCHMARK=1, else one."""


def read_once(folder: Path) -> str:
    """What a reader met: a whole bundle, one whose files are of two, or none; or that it was told of a replacement."""
    try:
        opened = Bundle.open(folder)
        lengths = (len(opened.vocabularies[name]) for name in ("titles", "artworks"))
        titles, artworks = opened.load_tables(TITLE_VECTORS)["title_vector"], opened.tables["artwork_vector"]
        session = opened.session
    except UserError as error:
        return "told" if "took its place while it was used" in str(error) else f"missing: {error}"
    assert session.get_inputs()
    return "whole" if tuple(lengths) == (len(titles), len(artworks)) else "mixed"


@contextmanager
def two_readers(folder: Path) -> Iterator[Counter[str]]:
    met, over = Counter(), Event()

    def read() -> None:
        while not over.is_set():
            met[read_once(folder)] += 1
            time.sleep(0.02)  # the writer has something of the cores

    readers = [Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        yield met
    finally:
        over.set()
        for reader in readers:
            reader.join()


def kill_at_a_moment(words: list[str], folder: Path, rng: random.Random, longest: float) -> bool:
    """Start a command and kill it: at any moment, or, every other time, at one close to the replacement; whether it was alive."""
    process = subprocess.Popen(
        [sys.executable, "-m", "keyart", *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if words[0] == "verify" or rng.random() < 0.5:  # verify replaces nothing
        time.sleep(rng.uniform(0, longest))
    else:
        record = folder.parent / f".{folder.name}.partial" / "CARD.md"
        while process.poll() is None and not record.exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
    alive = process.poll() is None
    os.kill(process.pid, signal.SIGKILL) if alive else None
    process.wait()
    return alive


@pytest.mark.slow
@pytest.mark.parametrize("command", [pytest.param("export", marks=pytest.mark.benchmark), "refresh", "verify"])
def test_a_reader_meets_a_whole_bundle(command: str, run: Path, bundle: Path, grown: Path, tmp_path: Path) -> None:
    folder, rng = shutil.copytree(bundle, tmp_path / "bundle"), random.Random(command)
    words = {"export": [str(run), str(folder)], "refresh": [str(folder), str(grown)], "verify": [str(folder)]}[command]
    alive, digests = 0, set()
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "keyart", command, *words], cwd=ROOT, check=True, capture_output=True)
    longest = time.monotonic() - begin
    with two_readers(folder) as met:
        for _ in range(KILLS):
            with atomic_folder(folder, marker=BUNDLE_FILE) as again:  # as it was before, so that there is work to do
                shutil.copytree(bundle, again, dirs_exist_ok=True)
            alive += kill_at_a_moment([command, *words], folder, rng, longest)
            digests.add(verify(folder).digest)
    print(f"{command}: {KILLS} moments, {alive} killed alive, {len(digests)} bundles, readers met {dict(met)}")
    assert set(met) <= {"whole", "told"}
    assert met["whole"] > KILLS
    assert alive >= LEAST_ALIVE
