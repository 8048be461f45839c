"""Lists stored one after the other are the padded arrays that they stand for; and their memory is that of their items."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.value import value
from foundation.lists import CELLS_PER_BLOCK, ROWS_PER_BLOCK, Lists, blocks

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("least", [0, 1])
def test_they_are_padded_arrays(least: int) -> None:
    """Lists without items among them, the first and the last one too."""
    rng = np.random.default_rng(least)
    width_N = rng.integers(least, 9, 200)
    width_N[[0, -1]] = least
    mask_NK = np.arange(8) < width_N[:, None]
    table_NK = np.where(mask_NK, rng.integers(-5, 6, mask_NK.shape), -9)
    lists = Lists.of_padded(table_NK, mask_NK, padding=-9)
    filled_N = width_N > 0
    assert len(lists) == 200
    np.testing.assert_array_equal(lists.width_N, width_N)
    np.testing.assert_array_equal(lists[slice(None)], table_NK)
    np.testing.assert_array_equal(lists[filled_N], table_NK[filled_N])
    for rows in (slice(20, 70), rng.permutation(200)[:60], slice(0, 1)):
        width = max(1, int(width_N[rows].max()))
        np.testing.assert_array_equal(lists[rows], table_NK[rows][:, :width])
        np.testing.assert_array_equal(lists.take(np.arange(200)[rows])[slice(None)], table_NK[rows][:, :width])
    np.testing.assert_array_equal(lists.row(7), table_NK[7][mask_NK[7]])
    index_N = rng.integers(0, np.maximum(width_N, 1))
    rows_N = np.flatnonzero(filled_N)
    np.testing.assert_array_equal(lists[rows_N, index_N[rows_N]], table_NK[rows_N, index_N[rows_N]])
    np.testing.assert_array_equal(lists.sums(), np.where(mask_NK, table_NK, 0).sum(1))
    np.testing.assert_array_equal(lists.like(lists.values_C > 3).reduce(np.logical_or), (table_NK > 3).any(1))
    best_NK = np.where(mask_NK, table_NK, -99)
    if least:
        np.testing.assert_array_equal(lists.best(), best_NK.argmax(1))
        np.testing.assert_array_equal(
            lists.one_hot(index_N)[slice(None)], (np.arange(8) == index_N[:, None]).astype(float)
        )
    first_N = lists.first(lists.values_C == 2)
    np.testing.assert_array_equal(first_N, np.where((table_NK == 2).any(1), (table_NK == 2).argmax(1), -1))
    np.testing.assert_array_equal(table_NK[lists.row_C, lists.index_C], lists.values_C)


def test_no_lists() -> None:
    nothing = Lists.of(np.zeros(0), np.zeros(0, np.int64))
    assert len(nothing) == len(nothing.sums()) == len(nothing.first(np.zeros(0, bool))) == 0
    assert list(blocks(nothing)) == []


def test_blocks_bound_the_cells() -> None:
    """Every row once, in order; one long list does not widen the rest."""
    width_N = np.full(300_000, 2)
    width_N[[5, 150_000]] = 100_000, 3 * CELLS_PER_BLOCK
    lists = Lists.of(np.zeros(int(width_N.sum()), np.int8), width_N)
    parts = list(blocks(lists))
    assert np.array_equal(np.concatenate([np.arange(300_000)[part] for part in parts]), np.arange(300_000))
    for part in parts:
        count = len(width_N[part])
        assert count <= ROWS_PER_BLOCK
        assert count * width_N[part].max() <= CELLS_PER_BLOCK or count == 1
    assert len(parts) < 12


def with_a_long_list(service: Path, scores: Path, out: Path, length: int) -> tuple[Path, Path]:
    """The impressions of the service, one of them with as many candidates; and scores of them, each list turned round."""
    (out / "impressions").mkdir(parents=True)
    log = pa.concat_tables([pq.read_table(path) for path in sorted((service / "impressions").glob("*.parquet"))])
    rows = log.to_pylist()
    scored_rows = {
        row["impression_id"]: row for path in scores.glob("*.parquet") for row in pq.read_table(path).to_pylist()
    }
    rows = [row for row in rows if row["impression_id"] in scored_rows]
    chosen = rows[len(rows) // 2]
    more = [f"more{n}" for n in range(length - len(chosen["candidates"]))]
    chosen["candidates"] = [*chosen["candidates"], *more]
    chosen["propensities"] = [1 / length] * length
    scored = scored_rows[chosen["impression_id"]]
    scored["candidates"] = [*scored["candidates"], *more]
    for name in ("click_probability", "policy", "engaged_probability"):
        scored[name] = [*scored[name], *[0.0] * len(more)]
    for row in scored_rows.values():
        for name in ("candidates", "click_probability", "policy", "engaged_probability"):
            row[name] = row[name][::-1]
    pq.write_table(pa.Table.from_pylist(rows, log.schema), out / "impressions/part.parquet")
    pq.write_table(pa.Table.from_pylist(list(scored_rows.values())), out / "scores.parquet")
    return out, out / "scores.parquet"


MEASURED = """
import resource, sys
from pathlib import Path
from evaluation.value import value
dataset, scores, out = map(Path, sys.argv[1:])
value(dataset, scores, out, period="all")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def test_memory_goes_with_the_candidates(service: Path, scores: Path, tmp_path: Path) -> None:
    """One impression of 4,000 candidates, in another order than in the scores: an array of all by all would take 20 GB."""
    peaks = []
    for length in (10, 4000):
        dataset, table = with_a_long_list(service, scores, tmp_path / str(length), length)
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(dataset), str(table), str(tmp_path / f"value-{length}")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < peaks[0] + 150_000_000, peaks


def test_a_long_list_leaves_the_others_as_they_are(service: Path, scores: Path, tmp_path: Path) -> None:
    """Its candidates have no probability, so that only what is known of that one impression can differ."""
    few, many = (
        value(*with_a_long_list(service, scores, tmp_path / str(length), length), tmp_path / f"v{length}", period="all")
        for length in (10, 2000)
    )
    for one, other in zip(few["estimates"], many["estimates"], strict=True):
        assert (one["policy"], one["estimator"]) == (other["policy"], other["estimator"])
        if one["policy"] == "scored" and one["estimator"] == "replay" and one["value"] is not None:
            assert other["value"] == pytest.approx(one["value"], rel=0.02)
    assert few["impressions"] == many["impressions"]
    assert json.loads((tmp_path / "v2000/value.json").read_text(encoding="utf-8"))["impressions"] == many["impressions"]
