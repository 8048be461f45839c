"""`keyart bench explore`: a stream of impressions, chosen by policies that learn from their own choices.

A service is simulated, so that the truth is known. A ranker is trained on the beginning of its log, without a share of the
artworks; the rest is a stream in order of time, in rounds. The held-out artworks arrive one by one during the first
half. Every policy starts from the ranker's scores and its posterior, chooses for every impression of a round, observes
whether its choice was clicked (one random number per impression, the same for all), and updates its last layer at the end
of the round: the weights of appeal's features and the artworks' biases, from its own log only.

- uniform: every candidate equally likely. greedy: the best so far. epsilon: greedy, but uniform for a share.
- Thompson: the best by a draw from the posterior, a new one for each impression (Chapelle and Li, 2011), of its full width
  or, as keyart does by default, of a quarter of it, which they call reshaping. All these update by Laplace: logistic
  regression from the normal posterior of the round before.
- LinUCB (Li and others, 2010): ridge regression of clicks on the same features, with the same head start, and a bonus of
  alpha standard deviations: of one; and of the alpha that, looking back, did best on this very stream.

Reported are expected clicks, by the true probabilities, per 1,000 impressions; and the regret, the best possible choice's
clicks minus them.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from safetensors.numpy import load_file

from benchmarks.bandits import LinUCB, Thompson, epsilon_greedy, uniform
from benchmarks.cold_start import Config as ColdConfig
from benchmarks.cold_start import hold_out, read_recipe, sample_held_out, trained
from benchmarks.ranges import require_at_least
from benchmarks.stream import BanditPolicy, Stream
from benchmarks.table import OURS, Row
from datamodules.prepare.prepare import PrepareConfig, prepare
from datamodules.shards.shard import REQUESTS, Shards
from datamodules.simulator.simulate import SimulateConfig, simulate
from foundation.errors import UserError
from foundation.progress import progress_bar
from serving.bundle.bundle import EXPLAIN_TABLES, POSTERIOR, Bundle
from serving.scoring.explain import sum_by_part
from serving.scoring.policies import WIDTH
from serving.scoring.scorer import shard_requests

NAME = "explore"
ALPHAS = (0.5, 1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the benchmark."""

    members: int = 4000
    """Members of the simulated service, with about 74 impressions each."""
    recipe: str = ""
    """The recipe's file that the ranker is trained by; default: configs/demo.yaml."""
    begin: float = 0.2
    """Share of the log that the ranker is trained on, and half as much again that validates it; the rest is the stream."""
    rounds: int = 20
    """Number of rounds; after each, every policy learns from its choices."""
    held_out: float = 0.2
    """Share of the artworks that arrive during the stream."""
    epsilon: float = 0.1
    """Share that epsilon-greedy shows uniformly."""
    width: float = WIDTH
    """How much of the posterior's standard deviation keyart's Thompson sampling draws, as in `keyart score`."""
    seeds: int = 1
    """Number of services to simulate, train on and stream; mean and standard deviation are reported."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_at_least(self, rounds=1, seeds=1)
        if not 0 < self.begin <= 0.6:
            raise UserError(f"begin={self.begin}: must lie in (0, 0.6].")
        if not 0 < self.width < float("inf"):
            raise UserError(f"width={self.width}: must be above 0.")
        if not 0 < self.held_out <= 0.5 or not 0 <= self.epsilon <= 1:
            raise UserError(f"held_out={self.held_out}, epsilon={self.epsilon}: must lie in (0, 0.5], and in [0, 1].")


def bench(config: Config, console: Console) -> list[Row]:
    """Clicks and regret of every policy: the mean over seeds, and their standard deviation where there are several."""
    results: dict[tuple[str, str], list[float]] = {}
    for seed in range(config.seeds):
        console.print(f"bench explore: seed {seed}: simulates a service and trains a ranker")
        with tempfile.TemporaryDirectory(prefix="keyart-bench-") as folder:
            stream = simulate_stream(Path(folder), config, seed)
        for subject, (clicks, regret, late) in _run_policies(stream, config, seed, console).items():
            for figure, value in (("clicks", clicks), ("regret", regret), ("regret, last quarter", late)):
                results.setdefault((subject, figure), []).append(value)
    rows = []
    for (subject, figure), values in results.items():
        rows.append(_row(subject, figure, float(np.mean(values))))
        if len(values) > 1:
            rows.append(_row(subject, f"{figure}, spread of seeds", float(np.std(values, ddof=1))))
    return rows


def _row(subject: str, figure: str, value: float) -> Row:
    return Row(benchmark=NAME, subject=subject, figure=figure, unit="per 1,000", value=value)


def simulate_stream(work: Path, config: Config, seed: int) -> Stream:
    """Simulate a service, train a ranker without the held-out artworks, and score the rest of the log with it."""
    dataset, quiet = work / "service", Console(quiet=True)
    simulate(dataset, SimulateConfig(members=config.members, seed=seed))
    shares = PrepareConfig(validation=config.begin / 2, test=1 - 1.5 * config.begin)
    manifest = prepare(dataset, work / "whole", shares, console=quiet)
    shutil.rmtree(work / "whole")
    dates = {name: manifest[name] for name in ("validation_from", "test_from")}
    since = datetime.fromisoformat(dates["test_from"])
    _, artworks = sample_held_out(dataset, config.held_out, seed)
    hold_out(dataset, work / "without", since, pa.array([], pa.string()), artworks)
    recipe = read_recipe(ColdConfig(recipe=config.recipe))
    recipe = replace(recipe, prepare=replace(recipe.prepare, **dates))
    bundle = trained(work / "without", work / "ranker", recipe, seed)
    prepare(dataset, work / "stream", vocabularies=bundle.vocabularies, since=since, keep_requests=True, console=quiet)
    return read_stream(bundle, work / "stream", dataset / "truth", artworks)


def read_stream(bundle: Bundle, shards: Path, truth: Path, new: pa.Array) -> Stream:
    """The impressions of shards in order of time, with the bundle's features and scores, and the truth."""
    tables, posterior = load_file(bundle.folder / EXPLAIN_TABLES), load_file(bundle.folder / POSTERIOR)
    parts: dict[str, list[NDArray]] = {}
    known = pq.read_table(truth, columns=["impression_id", "p_click"])
    for index, shard in enumerate(Shards.open(shards).shards):
        request_table = pq.read_table(shards / f"shard-{index:05d}" / REQUESTS)
        row_of = pc.index_in(request_table["impression_id"], value_set=known["impression_id"].combine_chunks())
        lists = known["p_click"].combine_chunks().take(row_of.combine_chunks())
        begin = 0
        for request, mask_NK in shard_requests(shard, bundle.request_lengths):
            results, n = bundle.rank(request), len(mask_NK)
            truth_NK = np.zeros(mask_NK.shape)
            truth_NK[mask_NK] = np.asarray(lists.slice(begin, n).flatten())
            rows_NK = request["artworks"]
            width = tables["play_mean_image"].shape[1]
            learned = tables["artwork_vector"][rows_NK, :width] * results["artwork_query"][:, None, :width]
            match_NK3 = sum_by_part(tables["artwork_content"][rows_NK] * results["content_query"][:, None], width)
            columns = {
                "time": shard.shown_at[begin : begin + n],
                "artwork": rows_NK,
                "there": mask_NK,
                "truth": truth_NK,
                "probability": results["click_probability"].astype(float),
                "features": np.concatenate([learned, match_NK3], axis=-1),
            }
            for name, values in columns.items():
                parts.setdefault(name, []).append(values)
            begin += n
    widest = max(part.shape[1] for part in parts["there"])

    def joined(name: str) -> NDArray:
        return np.concatenate(
            [
                part
                if part.ndim == 1
                else np.pad(part, [(0, 0), (0, widest - part.shape[1])] + [(0, 0)] * (part.ndim - 2))
                for part in parts[name]
            ]
        )

    order = np.argsort(joined("time"), kind="stable")
    chosen = joined("there").sum(1)[order] > 1
    order = order[chosen]  # with one candidate there is nothing to choose
    rows, artwork_NK = np.unique(joined("artwork")[order], return_inverse=True)
    ids = np.array([None, *bundle.vocabularies["artworks"].values], object)[rows]
    return Stream(
        features_NKF=joined("features")[order],
        probability_NK=joined("probability")[order],
        mask_NK=joined("there")[order],
        artwork_NK=artwork_NK.reshape(len(order), widest),
        truth_NK=joined("truth")[order],
        new_A=np.isin(ids, new.to_pylist()),
        root_covariance_FF=posterior["spread"].astype(float),
        bias_std_A=posterior["own"][rows].astype(float),
    )


def _run_policies(stream: Stream, config: Config, seed: int, console: Console) -> dict[str, tuple[float, float, float]]:
    """By policy over the whole stream: expected clicks, regret, and regret of the last quarter, per 1,000 impressions."""
    offered = stream.arriving(config.rounds, seed)
    makers: dict[str, Callable[[], BanditPolicy]] = {
        f"{OURS} Thompson": lambda: Thompson(stream, seed, config.width),
        "Thompson, whole width": lambda: Thompson(stream, seed),
        "greedy": lambda: epsilon_greedy(stream, 0.0, seed),
        "epsilon-greedy": lambda: epsilon_greedy(stream, config.epsilon, seed),
        "uniform": lambda: uniform(stream, seed),
    }
    makers |= {f"LinUCB {alpha}": (lambda alpha=alpha: LinUCB(stream, alpha)) for alpha in ALPHAS}
    outcomes: dict[str, tuple[float, float, float]] = {}
    with progress_bar(console) as progress:
        task = progress.add_task("bench explore", total=len(makers) * config.rounds)
        for subject, make in makers.items():
            progress.update(task, description=f"bench explore: {subject}")
            outcomes[subject] = stream.run_policy(make(), offered, config.rounds, seed, lambda: progress.advance(task))
    by_alpha = {alpha: outcomes.pop(f"LinUCB {alpha}") for alpha in ALPHAS}
    regrets = ", ".join(f"{alpha}: {regret:.2f}" for alpha, (_, regret, _) in by_alpha.items())
    console.print(f"bench explore: seed {seed}: regret of LinUCB by alpha: {regrets}")
    results = outcomes | {
        "LinUCB": by_alpha[1.0],
        "LinUCB, best alpha": min(by_alpha.values(), key=lambda value: value[1]),
    }
    possible = 1000 * float(np.where(offered, stream.truth_NK, 0).max(1).mean())
    return results | {"best possible": (possible, 0.0, 0.0)}
