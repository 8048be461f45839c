"""Prepared tests -> their answers as rows of a record: levels over arms and tests, headlines, what is said of each arm.

Legend: A arms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite

from evaluation.experiments.answers import WEAKER_LEVEL, Judged, Rules, interval, judge, lift_columns
from evaluation.experiments.contrasts import FEWEST_EFFECTIVE, Contrast, Ratio
from evaluation.experiments.prepared import EQUAL, PreparedTest
from evaluation.experiments.sequences import (
    anytime_p_value,
    discoveries,
    e_value,
    fixed_radius,
)
from evaluation.record.experiments import ArmRow, LookRow, MismatchRow, SingleTest
from evaluation.record.rows import finite_or_none

REWARDS = ("clicked", "engaged", "minutes")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a user asks of a read-out."""

    metric: str
    worth: float
    """The smallest relative lift that matters."""
    typical: float
    """Typical size of a true lift, which decides at what size of sample the intervals are narrowest."""
    level: float
    """How often the read-out misleads, at most."""


def read_out(tests: Sequence[PreparedTest], settings: Settings) -> list[SingleTest]:
    """The answers of all tests.

    One test: a comparison has the level of the test divided by the number of arms beside the control. Several: that of e-BH and
    e-BY (Xu, Wang and Ramdas, 2022, Post-selection inference for e-value based confidence intervals) over all
    comparisons of all tests, so that among the arms that are declared different at most `level` are not, on average.
    """
    metric = Ratio(numerator=settings.metric)
    share = 1.0
    if len(tests) > 1:
        evidence = [
            _evidence(test.totals.contrast(metric, arm, test.control), settings.typical)
            for test in tests
            for arm in range(len(test.arms))
            if arm != test.control and not test.mismatch.mismatched
        ]
        share = max(1, discoveries(evidence, settings.level)) / max(1, len(evidence))
    return [_read_out(test, settings, metric, share if len(tests) > 1 else None) for test in tests]


def _evidence(contrast: Contrast, spread: float) -> float:
    return e_value(contrast.estimate, contrast.error, spread) if contrast.effective >= FEWEST_EFFECTIVE else 0.0


def _rules(test: PreparedTest, settings: Settings, metric: Ratio, rewards: Sequence[str], share: float | None) -> Rules:
    others = len(test.arms) - 1
    divided = 1 / others if share is None else share
    return Rules(
        metric=metric,
        guards=tuple(
            Ratio(numerator=name) for name in rewards if name in ("engaged", "minutes") and name != settings.metric
        ),
        watched=Ratio(numerator="engaged", denominator="clicked")
        if settings.metric == "clicked" and "engaged" in rewards
        else None,
        worth=settings.worth,
        spread=settings.typical,
        level=settings.level * divided,
        pair_level=settings.level / max(1, others * (others - 1) // 2) if share is None else settings.level * divided,
        weaker_level=WEAKER_LEVEL * divided,
    )


def _read_out(test: PreparedTest, settings: Settings, metric: Ratio, share: float | None) -> SingleTest:
    rewards = [name for name in REWARDS if name in test.columns]
    rules = _rules(test, settings, metric, rewards, share)
    contrasts, judged, pairs = judge(test.totals, rules, test.arms, test.control)
    if test.mismatch.mismatched:
        words = "the arms were not shown in the expected shares"
        judged = [Judged(answer="mismatch", reason=words, more=None, guardrails=row.guardrails) for row in judged]
        pairs = []
    rows = [
        _arm_row(test, rules, arm, contrast, verdict)
        for arm, (contrast, verdict) in enumerate(zip(contrasts, judged, strict=True))
    ]
    return {
        "test": test.name,
        "headline": _headline(test, rows, settings),
        "control": test.arms[test.control],
        "level": rules.level,
        "impressions": int(test.impressions_A.sum()),
        "members": test.members,
        "left_out": test.left_out,
        "since": test.since,
        "until": test.until,
        "by_member": test.by_member,
        "mismatch": _mismatch_row(test),
        "arms": rows,
        "pairs": pairs,
        "looks": _look_rows(test, rules),
        "covariates": test.covariates,
        "notes": test.notes,
    }


def _ends(contrast: Contrast | None, rules: Rules) -> tuple[float, float]:
    if contrast is None or contrast.effective < FEWEST_EFFECTIVE:
        return -inf, inf
    return interval(contrast, rules.level, rules.spread)


def _arm_row(test: PreparedTest, rules: Rules, arm: int, contrast: Contrast | None, judged: Judged) -> ArmRow:
    name = rules.metric.numerator
    exposure, rewards = test.totals.total("impressions", arm), test.totals.total(name, arm)
    total = float(test.mismatch.count_A.sum())
    lift, low, high = (
        (None, None, None) if contrast is None else lift_columns(contrast.estimate, *_ends(contrast, rules))
    )
    fixed = plain = (None, None, None)
    if contrast is not None and isfinite(contrast.estimate):
        half = fixed_radius(contrast.error, rules.level)
        fixed = lift_columns(contrast.estimate, contrast.estimate - half, contrast.estimate + half)
        unadjusted = Contrast(
            estimate=contrast.plain_estimate,
            error=contrast.plain_error,
            plain_estimate=contrast.plain_estimate,
            plain_error=contrast.plain_error,
            effective=contrast.effective,
        )
        plain = lift_columns(contrast.plain_estimate, *_ends(unadjusted, rules))
    impressions = int(test.impressions_A.sum())
    more = judged.more
    return {
        "arm": test.arms[arm],
        "answer": judged.answer,
        "reason": judged.reason,
        "impressions": int(test.impressions_A[arm]),
        "members": int(test.members_A[arm]),
        "share": float(test.mismatch.count_A[arm]) / total,
        "expected_share": float(test.mismatch.expected_A[arm] / test.mismatch.expected_A.sum()),
        "rewards": rewards,
        "rate": rewards / exposure if exposure > 0 else None,
        "lift": lift,
        "low": low,
        "high": high,
        "fixed_low": fixed[1],
        "fixed_high": fixed[2],
        "unadjusted_lift": plain[0],
        "unadjusted_low": plain[1],
        "unadjusted_high": plain[2],
        "variance_reduction": 0.0 if contrast is None else float(contrast.variance_reduction),
        "e_value": 0.0 if contrast is None else _evidence(contrast, rules.spread),
        "p_value": 1.0 if contrast is None else anytime_p_value(contrast.estimate, contrast.error, rules.spread),
        "effective_units": 0.0 if contrast is None else contrast.effective,
        "more_impressions": None if more is None or not isfinite(more) else round((more - 1) * impressions),
        "guardrails": judged.guardrails,
    }


def _mismatch_row(test: PreparedTest) -> MismatchRow:
    mismatch = test.mismatch
    return {
        "mismatched": mismatch.mismatched,
        "counted": mismatch.counted,
        "source": test.expected_by,
        "counts": [float(count) for count in mismatch.count_A],
        "expected": [float(count) for count in mismatch.expected_A],
        "chi_square": mismatch.chi_square,
        "e_value": mismatch.e_value,
        "level": mismatch.level,
    }


def _look_rows(test: PreparedTest, rules: Rules) -> list[LookRow]:
    rows: list[LookRow] = []
    for look in test.looks:
        lifts = []
        for name, contrast in zip(test.arms, look.contrasts, strict=True):
            if contrast is not None:
                lift, low, high = lift_columns(contrast.estimate, *_ends(contrast, rules))
                lifts.append({"arm": name, "lift": lift, "low": low, "high": high})
        rows.append({"until": look.until, "impressions": look.impressions, "arms": lifts})
    return rows


def _headline(test: PreparedTest, rows: Sequence[ArmRow], settings: Settings) -> str:
    """The answer of one test in a sentence; a mismatch comes first and alone."""
    if test.mismatch.mismatched:
        worst = max(rows, key=lambda row: abs(row["share"] - row["expected_share"]))
        words = f"Sample ratio mismatch, and no arm is compared: {worst['arm']} was shown in {worst['share']:.2%} of "
        words += f"{test.mismatch.counted} where {worst['expected_share']:.2%} were expected by {test.expected_by}."
        return words + (" State the planned shares by --split." if test.expected_by == EQUAL else "")
    by_answer = {answer: [row for row in rows if row["answer"] == answer] for answer in {row["answer"] for row in rows}}
    what = f"{settings.metric} per impression"
    for row in by_answer.get("winner", []):
        if row["lift"] is None:
            return f"{row['arm']} is the winner: every other arm is worse, {what}."
        return f"{row['arm']} is the winner: {row['lift']:+.1%} {what} {_range(row)} against {test.arms[test.control]}."
    for row in by_answer.get("clicked, not watched", []):
        return f"{row['arm']} is no winner: {row['reason']}."
    preferred = by_answer.get("preferred", [])
    if preferred:
        names = ", ".join(row["arm"] for row in preferred)
        return f"{names} {'are' if len(preferred) > 1 else 'is'} preferred: {preferred[0]['reason']}."
    others = [row for row in rows if row["arm"] != test.arms[test.control]]
    if all(row["answer"] == "no difference" for row in others):
        return f"No difference worth {100 * settings.worth:g} % between the arms, {what}."
    waiting = by_answer.get("not yet", [])
    if not waiting:
        return f"No arm is better than {test.arms[test.control]}, {what}."
    few = [row["arm"] for row in waiting if row["effective_units"] < FEWEST_EFFECTIVE]
    if few:
        names = f"{', '.join(few)}; control {test.arms[test.control]}"
        return f"Not yet: too little {settings.metric} for an interval, about ten in each arm ({names})."
    more = [row["more_impressions"] for row in waiting if row["more_impressions"] is not None]
    if len(more) < len(waiting):
        return "Not yet, and more than a thousand times as many impressions would be needed for an answer on every arm."
    return f"Not yet: about {_rounded(max(more))} more impressions until an answer on every arm, if the lifts stay."


def _range(row: ArmRow) -> str:
    ends = [finite_or_none(end) if end is not None else None for end in (row["low"], row["high"])]
    return "" if None in ends else f"[{ends[0]:+.1%}, {ends[1]:+.1%}]"


def _rounded(count: int) -> str:
    """A count to two significant digits, with separators."""
    digits = max(0, len(str(count)) - 2)
    return f"{round(count, -digits):,}"
