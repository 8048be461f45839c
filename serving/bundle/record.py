"""Recording the result of `keyart evaluate` in a bundle, and changing nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foundation.atomic import atomic_folder, claimed_output
from foundation.errors import UserError
from serving.bundle.bundle import CARD, Bundle
from serving.bundle.card import model_card
from serving.bundle.hard_links import link, sha256
from serving.bundle.metadata import BUNDLE_FILE, BundleRecord, Evaluation
from serving.bundle.seal import write_record


def record_verdict(folder: Path, evaluation: Evaluation, scored: Bundle) -> bool:
    """Record an evaluation in a bundle's `bundle.json` and card; returns whether anything changed.

    Both are replaced together: a bundle of the same files, as hard links, replaces the old one. UserError as
    `Bundle.open`, and where it is no longer the one that was scored.
    """
    with open_for_replacement(folder) as bundle:
        if bundle.content_checksums != scored.content_checksums:
            raise UserError(f"{folder}: changed since it was scored: the verdict is not its. Evaluate it again.")
        return _record(bundle, evaluation)


@contextmanager
def open_for_replacement(folder: Path) -> Iterator[Bundle]:
    """Open a bundle by its real path and lock it against replacement; a bundle whose replacement was interrupted is restored."""
    folder = folder.resolve()
    Bundle.open(folder)  # refused before anything is claimed
    with claimed_output(folder, BUNDLE_FILE):
        yield Bundle.open(folder)


def _record(bundle: Bundle, evaluation: Evaluation) -> bool:
    folder = bundle.folder
    if bundle.metadata.get("evaluation") == evaluation:
        return False
    metadata: BundleRecord = {**bundle.metadata, "evaluation": evaluation}
    card = model_card(metadata, bundle.vocabularies)
    with atomic_folder(folder, marker=BUNDLE_FILE) as partial:
        for name in bundle.metadata["sha256"].keys() - {CARD}:
            link(folder / name, partial / name)
        (partial / CARD).write_text(card, encoding="utf-8")
        metadata["sha256"] = bundle.metadata["sha256"] | {CARD: sha256(partial / CARD)}
        write_record(partial, metadata)
    return True
