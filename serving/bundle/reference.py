"""Histograms of what a bundle is asked and what was chosen, with fixed bounds, of validation in `bundle.json`, a log or a service.

`keyart export` counts the validation period (`export.reference`); `serving.scoring.drift` compares other counts with it.
"""

from collections.abc import Iterator

from serving.bundle.metadata import Reference

BOUNDS: dict[str, tuple[float, ...]] = {
    "click_probability": (
        *(0.0025, 0.0041, 0.0067, 0.011, 0.018, 0.0293, 0.0474, 0.0759),
        *(0.1192, 0.1824, 0.2689, 0.3775, 0.5, 0.6225, 0.7311, 0.8808),
    ),
    "history_length": (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    "chosen_rank": (1, 2, 3, 4, 5, 6, 8, 12, 20, 50),
    "propensity": (0.01, 0.03, 0.07, 0.105, 0.118, 0.134, 0.155, 0.183, 0.225, 0.29, 0.41, 0.6, 0.85, 0.99),
    "unknown_titles": (0,),
    "unknown_artworks": (0,),
    "unknown_plays": (0,),
}
"""Upper bounds of the histograms by name.

`click_probability`: of the likeliest candidate; bounds are half a logit apart, from 0.5 on up to one. `history_length`: plays that
the model reads. `chosen_rank`: of the shown artwork among its candidates by click probability, from 1; the first of equal ones is
before the others. `propensity`: of the shown artwork; bounds lie between 1 / 2, 1 / 3, ..., so that no rounding moves a uniform
policy to another bin. The others: 0 for an id of a title, a candidate or a title played that the bundle knows, 1 for another one.
"""


def faults_of_reference(reference: Reference) -> Iterator[str]:
    """What a reference of the declared types says that none can be."""
    if not 0 < reference["impressions"] <= reference["sampled_from"]:
        yield f"reference.impressions is not in 1 .. {reference['sampled_from']}"
    if reference["histograms"].keys() != BOUNDS.keys():
        yield f"reference.histograms are not those of {', '.join(BOUNDS)}"
        return
    for name, histogram in reference["histograms"].items():
        if histogram["bounds"] != list(BOUNDS[name]):
            yield f"reference.histograms.{name}.bounds are not those that this keyart compares with"
        if len(histogram["counts"]) != len(BOUNDS[name]) + 1 or min(histogram["counts"]) < 0:
            yield f"reference.histograms.{name}.counts are not {len(BOUNDS[name]) + 1} numbers of 0 or more"
        if histogram["design_effect"] < 1 or histogram["effect_spread"] < 0:
            yield f"reference.histograms.{name}.design_effect is below 1, or its effect_spread below 0"
