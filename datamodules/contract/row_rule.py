"""The class of row rules of the dataset contract, for the modules that define rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ibis
from ibis.expr.types import BooleanValue, Value
from ibis.expr.types import Table as Relation

from datamodules.contract.stored_types import BLANK
from datamodules.contract.tables import Table

Relations = Mapping[str, Relation]


@dataclass(frozen=True, kw_only=True)
class RowRule:
    """A condition that must hold in every row of a table."""

    name: str
    """Short and stable name, for tests and scripts."""
    table: Table
    broken: Callable[[Relation, Relations], Value]
    """From the table and all tables: true where the row breaks the rule. Null counts as not broken."""
    what: str
    """Completes "14 rows ..."."""
    remedy: str
    """One sentence."""
    depends_on: tuple[Table, ...] = ()
    """Other tables that the rule reads; where one of them cannot be checked, neither can the rule."""
    needs: tuple[str, ...] = ()
    """Optional columns without which no row breaks the rule: where a table lacks one, the rule is not computed at all."""
    offending_value: Callable[[Relation], Value] | None = None
    """The value to print of an offending row beside its id."""
    reference: tuple[Table, str, Callable[[Relation], Value]] | None = None
    """The table and column that must list an id of the row, and that id."""
    makes_null: str | None = None
    """The column that `--drop-invalid` makes null in such a row, which is then kept; None: the row is left out."""
    suspects: Callable[[Relation], Relation] | None = None
    """From the table: a relation that is empty where no row breaks the rule; for rules for which it is much cheaper to compute
    than the offending rows."""

    def flags(self, rows: Relation, tables: Relations) -> BooleanValue:
        """True where a row breaks the rule, else false, never null."""
        broken: Any = self.broken(rows, tables)
        return broken.fill_null(False)


def typed_column(rows: Relation, name: str) -> Any:
    """A column in its own type, which Ibis takes from the schema and no type checker can know."""
    return rows[name]


def labelled(word: str, value: Any) -> Value:
    """A value as text, preceded by a word."""
    prefix: Any = ibis.literal(f"{word} ")
    return prefix + value.cast("string")


def id_value(value: Any) -> Any:
    """A column of ids, as an expression: text, null where blank."""
    text = value if value.type().is_string() else value.cast("string")
    # what is blank sorts before "!" or behind "~": comparisons, which alone cost little, spare nearly every row the match
    blank = ((text < "!") | (text > "~")) & text.re_search(BLANK)
    return ibis.ifelse(blank, ibis.null("string"), text)
