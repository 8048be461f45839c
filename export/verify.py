"""`keyart verify`: every checksum of a bundle, and its golden cases by ONNX Runtime, of each precision. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from datamodules.atomic import put_back
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
    of_variants: dict[str, float]
    """The same of the graphs of each precision that ships beside float32."""

    def __str__(self) -> str:
        """In words, for the console."""
        variants = "".join(f", {name} {difference:.1e}" for name, difference in self.of_variants.items())
        return f"{self.files} files unchanged; {self.cases} golden cases, max_abs_difference={self.difference:.1e}{variants}"


def verify(folder: Path) -> Verified:
    """Check a bundle; the first thing that is wrong is a UserError."""
    put_back(folder.resolve())
    bundle = Bundle.open(folder)  # checks every file's SHA-256
    golden = bundle.about.get("golden")
    if golden is None or not (folder / GOLDEN).is_file():
        raise UserError(
            f"{folder}: has no {GOLDEN}: the bundle was made before there were golden cases. Export the run again."
        )
    bounds = {"": golden["bound"]} | {
        row["precision"]: row["bounds"]["golden_difference"]
        for row in bundle.about.get("precisions", [])
        if row["ships"] and "bounds" in row  # float32 itself has none
    }
    found = {}
    for graphs, bound in bounds.items():
        found[graphs] = difference = worst_difference(folder, graphs)
        if not difference <= bound:
            raise UserError(
                f"{folder / graphs}: its golden cases differ by {difference:.2g} here, more than {bound}: this machine's "
                "ONNX Runtime computes something else. Try another version of it."
            )
    return Verified(len(bundle.about["sha256"]), int(golden["cases"]), found.pop(""), found)
