"""Logs of randomised tests, made by hand, and how their read-outs are read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import keyart

START = 1_767_225_600_000_000
HOUR = 3_600_000_000


def write_log(
    folder: Path,
    *,
    rates: tuple[float, ...] = (0.1, 0.15),
    watched: tuple[float, ...] = (0.5, 0.5),
    count: int = 8000,
    members: int = 800,
    by_member: bool = False,
    propensities: Callable[[np.ndarray], np.ndarray] | None = None,
    shown_shares: tuple[float, ...] = (),
    minutes: bool = False,
    seed: int = 0,
    change: Callable[[pa.Table], pa.Table] = lambda table: table,
) -> Path:
    """A dataset of one title, t0, whose artworks a0, a1, .. have some click rates, and of another with one artwork.

    `propensities`: of every impression's member, (N, A), else even ones; `shown_shares`: what was done, where it is not them.
    """
    rng = np.random.default_rng(seed)
    arms = len(rates)
    member_N = rng.integers(0, members, count)
    share_NA = np.full((count, arms), 1 / arms) if propensities is None else propensities(member_N)
    done_NA = np.broadcast_to(shown_shares, share_NA.shape) if shown_shares else share_NA
    shown_N = np.minimum((rng.random(count)[:, None] > done_NA.cumsum(1)).sum(1), arms - 1)
    if by_member:
        shown_N = rng.integers(0, arms, members)[member_N]
    appetite_N = np.where(member_N % 2, 1.4, 0.6)
    clicked_N = rng.random(count) < np.array(rates)[shown_N] * appetite_N
    engaged_N = rng.random(count) < np.array(watched)[shown_N]
    names = [f"a{k}" for k in range(arms)]
    at_N = START + np.sort(rng.integers(0, 20 * 24, count)) * HOUR
    columns = {
        "impression_id": [f"i{n:06d}" for n in range(count + 50)],
        "member_id": [f"m{m}" for m in member_N] + ["m0"] * 50,
        "title_id": ["t0"] * count + ["t1"] * 50,
        "artwork_id": [names[k] for k in shown_N] + ["b0"] * 50,
        "shown_at": pa.array([*at_N.tolist(), *[START] * 50], pa.timestamp("us", "UTC")),
        "candidates": [names] * count + [["b0"]] * 50,
        "propensities": pa.array([*share_NA.tolist(), *[[1.0]] * 50], pa.list_(pa.float32())),
        "policy": ["explore" if n % 2 else "other" for n in range(count)] + ["explore"] * 50,
        "clicked": [*clicked_N.tolist(), *[False] * 50],
        "engaged": [*[bool(e) if c else None for c, e in zip(clicked_N, engaged_N, strict=True)], *[None] * 50],
    }
    if minutes:
        played_N = clicked_N * engaged_N * rng.exponential(40, count)
        columns["minutes"] = pa.array([*played_N.tolist(), *[None] * 50], pa.float32())
    (folder / "impressions").mkdir(parents=True)
    pq.write_table(change(pa.table(columns)), folder / "impressions" / "part-0.parquet")
    return folder


def read(dataset: Path, out: Path, *words: str) -> dict[str, Any]:
    """The record of the one test; it must be JSON without NaN."""
    assert keyart.main(["test", str(dataset), str(out), *words]) == 0

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads((out / "test.json").read_text(encoding="utf-8"), parse_constant=refuse)


def answers(record: dict[str, Any]) -> list[str]:
    return [row["answer"] for row in record["tests"][0]["arms"]]
