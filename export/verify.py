"""`keyart verify`: every checksum of a bundle, and its golden cases by ONNX Runtime. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from datamodules.contract import UserError
from export.bundle import GOLDEN, Bundle
from export.example_of_bundle import worst_difference


@dataclass(frozen=True)
class Verified:
    """What was checked."""

    files: int
    cases: int
    difference: float
    """Largest, of any answer of any case, from what torch said when the bundle was made."""


def verify(folder: Path) -> Verified:
    """Check a bundle; the first thing that is wrong is a UserError."""
    bundle = Bundle.open(folder)  # checks every file's SHA-256
    golden = bundle.about.get("golden")
    if golden is None or not (folder / GOLDEN).is_file():
        raise UserError(
            f"{folder}: has no {GOLDEN}: the bundle was made before there were golden cases. Export the run again."
        )
    difference = worst_difference(folder)
    if not difference <= golden["bound"]:
        raise UserError(
            f"{folder}: its golden cases differ by {difference:.2g} here, more than {golden['bound']}: this machine's "
            "ONNX Runtime computes something else. Try another version of it."
        )
    return Verified(len(bundle.about["sha256"]), int(golden["cases"]), difference)
