"""A log of plays for `keyart bench titles`: read, ordered, split, and metrics of lists of ten.

In: a MovieLens folder (ratings.csv, movies.csv; every rating counts as a play, whatever its stars) or a dataset by the
contract. Titles are numbered by their row in `titles`, members from 0.

Legend: P plays, U members, I titles.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOperatorIssue=false
# pandas' own types are wider than what these columns hold.

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.contract.tables import PLAYS, TITLES
from datamodules.prepare.assemble import PLAY_COLUMNS, assemble
from datamodules.shards.catalogue import Catalogue, build_catalogue
from datamodules.shards.shard import Shard
from datamodules.shards.vocabulary import VOCABULARY_NAMES, Vocabularies, Vocabulary
from foundation.errors import UserError

TOP_K = 10
LEAST_PLAYS = 3
"""Plays of a member, at least: with fewer, none is left to learn from beside those of validation and test."""


@dataclass(frozen=True, kw_only=True)
class TitleLog:
    """Plays in order of (member, time); plays of one member at the same instant are in a random order, drawn once."""

    member: np.ndarray
    """int64 (P,)."""
    title: np.ndarray
    """int64 (P,)."""
    time: np.ndarray
    """int64 (P,): microseconds since 1970, rising within a member."""
    titles: pd.DataFrame
    """title_id, genres, cast, release_year (NaN where unknown)."""

    @property
    def members(self) -> int:
        """U."""
        return int(self.member.max()) + 1

    def take(self, mask: np.ndarray) -> "TitleLog":
        """The log with the plays of a mask, bool (P,)."""
        return TitleLog(member=self.member[mask], title=self.title[mask], time=self.time[mask], titles=self.titles)

    def numbered(self) -> "TitleLog":
        """The log with its members renumbered, from 0 without gaps."""
        member = np.unique(self.member, return_inverse=True)[1].astype(np.int64)
        return TitleLog(member=member, title=self.title, time=self.time, titles=self.titles)

    def from_end(self) -> np.ndarray:
        """int64 (P,): 0 for each member's last play, 1 for the one before."""
        count = np.bincount(self.member, minlength=self.members)
        index = np.arange(len(self.member)) - np.repeat(np.cumsum(count) - count, count)
        return count[self.member] - 1 - index

    def leave_one_out(self, back: int) -> tuple["TitleLog", np.ndarray]:
        """The plays before each member's play `back` from the end (0: the last), and that play's title, int64 (U,)."""
        from_end = self.from_end()
        return self.take(from_end > back), self.title[from_end == back]


def read_log(folder: Path, seed: int = 0) -> TitleLog:
    """Read a folder; UserError where it is not a log of plays. `seed` orders plays at the same instant."""
    if (folder / "ratings.csv").is_file():
        plays, titles = _movielens(folder)
    elif PLAYS.files(folder) and TITLES.files(folder):
        plays, titles = _dataset(folder)
    else:
        raise UserError(f"{folder}: holds neither ratings.csv nor plays and titles by the contract. Name another log.")
    index = pd.Series(np.arange(len(titles)), index=titles["title_id"])
    plays = plays.assign(title=plays["title_id"].map(index), tie=np.random.default_rng(seed).permutation(len(plays)))
    plays = plays.dropna(subset=["title"]).sort_values(["member_id", "time", "tie"])
    # a title counts where it was first played, because titles that are new to a member are ranked
    plays = plays.drop_duplicates(["member_id", "title_id"])
    enough = plays.groupby("member_id")["time"].transform("size") >= LEAST_PLAYS
    plays = plays[enough]
    if not len(plays):
        raise UserError(f"{folder}: no member has {LEAST_PLAYS} plays or more. Name another log.")
    member = pd.factorize(plays["member_id"])[0].astype(np.int64)
    time = plays["time"].to_numpy(np.int64)
    # move plays at one instant a microsecond apart, so that every subject has them in the same order
    same = np.append(False, (np.diff(member) == 0) & (np.diff(time) == 0))
    run = np.arange(len(same)) - np.maximum.accumulate(np.where(same, 0, np.arange(len(same))))
    return TitleLog(member=member, title=plays["title"].to_numpy(np.int64), time=time + run, titles=titles)


def _movielens(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    ratings, movies = pd.read_csv(folder / "ratings.csv"), pd.read_csv(folder / "movies.csv")
    plays = pd.DataFrame(
        {"member_id": ratings["userId"], "title_id": ratings["movieId"], "time": ratings["timestamp"] * 1_000_000}
    )
    movies = movies[movies["movieId"].isin(ratings["movieId"])]
    genres = [[] if text == "(no genres listed)" else text.split("|") for text in movies["genres"]]
    year = movies["title"].str.extract(r"\((\d{4})\)\s*$")[0].astype(float)
    titles = {"title_id": movies["movieId"], "genres": genres, "cast": [[] for _ in genres], "release_year": year}
    return plays, pd.DataFrame(titles).reset_index(drop=True)


def _dataset(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    tables = [pq.read_table(path, columns=["member_id", "title_id", "played_at"]) for path in PLAYS.files(folder)]
    plays = pa.concat_tables(tables).to_pandas()
    plays["time"] = plays["played_at"].astype("datetime64[us, UTC]").astype(np.int64)
    titles = pq.read_table(TITLES.files(folder)[0]).to_pandas()
    for name in ("genres", "cast"):
        lists = titles[name] if name in titles else [None] * len(titles)
        titles[name] = [[] if words is None else list(words) for words in lists]
    if "release_year" not in titles:
        titles["release_year"] = np.nan
    return plays, titles[["title_id", "genres", "cast", "release_year"]]


def vocabularies_of(log: TitleLog) -> Vocabularies:
    """Vocabularies of played titles, then the rest of the catalogue, genres and people; all others are empty."""
    ids = log.titles["title_id"].astype(str)
    played = ids.iloc[np.unique(log.title)]
    known = log.titles.iloc[np.unique(log.title)]
    vocabularies = {name: Vocabulary([], 0) for name in VOCABULARY_NAMES}
    vocabularies["titles"] = Vocabulary.of(played, ids)
    vocabularies["genres"] = Vocabulary.of(word for words in known["genres"] for word in words)
    vocabularies["people"] = Vocabulary.of(word for words in known["cast"] for word in words)
    return vocabularies


def title_rows(log: TitleLog, vocabularies: Vocabularies) -> np.ndarray:
    """The row of every title of the log, int64 (I,)."""
    return vocabularies["titles"].rows(pa.array(log.titles["title_id"].astype(str))).astype(np.int64)


def catalogue_of(log: TitleLog, vocabularies: Vocabularies) -> Catalogue:
    """The catalogue of titles, without artworks."""
    titles = {
        "title_id": pa.array(log.titles["title_id"].astype(str), pa.string()),
        "genres": pa.array(log.titles["genres"].tolist(), pa.list_(pa.string())),
        "cast": pa.array(log.titles["cast"].tolist(), pa.list_(pa.string())),
        "release_year": pa.array(log.titles["release_year"], pa.float64(), from_pandas=True),
    }
    none = {"artwork_id": pa.string(), "title_id": pa.string(), "depicts": pa.list_(pa.string())}
    return build_catalogue(pa.table(titles), pa.schema(none).empty_table(), vocabularies)


def as_shard(log: TitleLog, vocabularies: Vocabularies) -> Shard:
    """The plays as a shard of `keyart prepare`; member u of the log is member u of the shard."""
    columns = {
        "member_id": pa.array([f"{member:09d}" for member in log.member], pa.string()),
        "time": log.time,
        "title": title_rows(log, vocabularies)[log.title].astype(np.int32),
        "artwork": np.zeros(len(log.time), np.int32),
        "watched": np.full(len(log.time), np.nan, np.float32),
        "rating": np.full(len(log.time), np.nan, np.float32),
    }
    return assemble(pa.table(columns, schema=PLAY_COLUMNS), None, (0, 0), ())[0]


def top_titles(scores_UI: np.ndarray, history: TitleLog, offered: np.ndarray | None = None) -> np.ndarray:
    """The ten best titles of every member, best first, int64 (U, 10): never one played before, nor one not `offered`."""
    scores_UI = np.array(scores_UI, np.float32)
    scores_UI[history.member, history.title] = -np.inf
    if offered is not None:
        scores_UI[:, ~offered] = -np.inf
    best = np.argpartition(-scores_UI, TOP_K - 1, axis=1)[:, :TOP_K]
    order = np.argsort(-np.take_along_axis(scores_UI, best, 1), axis=1, kind="stable")
    return np.take_along_axis(best, order, 1)


def ndcg_and_hits(top_UK: np.ndarray, target_U: np.ndarray) -> tuple[float, float]:
    """NDCG@10 and HR@10 of one target title per member: 1 / log2(rank + 1), and whether it is in the list; means over members."""
    hit_UK = top_UK == target_U[:, None]
    return float((hit_UK / np.log2(np.arange(TOP_K) + 2)).sum(1).mean()), float(hit_UK.any(1).mean())
