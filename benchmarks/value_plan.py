"""Plans of exploration on simulated services: whether the planned days reach the asked power, and whether the cost is right.

    uv run python -m benchmarks.value_plan --replications 200

Every replication draws a first log, plans from it, draws the planned days with the planned share explored and the asked lift being
true, and looks whether the 95 % interval of the difference lies above 0. Members arrive, come back and leave.

Legend: N impressions, K candidates, M members.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console

from benchmarks.replications import Replicated, print_replications
from evaluation.off_policy.intervals import normal_interval
from evaluation.off_policy.selection import policy_sums
from evaluation.plan import PlanConfig, plan_of
from evaluation.planning.first_log import BASE, POLICY, FirstLog, LogRows, first_log
from evaluation.planning.traffic import DAY
from foundation.lists import Lists

WIDTH, TITLES = 4, 12
BEST_SHARE = 0.5
"""Share of the impressions in which production shows the member's best artwork; in the others it shows any."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """Parameters of a simulated service and of its first log."""

    click_rate: float
    lift: float
    """True lift of the policy over uniform, which is planned for."""
    members: int = 2000
    """Members at any time."""
    activity: float = 2.0
    """Mean impressions of a member in a day."""
    spread: float = 0.5
    """Standard deviation of the logarithm of members' activity."""
    stay: float = 30.0
    """Mean days that a member stays."""
    differing: float = 0.0
    """How much the lift differs between members: 1 doubles it for half of them and leaves the others none."""
    click_spread: float = 0.6
    """Standard deviation of the logarithm of members' click rates."""
    first_days: int = 7
    first_share: float = 0.2
    share: float = 0.3
    """Share that the plan explores."""

    @property
    def gain(self) -> float:
        """Relative gain of the best artwork over the others, such that choosing it has the lift over uniform."""
        return self.lift / (1 - (1 + self.lift) / WIDTH)

    @property
    def cost_of_one(self) -> float:
        """True clicks that one explored impression costs against production."""
        return self.click_rate * self.gain * BEST_SHARE * (1 - 1 / WIDTH)


SERVICES = {
    "10 % clicked, members alike": Service(click_rate=0.1, lift=0.1, spread=0.3),
    "10 % clicked, heavy-tailed activity": Service(click_rate=0.1, lift=0.1, spread=1.5),
    "1 % clicked, heavy-tailed activity": Service(click_rate=0.01, lift=0.3, spread=1.2, first_share=0.5),
    "10 % clicked, few members, lifts that differ": Service(
        click_rate=0.1, lift=0.1, members=400, activity=10.0, spread=0.8, stay=60.0, differing=1.0
    ),
}


def draw(service: Service, days: int, share: float, seed: int) -> FirstLog:
    """A log of so many days with a share explored, and the policy that shows each member's best artwork."""
    rng = np.random.default_rng(seed)
    arrived = rng.poisson(service.members * days / service.stay)
    begin_M = np.concatenate([np.zeros(service.members), rng.uniform(0, days, arrived)])
    end_M = np.minimum(begin_M + rng.exponential(service.stay, len(begin_M)), days)
    rate_M = service.activity * np.exp(rng.normal(-(service.spread**2) / 2, service.spread, len(begin_M)))
    count_M = rng.poisson(rate_M * (end_M - begin_M))
    member_N = np.repeat(np.arange(len(begin_M)), count_M)
    count = len(member_N)
    at_N = begin_M[member_N] + rng.random(count) * (end_M - begin_M)[member_N]
    spread = service.click_spread
    click_M = np.minimum(service.click_rate * np.exp(rng.normal(-(spread**2) / 2, spread, len(begin_M))), 0.6)
    gain_M = service.gain * (1 + service.differing * rng.choice([-1, 1], len(begin_M)))
    title_N = rng.integers(0, TITLES, count)
    best_MT = rng.integers(0, WIDTH, (len(begin_M), TITLES))
    best_N = best_MT[member_N, title_N]
    explored_N = rng.random(count) < share
    any_N = rng.integers(0, WIDTH, count)
    shown_N = np.where(~explored_N & (rng.random(count) < BEST_SHARE), best_N, any_N)
    p_N = click_M[member_N] * np.where(shown_N == best_N, 1 + gain_M[member_N], 1.0)
    artwork_NK = title_N[:, None] * WIDTH + np.arange(WIDTH)
    width_N = np.full(count, WIDTH)
    rows = LogRows(
        member=member_N,
        title=title_N,
        shown_at=(at_N * DAY).astype(np.int64),
        artwork_NK=Lists.of(artwork_NK.reshape(-1), width_N, padding=-1),
        shown=shown_N,
        randomised=explored_N,
        clicked=(rng.random(count) < p_N).astype(np.float64),
        engaged=None,
        score_NK=Lists.of(np.zeros(artwork_NK.size), width_N),
        policy_NK=Lists.of((best_N[:, None] == np.arange(WIDTH)).astype(np.float64).reshape(-1), width_N),
        base_NK=None,
        without_scores=0,
    )
    return first_log(rows, "clicked", "simulated", "the policy")


@dataclass
class Tally:
    """Results of the replications of one service."""

    detected: list[bool] = field(default_factory=list)
    days: list[int] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    """Stated cost as a multiple of the true one."""
    cost_held: list[bool] = field(default_factory=list)
    """Whether the stated interval of the cost of an impression contains the true one."""


def replicate(service: Service, replications: int, power: float = 0.8, first: int = 0) -> Tally:
    """Plan from a first log, draw what was planned, and look."""
    tally = Tally()
    config = PlanConfig(lift=f"{100 * service.lift} %", power=power, shares=[service.share], within=365)
    for seed in range(first, first + replications):
        before = draw(service, service.first_days, service.first_share, 2 * seed)
        (row,) = (record := plan_of(before, config, "", ""))["plans"]
        assert row["days"] is not None
        tally.days.append(row["days"])
        log = record["first_log"]
        tally.cost.append(log["cost_of_one"] / service.cost_of_one)
        low, high = log["cost_of_one_low"], log["cost_of_one_high"]
        assert low is not None
        assert high is not None
        tally.cost_held.append(low <= service.cost_of_one <= high)
        after = draw(service, row["days"], service.share, 2 * seed + 1)
        sides = [policy_sums(after.weighted_log, name, "clicked", "dr") for name in (POLICY, BASE)]
        influence_M = sides[0].influence_M - sides[1].influence_M
        tally.detected.append(normal_interval(sides[0].value - sides[1].value, influence_M).low > 0)
    return tally


def rows(replications: int = 200) -> Iterator[Replicated]:
    """Achieved power, and the cost, of every service."""
    for name, service in SERVICES.items():
        tally = replicate(service, replications)
        low, high = np.quantile(tally.days, [0.025, 0.975])
        measured = (
            f"{np.mean(tally.detected):.1%} detected after {np.median(tally.days):.0f} days ({low:.0f} to {high:.0f})"
        )
        yield Replicated(f"plan: {name}: power .8", "73 to 87 % detected", measured, replications)
        measured = (
            f"{np.mean(tally.cost):.2f} of the true cost in the mean, {np.mean(tally.cost_held):.1%} of intervals hold"
        )
        yield Replicated(f"plan: {name}: cost", "1 in the mean; 92 to 98 % hold", measured, replications)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Plans of exploration on services of known truth.")
    parser.add_argument("--replications", type=int, default=200)
    print_replications(rows(parser.parse_args().replications), Console(width=140))
