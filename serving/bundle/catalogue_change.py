"""A catalogue that gains and loses titles and artworks, in every graph and table of a bundle.

New rows are appended; rows that are withdrawn are cut out, and those behind them move up. What is left in a row does not change by
a bit: tables are looked up by row, and rows by id.
"""

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, numpy_helper

from datamodules.shards.vocabulary import Vocabularies, Vocabulary
from serving.bundle.ids import ARTWORK_TABLE_PREFIXES, TITLE_TABLE_PREFIXES, update_id_encoders
from serving.bundle.new_artworks import TableRows

TITLE_COLUMNS = "title_vectors"
"""The one table of titles.onnx, by title column."""


@dataclass(frozen=True)
class CatalogueChange:
    """New rows of the tables, and old rows that are cut out."""

    titles: int
    artworks: int
    rows: TableRows
    """Appended rows by table."""
    first_mean_rows: np.ndarray
    """Rows of old titles that now have their first artworks, int64 (F,), and in `first` their means by table, zero before."""
    first_means: TableRows
    withdrawn: dict[str, np.ndarray]
    """By `titles` and `artworks`, the old rows that are cut out, sorted, int64."""

    def vocabulary(self, name: str, old: Vocabulary, new_ids: list[str]) -> Vocabulary:
        """The titles or artworks after the change."""
        more, cut = old.extended(new_ids), self.withdrawn[name]
        values = np.delete(np.array(more.values, object), cut - 1).tolist()
        return Vocabulary(values, old.trained - int((cut <= old.trained).sum()))


def changed_graph(model: ModelProto, vocabularies: Vocabularies, change: CatalogueChange) -> ModelProto:
    """A graph with the tables and vocabularies of the catalogue after a change."""
    for tensor in model.graph.initializer:
        name = tensor.name
        if name.startswith((*TITLE_TABLE_PREFIXES, *ARTWORK_TABLE_PREFIXES)):
            values = numpy_helper.to_array(tensor)
            if name == TITLE_COLUMNS:
                values = np.ascontiguousarray(changed_table("retrieval_vector", values.T, change).T)
            else:
                values = changed_table(name, values, change)
            tensor.CopyFrom(numpy_helper.from_array(values, name))
        elif name == "count":
            tensor.CopyFrom(numpy_helper.from_array(np.array([len(vocabularies["titles"])], np.int64), name))
    update_id_encoders(model, vocabularies)
    return model


def changed_table(name: str, table: np.ndarray, change: CatalogueChange) -> np.ndarray:
    """A table after a change; new rows are copies of the unknown row where content does not determine them."""
    if name in change.first_means and len(change.first_mean_rows):
        table = table.copy()
        table[change.first_mean_rows] = change.first_means[name].reshape(-1, *table.shape[1:])
    if name.startswith(ARTWORK_TABLE_PREFIXES):
        kind, count = "artworks", change.artworks
    elif name.startswith(TITLE_TABLE_PREFIXES):
        kind, count = "titles", change.titles
    else:
        return table
    new = change.rows.get(name)
    if new is None or not count:
        new = np.repeat(table[:1], count, axis=0)
    if new.ndim == 2 and new.shape[1] > table.shape[1]:  # more people than any artwork showed before
        table = np.pad(table, ((0, 0), (0, new.shape[1] - table.shape[1])))
    if new.ndim < table.ndim:  # one number a row, kept as an axis of length 1
        new = new.reshape(len(new), *table.shape[1:])
    changed = np.delete(np.concatenate([table, new.astype(table.dtype)]), change.withdrawn[kind], axis=0)
    return _renumbered(changed, change.withdrawn["titles"]) if name == "artwork_title" else changed


def _renumbered(title_rows: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Title rows after some were cut out; 0 for those."""
    moved = title_rows - np.searchsorted(cut, title_rows, side="right").astype(title_rows.dtype)
    return np.where(np.isin(title_rows, cut), 0, moved).astype(title_rows.dtype)
