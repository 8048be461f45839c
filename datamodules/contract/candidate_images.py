"""How many candidates of impressions have an image: what a log shows counts, where artworks that nobody is shown do not.

In: the tables as relations, and the artworks whose image was judged unreadable. Out: `ImageCoverage`, and what of it is a violation
or a warning.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.contract.check_files import Violation, printable
from datamodules.contract.engines import to_arrow
from datamodules.contract.row_rule import Relations
from datamodules.contract.tables import ARTWORKS, IMPRESSIONS

WITHOUT_IMAGE = 0.01
"""From this share of candidates without an image: a warning."""


@dataclass(frozen=True, kw_only=True)
class ImageCoverage:
    """Artworks, and candidates of impressions, that have no image."""

    opened: bool
    """Whether the images were opened: else an artwork that names one has one."""
    embeddings: bool
    """Whether an artwork has an embedding, so that images may be left out."""
    artworks: int
    named: int
    """Artworks that name an image."""
    without_image: int
    """Artworks that name no image, or one that is not there or cannot be decoded."""
    candidates: int
    """Candidates of all impressions."""
    candidates_without: int
    """Those whose artwork has no image, or is not listed."""
    unlisted: int
    """Those whose artwork is not listed."""
    first: tuple[tuple[str, str | None, int], ...]
    """The artworks without an image that are candidates most often: id, the image that they name, candidates."""


def count_candidates(tables: Relations) -> tuple[pa.Table, int] | None:
    """The artworks with `image`, whether it is `unnamed`, and in how many impressions each is a candidate (`rows`), and the
    candidates of all impressions.

    None where artworks or impressions cannot be judged.
    """
    if ARTWORKS.name not in tables or IMPRESSIONS.name not in tables:
        return None
    artworks: Any = tables[ARTWORKS.name]
    impressions: Any = tables[IMPRESSIONS.name]
    shown: Any = impressions.select(artwork_id=impressions.candidates.unnest())
    counted = shown.group_by("artwork_id").agg(rows=shown.count())
    has_embedding = (artworks.embedding.length() > 0).fill_null(False)
    listed = (
        artworks.filter(artworks.artwork_id.notnull())
        .group_by("artwork_id")
        .agg(image=artworks.image.strip().max(), embedding=has_embedding.any())
    )
    joined: Any = listed.left_join(counted, "artwork_id")
    unnamed = joined.image.fill_null("") == ""
    rows = joined.select("artwork_id", "image", "embedding", unnamed=unnamed, rows=joined.rows.fill_null(0))
    # one more row, without an artwork, for the candidates of all impressions: the lists are read and grouped once
    all_rows = counted.aggregate(rows=counted.rows.cast("float64").sum().fill_null(0).cast("int64"))
    total = all_rows.select(
        artwork_id=ibis.null("string"),
        image=ibis.null("string"),
        embedding=ibis.literal(False),
        unnamed=ibis.literal(False),
        rows=all_rows.rows,
    )
    both = to_arrow(rows.union(total))
    is_total = pc.is_null(both["artwork_id"])
    (candidates,) = both.filter(is_total)["rows"].to_pylist()
    return both.filter(pc.invert(is_total)), int(candidates)


def image_coverage(listed: pa.Table, candidates: int, unreadable: Collection[str] | None) -> ImageCoverage:
    """What `count_candidates` returned, judged by the artworks whose image is `unreadable`, None where none was opened."""
    unnamed = listed[
        "unnamed"
    ]  # not compared here: a value of Python's has Arrow import pandas first, for a fifth of a second
    lacking = unnamed
    if unreadable:
        names = pa.array(sorted(unreadable), listed.schema.field("artwork_id").type)
        lacking = pc.or_(lacking, pc.is_in(listed["artwork_id"], value_set=names))
    without = listed.filter(lacking)
    unlisted = candidates - (pc.sum(listed["rows"]).as_py() or 0)
    order = pc.sort_indices(without, sort_keys=[("rows", "descending"), ("artwork_id", "ascending")])
    most = [row for row in without.take(order[:3]).to_pylist() if row["rows"]]
    return ImageCoverage(
        opened=unreadable is not None,
        embeddings=bool(pc.any(listed["embedding"]).as_py()),
        artworks=len(listed),
        named=len(listed) - (pc.sum(unnamed).as_py() or 0),
        without_image=len(without),
        candidates=candidates,
        candidates_without=unlisted + (pc.sum(without["rows"]).as_py() or 0),
        unlisted=unlisted,
        first=tuple((row["artwork_id"], row["image"] or None, row["rows"]) for row in most),
    )


def image_findings(images: ImageCoverage) -> tuple[list[Violation], list[Violation]]:
    """What of it breaks the contract, and what is a warning; nothing where artworks have embeddings.

    Nothing either where no artwork names an image, which the rule `null-image` says.
    """
    without, candidates = images.candidates_without, images.candidates
    if images.embeddings or not images.named or without <= WITHOUT_IMAGE * candidates:
        return [], []
    first = [
        f"{printable(artwork)}, {printable(image or 'no image named')}, {rows:,} candidates"
        for artwork, image, rows in images.first
    ]
    first += [f"{images.unlisted:,} of artworks that are not listed"] if images.unlisted else []
    finding = Violation(
        where="impressions/ and artworks.parquet",
        rule="candidates-without-image",
        what=f"{without:,} of {candidates:,} candidates have no {'readable image' if images.opened else 'image'}",
        count=without,
        first=tuple(first),
        remedy="Export the images of what is shown, and name each in artworks.image by its path in the dataset",
    )
    return ([finding], []) if without == candidates else ([], [finding])
