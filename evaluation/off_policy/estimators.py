"""Off-policy estimators: arrays of a log in, the terms of an estimate out.

Every estimator here is a sum of ratios of totals: value = sum_t total(numerator_t) / total(denominator_t), a mean where
the denominator is one per impression. The value, its interval by member, its bootstrap and its difference from another
policy's follow from such `Terms` (`evaluation.off_policy.intervals`), so that an estimator is only its formula.

Throughout: reward r, weight w = policy / logging probability of the shown artwork, `predicted_N` q(shown) and
`expected_N` sum_a policy(a) q(a) by a reward model q that has not seen the impression's member.

Estimand of all: the mean reward per impression, on impressions like these, had the policy chosen the artwork. All assume
that one impression's artwork does not change another's reward. Each docstring states further assumptions and failure modes.

Legend: N impressions.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Terms = tuple[tuple[NDArray, NDArray], ...]
"""(numerator_N, denominator_N) of each ratio of totals, of which the value is the sum."""


def _mean(values_N: Floats) -> Terms:
    return ((values_N, np.ones(len(values_N))),)


def replay(reward_N: Floats, chosen_N: Floats) -> Terms:
    """sum_n c_n r_n / sum_n c_n, c the policy's probability of the shown artwork: 0 or 1 where the policy is deterministic.

    For a stochastic policy, it is the expectation, over its draws, of keeping the impressions whose draw was shown.
    Assumes that every artwork was equally likely, among the same number of candidates everywhere. Fails elsewhere: where
    numbers differ it prefers impressions with few candidates. Li, Chu, Langford and Wang (2011), Unbiased offline
    evaluation of contextual-bandit-based news article recommendation algorithms.
    """
    return ((chosen_N * reward_N, chosen_N),)


def ips(reward_N: Floats, weight_N: Floats) -> Terms:
    """Inverse propensity scoring, 1/N sum_n w_n r_n.

    Unbiased where every artwork the policy may show had a propensity above 0 and propensities are right. Fails by
    variance where weights are large. Horvitz and Thompson (1952), A generalization of sampling without replacement from
    a finite universe.
    """
    return _mean(weight_N * reward_N)


def clipped_ips(reward_N: Floats, weight_N: Floats, clip: float) -> Terms:
    """1/N sum_n min(w_n, clip) r_n.

    As `ips`, with less variance, and biased downwards by the reward of what was cut off. Fails where the policy's gain
    lies in artworks the log rarely showed. Ionides (2008), Truncated importance sampling; Bottou et al. (2013),
    Counterfactual reasoning and learning systems.
    """
    return _mean(np.minimum(weight_N, clip) * reward_N)


def snips(reward_N: Floats, weight_N: Floats) -> Terms:
    """Self-normalised IPS, sum_n w_n r_n / sum_n w_n.

    As `ips`; biased by O(1/N), of less variance, within the range of the rewards, and shifted by a constant added to all
    rewards. Fails silently where the policy's artworks had no propensity: the remaining weights are scaled up to mean 1.
    Swaminathan and Joachims (2015), The self-normalized estimator for counterfactual learning.
    """
    return ((weight_N * reward_N, weight_N),)


def dm(expected_N: Floats) -> Terms:
    """Direct method, 1/N sum_n sum_a policy(a) q(a).

    Needs no propensities. Only as good as the reward model, whose error no interval contains: it fails without a sign. Dudik,
    Langford and Li (2011), Doubly robust policy evaluation and learning, section 2.
    """
    return _mean(expected_N)


def dr(reward_N: Floats, weight_N: Floats, expected_N: Floats, predicted_N: Floats) -> Terms:
    """Doubly robust, 1/N sum_n expected_n + w_n (r_n - predicted_n).

    Unbiased where `ips` is, whatever the model, and where the model is right, whatever the propensities. The better the
    model, the less variance. Fails as `ips` where weights are large and the model poor. Dudik, Langford and Li (2011),
    section 3.
    """
    return _mean(expected_N + weight_N * (reward_N - predicted_N))


def sndr(reward_N: Floats, weight_N: Floats, expected_N: Floats, predicted_N: Floats) -> Terms:
    """Self-normalised doubly robust, 1/N sum_n expected_n + sum_n w_n (r_n - predicted_n) / sum_n w_n.

    As `dr`, biased by O(1/N), with less variance where weights vary. Thomas and Brunskill (2016), Data-efficient
    off-policy policy evaluation for reinforcement learning (weighted doubly robust, of one step).
    """
    return (*_mean(expected_N), (weight_N * (reward_N - predicted_N), weight_N))


def switch_dr(reward_N: Floats, weight_N: Floats, expected_N: Floats, predicted_N: Floats, tau: float) -> Terms:
    """`dr` where w_n <= tau, the model alone elsewhere: 1/N sum_n expected_n + 1[w_n <= tau] w_n (r_n - predicted_n).

    Biased by the model's error where weights are large. Wang, Agarwal and Dudik (2017), Optimal and adaptive off-policy
    evaluation in contextual bandits, section 4.
    """
    return _mean(expected_N + np.where(weight_N <= tau, weight_N, 0.0) * (reward_N - predicted_N))


def dr_os(reward_N: Floats, weight_N: Floats, expected_N: Floats, predicted_N: Floats, shrinkage: float) -> Terms:
    """`dr` by optimistically shrunk weights s w_n / (w_n^2 + s): `dm` at s = 0, `dr` at infinity.

    Biased by the model's error where weights are large, with the least bound on the squared error among shrunk weights.
    Su, Dimakopoulou, Krishnamurthy and Dudik (2020), Doubly robust off-policy evaluation with shrinkage.
    """
    shrunk_N = weight_N if np.isinf(shrinkage) else shrinkage * weight_N / (weight_N**2 + max(shrinkage, 1e-300))
    return _mean(expected_N + shrunk_N * (reward_N - predicted_N))


def title_snips(reward_N: Floats, weight_N: Floats, title_N: NDArray[np.integer]) -> Terms:
    """`snips` within each title, averaged by the titles' impressions: sum_t N_t / N sum_(n in t) w_n r_n / sum_(n in t) w_n.

    How creatives of one item each are compared on randomised traffic: NSCTR in Yang et al. (2024), Parallel ranking of ads
    and creatives in real-time advertising systems, algorithm 1, with weights instead of matches. Differences between titles
    cannot enter through the weights' randomness. As `snips`, with a bias of O(1/N_t) for each title: fails where titles are
    small. Titles without any weight are left out of the mean.

    Given as one term, the mean of V_t + (N_t / W_t) w_n (r_n - V_t), with title t's value V_t and weight W_t: it has the
    same total, and moves by member as the sum of ratios does, by the delta method.
    """
    titles = int(title_N.max(initial=-1)) + 1
    count_T = np.bincount(title_N, minlength=titles)
    weight_T, earned_T = (np.bincount(title_N, v, titles) for v in (weight_N, weight_N * reward_N))
    seen_T = weight_T > 0
    safe_T = np.where(seen_T, weight_T, 1.0)
    value_N, scale_N = (earned_T / safe_T)[title_N], (count_T / safe_T)[title_N]
    return ((value_N + scale_N * weight_N * (reward_N - value_N), seen_T[title_N].astype(float)),)
