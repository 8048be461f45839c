"""`keyart verify`: a bundle's seal, every checksum, and its golden cases by ONNX Runtime, in each precision. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from foundation.errors import UserError
from serving.bundle.bundle import Bundle
from serving.bundle.example import largest_golden_difference, largest_graph_difference
from serving.bundle.seal import SHA256
from serving.bundle.steady import read_steadily


@dataclass(frozen=True)
class VerifyResult:
    """The results of a verification."""

    files: int
    cases: int
    difference: float
    """Largest difference of any answer of any golden case from torch's answer at export."""
    graph_cases: int
    graph_difference: float
    """Largest difference of the outputs of any other graph from those at export, relative to outputs above 1."""
    digest: str
    """The bundle's: see `serving.bundle.seal`."""
    variant_differences: dict[str, float]
    """By precision that ships beside float32, the largest difference of its graphs."""

    def __str__(self) -> str:
        """The results in words, for the console."""
        variants = "".join(f", {name} {difference:.1e}" for name, difference in self.variant_differences.items())
        cases = f"{self.cases} golden cases, max_abs_difference={self.difference:.1e}{variants}"
        cases += f", {self.graph_cases} of single graphs {self.graph_difference:.1e}"
        return f"{self.files} files unchanged; {cases}; digest {self.digest}"


def verify(folder: Path, expect: str | None = None) -> VerifyResult:
    """Check a bundle; UserError for the first fault. `expect`: the digest that it must have, in any case of letters."""
    if expect is not None and not SHA256.fullmatch(expect.strip().lower()):
        raise UserError(
            f"expect={expect[:80]}: is no digest. Give the 64 hexadecimal digits that keyart export printed."
        )
    return read_steadily(folder, lambda: _verify(folder, expect))


def _verify(folder: Path, expect: str | None) -> VerifyResult:
    bundle = Bundle.open(folder)  # checks every file's SHA-256
    if expect is not None and bundle.digest != expect.strip().lower():
        raise UserError(
            f"{folder}: is another bundle: its digest is {bundle.digest}, and {expect} was expected. Fetch that one."
        )
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
    of_graphs = bundle.metadata["golden_graphs"]
    difference = largest_graph_difference(folder)
    if not difference <= of_graphs["bound"]:
        raise UserError(
            f"{folder}: the golden cases of its single graphs differ by {difference:.2g} here, more than {of_graphs['bound']}: "
            "this machine's ONNX Runtime computes something else. Try another version of it."
        )
    files = len(bundle.metadata["sha256"])
    return VerifyResult(
        files, golden["cases"], differences.pop(""), of_graphs["cases"], difference, bundle.digest, differences
    )
