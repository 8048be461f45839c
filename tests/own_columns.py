"""A dataset with columns of its own that a recipe declares as context features."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.contract.tables import IMPRESSIONS

RECIPE = """
prepare:
  context:
    - {name: language, kind: category, terms: [appeal, presentation, engagement]}
    - {name: login_minutes, kind: number, column: Minutes since login}
    - {name: kids, kind: category, terms: [presentation], column: For kids}
    - {name: plan, kind: category, terms: [presentation]}
    - {name: price, kind: number, terms: [presentation]}
    - {name: local_hour, kind: hour}
    - {name: shelf, kind: position, crossed_with: device, terms: [appeal, presentation]}
"""
DECLARED = ["language", "login_minutes", "kids", "plan", "price", "local_hour", "shelf"]
LANGUAGES = np.array(["de", "en", "ta", None], object)


def write_own_columns(service: Path, out: Path) -> None:
    """A service with more columns in three files: the first has no minutes since login, in the second all are null."""
    shutil.copytree(service, out, ignore=shutil.ignore_patterns("impressions"))
    table = pq.read_table([str(path) for path in IMPRESSIONS.files(service)])
    rng = np.random.default_rng(5)
    language_N = LANGUAGES[rng.integers(0, len(LANGUAGES), table.num_rows)]
    minutes_N = rng.gamma(2.0, 30.0, table.num_rows)
    minutes_N[rng.random(table.num_rows) < 0.1] = np.nan
    clicked_N = np.asarray(table["clicked"].combine_chunks().cast(pa.int8())).astype(bool)
    clicked_N |= (language_N == "ta") & (rng.random(table.num_rows) < 0.5)
    clicked_N |= (minutes_N > 90) & (rng.random(table.num_rows) < 0.5)
    table = table.set_column(table.column_names.index("clicked"), "clicked", pa.array(clicked_N))
    table = table.append_column("language", pa.array(language_N.tolist(), pa.string()))
    rows = table.num_rows
    price = pa.array((rng.integers(0, 2000, rows) / 100).tolist(), pa.float64()).cast(pa.decimal128(8, 2))
    more = {
        "For kids": pa.array(rng.random(rows) < 0.3),
        "plan": pa.array(rng.integers(1, 4, rows), mask=rng.random(rows) < 0.1),
        "price": price,
        "local_hour": pa.array(rng.integers(0, 24, rows), pa.int8(), mask=rng.random(rows) < 0.1),
        "shelf": pa.array(rng.integers(0, 50, rows), pa.int32(), mask=rng.random(rows) < 0.1),
    }
    for name, values in more.items():
        table = table.append_column(name, values)
    with_minutes = table.append_column("Minutes since login", pa.array(minutes_N, pa.float64()))
    (out / "impressions").mkdir()
    nulls = table.append_column("Minutes since login", pa.nulls(rows))
    pq.write_table(table[:300], out / "impressions" / "a.parquet")
    pq.write_table(nulls[300:500], out / "impressions" / "b.parquet")
    pq.write_table(with_minutes[500:], out / "impressions" / "c.parquet")
