"""Why this artwork: what each past play, each person shown and the context add to appeal.

The terms come from the bundle's explain_rows.onnx, which is traced from the same module as rank.onnx and says what each is
(`models.serving.Whole`). Appeal is their sum, so it is shared out exactly, not estimated. What a choice is due to are
differences between candidates, never the terms by themselves.

Legend: N requests, T plays, K candidates, L people on an artwork, C = 2 D + G: an image, people and genres.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from foundation.context import ContextFeature
from serving.bundle.bundle import Bundle

PLAY_TERMS = ("by_play", "by_image", "by_people", "by_genres")
"""The terms of plays, (N, T, K)."""


def context_features(bundle: Bundle) -> list[ContextFeature]:
    """The context features that appeal reads: the last axis of `by_context`."""
    return [feature for feature in bundle.context if "appeal" in feature.read_by]


def total(terms: dict[str, np.ndarray]) -> np.ndarray:
    """The sum of the terms, (N, K): appeal, but for rounding."""
    plays = sum(terms[name].sum(1) for name in PLAY_TERMS)
    past = terms["by_past"].sum(1) + terms["of_past"] + terms["by_fatigue"] if "by_past" in terms else 0.0
    return plays + past + terms["by_context"].sum(-1) + terms["of_artwork"] + terms["of_title"] + terms["of_state"]


def content_widths(width: int) -> tuple[slice, slice, slice]:
    """Image, people and genres within an artwork's content, for vectors of some width."""
    return slice(0, width), slice(width, 2 * width), slice(2 * width, None)


def sum_by_part(products_xC: np.ndarray, width: int) -> np.ndarray:
    """Sums over image, people and genres, (..., C) -> (..., 3)."""
    return np.stack([products_xC[..., cut].sum(-1) for cut in content_widths(width)], axis=-1)


def reasons(
    bundle: Bundle, request: dict[str, np.ndarray], mask_NK: np.ndarray, chosen_N: np.ndarray, max_plays: int = 4
) -> list[dict[str, Any]]:
    """For each request, the chosen candidate's click logit minus the mean of the others', split into contributions.

    Rows of artwork (its id), appeal, itself, context, context_features (its parts), state, where the bundle reads past impressions
    own_clicks and fatigue, plays (the `max_plays` largest:
    title, its position in the history,
    learned, image, people, genres) and people (name, likeness; of the chosen one only). ValueError where a request has one
    candidate.
    """
    if (mask_NK.sum(1) < 2).any():
        raise ValueError("mask_NK: a choice has at least two candidates.")
    terms, vocabularies, features = bundle.explain(request), bundle.vocabularies, context_features(bundle)
    explanations = []
    for n, chosen in enumerate(chosen_N.tolist()):
        others = np.flatnonzero(mask_NK[n] & (np.arange(mask_NK.shape[1]) != chosen))

        def contrast(values_xK: np.ndarray, chosen: int = chosen, others: np.ndarray = others) -> np.ndarray:
            return values_xK[..., chosen] - values_xK[..., others].mean(-1)

        plays_T4 = np.stack([contrast(terms[name][n]) for name in PLAY_TERMS], axis=-1)
        order = np.argsort(-np.abs(plays_T4.sum(-1)), kind="stable")[:max_plays]
        titles = request["history_title"][n]
        people = bundle.tables["artwork_people"][request["artworks"][n, chosen]]
        explanations.append(
            {
                "artwork": _id(vocabularies["artworks"].values, request["artworks"][n, chosen]),
                "appeal": float(contrast(terms["appeal"][n])),
                "itself": float(contrast(terms["of_artwork"][n])),
                "context": float(contrast(terms["by_context"][n].T).sum()),
                "context_features": {
                    feature.name: float(value)
                    for feature, value in zip(features, contrast(terms["by_context"][n].T), strict=True)
                },
                "state": float(contrast(terms["of_state"][n])),
                **_past_reasons(terms, n, contrast),
                "plays": [
                    {"title": _id(vocabularies["titles"].values, titles[t]), "place": t}
                    | dict(zip(("learned", "image", "people", "genres"), map(float, plays_T4[t]), strict=True))
                    for t in order.tolist()
                    if t < request["history_length"][n]
                ],
                "people": [
                    {"name": _id(vocabularies["people"].values, person), "likeness": float(value)}
                    for person, value in zip(people, terms["by_person"][n, chosen], strict=True)
                    if person
                ],
            }
        )
    return explanations


def _past_reasons(
    terms: dict[str, np.ndarray], n: int, contrast: Callable[[np.ndarray], np.ndarray]
) -> dict[str, float]:
    """What the member's own past impressions add; nothing where the bundle reads none."""
    if "by_past" not in terms:
        return {}
    own = contrast(terms["by_past"][n]).sum() + contrast(terms["of_past"][n])
    return {"own_clicks": float(own), "fatigue": float(contrast(terms["by_fatigue"][n]))}


def _id(values: Sequence[str], row: int) -> str:
    """The id of a row; empty for the unknown one."""
    return values[int(row) - 1] if 0 < row <= len(values) else ""
