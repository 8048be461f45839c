"""Row rules of the columns `image` and `embedding` of artworks: one of the two there, vectors of one length, finite, not zero."""

from typing import Any

import ibis
from ibis.expr.types import Table as Relation

from datamodules.contract.row_rule import Relations, RowRule, labelled, typed_column
from datamodules.contract.tables import ARTWORKS
from foundation.context import LARGEST_FLOAT


def _has_embedding(rows: Relation) -> Any:
    """Whether a row has numbers in the column `embedding`; an empty list has none."""
    return (typed_column(rows, "embedding").length() > 0).fill_null(False)


def _number_of_embeddings(tables: Relations) -> Any:
    """How many artworks have an embedding."""
    artworks = tables[ARTWORKS.name]
    return artworks.filter(_has_embedding(artworks)).count().as_scalar()


def _usual_length(tables: Relations) -> Any:
    """The commonest length of an embedding, the smallest of several that are as common."""
    artworks = tables[ARTWORKS.name]
    lengths = artworks.filter(_has_embedding(artworks)).select(length=typed_column(artworks, "embedding").length())
    counted = lengths.group_by("length").agg(copies=lengths.count())
    return counted.order_by(ibis.desc("copies"), "length").limit(1).select("length").as_scalar()


def _unusable_numbers(rows: Relation) -> Any:
    """The numbers of an embedding that are null, NaN, or no finite number of 32 bits."""
    return typed_column(rows, "embedding").filter(lambda x: x.isnull() | x.isnan() | (x.abs() > LARGEST_FLOAT))


EMBEDDING_RULES = (
    RowRule(
        name="null-image",
        table=ARTWORKS,
        broken=lambda rows, tables: (
            (rows["image"].isnull() | (typed_column(rows, "image").strip() == ""))
            & (_number_of_embeddings(tables) == 0)
        ),
        what="with neither image nor embedding",
        remedy="Name the image's file, or give every artwork an embedding",
    ),
    RowRule(
        name="missing-embedding",
        table=ARTWORKS,
        broken=lambda rows, tables: ~_has_embedding(rows) & (_number_of_embeddings(tables) > 0),
        what="without an embedding, which other rows have",
        remedy="Give every artwork an embedding by the same model, leave these artworks out, or leave the column out",
    ),
    RowRule(
        name="embedding-length",
        table=ARTWORKS,
        broken=lambda rows, tables: (
            _has_embedding(rows) & (typed_column(rows, "embedding").length() != _usual_length(tables))
        ),
        what="whose embedding has another length than most",
        remedy="Write all embeddings by one model, of one length",
        offending_value=lambda rows: labelled("length", typed_column(rows, "embedding").length()),
    ),
    RowRule(
        name="embedding-values",
        table=ARTWORKS,
        broken=lambda rows, _: _unusable_numbers(rows).length() > 0,
        what="whose embedding holds a null, NaN, an infinity or a number beyond 32 bits",
        remedy="Embed these images again, or leave the artworks out",
        offending_value=lambda rows: labelled("value", _unusable_numbers(rows)[0].cast("string").fill_null("null")),
    ),
    RowRule(
        name="embedding-zero",
        table=ARTWORKS,
        broken=lambda rows, _: (
            _has_embedding(rows)
            & (typed_column(rows, "embedding").filter(lambda x: x.isnull() | (x != 0)).length() == 0)
        ),
        what="whose embedding is zero throughout",
        remedy="Embed these images again, or leave the artworks out: such a vector is what a failed export leaves",
    ),
)
"""Rules of the column `embedding`, and of `image`, which may be left out beside it."""
