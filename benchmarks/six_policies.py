"""The cost of estimating: reads a log and a scores table, and estimates six policies by every estimator, 1,000 bootstrap draws.

python -m benchmarks.six_policies DATASET SCORES
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from datamodules.contract.tables import IMPRESSIONS
from evaluation.logs.log_review import to_bandit_log
from evaluation.logs.policies import uniform
from evaluation.logs.scored_log import read_scored_log
from evaluation.off_policy.valuation import LOGGED, PolicyProbabilities, value_policies


def write_scores(dataset: Path, out: Path, seed: int = 0) -> None:
    """Write a scores table of random click probabilities, and a softmax over them as policy."""
    out.mkdir()
    rng = np.random.default_rng(seed)
    files = [str(path) for path in IMPRESSIONS.files(dataset)]
    batches = pads.dataset(files).to_batches(columns=["impression_id", "candidates"], batch_size=500_000)
    for number, batch in enumerate(batch for batch in batches if len(batch)):
        lists = batch["candidates"]
        offsets = np.asarray(lists.offsets) - lists.offsets[0].as_py()
        click = rng.random(offsets[-1]) * 0.2
        exponentials = np.exp(8 * click)
        policy = exponentials / np.repeat(np.add.reduceat(exponentials, offsets[:-1]), np.diff(offsets))
        columns = {
            name: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.float32()))
            for name, values in (("click_probability", click), ("policy", policy))
        }
        table = pa.table({"impression_id": batch["impression_id"], "candidates": lists, **columns})
        pq.write_table(table, out / f"part-{number:04d}.parquet")


def main(dataset: Path, scores: Path) -> None:
    """Read and estimate; prints the number of estimates."""
    scored = read_scored_log(dataset, scores, None)
    scored = scored.take(np.argsort(scored.member, kind="stable"))
    log = to_bandit_log(scored)
    even_NK = uniform(scored)

    def mixture(share: float) -> PolicyProbabilities:
        """The scored policy, with a share of the uniform one."""
        return lambda rows: (1 - share) * scored.policy_NK[rows] + share * even_NK[rows]

    policies: dict[str, PolicyProbabilities | None] = {
        "scored": mixture(0.0),
        "uniform": mixture(1.0),
        LOGGED: lambda rows: scored.propensity_NK[rows],
        **{f"scored, {share:.0%} explored": mixture(share) for share in (0.1, 0.3, 0.5)},
    }
    results = value_policies(log, policies)
    print(f"{len(results['estimates'])} estimates, {len(results['differences'])} differences, {len(log):,} impressions")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
