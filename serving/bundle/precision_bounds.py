"""Bounds that a reduced graph must keep to ship; `export.gates` measures the figures."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from serving.bundle.metadata import PrecisionRow

Precision = Literal["fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FULL_PRECISION = "fp32"


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds of a reduced graph; each field has the name of a measured figure."""

    largest_difference: float
    """Most that a click or engaged probability may differ from float32's."""
    log_loss_change: float = 5e-4
    """Most that the log loss of clicks on what was shown may differ from float32's, either way."""
    same_choice: float = 0.99
    """Least share of the impressions with two candidates or more whose likeliest artwork is float32's."""
    captured_lift: float = 0.99
    """Least share of float32's lift over showing any candidate that the choices keep, by float32's own probabilities."""
    golden_difference: float
    """Most that an answer of the golden cases may differ from torch: probabilities, appeal and affinity."""
    size_share: float
    """Most bytes of its files, of those of the float32 ones."""

    def violations(self, figures: PrecisionRow) -> list[str]:
        """Which bounds a graph breaks and by how much, one sentence each; a NaN breaks its bound."""
        sentences = []
        for field in fields(self):
            number, bound = figures.get(field.name), getattr(self, field.name)
            value = float("nan") if number is None else number
            least = field.name in LOWER_BOUNDED
            if not (value >= bound if least else abs(value) <= bound):
                sentences.append(f"{field.name} {value:.4g}, {'less' if least else 'more'} than {bound:g}")
        return sentences


LOWER_BOUNDED = ("same_choice", "captured_lift")


BOUNDS: dict[Precision, Bounds] = {
    "fp16": Bounds(largest_difference=2e-3, golden_difference=4e-3, size_share=0.60),
    "int8": Bounds(largest_difference=2e-2, golden_difference=4e-2, size_share=0.40),
}
"""Differences: twice what 90,000 impressions of a catalogue of 14,390 titles measured (fp16 9.8e-4, int8 1.1e-2; golden cases
6.3e-4 and 2.3e-2, in logits, of which .004 and .04 move a probability by .001 and .01 at most). They find a table that is broken
for a few rows, which means over a log do not show; what the choices are worth is for the other bounds to say."""
