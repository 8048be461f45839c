"""Logs that lie and logs that do not: how often `keyart value` doubts each, and whether its intervals hold where it does not.

    uv run python -m benchmarks.value_logs --replications 50

Every replication draws a log of known truth (10,000 to 30,000 impressions of about 1,000 members, 4 artworks a title), reviews it
as `keyart value` does and estimates the policies. `rows` returns (scenario, wanted, measured, replications).
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import log_behaviours as by
from benchmarks.simulated_logs import WIDTH, Damage, Drawn, LoggerOf, Service, draw_log
from evaluation.logs.context_levels import ContextLevels, context_levels
from evaluation.logs.log_review import LogReview, WeightsOption, review_log
from evaluation.off_policy.valuation import estimate, importance_weights
from evaluation.record.rows import Estimates


class ResultRow(NamedTuple):
    """One line of the table."""

    scenario: str
    wanted: str
    measured: str
    replications: int


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A kind of log and what is wanted of it."""

    name: str
    logger: LoggerOf = by.honest_uniform
    damage: Damage = by.undamaged
    service: Service = field(default_factory=Service)
    doubted: bool = False
    """Whether it is to be doubted; an honest log is not."""
    covered: bool = False
    """Whether the intervals' coverage is measured."""
    weights: WeightsOption = "auto"


HEAVY = Service(spread=1.5, burst=0.7, night=0.01)
HONEST = (
    Scenario(name="uniform"),
    Scenario(name="epsilon-greedy", logger=by.epsilon_greedy),
    Scenario(name="softmax by member", logger=by.softmax_by_member),
    Scenario(name="Thompson sampling", logger=by.thompson),
    Scenario(name="three loggers at random", logger=by.several, covered=True),
    Scenario(name="three loggers by member", logger=by.by_member, covered=True),
    Scenario(name="three loggers by device", logger=by.by_device, covered=True),
    Scenario(name="70 % deterministic, by impression", logger=by.deterministic, covered=True),
    Scenario(name="70 % deterministic, by member", logger=by.deterministic_by_member, covered=True),
    Scenario(name="70 % deterministic, unnamed", logger=lambda t: by.deterministic(t, names=False), covered=True),
    Scenario(name="three decimals", logger=by.rounded),
    Scenario(name="propensities of .001", logger=by.rare_artworks),
    Scenario(name="heavy members, bursts, quiet nights", logger=by.softmax_by_member, service=HEAVY),
    Scenario(name="rare clicks", service=Service(click_logit=-4.5, impressions=30_000)),
    Scenario(name="10,000 impressions", logger=by.epsilon_greedy, service=Service(impressions=10_000)),
    Scenario(name="drawn once for each member and title", logger=by.kept_for_the_period),
    Scenario(name="uniform, shown propensity alone", logger=by.alone(by.honest_uniform)),
    Scenario(name="softmax, shown propensity alone", logger=by.alone(by.softmax_by_member)),
    Scenario(name="propensities of .001, shown propensity alone", logger=by.alone(by.rare_artworks)),
)
LYING = (
    Scenario(name="logged 1/K, prefers what members want", logger=by.even_but_preferring),
    Scenario(name="logged 1/K, prefers it a little", logger=lambda t: by.even_but_preferring(t, 0.4)),
    Scenario(name="logged 1/K, members' favourites unknown to the scores", logger=by.even_but_unknown_taste),
    Scenario(name="logged as the average over page rows", logger=by.averaged_over_rows),
    Scenario(name="logged as the average over devices", logger=by.averaged_over("device")),
    Scenario(name="logged as the average over hours", logger=by.averaged_over("hour")),
    Scenario(name="propensities of the candidate before", logger=by.shifted),
    Scenario(name="propensities of the day before", logger=by.previous_day),
    Scenario(name="normalised over another list", logger=by.another_list),
    Scenario(name="first of the list preferred", logger=by.always_the_first),
    Scenario(name="logged half as sharp", logger=by.too_high),
    Scenario(name="only clicked impressions", damage=by.unclicked_dropped(1.0)),
    Scenario(name="90 % of the unclicked dropped", damage=by.unclicked_dropped(0.9)),
    Scenario(name="one artwork's impressions missing", damage=by.artwork_dropped),
    Scenario(name="1/K and prefers, shown propensity alone", logger=by.alone(by.even_but_preferring)),
    Scenario(name="candidate before, shown propensity alone", logger=by.alone(by.shifted)),
    Scenario(name="half as sharp, shown propensity alone", logger=by.alone(by.too_high)),
    Scenario(name="balanced weights, loggers by device", logger=by.by_device, weights="balanced"),
    Scenario(name="balanced weights, loggers by member", logger=by.by_member, weights="balanced"),
    Scenario(name="5 % repeated under other ids", damage=by.repeated(0.05)),
    Scenario(name="1 % repeated under other ids", logger=by.softmax_by_member, damage=by.repeated(0.01)),
    Scenario(name="impressions missing in the middle half", damage=by.impressions_missing(0.25, 0.75)),
    Scenario(name="impressions missing for a day", damage=by.impressions_missing(0.4, 0.48)),
    Scenario(name="clicks missing in the middle half", damage=by.clicks_missing(0.25, 0.75)),
    Scenario(name="clicks missing for half a day", damage=by.clicks_missing(0.4, 0.44)),
    Scenario(name="9 of 10 clicks missing for a day", damage=by.clicks_missing(0.4, 0.48, 0.1)),
    Scenario(name="one member with 15 %", damage=by.one_member(0.15)),
)
LYING = tuple(replace(scenario, doubted=True) for scenario in LYING)
SCENARIOS = (*HONEST, *LYING)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was said of one log."""

    review: LogReview
    estimates: Estimates
    truth: dict[str, float]


def levels_of(drawn: Drawn) -> list[ContextLevels]:
    """The context of a drawn log."""
    return context_levels(drawn.scored, drawn.attributes)


def draw_scenario(scenario: Scenario, seed: int) -> Drawn:
    """One log of a scenario."""
    return scenario.damage(draw_log(scenario.service, scenario.logger, seed), np.random.default_rng(seed))


def judge(scenario: Scenario, seed: int, draws: int = 20) -> Outcome:
    """Draw, review and value one log."""
    drawn = draw_scenario(scenario, seed)
    clicks_alone = replace(drawn.scored, engaged=None)
    review = review_log(clicks_alone, levels_of(drawn), weights=scenario.weights)
    scored = review.scored
    even_NK = np.full((len(scored), WIDTH), 1 / WIDTH)
    policies = {"scored": scored.policy_NK.__getitem__, "uniform": lambda rows: even_NK[rows]}
    weighted_log = importance_weights(review.log, policies)
    estimates = estimate(weighted_log, doubts=review.doubts, replay_doubts=review.replay_doubts, draws=draws)
    every = slice(None)
    truth = {
        "scored": drawn.truth(drawn.scored.policy_NK[every]),
        "uniform": drawn.truth(np.full(drawn.click_NK.shape, 1 / WIDTH)),
    }
    return Outcome(review=review, estimates=estimates, truth=truth)


def verdict_of(estimates: Estimates, policy: str = "scored", estimator: str = "dr") -> str:
    """The verdict on clicks under a policy."""
    keys = [(row["policy"], row["estimator"], row["reward"], row["verdict"]) for row in estimates["verdicts"]]
    return next(verdict for *key, verdict in keys if key == [policy, estimator, "clicked"])


def doubted(scenario: Scenario, seeds: Sequence[int]) -> int:
    """How many logs are doubted: by the review, or by the verdict on the scored policy where the log lies."""
    count = 0
    for seed in seeds:
        drawn = draw_scenario(scenario, seed)
        doubts = bool(review_log(drawn.scored, levels_of(drawn), weights=scenario.weights).doubts)
        if scenario.doubted and not doubts:
            doubts = verdict_of(judge(scenario, seed).estimates) != "reliable"
        count += doubts
    return count


def coverage(scenario: Scenario, seeds: Sequence[int]) -> dict[str, list[bool]]:
    """By policy and estimator, whether each interval with the verdict `reliable` contained the truth."""
    held: dict[str, list[bool]] = {}
    for seed in seeds:
        outcome = judge(scenario, seed)
        for row in outcome.estimates["estimates"]:
            name = f"{row['policy']} by {row['estimator']}"
            if row["reward"] != "clicked" or row["estimator"] not in ("dr", "snips", "replay"):
                continue
            held.setdefault(name, [])
            if row["verdict"] == "reliable" and row["low"] is not None and row["high"] is not None:
                held[name].append(row["low"] <= outcome.truth[row["policy"]] <= row["high"])
    return held


def rows(replications: int = 50, scenarios: Sequence[Scenario] = SCENARIOS, covered: int = 300) -> Iterator[ResultRow]:
    """False and missed alarms of every scenario, and the coverage of reliable intervals by `covered` logs."""
    for scenario in scenarios:
        count = doubted(scenario, range(replications))
        wanted = "doubted in all" if scenario.doubted else "doubted in 5 % at most"
        yield ResultRow(scenario.name, wanted, f"doubted in {count} of {replications}", replications)
        if scenario.covered and covered:
            for name, held in coverage(scenario, range(covered)).items():
                share = f"{np.mean(held):.1%}" if held else "none"
                measured = f"{share} of {len(held)} reliable"
                yield ResultRow(f"{scenario.name}: {name}", "92 to 98 % hold", measured, covered)


def main(replications: int, covered: int, names: Sequence[str]) -> None:
    """Print the table line by line."""
    scenarios = [one for one in SCENARIOS if not names or any(name in one.name for name in names)]
    console, table = Console(width=140), Table("scenario", "wanted", "measured", "replications")
    for row in rows(replications, scenarios, covered):
        console.print(
            f"{row.scenario} | {row.wanted} | {row.measured} | {row.replications}", highlight=False, markup=False
        )
        table.add_row(*map(str, row))
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="False and missed alarms of the checks of a log, on logs of known truth."
    )
    parser.add_argument("--replications", type=int, default=50)
    parser.add_argument("--covered", type=int, default=300)
    parser.add_argument("--scenarios", nargs="*", default=[], help="parts of the scenarios' names; default: all")
    arguments = parser.parse_args()
    main(arguments.replications, arguments.covered, arguments.scenarios)
