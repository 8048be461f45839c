"""Gates of the reduced graphs: measurements on the log, against the float32 graph, that decide whether one ships.

In: sessions of rank_rows.onnx by precision, and the validation impressions of the run's own shards as requests: every
candidate, the history strictly before. Out: the measured figures.

Legend: N impressions, K candidates (padded).
"""

import numpy as np
import onnxruntime as ort

from datamodules.shards.shard import VALIDATION, Shards
from serving.bundle.metadata import Figures
from serving.bundle.precision_bounds import FULL_PRECISION
from serving.bundle.requests import RequestLengths
from serving.bundle.variants import finite_or_none
from serving.scoring.scorer import shard_requests

MAX_IMPRESSIONS = 100_000
"""Number of validation impressions that are measured, at most: the newest."""
PROBABILITY_MARGIN = 1e-7
"""Distance from 0 and 1 at which probabilities are clipped in a log loss."""
PROBABILITY_OUTPUTS = ["click_probability", "engaged_probability"]


def newest_validation(shards: Shards, most: int = MAX_IMPRESSIONS) -> list[np.ndarray]:
    """Rows of the newest validation impressions in each shard, in order; ties go to the last ones."""
    time, shard, row = (np.zeros(0, np.int64) for _ in range(3))
    for index, part in enumerate(shards.shards):
        rows = np.flatnonzero(part.split == VALIDATION)
        time = np.concatenate([time, part.shown_at[rows]])
        shard, row = np.concatenate([shard, np.full(len(rows), index)]), np.concatenate([row, rows])
        newest_rows = np.sort(np.argsort(time, kind="stable")[-most:])
        time, shard, row = time[newest_rows], shard[newest_rows], row[newest_rows]
    return [row[shard == index] for index in range(len(shards.shards))]


def measure(
    graphs: dict[str, ort.InferenceSession], shards: Shards, lengths: RequestLengths, most: int = MAX_IMPRESSIONS
) -> dict[str, Figures]:
    """The figures of every precision, float32 included, on the newest validation impressions; empty where there are none.

    `largest_difference`, `log_loss`, `log_loss_change`, `same_choice` and `captured_lift` are those of `Bounds`. For
    information, `snips_lift` has the clicks per 1,000 impressions of showing the most probable artwork, by self-normalised
    inverse propensities, minus those of the log; None where no propensity is known. `impressions` is their number.
    """
    log: dict[str, list[np.ndarray]] = {name: [] for name in ("clicked", "shown", "propensity", "several", "any")}
    collected = {name: {part: [] for part in ("apart", "choice", "shown", "of_full")} for name in graphs}
    for shard, indices in zip(shards.shards, newest_validation(shards, most), strict=True):
        for name in ("clicked", "shown", "propensity"):
            log[name].append(getattr(shard, name)[indices])
        begin = 0
        for request, mask_NK in shard_requests(shard, lengths, indices):
            shown_N = shard.shown[indices[begin : begin + len(mask_NK)]].astype(np.int64)[:, None]
            begin += len(mask_NK)
            answers = {name: _probabilities(session, request) for name, session in graphs.items()}
            click_NK = answers[FULL_PRECISION][0]
            log["several"].append(mask_NK.sum(1) > 1)
            log["any"].append((click_NK * mask_NK).sum(1, dtype=np.float64) / mask_NK.sum(1))
            for name, answer in answers.items():
                choice_N = np.where(mask_NK, answer[0], -np.inf).argmax(1)[:, None]
                apart = np.abs(answer - answers[FULL_PRECISION])[:, mask_NK].max()
                collected[name]["apart"].append(np.array([apart if np.isfinite(apart) else np.inf]))
                collected[name]["choice"].append(choice_N[:, 0])
                collected[name]["shown"].append(np.take_along_axis(answer[0], shown_N, 1)[:, 0])
                collected[name]["of_full"].append(np.take_along_axis(click_NK, choice_N, 1)[:, 0])
        shard.release()
    if not log["any"]:
        return {}
    log_arrays = {name: np.concatenate(parts) for name, parts in log.items()}
    arrays = {name: {part: np.concatenate(some) for part, some in parts.items()} for name, parts in collected.items()}
    return {name: _figures(parts, arrays[FULL_PRECISION], log_arrays) for name, parts in arrays.items()}


def _probabilities(session: ort.InferenceSession, request: dict[str, np.ndarray]) -> np.ndarray:
    """Click and engaged probabilities, (2, N, K)."""
    read = {part.name: request[part.name] for part in session.get_inputs()}
    return np.stack([np.asarray(values) for values in session.run(PROBABILITY_OUTPUTS, read)])


def _figures(candidate: dict[str, np.ndarray], full: dict[str, np.ndarray], log: dict[str, np.ndarray]) -> Figures:
    has_choice, clicked = log["several"], log["clicked"].astype(np.float64)
    loss, full_loss = (_log_loss(parts["shown"], clicked) for parts in (candidate, full))
    lift, full_lift = (parts["of_full"].mean(dtype=np.float64) - log["any"].mean() for parts in (candidate, full))
    weight = np.where(candidate["choice"] == log["shown"], 1 / log["propensity"].astype(np.float64), 0)
    known = np.isfinite(weight) & (log["propensity"] > 0)
    snips_value = (weight * clicked)[known].sum() / weight[known].sum() if weight[known].any() else None
    return {
        "largest_difference": finite_or_none(float(candidate["apart"].max())),
        "log_loss": finite_or_none(loss),
        "log_loss_change": finite_or_none(loss - full_loss),
        "same_choice": float((candidate["choice"] == full["choice"])[has_choice].mean()) if has_choice.any() else None,
        "captured_lift": finite_or_none(float(lift / full_lift)) if full_lift > 0 else None,
        "snips_lift": None if snips_value is None else 1000 * float(snips_value - clicked[known].mean()),
        "impressions": len(clicked),
    }


def _log_loss(probability_N: np.ndarray, clicked_N: np.ndarray) -> float:
    sure_N = np.clip(probability_N.astype(np.float64), PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
    return float(-np.where(clicked_N > 0, np.log(sure_N), np.log1p(-sure_N)).mean())
