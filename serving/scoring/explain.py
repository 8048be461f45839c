"""Explanations of a choice: the contribution of each past play, each person shown and the context to appeal, in numpy.

Appeal is a sum of dot products, so it is split exactly, not estimated:

    appeal(k) = of_artwork(k) + of_state(k) + of_title + sum_c by_context(k, c)
                + sum_t by_play(t, k) + by_image(t, k) + by_people(t, k) + by_genres(t, k)

by_play is the learned part: the artwork query is linear in the mean of the plays, and in the normalised co-play vector, which is
linear in each play given its length. by_image, by_people and by_genres are the similarity of the candidate to
each play. by_person splits the sum of by_people by the people that the candidate shows. of_state is the contribution of the
attention encoder, which cannot be split by play; zero where the encoder is the mean. of_title subtracts the mean over the
title's artworks for this member, which counts as the title's. A choice is explained by differences between candidates, never
by single terms.

Legend: N requests, T plays, K candidates, D width, G genres, L people on an artwork, C = 2 D + G, R rank of co-play,
W = C + R.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foundation.context import KNOTS, MAX_POSITION, ContextFeature
from foundation.errors import UserError
from serving.bundle.bundle import CONTEXT_PREFIX, EXPLAIN_TABLES, Bundle

MIN_NORM = 1e-6
"""Length of a co-play vector below which it counts as zero."""


@dataclass(frozen=True)
class Explainer:
    """A bundle's tables for splitting appeal into contributions."""

    bundle: Bundle

    @property
    def tables(self) -> dict[str, np.ndarray]:
        """The tables by name, as `export.export.explanation_tables` makes them; UserError where the bundle has none."""
        path = self.bundle.folder / EXPLAIN_TABLES
        if not path.is_file():
            raise UserError(f"{path}: is missing: the bundle was made before explanations. Export the run again.")
        return self.bundle.tables

    def explain(self, request: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The terms of appeal by name, float32: (N, T, K), (N, K, L), (N, K, 3), (N, K) or (N, 1); input as of the graph."""
        table = self.tables
        title_NT, clicked_NT = request["history_title"], request["history_artwork"]
        artworks_NK, width = request["artworks"], table["query_weight"].shape[0]

        image_NTD = table["artwork_content"][clicked_NT][..., :width]
        image_NTD = np.where((clicked_NT > 0)[..., None], image_NTD, table["play_mean_image"][title_NT])
        vector_NKD, content_NKC = table["artwork_vector"][artworks_NK], table["artwork_content"][artworks_NK]

        content_NTC = np.concatenate([image_NTD, table["play_content"][title_NT]], axis=-1)
        content_NTC = content_NTC * _weights(table, request)[..., None]
        parts = [
            gain * np.einsum("ntd,nkd->ntk", content_NTC[..., cut], content_NKC[..., cut])
            for gain, cut in zip(table["similarity_gain"], content_widths(width), strict=True)
        ]
        terms: dict[str, np.ndarray] = dict(zip(("by_image", "by_people", "by_genres"), parts, strict=True))
        terms["by_person"] = self._by_person(content_NTC[..., content_widths(width)[1]].sum(1), artworks_NK)

        coplay_NTR = table["play_coplay"][title_NT] * _recent(table, request)[0][..., None]
        length_N11 = np.linalg.norm(coplay_NTR.sum(1), axis=-1)[:, None, None]
        coplay_NTR = coplay_NTR / np.maximum(length_N11, MIN_NORM)
        member_NTW = np.concatenate([content_NTC * table["means"], coplay_NTR], axis=-1)
        terms["by_play"] = np.einsum("ntw,nkw->ntk", member_NTW, vector_NKD @ table["query_weight"])
        vectors = (_context_vector(f, table[f"{CONTEXT_PREFIX}{f.name}"], request) for f in self.context_features())
        terms["by_context"] = np.stack(
            [np.einsum("nd,nkd->nk", vector_ND, vector_NKD) for vector_ND in vectors], axis=-1
        )
        terms["of_artwork"] = vector_NKD @ table["query_bias"] + table["artwork_bias"][artworks_NK]
        outputs, title_N = self.bundle.rank(request, ("appeal", "artwork_query", "content_query")), request["title"]
        shared_N = (outputs["artwork_query"] * table["mean_vector"][title_N]).sum(-1) + table["mean_bias"][title_N]
        terms["of_title"] = -(shared_N + (outputs["content_query"] * table["mean_content"][title_N]).sum(-1))[:, None]
        appeal_NK = terms["appeal"] = outputs["appeal"]
        terms["of_state"] = appeal_NK - total(terms) if "query_state" in table else np.zeros_like(appeal_NK)
        return {name: values.astype(np.float32) for name, values in terms.items()}

    def context_features(self) -> list[ContextFeature]:
        """The context features that appeal reads: the last axis of `by_context`."""
        return [feature for feature in self.bundle.context if "appeal" in feature.read_by]

    def _by_person(self, people_ND: np.ndarray, artworks_NK: np.ndarray) -> np.ndarray:
        """The similarity in people by person that a candidate shows, (N, K, L); 0 in padding."""
        table = self.tables
        rows_NKL = table["artwork_people"][artworks_NK]
        shown_NKL = rows_NKL > 0
        likeness_NKL = np.einsum("nd,nkld->nkl", people_ND, table["person"][rows_NKL]) * table["similarity_gain"][1]
        return likeness_NKL * shown_NKL / np.maximum(shown_NKL.sum(-1, keepdims=True), 1)


def _context_vector(feature: ContextFeature, table_RD: np.ndarray, request: dict[str, np.ndarray]) -> np.ndarray:
    """What a context feature adds to the artwork query, (N, D): see `models.context.lookup`."""
    value_N = request[feature.name]
    if feature.kind == "category":
        return table_RD[value_N]
    if feature.kind == "hour":
        return table_RD[value_N + 1]
    if feature.kind == "position":
        row_N = np.clip(value_N, -1, MAX_POSITION) + 1
        if feature.crossed_with:
            row_N = row_N * (len(table_RD) // (MAX_POSITION + 2)) + request[feature.crossed_with]
        return table_RD[row_N]
    z_N = (value_N - (feature.mean or 0.0)) / (feature.std or 1.0)
    at_N = np.clip(np.nan_to_num(z_N), KNOTS[0], KNOTS[-1]) - KNOTS[0]
    below_N = np.minimum(at_N.astype(np.int64), len(KNOTS) - 2)
    share_N1 = (at_N - below_N)[:, None]
    between_ND = table_RD[below_N + 1] * (1 - share_N1) + table_RD[below_N + 2] * share_N1
    return np.where(np.isnan(z_N)[:, None], table_RD[0], between_ND)


def total(terms: dict[str, np.ndarray]) -> np.ndarray:
    """The sum of the terms, (N, K): appeal up to rounding."""
    plays = sum(terms[name].sum(1) for name in ("by_play", "by_image", "by_people", "by_genres"))
    return plays + terms["by_context"].sum(-1) + terms["of_artwork"] + terms["of_title"] + terms.get("of_state", 0.0)


def content_widths(width: int) -> tuple[slice, slice, slice]:
    """Image, people and genres within an artwork's content, for vectors of some width."""
    return slice(0, width), slice(width, 2 * width), slice(2 * width, None)


def sum_by_part(products_xC: np.ndarray, width: int) -> np.ndarray:
    """Sums over image, people and genres, (..., C) -> (..., 3)."""
    return np.stack([products_xC[..., cut].sum(-1) for cut in content_widths(width)], axis=-1)


def _recent(table: dict[str, np.ndarray], request: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mask of the recent plays, bool (N, T), and their distance in plays from the last one, from 0."""
    index = np.arange(request["history_title"].shape[1])
    ago_NT = request["history_length"][:, None] - 1 - index
    return (ago_NT >= 0) & (ago_NT < len(table["recent_bias"])), ago_NT


def _weights(table: dict[str, np.ndarray], request: dict[str, np.ndarray]) -> np.ndarray:
    """Weight of each play in the mean of recent plays, (N, T): learned by distance, shrunk where plays are few."""
    bias_S = table["recent_bias"]
    length_N1 = request["history_length"][:, None]
    inside, ago_NT = _recent(table, request)
    logit = bias_S[np.clip(ago_NT, 0, len(bias_S) - 1)].astype(np.float64)
    logit = np.where(inside, logit, -np.inf)
    raised = np.where(inside, np.exp(logit - np.max(logit, axis=1, keepdims=True, initial=-1e30)), 0.0)
    plays = np.minimum(length_N1, len(bias_S))
    shrunk = plays / (plays + np.exp(table["recent_prior"][0]))
    return raised / np.maximum(raised.sum(1, keepdims=True), 1e-300) * shrunk


def reasons(
    bundle: Bundle, request: dict[str, np.ndarray], mask_NK: np.ndarray, chosen_N: np.ndarray, max_plays: int = 4
) -> list[dict[str, Any]]:
    """For each request, the chosen candidate's click logit minus the mean of the others', split into contributions.

    Rows of artwork (its id), appeal, itself, context, context_features (its parts), state, plays (the `max_plays` largest:
    title, its position in the history,
    learned, image, people, genres) and people (name, likeness; of the chosen one only). ValueError where a request has one
    candidate.
    """
    if (mask_NK.sum(1) < 2).any():
        raise ValueError("mask_NK: a choice has at least two candidates.")
    explainer = Explainer(bundle)
    terms, vocabularies, features = explainer.explain(request), bundle.vocabularies, explainer.context_features()
    explanations = []
    for n, chosen in enumerate(chosen_N.tolist()):
        others = np.flatnonzero(mask_NK[n] & (np.arange(mask_NK.shape[1]) != chosen))

        def contrast(values_xK: np.ndarray, chosen: int = chosen, others: np.ndarray = others) -> np.ndarray:
            return values_xK[..., chosen] - values_xK[..., others].mean(-1)

        parts = ("by_play", "by_image", "by_people", "by_genres")
        plays_T4 = np.stack([contrast(terms[name][n]) for name in parts], axis=-1)
        order = np.argsort(-np.abs(plays_T4.sum(-1)), kind="stable")[:max_plays]
        titles = request["history_title"][n]
        people = explainer.tables["artwork_people"][request["artworks"][n, chosen]]
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


def _id(values: Sequence[str], row: int) -> str:
    """The id of a row; empty for the unknown one."""
    return values[int(row) - 1] if 0 < row <= len(values) else ""
