"""Example members: what they watched, and which artworks the policy would show them, best first.

Members are drawn at random, not picked: a page that shows only the best cases is an advertisement.

Legend: N impressions, K candidates (padded).
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamodules.contract.image_files import image_file
from datamodules.contract.stored_types import with_text_ids
from datamodules.contract.tables import ARTWORKS, PLAYS, TITLES
from evaluation.logs.columns import to_array
from evaluation.logs.log_slices import ImpressionAttributes
from evaluation.logs.scored_log import ScoredLog
from evaluation.record.rows import ExampleCandidate, ExampleImpression, ExampleMember, ExamplePlay, Reason, ReasonPlay

EXAMPLE_MEMBERS, TITLES_SHOWN, PLAYS_SHOWN = 10, 2, 6
MIN_PLAYS = 3


@dataclass(frozen=True, kw_only=True)
class ArtworkLabels:
    """Names and images of titles and artworks, by id."""

    names: dict[str, str]
    genres: dict[str, list[str]]
    images: dict[str, Path]
    """By artwork."""
    of_title: dict[str, str]
    """The id of a title's first artwork, by title."""
    title_of: dict[str, str]
    """The id of an artwork's title, by artwork."""

    def name_of_artwork(self, artwork: str) -> str:
        """The name of its title; the artwork's id where that is not known."""
        title = self.title_of.get(artwork, artwork)
        return self.names.get(title, title)


def read_artwork_labels(dataset: Path) -> ArtworkLabels:
    """Read names and images from titles.parquet and artworks.parquet where they exist; ids replace missing names."""
    names: dict[str, str] = {}
    genres: dict[str, list[str]] = {}
    for path in TITLES.files(dataset):
        for row in _rows(path, ("title_id", "name", "genres")):
            names[row["title_id"]] = row.get("name") or row["title_id"]
            genres[row["title_id"]] = row.get("genres") or []
    images: dict[str, Path] = {}
    of_title: dict[str, str] = {}
    title_of: dict[str, str] = {}
    for path in ARTWORKS.files(dataset):
        for row in _rows(path, ("artwork_id", "title_id", "image")):
            if row.get("image"):
                images[row["artwork_id"]] = image_file(dataset, row["image"])
            title_of[row["artwork_id"]] = row.get("title_id") or row["artwork_id"]
            of_title.setdefault(title_of[row["artwork_id"]], row["artwork_id"])
    return ArtworkLabels(names=names, genres=genres, images=images, of_title=of_title, title_of=title_of)


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    present = [name for name in columns if name in pq.read_schema(path).names]
    return with_text_ids(pq.read_table(path, columns=present)).to_pylist()


def examples(
    dataset: Path,
    log: ScoredLog,
    attributes: ImpressionAttributes,
    catalogue: ArtworkLabels,
    fixed_N: NDArray | None,
    reasons: dict[str, Reason] | None = None,
) -> list[ExampleMember]:
    """Random members with their newest plays and the policy's ranking of some titles' artworks.

    Rows of member, plays (title, name, artwork), shown (title, name, genres, candidates with artwork, click_probability,
    policy, best_fixed, logged; best first; and why, where `reasons` has the impression: its members come first, for they
    were drawn at random already). `fixed_N`: (N,) index of the best artwork for everybody. The page adds the images.
    """
    reasons = reasons or {}
    explained = pc.is_in(log.impression_id, value_set=pa.array(list(reasons), pa.string()))
    explained_N = np.asarray(explained) if len(log) else np.zeros(0, bool)
    choice_N = log.width >= min(3, int(log.width.max(initial=0)))
    order = np.random.default_rng(0).permutation(len(log))
    order = order[np.argsort(~explained_N[order], kind="stable")]
    candidates = list(
        dict.fromkeys(attributes.member.take(pa.array(order[choice_N[order]][: 40 * EXAMPLE_MEMBERS])).to_pylist())
    )
    last = int(log.shown_at.max(initial=0))
    plays = _plays(dataset, candidates)
    enough = [m for m in candidates if len(plays.get(m, [])) >= MIN_PLAYS] or candidates
    sampled: list[ExampleMember] = []
    for member in enough[:EXAMPLE_MEMBERS]:
        rows = np.flatnonzero(np.asarray(pc.equal(attributes.member, member)) & choice_N)
        rows = rows[np.lexsort((-log.shown_at[rows], ~explained_N[rows]))]
        _, first = np.unique(log.title[rows], return_index=True)
        shown = [
            _shown(log, attributes, int(row), catalogue, fixed_N, reasons.get(log.impression_id[int(row)].as_py()))
            for row in rows[np.sort(first)][:TITLES_SHOWN]
        ]
        before = [play for play in plays.get(member, []) if play[0] < max((s["shown_at"] for s in shown), default=last)]
        history: list[ExamplePlay] = [
            {
                "title": title,
                "name": catalogue.names.get(title, title),
                "artwork": artwork or catalogue.of_title.get(title),
            }
            for _, title, artwork in before[-PLAYS_SHOWN:][::-1]
        ]
        sampled.append({"member": member, "plays_before": len(before), "plays": history, "shown": shown})
    return sampled


def _shown(
    log: ScoredLog,
    attributes: ImpressionAttributes,
    row: int,
    catalogue: ArtworkLabels,
    fixed_N: NDArray | None,
    reason: Reason | None,
) -> ExampleImpression:
    title = str(attributes.title[row].as_py())
    artworks = [log.artworks[int(a)].as_py() for a in log.artwork_NK.row(row)]
    rows: list[ExampleCandidate] = [
        {
            "artwork": artwork,
            "click_probability": float(log.click_probability_NK.row(row)[k]),
            "policy": float(log.policy_NK.row(row)[k]),
            "best_fixed": fixed_N is not None and int(fixed_N[row]) == k,
            "logged": int(log.shown[row]) == k,
        }
        for k, artwork in enumerate(artworks)
    ]
    rows.sort(key=lambda candidate: (-candidate["policy"], -candidate["click_probability"]))
    return {
        "title": title,
        "name": catalogue.names.get(title, title),
        "genres": catalogue.genres.get(title, []),
        "shown_at": int(log.shown_at[row]),
        "clicked": bool(log.clicked[row]),
        "candidates": rows,
        "why": _named(reason, catalogue),
    }


def _named(reason: Reason | None, catalogue: ArtworkLabels) -> Reason | None:
    """The reason, with the names of its plays' titles added."""
    if reason is None:
        return None
    plays: list[ReasonPlay] = [
        {**play, "name": catalogue.names.get(play["title"], play["title"])} for play in reason["plays"]
    ]
    return {**reason, "plays": plays}


def _plays(dataset: Path, members: list[str]) -> dict[str, list[tuple[int, str, str | None]]]:
    """By member, its plays as (microseconds since 1970, title, artwork), oldest first."""
    files = [str(path) for path in PLAYS.files(dataset)]
    if not files:
        return {}
    source = pads.dataset(files)
    columns = [name for name in ("member_id", "title_id", "played_at", "artwork_id") if name in source.schema.names]
    member_filter = pads.field("member_id").cast(pa.string()).isin(members)
    table = with_text_ids(source.to_table(columns=columns, filter=member_filter))
    moment = to_array(table["played_at"].cast(pa.timestamp("us", "UTC"), safe=False)).cast(pa.int64()).to_pylist()
    artwork = table["artwork_id"].to_pylist() if "artwork_id" in columns else [None] * len(table)
    plays_by_member: dict[str, list[tuple[int, str, str | None]]] = {}
    for row in sorted(
        zip(table["member_id"].to_pylist(), moment, table["title_id"].to_pylist(), artwork, strict=True),
        key=lambda play: play[:3],
    ):
        plays_by_member.setdefault(row[0], []).append(row[1:])
    return plays_by_member
