"""How many ids of a dataset a bundle does not know: their rows are the unknown row, and candidates that all are tie.

In: the requests' shards by the bundle's vocabularies, and the dataset they were prepared from. Out: a warning, or a UserError where
a bundle knows next to none, as one of another catalogue or with ids in another form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from datamodules.contract.check_files import printable
from datamodules.contract.stored_types import is_blank, with_text_ids
from datamodules.contract.tables import IMPRESSIONS, PLAYS, Table
from datamodules.shards.shard import Shard
from datamodules.shards.vocabulary import Vocabulary
from foundation.errors import UserError
from serving.bundle.bundle import Bundle

MANY, NEARLY_ALL = 0.2, 0.99
"""Shares of unknown ids from which on there is a warning, and a refusal."""
FEW = 100
"""Fewer values are no reason for a refusal: a handful of requests may well be of new titles alone."""


@dataclass(frozen=True)
class UnknownIds:
    """The ids of one column of the requests, and how many of them a bundle does not know."""

    table: Table
    column: str
    vocabulary: str
    """As in the bundle's vocabularies.json."""
    rows: int
    unknown: int

    @property
    def share(self) -> float:
        """Unknown ones among all, 0 .. 1; 0 where there are none."""
        return self.unknown / self.rows if self.rows else 0.0


def count_unknown(shards: Sequence[Path], bundle: Bundle) -> list[UnknownIds]:
    """Count the unknown ids of titles shown, of candidates, of titles played, and of categories of the context."""
    columns = [
        (IMPRESSIONS, "title_id", "titles"),
        (IMPRESSIONS, "candidates", "artworks"),
        (PLAYS, "title_id", "titles"),
    ]
    columns += [(IMPRESSIONS, feature.source, feature.name) for feature in bundle.context if feature.kind == "category"]
    counts = np.zeros((len(columns), 2), np.int64)
    for folder in shards:
        shard = Shard.open(folder, bundle.context)
        arrays = [shard.title, shard.candidate, shard.play_title]
        arrays += [shard.context[name] for _, _, name in columns[3:]]
        for count, rows in zip(counts, arrays, strict=True):
            count += np.array([len(rows), len(rows) - np.count_nonzero(rows)])
    return [
        UnknownIds(*names, rows=int(rows), unknown=int(unknown))
        for names, (rows, unknown) in zip(columns, counts, strict=True)
    ]


def require_known(
    counted: Sequence[UnknownIds], bundle: Bundle, dataset: Path, console: Console, *, allow: bool = False
) -> None:
    """Print a warning of many unknown ids; UserError where nearly all of `FEW` or more ids of titles or artworks are unknown,
    unless they are allowed."""
    for ids in counted:
        if ids.share < MANY:
            continue
        vocabulary = bundle.vocabularies[ids.vocabulary]
        first = first_unknown(dataset, ids.table, ids.column, vocabulary)
        if first is None:  # missing values of a category, which are the unknown row too
            continue
        known = printable(vocabulary.values[0]) if vocabulary.values else "none"
        what = (
            f"{ids.unknown:,} of {ids.rows:,} values of {ids.table.name}.{ids.column} are not known to {bundle.folder} (first: "
            f"{printable(first)}; it knows {known} and {max(0, len(vocabulary.values) - 1):,} more)"
        )
        if ids.share >= NEARLY_ALL and ids.rows >= FEW and ids.vocabulary in ("titles", "artworks") and not allow:
            raise UserError(
                f"{dataset}: {what}. Such scores are ties. Give the bundle of this catalogue, write ids in the form that it was "
                "trained on, or score it all the same: keyart score --allow-unknown."
            )
        console.print(f"warning {dataset}: {what}. What is not known is scored as the average one.", soft_wrap=True)


def first_unknown(dataset: Path, table: Table, column: str, vocabulary: Vocabulary) -> str | None:
    """The first value of a column that a vocabulary lacks, in the order of the files; None where there is none."""
    for path in table.files(dataset):
        file = pq.ParquetFile(path)
        if column not in file.schema_arrow.names:
            continue
        for batch in file.iter_batches(columns=[column]):
            values = with_text_ids(pa.Table.from_batches([batch]))[column].combine_chunks()
            if pa.types.is_list(values.type):
                values = values.flatten()
            values = values.drop_null().cast(pa.string())
            for index in np.flatnonzero(vocabulary.rows(values) == 0):
                if not is_blank(value := values[int(index)].as_py()):  # a blank one is missing
                    return value
    return None
