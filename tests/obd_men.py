"""The 'men' campaign of the Open Bandit Dataset as logs, and the prior of its Thompson policy.

The data (10,000 impressions each of a uniform and of a Thompson policy, three positions, 34 items) lie beside the checkout.
The prior is of Open Bandit Pipeline, obp/policy/conf/prior_bts.yaml (Apache-2.0): that policy was not updated while it
logged, so that drawing from it is replaying it.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.off_policy.valuation import BanditLog

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "obd-men"
ITEMS, POSITIONS = 34, 3
ALPHA = np.array(
    [47, 8, 62, 142, 3, 6, 100, 48, 23, 71, 61, 13, 16, 518, 30, 7, 4, 23, 8, 10, 11, 11, 18, 121, 11, 4, 32, 30,
     9, 22, 6, 23, 5, 54]
)  # fmt: skip
BETA = np.array(
    [12198, 3566, 15993, 35522, 2367, 3100, 24665, 13210, 7061, 18061, 17449, 5644, 6787, 111326, 8776, 3334, 2271, 7389, 2659,
     3665, 4724, 3561, 5085, 27407, 4601, 2923, 8897, 8654, 4000, 6580, 3174, 6766, 2602, 14506]
)  # fmt: skip


def read(policy: str) -> pd.DataFrame:
    """Impressions of `random` or `bts`."""
    return pd.read_csv(FOLDER / policy / "men.csv", usecols=["item_id", "position", "click", "propensity_score"])


def log_of(table: pd.DataFrame, *, whole: bool) -> BanditLog:
    """As a log: a position is a title, an impression a member (the data name none); `whole`: all propensities are alike."""
    count = len(table)
    propensity_N = table["propensity_score"].to_numpy()
    position_N = table["position"].to_numpy() - 1
    return BanditLog(
        member_N=np.arange(count),
        title_N=position_N,
        artwork_NK=position_N[:, None] * ITEMS + np.arange(ITEMS),
        shown_N=table["item_id"].to_numpy(),
        propensity_N=propensity_N,
        propensity_NK=np.full((count, ITEMS), 1 / ITEMS) if whole else None,
        score_NK=np.zeros((count, ITEMS)),
        randomised_N=np.isclose(propensity_N, 1 / ITEMS, rtol=1e-4),
        reward={"clicked": table["click"].to_numpy(float)},
    )


def thompson(draws: int = 200_000, seed: int = 0) -> np.ndarray:
    """Probability of each item in each position, (positions, items), by drawing click rates and taking the best three."""
    rng = np.random.default_rng(seed)
    count_PI = np.zeros((POSITIONS, ITEMS))
    for _ in range(10):
        rate_DI = rng.beta(ALPHA, BETA, (draws // 10, ITEMS))
        best_DP = np.argpartition(-rate_DI, np.arange(POSITIONS), axis=1)[:, :POSITIONS]
        for position in range(POSITIONS):
            count_PI[position] += np.bincount(best_DP[:, position], minlength=ITEMS)
    return count_PI / count_PI.sum(1, keepdims=True)
