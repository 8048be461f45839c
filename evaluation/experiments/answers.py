"""The answer on every arm, as a person reads it, from contrasts with the control.

The rules, in this order, for an arm against the control:

1. The shares of the arms are off: no arm is compared.
2. Fewer than `FEWEST_EFFECTIVE` effective units: not yet.
3. The whole interval lies within -+ worth: no difference worth it, whichever way.
4. The interval lies above 0: winner, if the guardrails hold and the arm beats every other one that is above the control;
   else preferred, or clicked and not watched.
5. The interval lies below 0: worse.
6. The interval at `WEAKER_LEVEL`, a weaker one, lies above 0 and no guardrail fails: preferred.
7. Not yet, with how many more impressions it takes if the lift stays.

Over arms, the error is bounded together: comparisons with the control share the level equally (Bonferroni), and that of an arm
that beats the control is handed on to its comparisons with other such arms (Bretz, Maurer, Brannath and Posch, 2009, A
graphical approach to sequentially rejective multiple test procedures), so that no winner is named by chance in more than `level`.

Legend: A arms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import expm1, inf, isfinite, log1p

from evaluation.experiments.contrasts import FEWEST_EFFECTIVE, ArmTotals, Contrast, Ratio
from evaluation.experiments.sequences import MOST, radius, times_more
from evaluation.record.experiments import Answer, Guard, GuardrailRow, PairRow
from evaluation.record.rows import finite_or_none

WEAKER_LEVEL = 0.2
"""Level of the evidence for `preferred`, and of the warning of a guardrail."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Settings of a read-out."""

    metric: Ratio
    guards: tuple[Ratio, ...]
    """Rewards per impression that a winner must not lower."""
    watched: Ratio | None
    """Engaged plays of those clicked: where they fall, engaged plays per impression must rise."""
    worth: float
    """The smallest relative lift that matters, above 0 and below 1."""
    spread: float
    """Standard deviation of the mixture, on the log scale."""
    level: float
    """The level of one comparison with the control."""
    pair_level: float
    """The level of one comparison of two other arms."""
    weaker_level: float
    """The level of one comparison, for `preferred`."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The log ratios of rates between which no difference is worth it."""
        return log1p(-self.worth), log1p(self.worth)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The answer on an arm."""

    answer: Answer
    reason: str
    more: float | None
    """The factor by which the sample must grow; inf out of reach; None where answered."""
    guardrails: list[GuardrailRow]


def interval(contrast: Contrast, level: float, spread: float) -> tuple[float, float]:
    """The anytime-valid interval of a log ratio; infinite without an estimate."""
    if not isfinite(contrast.estimate):
        return -inf, inf
    half = radius(contrast.error, level, spread)
    return contrast.estimate - half, contrast.estimate + half


def lift_columns(estimate: float, low: float, high: float) -> tuple[float | None, float | None, float | None]:
    """A log ratio and its interval as relative lifts, None where they are not finite."""
    lift, bottom, top = (finite_or_none(expm1(end)) if end < 700 else None for end in (estimate, low, high))
    return lift, bottom if isfinite(low) else None, top


def judge(
    totals: ArmTotals, rules: Rules, arms: Sequence[str], control: int
) -> tuple[list[Contrast | None], list[Judged], list[PairRow]]:
    """Contrasts with the control (None for itself), answers, and comparisons between arms that beat it."""
    contrasts = [None if arm == control else totals.contrast(rules.metric, arm, control) for arm in range(len(arms))]
    ends = [(-inf, inf) if c is None else _ends(c, rules.level, rules) for c in contrasts]
    beating = [
        arm for arm, (low, high) in enumerate(ends) if low > 0 and not _within((low, high), rules) and arm != control
    ]
    pairs, unbeaten = _compare(totals, rules, arms, beating)
    judged = [
        _control(totals, rules, arms, control, contrasts, ends)
        if contrast is None
        else _arm(totals, rules, arms, arm, control, contrast, ends[arm], beating, unbeaten)
        for arm, contrast in enumerate(contrasts)
    ]
    return contrasts, judged, pairs


def _ends(contrast: Contrast, level: float, rules: Rules) -> tuple[float, float]:
    return (-inf, inf) if contrast.effective < FEWEST_EFFECTIVE else interval(contrast, level, rules.spread)


def _within(ends: tuple[float, float], rules: Rules) -> bool:
    return rules.bounds[0] <= ends[0] and ends[1] <= rules.bounds[1]


def _compare(
    totals: ArmTotals, rules: Rules, arms: Sequence[str], beating: Sequence[int]
) -> tuple[list[PairRow], dict[int, list[int]]]:
    """Every pair of arms that beat the control; and by arm, the others that it is not shown to beat."""
    rows: list[PairRow] = []
    unbeaten: dict[int, list[int]] = {arm: [other for other in beating if other != arm] for arm in beating}
    for index, one in enumerate(beating):
        for other in beating[index + 1 :]:
            contrast = totals.contrast(rules.metric, one, other)
            low, high = _ends(contrast, rules.pair_level, rules)
            lift, bottom, top = lift_columns(contrast.estimate, low, high)
            rows.append({"arm": arms[one], "against": arms[other], "lift": lift, "low": bottom, "high": top})
            if low > 0:
                unbeaten[one].remove(other)
            if high < 0:
                unbeaten[other].remove(one)
    return rows, unbeaten


def guardrails(totals: ArmTotals, rules: Rules, arm: int, reference: int, against: str) -> list[GuardrailRow]:
    """Whether an arm keeps what must not fall, against a reference.

    A reward per impression holds where its estimate is no loss, is open where it is a loss within chance, and fails where the
    interval at `WEAKER_LEVEL` lies below 0. Engaged plays of those clicked fail where their interval lies below 0 and engaged
    plays per impression are not shown to rise, at that level: such clicks are not watched.
    """
    rows: list[GuardrailRow] = []
    rising = False
    for metric in rules.guards:
        contrast = totals.contrast(metric, arm, reference)
        low, high = _ends(contrast, WEAKER_LEVEL, rules)
        rising |= metric.numerator == "engaged" and low > 0
        rows.append(_guard(metric, contrast, low, high, against, fails=high < 0, loss=not contrast.estimate >= 0))
    if rules.watched is not None:
        contrast = totals.contrast(rules.watched, arm, reference)
        low, high = _ends(contrast, WEAKER_LEVEL, rules)
        rows.append(_guard(rules.watched, contrast, low, high, against, fails=high < 0 and not rising, loss=False))
    return rows


def _guard(
    metric: Ratio, contrast: Contrast, low: float, high: float, against: str, *, fails: bool, loss: bool
) -> GuardrailRow:
    state: Guard = "fails" if fails else "open" if loss else "holds"
    lift, bottom, top = lift_columns(contrast.estimate, low, high)
    return {"reward": metric.name, "state": state, "against": against, "lift": lift, "low": bottom, "high": top}


def _arm(
    totals: ArmTotals,
    rules: Rules,
    arms: Sequence[str],
    arm: int,
    control: int,
    contrast: Contrast,
    ends: tuple[float, float],
    beating: Sequence[int],
    unbeaten: dict[int, list[int]],
) -> Judged:
    kept = guardrails(totals, rules, arm, control, arms[control])
    broken = [row for row in kept if row["state"] == "fails"]
    waiting = [row for row in kept if row["state"] == "open"]
    metric = rules.metric.numerator

    def answered(answer: Answer, reason: str) -> Judged:
        return Judged(answer=answer, reason=reason, more=None, guardrails=kept)

    def unanswered(answer: Answer, reason: str) -> Judged:
        more = times_more(contrast.estimate, contrast.error, rules.level, rules.bounds, rules.spread)
        needed = FEWEST_EFFECTIVE / max(contrast.effective, 1e-9)
        if contrast.effective <= 0:
            more = inf
        more = max(more, needed) if max(more, needed) <= MOST else inf
        return Judged(answer=answer, reason=reason, more=more, guardrails=kept)

    if contrast.effective < FEWEST_EFFECTIVE:
        return unanswered("not yet", f"too little {metric} for an interval")
    if _within(ends, rules):
        return answered("no difference", f"no difference worth {100 * rules.worth:g} %, whichever way")
    if arm in beating:
        if broken:
            return answered("clicked, not watched", f"more {metric}, but {_lost(broken)}")
        if waiting:
            return answered("preferred", f"more {metric}, but {_lost(waiting)} so far")
        if unbeaten[arm]:
            others = ", ".join(arms[other] for other in unbeaten[arm])
            return answered("preferred", f"better than the control, and not separated from {others}")
        return answered("winner", "better than the control" + (" and all other arms" if len(arms) > 2 else ""))
    if ends[1] < 0:
        return answered("worse", "worse than the control")
    if _ends(contrast, rules.weaker_level, rules)[0] > 0 and not broken:
        return unanswered(
            "preferred", f"better than the control by weaker evidence, {1 - WEAKER_LEVEL:.0%} instead of 95 %"
        )
    return unanswered("not yet", "the interval holds 0 and lifts that matter")


def _lost(rows: Sequence[GuardrailRow]) -> str:
    """Which rewards fall, in words."""
    return " and ".join(
        f"{row['reward']} falls by {-row['lift']:.1%}" if row["lift"] is not None else f"{row['reward']} is not known"
        for row in rows
    )


def _control(
    totals: ArmTotals,
    rules: Rules,
    arms: Sequence[str],
    control: int,
    contrasts: Sequence[Contrast | None],
    ends: Sequence[tuple[float, float]],
) -> Judged:
    """The control wins where every other arm is worse, and its guardrails hold against each of them."""
    others = [arm for arm in range(len(arms)) if arm != control]
    worse = all(ends[arm][1] < 0 and not _within(ends[arm], rules) for arm in others)
    contrast_of = [contrast for contrast in contrasts if contrast is not None]
    likely = worse or all(_ends(contrast, rules.weaker_level, rules)[1] < 0 for contrast in contrast_of)
    if not likely:
        return Judged(answer="control", reason="what the others are compared with", more=None, guardrails=[])
    kept = [row for arm in others for row in guardrails(totals, rules, control, arm, arms[arm])]
    lost = [row for row in kept if row["state"] != "holds"]
    if any(row["state"] == "fails" for row in lost):
        reason = f"more {rules.metric.numerator}, but {_lost(lost)}"
        return Judged(answer="clicked, not watched", reason=reason, more=None, guardrails=kept)
    if worse and not lost:
        return Judged(answer="winner", reason="every other arm is worse", more=None, guardrails=kept)
    reason = (
        f"more {rules.metric.numerator}, but {_lost(lost)} so far"
        if worse
        else "the others are worse by weaker evidence"
    )
    return Judged(answer="preferred", reason=reason, more=None, guardrails=kept)
