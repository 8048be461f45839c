"""Whether scores come from a model that has seen the clicks they are valued on: by their record, or by the draws of the log.

In: a scores table's record; or a scored log whose propensities are known. Out: a doubt in words, or none.

Which artwork was shown was drawn by the log's propensities. Scores that were there before the draw are independent of it, given
the propensities, however good they are; so any function of them is, on average, for the shown artwork what it is over a draw by
the propensities: a conditional randomisation test (Candes, Fan, Janson and Lv, 2018, Panning for gold: model-X knockoffs). A
model that has seen the log has moved the scores of what was shown, and only those.

Legend: N impressions, C candidates of all impressions.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.logs.scored_log import ScoredLog, record_beside
from foundation.errors import UserError
from foundation.lists import Lists

SCORES_RECORD = "_scores.json"
"""The record that `keyart score` writes beside a scores table."""
ERRORS = 2.576
"""Standard errors beyond which one of the three statistics is off: by chance in one of 200 tables for each of them."""
CLIP = 3.0
"""Standardised scores are cut here, so that no few candidates decide."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Until when the scored model saw impressions."""

    trained_until: datetime | None
    """First instant after the impressions its weights were fitted on."""
    tuned_until: datetime
    """First instant after those it was stopped, calibrated or chosen by."""
    source: Path


def training_of(scores: Path) -> Training | None:
    """The training times in the record beside a scores table; None where it has none, as tables made elsewhere.

    UserError where the record is not JSON or its times are no dates with a time zone.
    """
    path = record_beside(scores, SCORES_RECORD)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text("utf-8"))
        # records before these fields: fitted until validation began, tuned until the test
        named = (("trained_until", "validation_from"), ("tuned_until", "test_from"))
        values = [record.get(name) or record.get(older) for name, older in named]
        trained, tuned = (None if value is None else datetime.fromisoformat(value) for value in values)
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: is not a record of scores ({error}). Score the log again.") from None
    if any(time is not None and time.tzinfo is None for time in (trained, tuned)):
        raise UserError(f"{path}: trained_until and tuned_until must have a time zone. Score the log again.")
    latest = tuned or trained
    return None if latest is None else Training(trained_until=trained, tuned_until=latest, source=path)


def overlap_doubt(training: Training, shown_at_N: NDArray[np.int64], subject: str = "the scored model") -> str:
    """A doubt where impressions (microseconds since 1970, UTC) were shown before the model's training ended; else empty."""
    for verb, until in (("trained", training.trained_until), ("tuned", training.tuned_until)):
        if until is None:
            continue
        share = float((shown_at_N < int(until.timestamp() * 1e6)).mean()) if len(shown_at_N) else 0.0
        if share:
            moment = f"{until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
            return f"{subject} was {verb} on impressions until {moment}: it has seen the clicks of {share:.1%} of these"
    return ""


@dataclass(frozen=True, kw_only=True)
class DrawTest:
    """Excess of three functions of the scores at the shown artwork, in standard errors under the log's propensities."""

    apart: float
    """Its score, compared with what the artwork gets elsewhere, lies further from its siblings' than theirs do."""
    level: float
    """It is high among its siblings where the impression's scores are high, and low where they are low."""
    effect: float
    """The impression's scores are high where a generally more clicked artwork was drawn."""

    @property
    def doubt(self) -> str:
        """A sentence where one is beyond `ERRORS`; empty where none is."""
        largest = max(self.apart, self.level, self.effect)
        if not largest > ERRORS:
            return ""
        return (
            "scores depend on which artwork was drawn, as only those of a model do that was trained on these very impressions "
            f"({largest:.1f} standard errors); or the propensities are not what was done"
        )


def draw_test(scored: ScoredLog, effect_C: NDArray[np.floating]) -> DrawTest | None:
    """Test a scored log, ordered by member; None where the propensities of all candidates are not known.

    `effect_C`: how much more each candidate's artwork is clicked than its title, (C,), by other members' clicks. Honest scores
    may use everything before an impression, earlier clicks of the same member included: what is compared with a member's other
    scores is compared with earlier ones only.
    """
    propensity_C = scored.propensity_NK.values_C.astype(np.float64)
    if np.isnan(propensity_C).any():
        return None
    like = scored.artwork_NK.like
    probability_C = np.clip(scored.click_probability_NK.values_C.astype(np.float64), 1e-6, 1 - 1e-6)
    logit_C = np.log(probability_C / (1 - probability_C))
    width_N, artwork_C = scored.width, scored.artwork_NK.values_C
    level_N = like(logit_C).sums() / width_N
    apart_C = logit_C - np.repeat(like(propensity_C * logit_C).sums(), width_N)
    apart_C = apart_C - (np.bincount(artwork_C, apart_C) / np.maximum(np.bincount(artwork_C), 1))[artwork_C]
    apart_C = _standardised(apart_C)
    title_N = scored.title
    level_N = level_N - (np.bincount(title_N, level_N) / np.maximum(np.bincount(title_N), 1))[title_N]
    level_C = np.repeat(_standardised(level_N - _earlier_mean(scored, level_N)), width_N)
    return DrawTest(
        apart=_excess(scored, apart_C**2, propensity_C),
        level=_excess(scored, level_C * apart_C, propensity_C),
        effect=_excess(scored, level_C * effect_C, propensity_C),
    )


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divided by their root mean square and cut at `CLIP`; zeros where they are rounding alone."""
    scale = float(np.sqrt((values**2).mean())) if len(values) else 0.0
    return np.clip(values / scale, -CLIP, CLIP) if scale > 1e-9 else np.zeros_like(values)


def _earlier_mean(scored: ScoredLog, values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each member's values at earlier impressions, (N,), shrunk towards 0 as if one more of 0 were among them."""
    order = np.lexsort((scored.shown_at, scored.member))
    ordered_N, member_N = values_N[order], scored.member[order]
    start_N = np.flatnonzero(np.diff(member_N, prepend=-1))
    length = np.diff(np.append(start_N, len(order)))
    before_N = np.cumsum(ordered_N) - ordered_N
    before_N = before_N - np.repeat(before_N[start_N], length)
    count_N = np.arange(len(order)) - np.repeat(start_N, length)
    mean_N = np.empty(len(order))
    mean_N[order] = before_N / (count_N + 1)
    return mean_N


def _excess(scored: ScoredLog, values_C: NDArray[np.float64], propensity_C: NDArray[np.float64]) -> float:
    """sum of (value at the shown candidate - its expectation), in standard errors; 0 where nothing was drawn."""
    values_NK: Lists = scored.artwork_NK.like(values_C)
    mean_N = scored.artwork_NK.like(propensity_C * values_C).sums()
    variance_N = scored.artwork_NK.like(propensity_C * values_C**2).sums() - mean_N**2
    variance = float(np.maximum(variance_N, 0.0).sum())
    shown_N = values_NK[np.arange(len(scored)), scored.shown]
    return float((shown_N - mean_N).sum() / np.sqrt(variance)) if variance > 1e-12 else 0.0
