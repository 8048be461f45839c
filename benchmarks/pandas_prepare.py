"""A user's own script in pandas instead of `keyart prepare`: sort, groupby, merge_asof.

Called as a process: `python -m benchmarks.pandas_prepare DATASET OUT`. It does the same work and no more: ids as codes
of the training period's vocabularies, for every impression how many of its member's plays lie strictly before it, the
split by time, candidates as codes, ratings centred by member where there are any, all written as Parquet. No check of the
log, no bound on memory.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pandas' annotations are incomplete.

import sys
from pathlib import Path

import numpy as np
import pandas as pd


def main(dataset: Path, out: Path) -> None:
    """Prepare a dataset with pandas only."""
    plays = pd.read_parquet(dataset / "plays")
    shown = pd.read_parquet(dataset / "impressions")

    validation_from, test_from = shown["shown_at"].quantile([0.7, 0.85], interpolation="higher")
    shown["split"] = np.where(shown["shown_at"] >= test_from, 2, np.where(shown["shown_at"] >= validation_from, 1, 0))
    past = shown["shown_at"] < validation_from
    played = plays["title_id"][plays["played_at"] < validation_from]
    titles = pd.concat([played, shown["title_id"][past]]).unique()
    artworks = shown["candidates"][past].explode().unique()
    for table in (plays, shown):
        table["title"] = pd.Index(titles).get_indexer(table["title_id"]) + 1
    for name in ("policy", "country", "device"):
        shown[name] = pd.Index(shown[name][past].unique()).get_indexer(shown[name]) + 1

    exploded = shown["candidates"].explode()
    codes = pd.Index(artworks).get_indexer(exploded) + 1
    width = shown["candidates"].str.len().to_numpy()
    shown["candidate"] = np.split(codes.astype(np.int32), np.cumsum(width)[:-1])
    matches = (exploded.to_numpy() == np.repeat(shown["artwork_id"].to_numpy(), width)).nonzero()[0]
    shown["shown"] = matches - np.repeat(np.cumsum(width) - width, width)[matches]

    plays = plays.sort_values(["played_at", "member_id"])
    shown = shown.sort_values(["shown_at", "member_id"])
    plays["before"] = plays.groupby("member_id").cumcount() + 1
    kept = ["member_id", "title", "played_at", "watched"]
    if "rating" in plays:
        known = plays["rating"][plays["played_at"] < validation_from]
        low, high = (-1, 1) if known.min() < 0 else (known.min(), known.max())
        scaled = (plays["rating"] - known.mean()) / ((high - low) / 2)
        of_member = scaled.groupby(plays["member_id"])
        rated = scaled.notna().groupby(plays["member_id"]).cumsum()
        plays["rating"] = scaled - of_member.cumsum() / (rated + 5)
        kept.append("rating")
    shown = pd.merge_asof(
        shown,
        plays[["member_id", "played_at", "before"]],
        left_on="shown_at",
        right_on="played_at",
        by="member_id",
        allow_exact_matches=False,
    )
    shown["history_length"] = shown["before"].fillna(0).astype(np.int64)
    out.mkdir(parents=True, exist_ok=True)
    plays.sort_values(["member_id", "played_at"])[kept].to_parquet(out / "plays.parquet")
    left_out = ["title_id", "artwork_id", "candidates", "before", "played_at"]
    shown.sort_values(["member_id", "shown_at"]).drop(columns=left_out).to_parquet(out / "impressions.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
