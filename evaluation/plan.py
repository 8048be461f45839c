"""`keyart plan`: a first log -> how much exploration, for how many days, until the log can say whether a policy is better.

In: `impressions/` by the contract with some randomised traffic, and a scores table where there is one. Out: `plan.json`, and
`plan.html`, a page to read.

Legend: n explored impressions, ordered by member.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from evaluation.planning.first_log import BASE, BEST_ARTWORK, ESTIMATORS, POLICY, FirstLog, Reward, read_first_log
from evaluation.planning.power import (
    MOST_DAYS,
    Design,
    Noise,
    Question,
    noise_of,
    noisier,
    quieter,
    variance_range,
)
from evaluation.planning.traffic import Traffic
from evaluation.record.plan_record import (
    PLAN_FILE,
    PLAN_VERSION,
    CurveRow,
    EstimatorRow,
    PlanRecord,
    PlanRow,
    write_plan,
)
from evaluation.record.rows import finite_or_none
from evaluation.report.plan_page import cost_cell, days_cell, headline, plan_page
from foundation.atomic import atomic_folder, claimed_output
from foundation.errors import UserError

PLAN_PAGE = "plan.html"
CURVE_DAYS = (1, 2, 3, 5, 7, 10, 14, 21, 28, 42, 56, 84, 112, 168, 224, 365)
PRODUCTION, SCORED = "what was shown where nothing was explored", "the policy that is planned for"


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What the log shall answer, and what may be explored."""

    lift: str
    """The relative lift to detect, such as "2 %" or 0.02."""
    power: float = 0.8
    """Probability to detect it."""
    alpha: float = 0.05
    """Two-sided error: 1 minus the level of the intervals."""
    shares: list[float] = field(default_factory=lambda: [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
    """Shares of the traffic to consider for exploring, where every candidate is equally likely."""
    within: int = 28
    """Days within which the log shall answer: the smallest share that does is recommended."""
    reward: Reward = "clicked"
    """What the lift is of."""
    scores: Path | None = None
    """A scores table of the policy to plan for; default: one artwork of each title, that with the best rate."""
    base: Path | None = None
    """A scores table of the policy to compare with; default: uniform."""
    out: Path = Path("keyart-plan")
    """Folder for plan.json and plan.html."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        parse_lift(self.lift)
        if not 0 < self.alpha < 1:
            raise UserError(f"alpha={self.alpha}: must lie between 0 and 1, such as 0.05.")
        if not self.alpha < self.power < 1:
            raise UserError(f"power={self.power}: must lie between alpha ({self.alpha:g}) and 1, such as 0.8.")
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise UserError(f"shares={self.shares}: give shares of the traffic above 0, at most 1, such as 0.05,0.1.")
        if not 1 <= self.within <= MOST_DAYS:
            raise UserError(f"within={self.within}: must lie in 1 .. {MOST_DAYS} days.")


def parse_lift(text: str) -> float:
    """A relative lift as a share: "2 %", "2%" or 0.02. UserError where it is not above 0, or may be meant as per cent."""
    words = str(text).strip()
    percent = words.endswith("%")
    try:
        lift = float(words.removesuffix("%").strip().replace(",", ".")) / (100 if percent else 1)
    except ValueError:
        raise UserError(f"lift={text}: is not a number. Give a relative lift, such as '2 %' or 0.02.") from None
    if not math.isfinite(lift) or lift <= 0:
        raise UserError(f"lift={text}: must be above 0. Give a relative lift, such as '2 %' or 0.02.")
    if not percent and lift >= 1:
        raise UserError(f"lift={text}: say '{words} %' for per cent, or a share below 1, such as 0.02.")
    return lift


def plan(dataset: Path, config: PlanConfig, *, console: Console | None = None) -> PlanRecord:
    """Plan from a first log; writes `plan.json` and `plan.html`. UserError as `read_first_log`."""
    scores, base, out = config.scores, config.base, config.out
    if base is not None and scores is None:
        raise UserError(f"base={base}: is compared with the policy of --scores, which is missing. Name both.")
    sources = [path for path in (scores, base) if path is not None]
    with claimed_output(out, PLAN_FILE, dataset=dataset, sources=sources):
        first = read_first_log(dataset, reward=config.reward, scores=scores, base=base)
        if first.without_scores and console is not None:
            console.print(f"plan: {first.without_scores:,} impressions without scores are left out")
        record = plan_of(first, config, BEST_ARTWORK if scores is None else str(scores), str(base or "uniform"))
        with atomic_folder(out, marker=PLAN_FILE) as folder:
            (folder / PLAN_PAGE).write_text(plan_page(record), encoding="utf-8")
            write_plan(folder, record)
    return record


def noise(first: FirstLog, estimator: str, lift: float) -> Noise:
    """The noise of an estimator on the explored impressions of a log."""
    weights = first.weighted_log.policy_weights
    both = weights[POLICY].weight_N, weights[BASE].weight_N
    return noise_of(first.influence_n(estimator), *both, first.reward_n, first.weighted_log.members, lift=lift)


def plan_of(first: FirstLog, config: PlanConfig, policy: str, base: str) -> PlanRecord:
    """The plan, from a log that was read; `policy` and `base` in words."""
    question = Question(lift=parse_lift(config.lift), power=config.power, alpha=config.alpha)
    traffic = Traffic.of(first.member_N, first.shown_at_N)
    own_noise = noise(first, ESTIMATORS[0], question.lift)
    shares = sorted(set(config.shares))
    designs = [Design(share, own_noise, traffic) for share in shares]
    cost_of_one = first.cost()
    base_reward_n = first.weighted_log.policy_weights[BASE].weight_N * first.reward_n
    spread = variance_range(first.influence_n(ESTIMATORS[0]), base_reward_n, first.weighted_log.members)
    plans = [_plan_row(design, question, cost_of_one, spread) for design in designs]
    within = [row["share"] for row in plans if row["days"] is not None and row["days"] <= config.within]
    recommended = min(within, default=None)
    return {
        "schema_version": PLAN_VERSION,
        "lift": question.lift,
        "power": question.power,
        "alpha": question.alpha,
        "reward": config.reward,
        "policy": policy,
        "base": base,
        "served": SCORED if first.explored_N.all() else PRODUCTION,
        "within": config.within,
        "recommended": recommended,
        "first_log": {
            "impressions": len(first.member_N),
            "explored": int(first.explored_N.sum()),
            "rewarded": int(first.reward_n.sum()),
            "members": len(np.unique(first.member_N)),
            "days": traffic.days,
            "impressions_a_day": traffic.impressions_a_day,
            "base_value": own_noise.base_value,
            "cost_of_one": cost_of_one[0],
            "cost_of_one_low": finite_or_none(cost_of_one[1]),
            "cost_of_one_high": finite_or_none(cost_of_one[2]),
            "without_scores": first.without_scores,
        },
        "plans": plans,
        "curve": [row for design in designs for row in _curve(design, question, cost_of_one[0])],
        "estimators": _estimators(first, traffic, question, recommended or shares[-1]),
    }


def _plan_row(
    design: Design, question: Question, cost_of_one: tuple[float, float, float], spread: tuple[float, float]
) -> PlanRow:
    days = design.days(question)
    low, high = quieter(design, spread[0]).days(question), noisier(design, spread[1]).days(question)
    cost = (
        [None, None, None] if days is None else [finite_or_none(design.explored(days) * each) for each in cost_of_one]
    )
    return {
        "share": design.share,
        "days": days,
        "days_low": low,
        "days_high": high,
        "explored": None if days is None else round(design.explored(days)),
        "members": None if days is None else round(design.traffic.members(days)),
        "cost": cost[0],
        "cost_low": cost[1],
        "cost_high": cost[2],
        "detectable": None if days is None else design.detectable(days, question),
        "power": None if days is None else design.power(days, question),
    }


def _curve(design: Design, question: Question, cost_of_one: float) -> list[CurveRow]:
    return [
        {
            "share": design.share,
            "days": days,
            "cost": design.explored(days) * cost_of_one,
            "detectable": design.detectable(days, question),
            "power": design.power(days, question),
        }
        for days in CURVE_DAYS
    ]


def _estimators(first: FirstLog, traffic: Traffic, question: Question, share: float) -> list[EstimatorRow]:
    rows: list[EstimatorRow] = []
    for estimator in ESTIMATORS:
        measured = noise(first, estimator, question.lift)
        rows.append(
            {
                "estimator": estimator,
                "variance": measured.variance,
                "covariance": measured.covariance,
                "days": Design(share, measured, traffic).days(question),
            }
        )
    return rows


def plan_table(record: PlanRecord) -> Table:
    """Shares, days and costs, for reading in a terminal."""
    log = record["first_log"]
    table = Table(title=headline(record), title_justify="left")
    table.caption = (
        f"from {log['explored']:,} explored of {log['impressions']:,} impressions in {log['days']:.1f} days [95 %]; cost: "
        f"{record['reward']} lost against {record['served']}"
    )
    for heading in ("explored", "days", "cost", "impressions", "lift in 7 days", "in 28"):
        table.add_column(heading, justify="right")
    curve = {(row["share"], row["days"]): row for row in record["curve"]}
    for row in record["plans"]:
        seen = [f"{curve[row['share'], days]['detectable']:.1%}" for days in (7, 28)]
        cells = [f"{100 * row['share']:.3g} %", days_cell(row), cost_cell(row), _count(row["explored"]), *seen]
        table.add_row(*cells, style="bold" if row["share"] == record["recommended"] else None)
    return table


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
