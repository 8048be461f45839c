"""A row rule of the dataset contract: what it is made of, for the modules that state rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ibis
from ibis.expr.types import BooleanValue, Value
from ibis.expr.types import Table as Relation

from datamodules.contract.tables import Table

FLOAT32_MAX = 3.4028234663852886e38
"""The largest number of the type that embeddings and context features are kept in."""
Relations = Mapping[str, Relation]


@dataclass(frozen=True, kw_only=True)
class RowRule:
    """One thing that must hold in every row of a table."""

    name: str
    """Short and stable: what tests and scripts go by."""
    table: Table
    broken: Callable[[Relation, Relations], Value]
    """From the table and all tables: true where the row breaks the rule. Null counts as not broken."""
    what: str
    """Completes "14 rows ..."."""
    remedy: str
    """One sentence."""
    depends_on: tuple[Table, ...] = ()
    """Other tables the rule looks into; where one of them cannot be judged, neither can the rule."""
    offending_value: Callable[[Relation], Value] | None = None
    """What to print of an offender beside its id."""
    makes_null: str | None = None
    """The column that `--drop-invalid` makes null in such a row, which is then kept; None: the row is left out."""
    suspects: Callable[[Relation], Relation] | None = None
    """From the table: rows, of whatever shape, that are none where no row breaks the rule; for a rule of which that is
    much cheaper to know than which rows do."""

    def flags(self, rows: Relation, tables: Relations) -> BooleanValue:
        """True where a row breaks the rule, else false, never null."""
        broken: Any = self.broken(rows, tables)
        return broken.fill_null(False)


def typed_column(rows: Relation, name: str) -> Any:
    """A column in its own type, which no type checker can know: Ibis finds it in the schema."""
    return rows[name]


def labelled(word: str, value: Any) -> Value:
    """A value in words, behind what it is."""
    prefix: Any = ibis.literal(f"{word} ")
    return prefix + value.cast("string")
