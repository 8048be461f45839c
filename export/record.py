"""Writing into a bundle that is there already: what was found of it, and nothing else."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodules.atomic import atomic_folder, claimed, require_replaceable
from datamodules.contract import UserError
from export.bundle import ABOUT, CARD, Bundle
from export.card import card_of
from export.judged import judged
from export.linked import files_of, link, sha256


def record_verdict(folder: Path, report: dict[str, Any], scored: Bundle) -> bool:
    """Keep in a bundle what a report of it says, in `bundle.json` and the card; returns whether anything changed.

    Both are replaced together: a bundle of the same files, linked, takes the place of the old one. UserError as
    `Bundle.open`, and where it is no more the one that was scored.
    """
    with replacing(folder) as bundle:
        if bundle.made_of != scored.made_of:
            raise UserError(f"{folder}: changed since it was scored: the verdict is not its. Evaluate it again.")
        return _record(bundle, report)


@contextmanager
def replacing(folder: Path) -> Iterator[Bundle]:
    """A bundle that nobody else replaces meanwhile, opened by its real path; one whose replacing was cut short is put back."""
    folder = folder.resolve()
    require_replaceable(folder, ABOUT)
    Bundle.open(folder)  # refused before anything is claimed
    with claimed(folder.with_name(f".{folder.name}")):
        yield Bundle.open(folder)


def _record(bundle: Bundle, report: dict[str, Any]) -> bool:
    folder = bundle.folder
    found = json.loads(json.dumps(judged(report)))  # as it will be read: tuples are lists
    if bundle.about.get("evaluation") == found:
        return False
    record = bundle.about | {"evaluation": found}
    card = card_of(record, bundle.vocabularies)
    with atomic_folder(folder, marker=ABOUT) as partial:
        for path in files_of(folder):
            if path not in (folder / ABOUT, folder / CARD):
                link(path, partial / path.relative_to(folder))
        (partial / CARD).write_text(card, encoding="utf-8")
        record["sha256"] = bundle.about["sha256"] | {CARD: sha256(partial / CARD)}
        (partial / ABOUT).write_text(json.dumps(record, indent=1))
    return True
