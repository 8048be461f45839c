"""Why `mips` and `offcem` are left out: their bias for a personal policy, by several clusterings of artworks, on known truth.

    uv run python -m benchmarks.artwork_clusters --replications 12

Legend: N impressions, K candidates, M members, A artworks.
"""

import argparse
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.verdict_logs import softmax
from evaluation.off_policy.intervals import Members
from evaluation.off_policy.valuation import BanditLog, importance_weights

MEMBERS, IMPRESSIONS, TITLES, STYLES = 1000, 20, 12, 3


def draw(width: int, seed: int) -> tuple[BanditLog, NDArray[np.float64], float]:
    """A log with `width` candidates, a personal policy's probabilities (N, K), and the policy's true value on it."""
    world = np.random.default_rng(5)
    artworks = TITLES * width
    added_A, title_T = world.normal(0, 0.3, artworks), world.normal(0, 0.5, TITLES)
    style_AS = world.normal(0, 0.4, (artworks, STYLES))
    rng = np.random.default_rng(seed)
    member_N = np.repeat(np.arange(MEMBERS), 1 + rng.poisson(IMPRESSIONS, MEMBERS))
    taste_MS, level_M = rng.normal(0, 0.8, (MEMBERS, STYLES)), rng.normal(0, 0.5, MEMBERS)
    title_N = rng.integers(0, TITLES, len(member_N))
    artwork_NK = title_N[:, None] * width + np.arange(width)
    appeal_NK = added_A[artwork_NK] + np.einsum("nks,ns->nk", style_AS[artwork_NK], taste_MS[member_N])
    p_NK = 1 / (1 + np.exp(2 - (level_M[member_N] + title_T[title_N])[:, None] - appeal_NK))
    seen_NK = appeal_NK + rng.normal(0, 0.3, appeal_NK.shape)
    propensity_NK = 0.7 * softmax(2 * added_A[artwork_NK]) + 0.3 / width
    shown_N = (propensity_NK.cumsum(1) < rng.random(len(member_N))[:, None]).sum(1).clip(max=width - 1)
    rows = np.arange(len(member_N))
    log = BanditLog(
        member_N=member_N,
        title_N=title_N,
        artwork_NK=artwork_NK,
        shown_N=shown_N,
        propensity_N=propensity_NK[rows, shown_N],
        propensity_NK=propensity_NK,
        score_NK=1 / (1 + np.exp(2 - seen_NK)),
        randomised_N=np.zeros(len(rows), bool),
        reward={"clicked": (rng.random(len(rows)) < p_NK[rows, shown_N]).astype(float)},
    )
    policy_NK = softmax(4 * seen_NK)
    return log, policy_NK, float((policy_NK * p_NK).sum(1).mean())


def errors(width: int, seed: int) -> dict[str, float]:
    """By estimator and clusters, the relative error of the estimate on one log."""
    log, policy_NK, truth = draw(width, seed)
    weighted = importance_weights(log, {"scored": lambda rows: policy_NK[rows]})
    members, rows, reward_N = Members.of(log.member_N), np.arange(len(log)), log.reward["clicked"]
    model = weighted.models["clicked"]
    expected_NK = model.predict(weighted.choices, slice(0, len(log)))
    assert log.propensity_NK is not None, "drawn with all propensities"
    artwork_NK = log.artwork_NK[slice(0, len(log))]
    effect_NK = model.artwork_effect_fA[weighted.choices.fold_N[:, None], artwork_NK]
    bound = np.quantile(model.artwork_effect_fA, [1 / 3, 2 / 3])
    clusters = {"every artwork": np.broadcast_to(np.arange(width), artwork_NK.shape)}
    clusters["3 by the artwork's effect"] = np.digitize(effect_NK, bound)
    rank_NK = (-expected_NK).argsort(1).argsort(1)
    clusters |= {f"{n} within the impression": rank_NK * n // width for n in (2, 3, 10, 20) if n < width}
    result = {}
    for name, cluster_NK in clusters.items():
        same_NK = cluster_NK == cluster_NK[rows, log.shown_N][:, None]
        weight_N = (policy_NK * same_NK).sum(1) / (log.propensity_NK[slice(0, len(log))] * same_NK).sum(1)
        conjunct_N = (policy_NK * expected_NK).sum(1) + weight_N * (reward_N - expected_NK[rows, log.shown_N])
        for estimator, values_N in (("mips", weight_N * reward_N), ("offcem", conjunct_N)):
            value = members.sums(((values_N, np.ones(len(log))),)).value
            result[f"{estimator}, {name}"] = value / truth - 1
    return result


def main(replications: int) -> None:
    """The table for 4 and for 40 artworks."""
    for width in (4, 40):
        collected: dict[str, list[float]] = defaultdict(list)
        for seed in range(replications):
            for name, error in errors(width, seed).items():
                collected[name].append(100 * error)
        table = Table("estimator and clusters", "bias, %", "deviation, %", title=f"K = {width}", title_justify="left")
        for name, values in collected.items():
            table.add_row(name, f"{np.mean(values):+.1f}", f"{np.std(values):.1f}")
        Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Bias of estimators by clusters of artworks, for a personal policy.")
    parser.add_argument("--replications", type=int, default=12)
    main(parser.parse_args().replications)
