"""One list of values a row, of any lengths, stored one after the other: memory goes with the values, not with the longest list.

Rows are read as padded arrays, a block of rows at a time: `blocks` bounds the cells of a block.

Legend: N rows, K items of a list (padded), C items of all lists.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

ROWS_PER_BLOCK = 200_000
"""Rows in memory at a time where arrays have a column per item."""
CELLS_PER_BLOCK = 500_000
"""Cells of such an array, padding included: fewer rows where a list is long."""


@dataclass(frozen=True, eq=False)
class Lists:
    """Lists of values by row."""

    values_C: NDArray[Any]
    """The items of all lists."""
    start_N: NDArray[np.int64]
    """Index of each list's first item, and one more number, the number of items."""
    padding: float = 0
    """What padded arrays have after the end of a list."""

    @classmethod
    def of(cls, values_C: NDArray, width_N: NDArray, padding: float = 0) -> "Lists":
        """Lists of some lengths from their items."""
        return cls(values_C, np.concatenate([[0], np.cumsum(width_N)]).astype(np.int64), padding)

    @classmethod
    def of_padded(cls, table_NK: NDArray, mask_NK: NDArray, padding: float = 0) -> "Lists":
        """The items of padded lists (N, K) that a mask selects."""
        return cls.of(table_NK[mask_NK], mask_NK.sum(1), padding)

    def like(self, values_C: NDArray, padding: float = 0) -> "Lists":
        """Lists of the same lengths with other items."""
        return Lists(values_C, self.start_N, padding)

    def __len__(self) -> int:
        """N."""
        return len(self.start_N) - 1

    @property
    def width_N(self) -> NDArray[np.int64]:
        """Length of each list, (N,)."""
        return np.diff(self.start_N)

    @property
    def row_C(self) -> NDArray[np.int64]:
        """The row of each item, (C,)."""
        return np.repeat(np.arange(len(self)), self.width_N)

    @property
    def index_C(self) -> NDArray[np.int64]:
        """The index of each item in its list, (C,)."""
        return np.arange(len(self.values_C)) - np.repeat(self.start_N[:-1], self.width_N)

    @overload
    def __getitem__(self, rows: slice | NDArray[np.integer] | NDArray[np.bool_]) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, rows: tuple[NDArray[np.integer], NDArray[np.integer]]) -> NDArray[Any]: ...
    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Some rows as a padded array (n, k), k being their longest list; or the items (n,) at pairs of row and index."""
        if isinstance(rows, tuple):
            row_n, index_n = rows
            return self.values_C[self.start_N[row_n] + index_n]
        some = self.take(np.arange(len(self))[rows])
        mask_nk = np.arange(some.width_N.max(initial=1)) < some.width_N[:, None]
        table_nk = np.full(mask_nk.shape, self.padding, self.values_C.dtype)
        table_nk[mask_nk] = some.values_C
        return table_nk

    def row(self, row: int) -> NDArray[Any]:
        """One list."""
        return self.values_C[self.start_N[row] : self.start_N[row + 1]]

    def take(self, rows: NDArray[np.integer]) -> "Lists":
        """The lists at some rows, in that order."""
        width_n = self.width_N[rows]
        start_n = np.concatenate([[0], np.cumsum(width_n)])
        index_c = np.arange(start_n[-1]) + np.repeat(self.start_N[:-1][rows] - start_n[:-1], width_n)
        return replace(self, values_C=self.values_C[index_c], start_N=start_n)

    def reduce(self, function: np.ufunc, empty: Any = 0) -> NDArray[Any]:
        """A function over each list, such as `np.add`, (N,); `empty` for a list without items."""
        filled_N = self.width_N > 0
        if filled_N.all() and len(self):
            return function.reduceat(self.values_C, self.start_N[:-1])
        reduced_N = np.full(len(self), empty, function(self.values_C[:0], self.values_C[:0]).dtype)
        if filled_N.any():
            reduced_N[filled_N] = function.reduceat(self.values_C, self.start_N[:-1][filled_N])
        return reduced_N

    def sums(self) -> NDArray[np.float64]:
        """The sum of each list, (N,), in double precision."""
        return self.like(self.values_C.astype(np.float64)).reduce(np.add)

    def first(self, where_C: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The index in each list of its first item that a mask selects, (N,); -1 where it selects none."""
        index_c = np.flatnonzero(where_C)
        row_c = np.searchsorted(self.start_N, index_c, side="right") - 1
        first_N = np.full(len(self), -1, np.int64)
        row_n, at = np.unique(row_c, return_index=True)
        first_N[row_n] = index_c[at] - self.start_N[row_n]
        return first_N

    def best(self) -> NDArray[np.int64]:
        """The index in each list of its largest item, the first of equals, (N,)."""
        return self.first(self.values_C == np.repeat(self.reduce(np.maximum), self.width_N))

    def one_hot(self, index_N: NDArray[np.integer]) -> "Lists":
        """1 for the item at an index of each list, 0 for the others."""
        chosen_C = np.zeros(len(self.values_C))
        chosen_C[self.start_N[:-1] + index_N] = 1.0
        return self.like(chosen_C)


Table = Lists | NDArray[Any]
"""Lists, or an array (N, K) of lists that are as long: both are read by a slice of rows, or by pairs of row and index."""


def blocks(table: Table) -> Iterator[slice]:
    """Slices of consecutive rows that are read at a time."""
    if not isinstance(table, Lists):
        for first in range(0, len(table), ROWS_PER_BLOCK):
            yield slice(first, min(first + ROWS_PER_BLOCK, len(table)))
        return
    first, width_N = 0, table.width_N
    while first < len(width_N):
        widest_n = np.maximum.accumulate(width_N[first : first + ROWS_PER_BLOCK])
        cells_n = widest_n * np.arange(1, len(widest_n) + 1)
        count = max(1, int(np.searchsorted(cells_n, CELLS_PER_BLOCK, side="right")))
        yield slice(first, first + count)
        first += count
