"""A service made by hand, its truth written beside it: a log of known law, and scores of it, to be changed and broken."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START = datetime(2026, 1, 1, tzinfo=UTC)
SINCE = START + timedelta(hours=4000)
ROWS = 6000
WIDTHS = [1, 2, 3, 4, 5, 3]
"""Artworks of each title; the first has nothing to choose."""

Change = Callable[[pa.Table], pa.Table]


def rows() -> dict[str, list[Any]]:
    """An impression an hour: half uniform, half aimed at each title's first artwork, which is not what members want."""
    rng = np.random.default_rng(5)
    columns: dict[str, list[Any]] = {}
    for n in range(ROWS):
        title, member = int(rng.integers(len(WIDTHS))), int(rng.integers(60))
        k = WIDTHS[title]
        random = rng.random() < 0.5
        propensities = np.full(k, 1 / k) if random else np.full(k, 0.2 / k) + 0.8 * (np.arange(k) == 0)
        shown = int(rng.choice(k, p=propensities))
        # what a member wants turns with the member; the last artwork is better for everybody
        p_click = 0.1 + 0.4 * ((np.arange(k) + member) % k == 0) + 0.25 * (np.arange(k) == k - 1)
        clicked = bool(rng.random() < p_click[shown])
        row = {
            "impression_id": f"i{n:05d}",
            "member_id": f"m{member}",
            "title_id": f"t{title}",
            "artwork_id": f"t{title}/{shown}",
            "shown_at": START + timedelta(hours=n),
            "candidates": [f"t{title}/{a}" for a in range(k)],
            "propensities": propensities.tolist(),
            "clicked": clicked,
            "engaged": bool(rng.random() < 0.5) if clicked else None,
            "p_click": p_click.tolist(),
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns


ALL = rows()
LATE = slice(4000, ROWS)


def service(folder: Path, change: Change = lambda table: table, truth: bool = True) -> Path:
    """The dataset; `change` is applied to its impressions."""
    (folder / "impressions").mkdir(parents=True)
    table = pa.table({name: values for name, values in ALL.items() if name != "p_click"})
    table = table.set_column(6, "propensities", table["propensities"].cast(pa.list_(pa.float32())))
    table = change(table)
    for part, start in enumerate(range(0, ROWS, 2500)):
        pq.write_table(table.slice(start, 2500), folder / "impressions" / f"part-{part}.parquet")
    if truth:
        (folder / "truth").mkdir()
        engaged = [[p / 2 for p in ps] for ps in ALL["p_click"]]
        names = ("impression_id", "candidates", "p_click")
        truth_table = pa.table({name: ALL[name] for name in names} | {"p_engaged": engaged})
        pq.write_table(truth_table, folder / "truth" / "part-0.parquet")
    return folder


def scores(path: Path, policy: Callable[[list[float]], list[float]], change: Change = lambda table: table) -> Path:
    """Scores of the late impressions that know the truth; `policy` turns it into what would be shown."""
    p_click = ALL["p_click"][LATE]
    table = pa.table(
        {
            "impression_id": ALL["impression_id"][LATE],
            "candidates": ALL["candidates"][LATE],
            "click_probability": pa.array(p_click, pa.list_(pa.float32())),
            "policy": pa.array([policy(p) for p in p_click], pa.list_(pa.float32())),
        }
    )
    pq.write_table(change(table), path)
    return path


def best(p: list[float]) -> list[float]:
    return [float(i == int(np.argmax(p))) for i in range(len(p))]


def even(p: list[float]) -> list[float]:
    return [1 / len(p)] * len(p)


def changed(name: str, how: Callable[[list[Any]], list[Any]], type_: pa.DataType | None = None) -> Change:
    """A table with one column's values changed."""
    return lambda table: table.set_column(
        table.schema.get_field_index(name), name, pa.array(how(table[name].to_pylist()), type_ or table[name].type)
    )


def last(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [*values[:-1], value]
