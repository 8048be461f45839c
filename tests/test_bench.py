"""Benchmarks: what they copy is valid, what they compare is the same work, what they print is what they write."""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import keyart
from benchmarks import BENCHMARKS, load, pandas_prepare
from benchmarks.copy_members import copy_members
from benchmarks.subprocess_usage import measure
from datamodules.contract.check import check
from datamodules.prepare.prepare import prepare
from datamodules.shards.shard import Shards
from foundation.errors import UserError


@pytest.mark.parametrize("copies", [0.4, 1, 3])
def test_copies_are_valid_datasets(service: Path, tmp_path: Path, copies: float) -> None:
    have = check(service, images=False).rows
    count = copy_members(service, tmp_path / "copies", round(copies * have["impressions"]))
    findings = check(tmp_path / "copies", images=False)
    assert [violation.line() for violation in findings.violations] == []
    assert findings.rows["impressions"] == count
    if copies >= 1:
        assert count == copies * have["impressions"]
        assert findings.rows["plays"] == copies * have["plays"]
    else:
        assert 0.25 * have["impressions"] < count < 0.55 * have["impressions"]


def test_the_pandas_prepare_does_the_same_work(service: Path, tmp_path: Path) -> None:
    pandas_prepare.main(service, tmp_path / "pandas")
    prepare(service, tmp_path / "shards")
    theirs = pd.read_parquet(tmp_path / "pandas" / "impressions.parquet").set_index("impression_id")
    shards = Shards.open(tmp_path / "shards")
    for shard in shards.shards:
        rows = theirs.loc[[impression.decode() for impression in shard.ids()]]
        np.testing.assert_array_equal(rows["history_length"], shard.history_end - shard.history_start)
        np.testing.assert_array_equal(rows["shown"], shard.shown)
        np.testing.assert_array_equal(rows["split"], shard.split)
        np.testing.assert_array_equal([len(c) for c in rows["candidate"]], np.diff(shard.candidate_start))


def test_a_run_writes_what_it_prints(service: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    words = ["--dataset", str(service), "--sizes", "0.008", "--repeats", "1", "--json", str(out)]
    assert keyart.main(["bench", "prepare", *words, "--work", str(tmp_path)]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert all(set(row) == {"benchmark", "subject", "figure", "unit", "value"} for row in rows)
    assert {row["benchmark"] for row in rows} == {"prepare"}
    assert {row["subject"] for row in rows} == {"keyart", "floor", "pandas"}
    rates = [row["value"] for row in rows if row["unit"] == "impressions/s"]
    assert len(rates) == 3
    assert min(rates) > 0
    printed = capsys.readouterr().out
    assert all(row["figure"] in " ".join(printed.split()) or len(row["figure"]) > 30 for row in rows)
    assert list(tmp_path.iterdir()) == [out], "the data is removed"


def test_an_unknown_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert keyart.main(["bench", "prepair"]) == 1
    assert capsys.readouterr().err == "keyart bench: prepair: unknown benchmark. Did you mean prepare?\n"


def test_a_process_that_fails_is_named() -> None:
    with pytest.raises(UserError, match=r"failed \(exit 3\): for this reason"):
        measure([sys.executable, "-c", "import sys; print('for this reason', file=sys.stderr); sys.exit(3)"])


def test_memory_is_that_of_the_process_alone() -> None:
    large = measure([sys.executable, "-c", "x = bytearray(300_000_000)"])
    small = measure([sys.executable, "-c", "pass"])
    assert large.peak_bytes > 300_000_000
    assert small.peak_bytes < 100_000_000


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_a_module_and_explains_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(load(name).bench)
    with contextlib.suppress(SystemExit):
        assert keyart.main(["bench", name, "--help"]) == 0
    assert f"usage: keyart bench {name}" in capsys.readouterr().out
