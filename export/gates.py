"""Gates of the reduced graphs: what must hold on the log for one to ship, measured against the float32 graph.

In: sessions of rank_rows.onnx by precision, and the validation impressions of the run's own shards, asked as they are served:
every candidate, the history strictly before. Out: what was measured, and which bounds it breaks.

Legend: N impressions, K candidates (padded).
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import onnxruntime as ort

from datamodules.shards import VALIDATION, Shards
from export.precision import Kind
from export.score import requests

FULL = "fp32"
MOST = 100_000
"""Validation impressions that are asked at most, the newest."""
SURE = 1e-7
"""Probabilities are held this far from 0 and 1 in a log loss."""
ASKED = ["click_probability", "engaged_probability"]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a reduced graph must keep to; each field is the name of a figure that is measured."""

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

    def broken(self, found: dict[str, Any]) -> list[str]:
        """Which bounds a graph breaks and by what, one sentence each; what is no number breaks its bound."""
        said = []
        for field in fields(self):
            value, bound = found[field.name], getattr(self, field.name)
            least = field.name in AT_LEAST
            if not (value >= bound if least else abs(value) <= bound):
                said.append(f"{field.name} {value:.4g}, {'less' if least else 'more'} than {bound:g}")
        return said


AT_LEAST = ("same_choice", "captured_lift")
BOUNDS: dict[Kind, Bounds] = {
    "fp16": Bounds(largest_difference=2e-3, golden_difference=4e-3, size_share=0.60),
    "int8": Bounds(largest_difference=2e-2, golden_difference=4e-2, size_share=0.40),
}
"""Differences: twice what 90,000 impressions of a catalogue of 14,390 titles measured (fp16 9.8e-4, int8 1.1e-2; golden cases
6.3e-4 and 2.3e-2, in logits, of which .004 and .04 move a probability by .001 and .01 at most). They find a table that is broken
for a few rows, which means over a log do not show; what the choices are worth is for the other bounds to say."""


def newest(shards: Shards, most: int = MOST) -> list[np.ndarray]:
    """Places of the newest validation impressions in each shard, in order; of those shown at once, the last in the shards."""
    time, shard, place = (np.zeros(0, np.int64) for _ in range(3))
    for index, one in enumerate(shards.shards):
        rows = np.flatnonzero(one.split == VALIDATION)
        time = np.concatenate([time, one.shown_at[rows]])
        shard, place = np.concatenate([shard, np.full(len(rows), index)]), np.concatenate([place, rows])
        kept = np.sort(np.argsort(time, kind="stable")[-most:])
        time, shard, place = time[kept], shard[kept], place[kept]
    return [place[shard == index] for index in range(len(shards.shards))]


def measure(
    graphs: dict[str, ort.InferenceSession], shards: Shards, history_length: int, most: int = MOST
) -> dict[str, dict[str, Any]]:
    """The figures of every precision, FULL among them, on the newest validation impressions; none where there are none.

    `largest_difference`, `log_loss`, `log_loss_change`, `same_choice` and `captured_lift` are those of `Bounds`. For what
    it tells, `snips_lift`: clicks per 1,000 impressions of showing the likeliest artwork, by self-normalised inverse
    propensities, above those of the log; None where no propensity is known. `impressions`: how many were asked.
    """
    log: dict[str, list[np.ndarray]] = {name: [] for name in ("clicked", "shown", "propensity", "several", "any")}
    said = {name: {part: [] for part in ("apart", "choice", "shown", "of_full")} for name in graphs}
    for shard, places in zip(shards.shards, newest(shards, most), strict=True):
        for name in ("clicked", "shown", "propensity"):
            log[name].append(getattr(shard, name)[places])
        begin = 0
        for request, there_NK in requests(shard, history_length, places):
            shown_N = shard.shown[places[begin : begin + len(there_NK)]].astype(np.int64)[:, None]
            begin += len(there_NK)
            answers = {name: _asked(session, request) for name, session in graphs.items()}
            click_NK = answers[FULL][0]
            log["several"].append(there_NK.sum(1) > 1)
            log["any"].append((click_NK * there_NK).sum(1, dtype=np.float64) / there_NK.sum(1))
            for name, answer in answers.items():
                choice_N = np.where(there_NK, answer[0], -np.inf).argmax(1)[:, None]
                apart = np.abs(answer - answers[FULL])[:, there_NK].max()
                said[name]["apart"].append(np.array([apart if np.isfinite(apart) else np.inf]))
                said[name]["choice"].append(choice_N[:, 0])
                said[name]["shown"].append(np.take_along_axis(answer[0], shown_N, 1)[:, 0])
                said[name]["of_full"].append(np.take_along_axis(click_NK, choice_N, 1)[:, 0])
        shard.release()
    if not log["any"]:
        return {}
    seen = {name: np.concatenate(parts) for name, parts in log.items()}
    told = {name: {part: np.concatenate(some) for part, some in parts.items()} for name, parts in said.items()}
    return {name: _figures(parts, told[FULL], seen) for name, parts in told.items()}


def _asked(session: ort.InferenceSession, request: dict[str, np.ndarray]) -> np.ndarray:
    """Click and engaged probabilities, (2, N, K)."""
    read = {part.name: request[part.name] for part in session.get_inputs()}
    return np.stack([np.asarray(values) for values in session.run(ASKED, read)])


def _figures(
    mine: dict[str, np.ndarray], full: dict[str, np.ndarray], log: dict[str, np.ndarray]
) -> dict[str, float | int | None]:
    several, clicked = log["several"], log["clicked"].astype(np.float64)
    loss, of_full = (_log_loss(parts["shown"], clicked) for parts in (mine, full))
    lift, most = (parts["of_full"].mean(dtype=np.float64) - log["any"].mean() for parts in (mine, full))
    weight = np.where(mine["choice"] == log["shown"], 1 / log["propensity"].astype(np.float64), 0)
    known = np.isfinite(weight) & (log["propensity"] > 0)
    earned = (weight * clicked)[known].sum() / weight[known].sum() if weight[known].any() else None
    return {
        "largest_difference": float(mine["apart"].max()),
        "log_loss": loss,
        "log_loss_change": loss - of_full,
        "same_choice": float((mine["choice"] == full["choice"])[several].mean()) if several.any() else float("nan"),
        "captured_lift": float(lift / most) if most > 0 else float("nan"),
        "snips_lift": None if earned is None else 1000 * float(earned - clicked[known].mean()),
        "impressions": len(clicked),
    }


def _log_loss(probability_N: np.ndarray, clicked_N: np.ndarray) -> float:
    sure_N = np.clip(probability_N.astype(np.float64), SURE, 1 - SURE)
    return float(-np.where(clicked_N > 0, np.log(sure_N), np.log1p(-sure_N)).mean())
