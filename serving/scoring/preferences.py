"""What a bundle's ranker looks at: the artworks that it prefers most and least for groups of members, and which parts of some of
them raise or lower their appeal.

In: a bundle, shards by its vocabularies and the dataset. Out: a record for the report of `keyart evaluate`. It needs no torch.

Legend: P pairs of title and artwork, G genres, I titles.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from datamodules.contract.image_decoding import decode_image, strict_image_decoding
from datamodules.contract.image_files import image_file
from datamodules.contract.stored_types import with_text_ids
from datamodules.contract.tables import ARTWORKS, TITLES, Table
from datamodules.shards.shard import Shards
from foundation.machine import available_cores
from foundation.preferences import GroupPreferences, OccludedArtwork, Preferences, PreferredArtwork
from serving.bundle.bundle import Bundle
from serving.bundle.new_artworks import ArtworkTower
from serving.scoring.mean_queries import MeanQuery, mean_queries, sample_queries
from serving.scoring.occlusion import LONGEST_SIDE, occlude

MOST, OCCLUDED = 6, 10
"""Artworks listed as preferred most, and least, for a group; and those of them that are covered part by part."""
OF_VECTORS = (
    "This bundle’s artworks were embedded from vectors of your own, which cannot be made anew from an image with a part covered: "
    "the pictures of what the ranker looks at are left out."
)
LISTS: tuple[Literal["most", "least"], ...] = ("most", "least")
NO_IMAGES = "The dataset has no images of these artworks: the pictures of what the ranker looks at are left out."


Choice = tuple[str, Literal["most", "least"], PreferredArtwork]
"""The genre of a group, the list that an artwork of it is taken from, and the artwork."""


def preferences(bundle: Bundle, dataset: Path, shards: Path, since: datetime) -> Preferences:
    """Compute the record over the impressions shown at or after `since`; `shards`: by the bundle's vocabularies."""
    rows = [row for row in _rows(TITLES, dataset, ("title_id", "name", "genres")) if row["title_id"]]
    names: dict[str, str] = {row["title_id"]: row["name"] or row["title_id"] for row in rows}
    genres = sorted({genre for row in rows for genre in row["genres"] or []})
    titles = bundle.vocabularies["titles"]
    genres_IG = np.zeros((len(titles), len(genres)), bool)
    column_of = {genre: column for column, genre in enumerate(genres)}
    row_of = {title: row for row, title in enumerate(titles.values, 1)}
    for row in rows:
        if row["title_id"] in row_of:
            genres_IG[row_of[row["title_id"]], [column_of[genre] for genre in row["genres"] or []]] = True
    sample = sample_queries(bundle, Shards.open(shards).shards, since, genres_IG)
    queries = mean_queries(sample, genres)
    groups = [_group(bundle, query, sample.pair_P2, names) for query in queries]
    chosen = list(_to_occlude(groups))
    occluded, unreadable, left_out = [], 0, OF_VECTORS
    tower = ArtworkTower(bundle)
    if tower.sources == ["image"]:
        query_of = {query.genre: query for query in queries}
        occluded, unreadable, left_out = _occluded(tower, dataset, chosen, query_of)
    return Preferences(
        impressions=len(sample.member_S),
        impressions_in_period=sample.impressions,
        artworks=len(np.unique(sample.pair_P2[:, 1])),
        groups=groups,
        occluded=occluded,
        unreadable=unreadable,
        left_out=left_out,
    )


def _rows(table: Table, dataset: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a table of the catalogue, None where a column is missing."""
    rows: list[dict[str, Any]] = []
    for path in table.files(dataset):
        present = [name for name in columns if name in pq.read_schema(path).names]
        read = with_text_ids(pq.read_table(path, columns=present)).to_pylist()
        rows += [{name: row.get(name) for name in columns} for row in read]
    return rows


def _group(bundle: Bundle, query: MeanQuery, pair_P2: np.ndarray, names: dict[str, str]) -> GroupPreferences:
    """The most and the least preferred artworks of a group, most extreme first."""
    tables = bundle.tables
    appeal_P, mean_P = (
        query.appeal(*(tables[f"{prefix}_{part}"][rows].astype(np.float64) for part in ("vector", "content", "bias")))
        for prefix, rows in (("artwork", pair_P2[:, 1]), ("mean", pair_P2[:, 0]))
    )
    appeal_P = appeal_P - mean_P
    titles, artworks = bundle.vocabularies["titles"].values, bundle.vocabularies["artworks"].values

    def artwork(index: int) -> PreferredArtwork:
        title_row, artwork_row = pair_P2[index].tolist()
        title = titles[title_row - 1]
        return PreferredArtwork(
            artwork=artworks[artwork_row - 1],
            title=title,
            name=names.get(title) or title,
            appeal=float(appeal_P[index]),
        )

    order = np.argsort(-appeal_P, kind="stable").tolist()
    most = order[:MOST]
    least = [index for index in reversed(order) if index not in most][:MOST]
    return GroupPreferences(
        genre=query.genre,
        impressions=query.impressions,
        members=query.members,
        most=[artwork(index) for index in most],
        least=[artwork(index) for index in least],
    )


def _to_occlude(groups: Sequence[GroupPreferences]) -> Iterator[Choice]:
    """Genre, list and artwork of those to be covered: the first of each list, then the second, and so on, of distinct titles."""
    titles: set[str] = set()
    for rank in range(MOST):
        for group in groups:
            for shown_as in LISTS:
                artworks = group[shown_as]
                if rank < len(artworks) and artworks[rank]["title"] not in titles and len(titles) < OCCLUDED:
                    titles.add(artworks[rank]["title"])
                    yield group["genre"], shown_as, artworks[rank]


def _occluded(
    tower: ArtworkTower,
    dataset: Path,
    chosen: Sequence[Choice],
    query_of: dict[str, MeanQuery],
) -> tuple[list[OccludedArtwork], int, str]:
    """The chosen artworks covered part by part, the number of those whose image cannot be read, and why all are left out."""
    catalogue = {
        row["artwork_id"]: row for row in _rows(ARTWORKS, dataset, ("artwork_id", "title_id", "image", "depicts"))
    }
    with_image = [choice for choice in chosen if catalogue.get(choice[2]["artwork"], {}).get("image")]
    if not with_image:
        return [], 0, NO_IMAGES
    session = tower.session

    def covered(choice: Choice) -> OccludedArtwork | None:
        genre, shown_as, artwork = choice
        row = catalogue[artwork["artwork"]]
        try:
            picture, _ = decode_image(image_file(dataset, row["image"]), at_least=LONGEST_SIDE)
        except Exception:  # on broken bytes Pillow's decoders raise whatever they stumble over
            return None
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        cells_RL = occlude(session, np.asarray(picture), row["depicts"], query_of[genre])
        return OccludedArtwork(genre=genre, shown_as=shown_as, artwork=artwork, cells=cells_RL.tolist())

    with strict_image_decoding(), ThreadPoolExecutor(available_cores()) as pool:
        occluded = [result for result in pool.map(covered, with_image) if result is not None]
    return occluded, len(chosen) - len(occluded), ""
