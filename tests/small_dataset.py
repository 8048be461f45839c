"""The smallest dataset with every table, to be broken."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.dataset_edits import PART_0, PART_1

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
STRINGS = pa.list_(pa.string())
IMPRESSION_TYPES = {
    "impression_id": pa.string(),
    "member_id": pa.string(),
    "title_id": pa.string(),
    "artwork_id": pa.string(),
    "shown_at": pa.timestamp("us", "UTC"),
    "candidates": STRINGS,
    "propensities": pa.list_(pa.float32()),
    "policy": pa.string(),
    "country": pa.string(),
    "device": pa.string(),
    "row": pa.int16(),
    "column": pa.int16(),
    "clicked": pa.bool_(),
    "engaged": pa.bool_(),
}


def impressions(start: int) -> pa.Table:
    """Four impressions: two of title t0 (artworks a0, a1, a2), two of t1 (a3, a4)."""
    rows = []
    for i in range(start, start + 4):
        candidates = ["a0", "a1", "a2"] if i % 2 == 0 else ["a3", "a4"]
        rows.append(
            {
                "impression_id": f"i{i}",
                "member_id": f"m{i % 3}",
                "title_id": f"t{i % 2}",
                "artwork_id": candidates[0],
                "shown_at": NOON + timedelta(hours=i),
                "candidates": candidates,
                "propensities": [1 / len(candidates)] * len(candidates),
                "policy": "explore",
                "country": "DE",
                "device": "tv",
                "row": 0,
                "column": i,
                "clicked": i == start,
                "engaged": None,
            }
        )
    return pa.Table.from_pylist(rows, pa.schema(list(IMPRESSION_TYPES.items())))


def write(parent: Path) -> Path:
    """The smallest dataset with every table, in a folder whose name an engine may mistake for a pattern."""
    folder = parent / "country=DE [1]*"
    for name in ("images", "plays", "impressions"):
        (folder / name).mkdir(parents=True)
    titles = {
        "title_id": ["t0", "t1"],
        "name": ["Night", None],
        "genres": pa.array([["drama"], []], STRINGS),
        "release_year": [1999, None],
    }
    pq.write_table(pa.table(titles), folder / "titles.parquet")
    artworks = {
        "artwork_id": [f"a{i}" for i in range(5)],
        "title_id": ["t0", "t0", "t0", "t1", "t1"],
        "image": [f"images/a{i}.png" for i in range(5)],
    }
    pq.write_table(pa.table(artworks), folder / "artworks.parquet")
    noise = np.random.default_rng(0).integers(0, 256, (5, 32, 24, 3), np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"images/a{i}.png")
    plays = {
        "member_id": ["m0", "m0", "m1"],
        "title_id": ["t0", "t1", "t1"],
        "played_at": pa.array([NOON, NOON + timedelta(days=1), NOON], pa.timestamp("us", "UTC")),
        "watched": pa.array([0.0, 1.0, None], pa.float32()),
    }
    pq.write_table(pa.table(plays), folder / "plays/part-0.parquet")
    pq.write_table(impressions(0), folder / PART_0)
    pq.write_table(impressions(4), folder / PART_1)
    return folder
