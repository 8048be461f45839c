"""`catalogue.json`: what each title and artwork of a bundle was encoded from, so that a refresh can tell what has changed since.

By title row from 1: rows of its genres and of its cast, and decades since 2000. By artwork row from 1: rows of the people and the
moods it depicts, and of its title. Words that the vocabularies lack have no part in an encoding, and are not kept.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from rich.console import Console

from datamodules.shards.catalogue import Catalogue
from datamodules.shards.vocabulary import Vocabularies, Vocabulary
from serving.bundle.bundle import CATALOGUE


class Encoded(TypedDict):
    """The content of titles and artworks by field: a list by row from 1."""

    genres: list[list[int]]
    cast: list[list[int]]
    release_year: list[float]
    people: list[list[int]]
    moods: list[list[int]]
    title: list[int]


FIELDS = {
    "titles": {"genres": "genres", "cast": "cast", "release_year": "release_year"},
    "artworks": {"people": "depicts (people)", "moods": "depicts (genres)", "title": "title_id"},
}
"""By vocabulary, each field and the column, in words, that it is made from."""


def encoded_content(arrays: Mapping[str, np.ndarray]) -> Encoded:
    """From the arrays of a catalogue by name, those of `datamodules.shards.catalogue.Catalogue`, whose padding is dropped."""

    def lists(name: str) -> list[list[int]]:
        return [[int(row) for row in rows if row] for rows in arrays[name][1:].tolist()]

    owner = np.zeros(len(arrays["artwork_people"]), np.int64)
    for title, artworks in enumerate(arrays["title_artworks"].tolist()):
        owner[artworks] = title
    return {
        "genres": lists("title_genres"),
        "cast": lists("title_people"),
        "release_year": [float(year) for year in arrays["title_year"][1:]],
        "people": lists("artwork_people"),
        "moods": lists("artwork_genres"),
        "title": owner[1:].tolist(),
    }


def save_encoded(content: Encoded, folder: Path) -> None:
    """Write `catalogue.json`."""
    (folder / CATALOGUE).write_text(json.dumps(content), encoding="utf-8")


def load_encoded(folder: Path) -> Encoded:
    """Read `catalogue.json`, whose bundle was checked when it was opened."""
    return json.loads((folder / CATALOGUE).read_text(encoding="utf-8"))


def merged_content(old: Encoded, catalogue: Catalogue, vocabularies: Vocabularies, known: Vocabularies) -> Encoded:
    """The old content, and behind it that of new rows as a dataset's catalogue has them: `vocabularies` extend `known`."""
    new, merged = encoded_content(vars(catalogue)), {**old}
    for name, fields in FIELDS.items():
        for field in fields:
            merged[field] = old[field] + new[field][len(known[name].values) : len(vocabularies[name].values)]
    return merged  # pyright: ignore[reportReturnType]


def without_rows(content: Encoded, withdrawn: Mapping[str, np.ndarray]) -> Encoded:
    """The content without rows that are cut out; an artwork whose title is, has title row 0."""
    cut: dict[str, Any] = {**content}
    for name, fields in FIELDS.items():
        gone = set(withdrawn[name].tolist())
        for field in fields:
            cut[field] = [value for row, value in enumerate(content[field], 1) if row not in gone]
    titles = withdrawn["titles"]
    cut["title"] = [0 if row in titles else row - int(np.searchsorted(titles, row)) for row in cut["title"]]
    return cut  # pyright: ignore[reportReturnType]


def warn_changed_content(
    old: Encoded, catalogue: Catalogue, present: dict[str, np.ndarray], vocabularies: Vocabularies, console: Console
) -> None:
    """Warn of titles and artworks whose content in a dataset is not what they were encoded from.

    `present`: by vocabulary, the rows of those that the dataset has.
    """
    new = encoded_content(vars(catalogue))
    for name, fields in FIELDS.items():
        vocabulary: Vocabulary = vocabularies[name]
        rows = [int(row) for row in np.unique(present[name]) if 0 < row <= len(old[next(iter(fields))])]
        for field, column in fields.items():
            changed = [vocabulary.values[row - 1] for row in rows if old[field][row - 1] != new[field][row - 1]]
            if changed:
                console.print(
                    f"refresh: {len(changed):,} {name} have another {column} than they were encoded from (first: {changed[0]}). "
                    "Their vectors stay as they are until the next training.",
                    soft_wrap=True,
                    markup=False,
                )
