"""Options of `keyart import`: which tables the files hold, which column is which, and how their text is read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from foundation.errors import UserError

TABLE_NAMES = ("titles", "artworks", "plays", "impressions", "members")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """How files are read. A column of the contract is taken from the column of the same name unless `map` says otherwise."""

    map: list[str] = field(default_factory=list)
    """Columns as TARGET=COLUMN, separated by commas: member_id=userId,played_at=timestamp; may be given again. TABLE.TARGET=COLUMN
    is for one table; TARGET=COLUMN.FIELD takes a field of objects, or of the objects in a list; shown=COLUMN marks the artwork
    that was shown where every row is one candidate; TARGET:=TEXT sets a constant, in which {artwork_id} stands for that column's
    value; impression_id=@row numbers the rows; impressions.minutes:number=min adds a column of the type text, number, integer or
    boolean."""
    table: list[str] = field(default_factory=list)
    """The tables that every file holds: titles, artworks, plays, impressions, members. Default: those whose columns a file has."""
    zone: str = ""
    """Time zone of times that state none, such as UTC or Europe/Berlin."""
    epoch: Literal["", "s", "ms", "us", "ns"] = ""
    """Unit of times that are numbers since 1970. Default: the unit that puts every time of the column after 1971."""
    time_format: str = ""
    """Format of times as strptime has it, such as %d/%m/%Y %H:%M. Default: ISO 8601."""
    separator: str = ""
    """What separates the items of lists that are not in brackets. Default: the first of | ; and , that the column has."""
    decimal: Literal[".", ","] = "."
    """The decimal mark of numbers."""
    null: list[str] = field(default_factory=list)
    """A text that means not known, in every column; may be given again. Empty cells always do, and NA, NULL, None and their
    like in columns that are no text."""
    unparsable: Literal["refuse", "null"] = "refuse"
    """What becomes of values that cannot be read as their column's type: an error, or null, counted."""
    delimiter: str = ""
    """What separates the columns of CSV files. Default: a comma, semicolon, tab or bar, whichever fits the first line."""
    header: list[str] = field(default_factory=list)
    """Names of the columns of CSV files whose first line is data already."""
    encoding: str = ""
    """Encoding of text files, such as ISO-8859-1. Default: UTF-8, or UTF-16 where the file begins with its mark."""
    plays_from: Literal["", "clicked", "engaged"] = ""
    """Also write plays/: each impression that was clicked, or engaged, as a play of its title at that time."""
    images: Path | None = None
    """Folder of the image files: those that artworks name are copied into the dataset."""

    def __post_init__(self) -> None:
        """Check what can be checked without the files."""
        for name in split(self.table):
            if name not in TABLE_NAMES:
                raise UserError(f"table={name}: no table of the contract. Give some of {', '.join(TABLE_NAMES)}.")
        if self.zone:
            try:
                ZoneInfo(self.zone)
            except (KeyError, ValueError, OSError):  # OSError: the name of a folder of zones
                raise UserError(f"zone={self.zone}: no time zone. Give a name such as UTC or Europe/Berlin.") from None
        if self.encoding:
            try:
                "".encode(self.encoding)
            except LookupError:
                raise UserError(
                    f"encoding={self.encoding}: no encoding. Give one such as UTF-8 or ISO-8859-1."
                ) from None
        if self.decimal == "," and self.separator == ",":
            raise UserError("separator=,: is the decimal mark too. Name another separator.")

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that were named, each once."""
        return tuple(dict.fromkeys(split(self.table)))


def split(words: list[str]) -> list[str]:
    """The parts of words at their commas, without blanks."""
    return [part.strip() for word in words for part in word.split(",") if part.strip()]
