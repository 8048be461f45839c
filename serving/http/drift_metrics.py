"""Histograms of what one bundle was asked and what was chosen, since it was taken, beside the bundle's reference.

They have the bounds of `serving.bundle.reference.BOUNDS`, so that those of several workers add up, and are compared by
`serving.scoring.drift` when metrics are asked for.
"""

import numpy as np

from serving.bundle.metadata import Reference
from serving.bundle.reference import BOUNDS
from serving.http.answers import Answer
from serving.http.histogram import Histogram, header
from serving.scoring.drift import compare
from serving.scoring.drift_counts import Counted

MEANINGS = {
    "click_probability": "Click probability of the likeliest candidate, by answered request since the bundle was taken.",
    "history_length": "Plays of the history that were read, likewise.",
    "chosen_rank": "Rank of the chosen artwork by click probability, from 1, likewise.",
    "propensity": "Propensity of the chosen artwork, likewise.",
}
LEAST_REQUESTS = 500
"""Answered requests from which on they are compared with the reference."""


class DriftMetrics:
    """The histograms of one bundle, by name of MEANINGS."""

    def __init__(self, reference: Reference | None = None) -> None:
        self.reference = reference
        self.histograms = {name: Histogram(BOUNDS[name]) for name in MEANINGS}
        self._columns = tuple(self.histograms.values())

    def add(self, plays: int, answer: Answer) -> None:
        """One answered request; `plays`: how many of its history were read."""
        click, length, ranks, propensity = self._columns
        chosen, artworks = answer["chosen"], answer["artworks"]
        name = chosen["artwork"]
        for rank, artwork in enumerate(artworks, 1):
            if artwork["artwork"] == name:
                ranks.add(rank)
                break
        click.add(artworks[0]["click_probability"])
        length.add(plays)
        propensity.add(chosen["propensity"])

    def lines(self) -> list[str]:
        """The histograms; from LEAST_REQUESTS on, and where the bundle has a reference, also the gauges of drift."""
        lines = []
        for name, histogram in self.histograms.items():
            lines += header(f"keyart_{name}", MEANINGS[name], "histogram") + histogram.lines(f"keyart_{name}")
        if self.reference is None or sum(self._columns[0].counts) < LEAST_REQUESTS:
            return lines
        expected = {name: Counted.of_reference(self.reference["histograms"][name]) for name in MEANINGS}
        served = {
            # a client's members resemble each other as those of the log
            name: Counted(np.array(histogram.counts), expected[name].design_effect, expected[name].effect_spread)
            for name, histogram in self.histograms.items()
        }
        compared = [one for one in compare(BOUNDS, expected, served) if one.psi is not None]
        for gauge, meaning, values in (
            ("keyart_drift_psi", "Population stability index against validation.", [one.psi for one in compared]),
            ("keyart_drift_limit", "What it exceeds where there is drift.", [one.limit for one in compared]),
        ):
            lines += header(gauge, meaning, "gauge")
            lines += [
                f'{gauge}{{histogram="{one.name}"}} {value:.6g}' for one, value in zip(compared, values, strict=True)
            ]
        return lines
