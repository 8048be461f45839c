"""`keyart verify`: every checksum of a bundle, and its golden cases by ONNX Runtime, in each precision. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from foundation.atomic import restore_replaced
from foundation.errors import UserError
from serving.bundle.bundle import Bundle
from serving.bundle.example import largest_golden_difference


@dataclass(frozen=True)
class VerifyResult:
    """The results of a verification."""

    files: int
    cases: int
    difference: float
    """Largest difference of any answer of any golden case from torch's answer at export."""
    variant_differences: dict[str, float]
    """By precision that ships beside float32, the largest difference of its graphs."""

    def __str__(self) -> str:
        """The results in words, for the console."""
        variants = "".join(f", {name} {difference:.1e}" for name, difference in self.variant_differences.items())
        return f"{self.files} files unchanged; {self.cases} golden cases, max_abs_difference={self.difference:.1e}{variants}"


def verify(folder: Path) -> VerifyResult:
    """Check a bundle; UserError for the first fault."""
    restore_replaced(folder)
    bundle = Bundle.open(folder)  # checks every file's SHA-256
    golden = bundle.metadata["golden"]
    bounds = {"": golden["bound"]} | {
        row["precision"]: row["bounds"]["golden_difference"]
        for row in bundle.metadata["precisions"]
        if row["ships"] and "bounds" in row  # float32 itself has none
    }
    differences = {}
    for graphs, bound in bounds.items():
        differences[graphs] = difference = largest_golden_difference(folder, graphs)
        if not difference <= bound:
            raise UserError(
                f"{folder / graphs}: its golden cases differ by {difference:.2g} here, more than {bound}: this machine's "
                "ONNX Runtime computes something else. Try another version of it."
            )
    return VerifyResult(len(bundle.metadata["sha256"]), int(golden["cases"]), differences.pop(""), differences)
