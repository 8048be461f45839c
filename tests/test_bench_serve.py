"""`keyart bench serve` measures what it says it does."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.serve import TOTAL_REQUESTS, Config, bench
from benchmarks.table import OURS, Row, print_table
from foundation.errors import UserError


def test_every_subject_answers_at_every_size(run: Path) -> None:
    rows = bench(
        Config(run=str(run), batches=(1, 5), rounds=2, seconds=0.02, compile=False, peer=False), Console(quiet=True)
    )
    value_of = {(row.subject, row.figure): row.value for row in rows}
    subjects = {OURS: ("whole", "member, then choose", "kept"), f"{OURS}, rows": ("whole", "shapes vary")}
    subjects |= {f"{OURS}, {kind}": ("whole", "kept") for kind in ("fp16", "int8")}
    for subject, ways in subjects.items():
        for what in ways:
            for n in (1, 5):
                p50, p99 = (value_of[subject, f"{what}, {n} at once, {q}"] for q in ("p50", "p99"))
                assert 0 < p50 <= p99
            best = max(value_of[subject, f"{what}, {n} at once, requests"] for n in (1, 5))
            assert value_of[subject, f"{what}: cores for {TOTAL_REQUESTS:,} requests a second"] == pytest.approx(
                TOTAL_REQUESTS / best
            )
    assert ("torch eager", "whole, 5 at once, p50") in value_of
    assert np.isfinite(list(value_of.values())).all()
    with pytest.raises(UserError, match="rounds=0"):
        Config(rounds=0)
    with pytest.raises(UserError, match="batches"):
        Config(batches=(0,))


def test_a_table_is_whole_in_a_narrow_window(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Row(benchmark="b", subject=f"subject {i}", figure="a long name of a figure", unit="s", value=i)
        for i in range(9)
    ]
    print_table(rows, Console(width=40))
    printed = capsys.readouterr().out
    assert "a long name of a figure" in printed
    assert all(f"subject {i}" in printed for i in range(9))
