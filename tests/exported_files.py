"""The tables of a simulated service as other systems export them: CSV, JSON lines and Parquet with other names and forms."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import keyart

NAMES = "member_id=userId,title_id=movieId,played_at=timestamp"
RATINGS = "userId,movieId,timestamp\n007,01,964982703\n8,1,964982704\n"


def run(*words: str | Path) -> int:
    """The exit code of `keyart import`."""
    return keyart.main(["import", *(str(word) for word in words)])


def frame(service: Path, table: str) -> pd.DataFrame:
    """One table of the service."""
    return pq.read_table(service / table).to_pandas()


def rows_of(dataset: Path, table: str, key: str) -> list[dict]:
    """The rows of a table, in the order of a column."""
    return pq.read_table(dataset / table).sort_by(key).to_pylist()


def assert_same_impressions(service: Path, dataset: Path) -> None:
    """Row by row, propensities within what a text of a 32-bit number keeps."""
    rows, expected = rows_of(dataset, "impressions", "impression_id"), rows_of(service, "impressions", "impression_id")
    assert len(rows) == len(expected) > 5000
    for row, other in zip(rows, expected, strict=True):
        assert row == {**other, "propensities": pytest.approx(other["propensities"], abs=1e-6)}


def write_movielens(service: Path, folder: Path) -> None:
    """ratings.csv and movies.csv as MovieLens has them: other names, seconds since 1970, genres between bars."""
    plays = frame(service, "plays")
    seconds = plays["played_at"].astype("datetime64[s, UTC]").astype("int64")
    stars = np.arange(len(plays)) % 10 / 2 + 0.5
    ratings = {"userId": plays["member_id"], "movieId": plays["title_id"], "rating": stars, "timestamp": seconds}
    pd.DataFrame(ratings).to_csv(folder / "ratings.csv", index=False)
    titles = frame(service, "titles.parquet")
    genres = ["|".join(words) for words in titles["genres"]]
    movies = {"movieId": titles["title_id"], "title": titles["name"], "genres": genres}
    pd.DataFrame(movies).to_csv(folder / "movies.csv", index=False)


def log_rows(service: Path) -> pd.DataFrame:
    """Impressions with lists as JSON."""
    rows = frame(service, "impressions")
    for column in ("candidates", "propensities"):
        rows[column] = [json.dumps(values.tolist()) for values in rows[column]]
    return rows


def write_log(service: Path, folder: Path) -> None:
    """log.csv: impressions alone, with the contract's names."""
    log_rows(service).to_csv(folder / "log.csv", index=False)


def write_wide_log(service: Path, folder: Path) -> None:
    """wide.csv: impressions without ids of their own, beside each what is known of its title and of the shown artwork."""
    titles = frame(service, "titles.parquet")
    titles["genres"] = ["|".join(words) for words in titles["genres"]]
    artworks = frame(service, "artworks.parquet")[["artwork_id", "image"]]
    rows = (
        log_rows(service).merge(titles[["title_id", "name", "genres"]], on="title_id").merge(artworks, on="artwork_id")
    )
    rows = rows.sort_values("impression_id").drop(columns="impression_id")
    rows.rename(columns={"member_id": "user", "name": "movie_title"}).to_csv(folder / "wide.csv", index=False)


def write_other_parquet(service: Path, folder: Path) -> None:
    """log.parquet: impressions under other names, with times in milliseconds of another zone, large types and 64 bits."""
    table = pq.read_table(service / "impressions")
    names = {"member_id": "Member", "title_id": "Title", "artwork_id": "Shown", "shown_at": "At"}
    columns = {names.get(name, name): table[name] for name in table.schema.names}
    columns["At"] = columns["At"].cast(pa.timestamp("us", "America/New_York"))
    columns["candidates"] = columns["candidates"].cast(pa.large_list(pa.large_string()))
    columns["propensities"] = columns["propensities"].cast(pa.list_(pa.float64()))
    pq.write_table(pa.table(columns), folder / "log.parquet")


def long_rows(service: Path) -> pd.DataFrame:
    """One row per impression and candidate: its propensity, whether it was shown, and clicks of the shown one."""
    rows = frame(service, "impressions").explode(["candidates", "propensities"])
    rows["shown"] = (rows["candidates"] == rows["artwork_id"]).astype(int)
    for outcome in ("clicked", "engaged"):
        rows[outcome] = rows[outcome].where(rows["shown"] == 1)
    rows = rows.drop(columns="artwork_id")
    return rows.rename(columns={"candidates": "artwork_id", "propensities": "propensity"})


def write_long_log(service: Path, folder: Path) -> None:
    """candidates.csv: impressions as a warehouse joins them with their candidates, under names of its own."""
    names = {"artwork_id": "creative", "propensity": "probability", "shown": "is_shown"}
    long_rows(service).rename(columns=names).to_csv(folder / "candidates.csv", index=False)


def write_all(service: Path, folder: Path) -> None:
    """Every file that the documents import."""
    write_movielens(service, folder)
    write_log(service, folder)
    write_long_log(service, folder)
    write_wide_log(service, folder)
