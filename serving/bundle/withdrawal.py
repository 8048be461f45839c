"""Titles and artworks that `keyart refresh --withdraw` takes out of a bundle: from ids as a user gives them to rows.

A title's artworks go with it. Ids that the bundle does not know are refused by name, before anything is changed.
"""

from pathlib import Path

import numpy as np

from datamodules.contract.check_files import printable
from datamodules.shards.vocabulary import Vocabularies
from foundation.errors import UserError
from foundation.stored import reading
from serving.bundle.encoded_content import Encoded

KINDS = {"title": "titles", "artwork": "artworks"}
NAMED = 5
"""Unknown ids that a refusal names."""


def withdrawn_ids(given: str) -> list[str]:
    """The ids of a text file, one a line, or, where no file has that name, the words between commas."""
    path = Path(given)
    try:
        is_file = path.is_file()
    except OSError:  # longer than a name may be
        is_file = False
    if is_file:
        with reading(path, "Write one id a line, in UTF-8."):
            words = path.read_text(encoding="utf-8").splitlines()
    else:
        words = given.split(",")
    ids = list(dict.fromkeys(word.strip() for word in words if word.strip()))
    if not ids:
        raise UserError(f"withdraw={printable(given)}: holds no id. Give ids with commas, or a file with one a line.")
    return ids


def withdrawn_rows(given: str | None, vocabularies: Vocabularies, content: Encoded) -> dict[str, np.ndarray]:
    """By `titles` and `artworks`, the rows that are taken out, sorted, int64; none without `given`.

    UserError where an id is neither a title nor an artwork of the bundle, or is both, or nothing would be left.
    """
    rows: dict[str, set[int]] = {"titles": set(), "artworks": set()}
    row_of = {name: {value: row for row, value in enumerate(vocabularies[name].values, 1)} for name in rows}
    unknown: list[str] = []
    for word in withdrawn_ids(given) if given is not None else []:
        kind, _, rest = word.partition(":")
        named = {KINDS[kind]: rest} if kind in KINDS and rest else dict.fromkeys(rows, word)
        known = [name for name, value in named.items() if value in row_of[name]]
        if len(known) > 1:
            raise UserError(f"withdraw: {printable(word)} is a title and an artwork. Write title:ID or artwork:ID.")
        if known:
            rows[known[0]].add(row_of[known[0]][named[known[0]]])
        else:
            unknown.append(printable(word))
    if unknown:
        more = f" and {len(unknown) - NAMED:,} more" if len(unknown) > NAMED else ""
        raise UserError(
            f"withdraw: the bundle has no {', '.join(unknown[:NAMED])}{more}. Nothing was changed: leave them out of the list."
        )
    rows["artworks"] |= {row for row, title in enumerate(content["title"], 1) if title in rows["titles"]}
    for name, withdrawn in rows.items():
        if len(withdrawn) == len(row_of[name]):
            raise UserError(f"withdraw: no {name} would be left. Export a run of another catalogue.")
    return {name: np.array(sorted(withdrawn), np.int64) for name, withdrawn in rows.items()}
