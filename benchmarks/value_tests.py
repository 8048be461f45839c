"""What `keyart test` gets right and wrong, on simulated tests whose truth is known and on real randomised image tests.

    uv run python -m benchmarks.value_tests --replications 400

prints a row per scenario: what is wanted, what was measured, over how many replications. The real tests are those of the Upworthy
Research Archive (`shared/data/upworthy` beside the checkout, left out where it is absent) whose arms differ in the image alone.

Legend: N impressions, M members, A arms, L looks, T tests.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from evaluation.experiments.contrasts import FEWEST_EFFECTIVE, ArmCounts, Contrast, Ratio
from evaluation.experiments.experiment_log import HISTORY, PREDICTION, ExperimentLog
from evaluation.experiments.mismatch import LEVEL as MISMATCH_LEVEL
from evaluation.experiments.prepared import DAY, PreparedTest, prepare_log
from evaluation.experiments.read_out import Settings, read_out
from evaluation.experiments.sequences import SPREAD, fixed_radius, radius
from evaluation.record.experiments import SingleTest

UPWORTHY = Path(__file__).parents[2] / "shared" / "data" / "upworthy" / "even.parquet"
CLICKED = Ratio(numerator="clicked")
LEVEL = 0.05
DAYS = 30
START = 1_767_225_600_000_000
"""2026-01-01, in microseconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A simulated test."""

    members: int = 1000
    mean_impressions: float = 10.0
    spread: float = 1.0
    """Standard deviation of the logarithm of members' mean impressions."""
    click_rate: float = 0.1
    taste: float = 1.0
    """Standard deviation of the logarithm of members' click rates, cut at .9."""
    lifts: tuple[float, ...] = (0.0, 0.0)
    """Relative lift of every arm over the first."""
    watched: tuple[float, ...] = ()
    """Share of every arm's clicks that lead to a viewing; none: half, for every arm."""
    by_member: bool = False
    """Whether members keep their arm."""
    shares: tuple[float, ...] = ()
    """Probabilities of the arms; none: alike."""
    lost: float = 0.0
    """Share of the last arm's impressions that the log lost."""
    days: int = DAYS


@dataclass(frozen=True, kw_only=True)
class ScenarioRow:
    """A scenario's result."""

    scenario: str
    wanted: str
    measured: str
    replications: int


def draw(setting: Setting, seed: int) -> ExperimentLog:
    """A test of known truth: a member's click rate times 1 + lift, so that the ratio of rates is the same for everybody."""
    rng = np.random.default_rng(seed)
    arms = len(setting.lifts)
    share_A = np.array(setting.shares or [1 / arms] * arms)
    activity_M = setting.mean_impressions * np.exp(
        rng.normal(-(setting.spread**2) / 2, setting.spread, setting.members)
    )
    member_N = np.repeat(np.arange(setting.members), 1 + rng.poisson(activity_M))
    most = 0.9 / (1 + max(setting.lifts))
    rate_M = np.minimum(
        setting.click_rate * np.exp(rng.normal(-(setting.taste**2) / 2, setting.taste, setting.members)), most
    )
    count = len(member_N)
    arm_M = rng.choice(arms, setting.members, p=share_A)
    arm_N = arm_M[member_N] if setting.by_member else rng.choice(arms, count, p=share_A)
    clicked_N = rng.random(count) < rate_M[member_N] * (1 + np.array(setting.lifts))[arm_N]
    watched_A = np.array(setting.watched or [0.5] * arms)
    engaged_N = clicked_N & (rng.random(count) < watched_A[arm_N])
    earlier_M = rng.poisson(30, setting.members)
    history_M = (rng.binomial(earlier_M, rate_M) + 20 * setting.click_rate) / (earlier_M + 20)
    prediction_N = rate_M[member_N] * np.exp(rng.normal(0, 0.3, count))
    shown_at_N = START + rng.integers(0, setting.days * DAY, count)
    kept = (arm_N != arms - 1) | (rng.random(count) >= setting.lost)
    order = np.argsort(shown_at_N, kind="stable")
    order = order[kept[order]]
    return ExperimentLog(
        arms=tuple(f"arm {index}" for index in range(arms)),
        arm_N=arm_N[order],
        member_N=np.unique(member_N[order], return_inverse=True)[1].reshape(-1),
        weight_N=np.ones(len(order)),
        share_NA=np.broadcast_to(share_A, (len(order), arms)),
        constant_A=None,
        rewards={"clicked": clicked_N[order].astype(float), "engaged": engaged_N[order].astype(float)},
        shown_at_N=shown_at_N[order],
        covariates={HISTORY: history_M[member_N][order], PREDICTION: prediction_N[order]},
        weighted=False,
        left_out=0,
        notes=[],
    )


def prepared(log: ExperimentLog, *, with_looks: bool = True, by_impression: bool = False) -> PreparedTest:
    """A simulated test, looked at at the end of every day."""
    return prepare_log(
        "simulated",
        log,
        0,
        CLICKED,
        by_impression=by_impression,
        split=None,
        level_of_mismatch=MISMATCH_LEVEL,
        with_looks=with_looks,
    )


def answer(log: ExperimentLog, worth: float = 0.02, **options: bool) -> SingleTest:
    """The read-out of a simulated test."""
    settings = Settings(metric="clicked", worth=worth, typical=SPREAD, level=LEVEL)
    return read_out([prepared(log, **options)], settings)[0]


@dataclass(frozen=True, kw_only=True)
class Misses:
    """Whether the intervals at some looks missed the truth, of one test."""

    anytime: bool
    """At any look."""
    peeking: bool
    """The usual interval, at any look."""
    one_look: bool
    """The usual interval, at the last look."""


def misses(contrasts: list[Contrast], truth: float, level: float = LEVEL) -> Misses:
    """Compare every look's intervals with the true log ratio; looks without an interval miss nothing.

    The usual interval is drawn at every look with a click on both sides, as a dashboard does; the anytime-valid one as
    `keyart test` does.
    """
    estimated = [c for c in contrasts if np.isfinite(c.estimate)]
    seen = [c for c in estimated if c.effective >= FEWEST_EFFECTIVE]
    anytime = any(abs(c.estimate - truth) > radius(c.error, level, SPREAD) for c in seen)
    usual = [abs(c.estimate - truth) > fixed_radius(c.error, level) for c in estimated]
    return Misses(anytime=anytime, peeking=any(usual), one_look=bool(usual and usual[-1]))


def looked_at(log: ExperimentLog, arm: int = 1) -> list[Contrast]:
    """An arm's contrasts with the first at every look."""
    return [contrast for look in prepared(log).looks if (contrast := look.contrasts[arm]) is not None]


def _share(values: list[bool]) -> str:
    return f"{np.mean(values):.1%}" if values else "–"


def coverage_rows(name: str, setting: Setting, replications: int) -> list[ScenarioRow]:
    """How often a sequence misses the truth at any look, beside the usual interval looked at every day, and once."""
    truth = float(np.log1p(setting.lifts[1]))
    all_misses = [misses(looked_at(draw(setting, seed)), truth) for seed in range(replications)]
    measured = (
        ("anytime-valid interval misses the truth at any look", "at most 5 %", [m.anytime for m in all_misses]),
        ("usual interval, looked at every day", "far more", [m.peeking for m in all_misses]),
        ("usual interval, one look at the end", "about 5 %", [m.one_look for m in all_misses]),
    )
    return [
        ScenarioRow(scenario=f"{name}: {what}", wanted=wanted, measured=_share(values), replications=replications)
        for what, wanted, values in measured
    ]


def power_rows(replications: int) -> list[ScenarioRow]:
    """How often a true lift is seen, how early, and what the covariates add."""
    setting = Setting(members=3000, mean_impressions=20, lifts=(0.0, 0.1))
    anytime, plain, usual, stopped, reduction = [], [], [], [], []
    for seed in range(replications):
        contrasts = looked_at(draw(setting, seed))
        seen = [index for index, c in enumerate(contrasts) if abs(c.estimate) > radius(c.error, LEVEL, SPREAD)]
        last = contrasts[-1]
        anytime.append(bool(seen))
        plain.append(any(abs(c.plain_estimate) > radius(c.plain_error, LEVEL, SPREAD) for c in contrasts))
        usual.append(abs(last.plain_estimate) > fixed_radius(last.plain_error, LEVEL))
        stopped.append((seen[0] + 1 if seen else DAYS) / DAYS)
        reduction.append(last.variance_reduction)
    name = "lift 10 %, 3,000 members, 63,000 impressions, 30 days"
    values = (
        ("seen at some day, with covariates", "more than without", _share(anytime)),
        ("seen at some day, without covariates", "below the usual test", _share(plain)),
        ("seen by the usual test at the end, without covariates", "–", _share(usual)),
        ("share of the test until it may stop, with covariates", "below 100 %", f"{np.mean(stopped):.0%}"),
        ("variance removed by the covariates", "above 0", f"{np.mean(reduction):.0%}"),
    )
    return [
        ScenarioRow(scenario=f"{name}: {what}", wanted=wanted, measured=measured, replications=replications)
        for what, wanted, measured in values
    ]


def answer_rows(replications: int) -> list[ScenarioRow]:
    """Whole answers: several arms, clickbait, sample ratio mismatch."""

    def measure(scenario: str, wanted: str, setting: Setting, holds: Callable[[SingleTest], bool]) -> ScenarioRow:
        values = [holds(answer(draw(setting, seed), with_looks=False)) for seed in range(replications)]
        return ScenarioRow(scenario=scenario, wanted=wanted, measured=_share(values), replications=replications)

    def declared(test: SingleTest) -> bool:
        return any(row["answer"] in ("winner", "worse") for row in test["arms"])

    def wins(test: SingleTest) -> bool:
        return test["arms"][1]["answer"] == "winner"

    def caught(test: SingleTest) -> bool:
        return test["arms"][1]["answer"] == "clicked, not watched"

    def mismatched(test: SingleTest) -> bool:
        return test["mismatch"]["mismatched"] and all(row["answer"] == "mismatch" for row in test["arms"])

    bait = Setting(members=3000, mean_impressions=20, lifts=(0.0, 0.3), watched=(0.5, 0.25))
    six = Setting(lifts=(0.0,) * 6)
    one = replace(bait, watched=())
    even = Setting(mean_impressions=10)
    return [
        measure("six arms alike: any is called winner or worse, one look", "at most 5 %", six, declared),
        measure("lift 30 % in clicks and viewings: winner", "at least 80 %", one, wins),
        measure("lift 30 % in clicks, half as many of them watched: winner", "0 %", bait, wins),
        measure("the same: clicked, not watched", "at least 80 %", bait, caught),
        measure("honest shares, drawn by impression: mismatch", "at most 1 %", even, mismatched),
        measure("honest shares, drawn by member: mismatch", "at most 1 %", replace(even, by_member=True), mismatched),
        measure("honest shares of 90 and 10: mismatch", "at most 1 %", replace(even, shares=(0.9, 0.1)), mismatched),
        measure(
            "10 % of an arm's impressions lost, 11,000 in all: mismatch",
            "at least 95 %",
            replace(even, lost=0.1),
            mismatched,
        ),
        measure(
            "10 % of an arm lost, drawn by member, 20,000 members: mismatch",
            "at least 95 %",
            Setting(members=20_000, mean_impressions=0.2, spread=0.5, by_member=True, lost=0.1),
            mismatched,
        ),
    ]


def image_tests() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Impressions, clicks and the test of every Upworthy arm whose test has other arms that differ in the image alone, (A,)."""
    table = pq.read_table(UPWORTHY).to_pandas()
    groups = table.groupby(["clickability_test_id", "headline"])
    kept = (groups["eyecatcher_id"].transform("nunique") > 1) & (table["impressions"] > 0)
    number = groups.ngroup()
    impressions_A, clicks_A, test_A = (
        array[kept].to_numpy(np.int64) for array in (table["impressions"], table["clicks"], number)
    )
    return impressions_A, clicks_A, test_A


def arrivals(impressions_T: NDArray, clicks_T: NDArray, arms: int, looks: int, rng: np.random.Generator) -> NDArray:
    """Impressions and clicks of arms so far at every look, (2, T, arms, L): each falls on an arm and a look at random."""
    cells = np.full(arms * looks, 1 / (arms * looks))
    clicks = rng.multinomial(clicks_T, cells).reshape(-1, arms, looks).cumsum(2)
    others = rng.multinomial(impressions_T - clicks_T, cells).reshape(-1, arms, looks).cumsum(2)
    return np.stack([clicks + others, clicks]).astype(float)


def count_contrasts(impressions_AL: NDArray, clicks_AL: NDArray) -> list[Contrast]:
    """The second arm against the first at every look."""
    columns = (
        {"impressions": impressions_AL[:, look], "clicked": clicks_AL[:, look]} for look in range(clicks_AL.shape[1])
    )
    return [ArmCounts(columns=column).contrast(CLICKED, 1, 0) for column in columns]


def upworthy_alike(replications: int, looks: int = DAYS) -> list[Misses]:
    """Real arms, each split at random in two that are alike by construction, looked at every day."""
    impressions_T, clicks_T, _ = image_tests()
    rng = np.random.default_rng(0)
    rows = rng.choice(len(clicks_T), replications, replace=replications > len(clicks_T))
    counts = arrivals(impressions_T[rows], clicks_T[rows], 2, looks, rng)
    return [misses(count_contrasts(*counts[:, test]), 0.0) for test in range(replications)]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A real pair of images, its impressions replayed in a random order."""

    usual: int
    """Sign of the usual test at the end, 0 where it separates nothing."""
    anytime: int
    """Sign at the first look that separates the two; 0 where none does."""
    used: float
    """Share of the impressions until then; 1 where none does."""


def upworthy_pairs(replications: int, looks: int = DAYS) -> list[Replay]:
    """Pairs of images of one test under one headline: stopped at the first look that separates them, or at the end."""
    impressions_A, clicks_A, test_A = image_tests()
    order = np.argsort(test_A, kind="stable")
    first = order[np.flatnonzero(np.diff(test_A[order]) == 0)]
    second = order[np.flatnonzero(np.diff(test_A[order]) == 0) + 1]
    rng = np.random.default_rng(1)
    rows = rng.permutation(len(first))[:replications]
    sides = [
        arrivals(impressions_A[side[rows]], clicks_A[side[rows]], 1, looks, rng)[:, :, 0] for side in (first, second)
    ]
    replays = []
    for test in range(len(rows)):
        counts = np.stack([side[:, test] for side in sides], 1)
        contrasts = count_contrasts(counts[0], counts[1])
        last = contrasts[-1]
        usual = int(np.sign(last.estimate)) if abs(last.estimate) > fixed_radius(last.error, LEVEL) else 0
        seen = [
            (index, int(np.sign(c.estimate)))
            for index, c in enumerate(contrasts)
            if c.effective >= FEWEST_EFFECTIVE and abs(c.estimate) > radius(c.error, LEVEL, SPREAD)
        ]
        at, sign = seen[0] if seen else (looks - 1, 0)
        replays.append(Replay(usual=usual, anytime=sign, used=float(counts[0, :, at].sum() / counts[0, :, -1].sum())))
    return replays


def upworthy_rows(replications: int) -> Iterator[ScenarioRow]:
    """Real tests: alike by construction, and as they were."""
    alike = upworthy_alike(replications)
    for what, wanted, values in (
        ("anytime-valid test rejects at any of 30 looks", "at most 5 %", [m.anytime for m in alike]),
        ("usual test rejects at any of 30 looks", "far more", [m.peeking for m in alike]),
        ("usual test rejects at the end", "about 5 %", [m.one_look for m in alike]),
    ):
        yield ScenarioRow(
            scenario=f"Upworthy, an arm split in two: {what}",
            wanted=wanted,
            measured=_share(values),
            replications=len(alike),
        )
    pairs = upworthy_pairs(10 * replications)
    apart = [pair for pair in pairs if pair.usual]
    for what, wanted, values in (
        ("usual test separates them at the end", "–", [bool(p.usual) for p in pairs]),
        ("anytime-valid test separates them at some look", "–", [bool(p.anytime) for p in pairs]),
        ("of those of the usual test, the anytime-valid agrees", "–", [p.anytime == p.usual for p in apart]),
        ("of those of the usual test, it says the opposite", "0 %", [p.anytime * p.usual < 0 for p in apart]),
        ("of those of the anytime-valid, the usual agrees", "–", [p.usual == p.anytime for p in pairs if p.anytime]),
    ):
        yield ScenarioRow(
            scenario=f"Upworthy, two images: {what}", wanted=wanted, measured=_share(values), replications=len(values)
        )
    stopped = [pair.used for pair in pairs if pair.anytime]
    yield ScenarioRow(
        scenario="Upworthy, two images: impressions saved where it stops early",
        wanted="above 0",
        measured=f"{1 - np.mean(stopped):.0%}" if stopped else "–",
        replications=len(stopped),
    )


def rows(replications: int = 400) -> list[ScenarioRow]:
    """Every scenario; those of the real tests, at least 1,000, are left out where their data is absent."""
    by_member = Setting(by_member=True)
    results = list(upworthy_rows(max(1000, replications))) if UPWORTHY.is_file() else []
    settings = {
        "alike, drawn by impression": Setting(),
        "alike, drawn by member": by_member,
        "alike, rare clicks (.5 %)": Setting(click_rate=0.005, members=3000),
        "lift 20 %, drawn by impression": Setting(lifts=(0.0, 0.2)),
        "lift 20 %, drawn by member": replace(by_member, lifts=(0.0, 0.2)),
        "lift 20 %, heavy tails (activity 2, taste 1.5)": Setting(lifts=(0.0, 0.2), spread=2.0, taste=1.5),
    }
    for name, setting in settings.items():
        results += coverage_rows(name, setting, replications)
    results += power_rows(max(20, replications // 5))
    results += answer_rows(max(20, replications // 5))
    return results


def main() -> None:
    """Print every scenario's row."""
    parser = argparse.ArgumentParser(description="False and missed answers of keyart test.")
    parser.add_argument("--replications", type=int, default=400)
    table = Table(title="keyart test", title_justify="left")
    for heading in ("scenario", "wanted", "measured", "replications"):
        table.add_column(heading)
    for row in rows(parser.parse_args().replications):
        table.add_row(row.scenario, row.wanted, row.measured, f"{row.replications:,}")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
