"""`keyart score`: a bundle over a dataset -> a scores table, without torch.

In: raw tables. Histories are cut by the same code that prepared the training log, so that a request holds exactly the
plays strictly before it. Out: Parquet files of impression_id, candidates, click_probability, policy, engaged_probability
(aligned lists).
"""

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from datamodules.atomic import atomic_folder, require_replaceable
from datamodules.choice import greedy_NK, softmax_NK
from datamodules.contract import UserError
from datamodules.fingerprint import dataset_fingerprint, fingerprint
from datamodules.progress import progress_bar
from datamodules.shards import REQUESTS, Shard
from export.bundle import Bundle
from export.explain import TABLES, reasons
from export.thompson import Thompson

if TYPE_CHECKING:  # executors load this module, and need no engine
    from datamodules.engines import Engine, EngineConfig

RECORD, REASONS = "scores.json", "reasons.json"
DRAWS, MOST_DRAWS, WIDTH = 256, 100_000, 0.25
"""Of Thompson sampling: draws where none are named, and at most; and how much of the posterior's width they have."""
EXPLAINED = 40
"""Impressions whose choice is explained."""
REQUESTS_AT_ONCE = 128
MICROSECONDS, MICROSECONDS_AN_HOUR = 1_000_000, 3_600_000_000


@dataclass(frozen=True)
class Policy:
    """How click probabilities become the policy's probabilities."""

    kind: str
    """greedy, softmax, epsilon or thompson."""
    strength: float = 0.0
    """Temperature of the softmax over click logits, above 0; the share shown uniformly, 0 .. 1; or the posterior draws."""
    width: float = WIDTH
    """Of thompson: how much of the posterior's standard deviation is drawn."""

    @classmethod
    def parse(cls, text: str) -> "Policy":
        """`greedy`, `softmax:TEMPERATURE`, `epsilon:SHARE` or `thompson[:DRAWS[:WIDTH]]`; anything else is a UserError."""
        kind, _, strength = text.partition(":")
        strength, _, wide = strength.partition(":")
        try:
            value, width = float(strength) if strength else 0.0, float(wide) if wide else WIDTH
        except ValueError:
            value = width = np.nan
        value = DRAWS if kind == "thompson" and not strength else value
        fits = {
            "greedy": not strength,
            "softmax": 0 < value < np.inf,
            "epsilon": bool(strength) and 0 <= value <= 1,
            "thompson": 1 <= value <= MOST_DRAWS and value % 1 == 0 and 0 < width < np.inf,
        }
        if not fits.get(kind, False) or (wide and kind != "thompson"):
            raise UserError(
                f"policy={text}: give greedy, softmax:TEMPERATURE (above 0), epsilon:SHARE (0 .. 1) or "
                f"thompson:DRAWS:WIDTH (1 .. {MOST_DRAWS}; above 0)."
            )
        return cls(kind, value, width)

    def probabilities(self, click_NK: np.ndarray, there_NK: np.ndarray) -> np.ndarray:
        """float32 (N, K), each row summing to 1 over the candidates that are there; ties go to the first."""
        if self.kind == "softmax":
            return softmax_NK(click_NK, there_NK, self.strength).astype(np.float32)
        chosen = greedy_NK(click_NK, there_NK)
        if self.kind == "epsilon":
            chosen = (1 - self.strength) * chosen + self.strength * there_NK / there_NK.sum(1, keepdims=True)
        return chosen.astype(np.float32)


def scores_fingerprint(
    bundle: Bundle, dataset: Path, policy: str, since: datetime | None, reward: str = "clicked"
) -> str:
    """What scores of this dataset by this bundle and policy carry as their fingerprint."""
    return fingerprint(bundle.made_of, dataset_fingerprint(dataset), policy, since, reward)


class Scorer:
    """A bundle and a policy, opened to score shards with: in this process, or in any that sees the same files."""

    def __init__(self, bundle: Bundle, policy: str, reward: str = "clicked", threads: int = 1) -> None:
        """`threads`: requests ranked side by side. UserError where bundle, policy and reward do not go together."""
        # a thread of ONNX Runtime each: they share out requests, not one request's work
        self.bundle, self.threads = replace(bundle, threads=1), threads
        self.choose = Policy.parse(policy)
        self.by = "click_probability" if reward == "clicked" else "engaged_probability"
        self.thompson = None
        if self.choose.kind == "thompson":
            self.thompson = Thompson(bundle, int(self.choose.strength), self.choose.width)
            if reward != "clicked":
                raise UserError(
                    f"policy={policy}, reward={reward}: the posterior is of clicks. Give reward=clicked, or epsilon:SHARE."
                )

    def score_shard(
        self, folder: Path, target: Path, most: int, advance: Callable[[int], None] = lambda n: None
    ) -> tuple[int, list[dict[str, Any]]]:
        """Write the scores of the shard in `folder` to `target`; how many, and why the choice of at most so many.

        A shard without impressions has no file. `advance` is told of impressions as they are ranked.
        """
        shard = Shard.open(folder)
        explained: list[dict[str, Any]] = []
        clicks, engaged, policies = [], [], []
        for place, (request, there, found) in enumerate(self._ranked(shard)):
            clicks.append(found["click_probability"][there])
            engaged.append(found["engaged_probability"][there])
            if self.thompson is None:
                policy_NK = self.choose.probabilities(found[self.by], there)
            else:
                policy_NK = self.thompson.probabilities(request, found, there)
            policies.append(policy_NK[there])
            if place == 0 and most:
                ids = pq.read_table(folder / REQUESTS, columns=["impression_id"])
                explained = _reasons(self.bundle, request, there, policy_NK, ids["impression_id"], most)
            advance(len(there))
        if shard.impressions:
            lists = {"click_probability": clicks, "policy": policies, "engaged_probability": engaged}
            _write(folder / REQUESTS, target, lists)
        return shard.impressions, explained

    def _ranked(self, shard: Shard) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]]:
        """A shard's requests in order, each with its answer: every thread ranks some, while the next are gathered."""
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[tuple[dict[str, np.ndarray], np.ndarray, Future[dict[str, np.ndarray]]]] = deque()
            for request, there in requests(shard, self.bundle.history_length):
                waiting.append((request, there, pool.submit(self.bundle.rank, request)))
                if len(waiting) > self.threads:
                    request, there, answer = waiting.popleft()
                    yield request, there, answer.result()
            for request, there, answer in waiting:
                yield request, there, answer.result()


def score(
    bundle: Bundle,
    dataset: Path,
    out: Path,
    *,
    policy: str = "greedy",
    reward: str = "clicked",
    since: datetime | None = None,
    engine: "Engine | None" = None,
    console: Console | None = None,
) -> int:
    """Score every impression shown at or after `since` (default: all); returns how many. `out` appears when complete.

    The policy chooses by `reward`: clicked, the click probability; engaged, that of a click that leads to a viewing.
    Where `engine` is Spark, its executors rank the shards, to the same files; else threads of this process do.
    """
    from datamodules.prepare import prepare  # here: executors load this module, and need no engine

    console = console or Console(stderr=True)
    scorer = Scorer(bundle, policy, reward, threads=os.cpu_count() or 1)
    with atomic_folder(out, marker=RECORD) as folder:
        work = folder / "work"
        options: dict[str, Any] = {"vocabularies": bundle.vocabularies, "since": since, "keep_requests": True}
        manifest = prepare(dataset, work, **options, engine=engine, console=console)
        total, shards = manifest["impressions"], manifest["shards"]
        most = -(-EXPLAINED // shards)
        explained: list[dict[str, Any]] = []
        if engine is not None and engine.session is not None:
            from export.score_spark import Work, score_on_executors

            asked = Work.of(bundle, work, engine.folder, policy=policy, reward=reward, most=most)
            explained = score_on_executors(engine, asked, shards, total, folder, console)
        else:
            with progress_bar(console) as progress:
                task = progress.add_task("score", total=total)
                for index in range(shards):
                    part, shard = folder / f"part-{index:05d}.parquet", work / f"shard-{index:05d}"
                    wanted = most if len(explained) < EXPLAINED else 0
                    explained += scorer.score_shard(shard, part, wanted, lambda n: progress.advance(task, n))[1]
        shutil.rmtree(work)
        (folder / REASONS).write_text(json.dumps(explained[:EXPLAINED], indent=1), encoding="utf-8")
        record = {
            "fingerprint": scores_fingerprint(bundle, dataset, policy, since, reward),
            "policy": policy,
            "reward": reward,
            "impressions": total,
        }
        (folder / RECORD).write_text(json.dumps(record | {"since": since and since.isoformat()}, indent=1))
    console.print(f"score: {total:,} impressions in {out}")
    return total


def check_and_score(
    bundle: Bundle,
    dataset: Path,
    out: Path,
    config: "EngineConfig",
    *,
    policy: str,
    reward: str,
    since: datetime | None,
    console: Console,
) -> int:
    """`score` a dataset that is first held against the contract, by one engine. UserError where it breaks a rule."""
    from datamodules.check import require_valid
    from datamodules.engines import open_engine, spill_of

    Scorer(bundle, policy, reward)  # refused before an engine starts
    require_replaceable(out, RECORD)
    with open_engine(config, spill_of(out)) as engine:
        require_valid(dataset, images=False, console=console, engine=engine)
        return score(bundle, dataset, out, policy=policy, reward=reward, since=since, engine=engine, console=console)


def _reasons(
    bundle: Bundle,
    request: dict[str, np.ndarray],
    there_NK: np.ndarray,
    policy_NK: np.ndarray,
    ids: pa.ChunkedArray,
    most: int,
) -> list[dict[str, Any]]:
    """Why the likeliest artwork of some impressions: those first in the shard with a choice and a history."""
    if not (bundle.folder / TABLES).is_file():  # a bundle made before there were any
        return []
    rows = np.flatnonzero((there_NK.sum(1) > 2) & (request["history_length"] > 2))
    # one a member: a member's impressions stand together
    rows = rows[np.unique(request["history_title"][rows, 0], return_index=True)[1]][: max(0, most)]
    if not len(rows):
        return []
    some = {name: values[rows] for name, values in request.items()}
    told = reasons(bundle, some, there_NK[rows], policy_NK[rows].argmax(1))
    return [{"impression_id": ids[int(row)].as_py()} | one for row, one in zip(rows, told, strict=True)]


def requests(
    shard: Shard, history_length: int, wanted: np.ndarray | None = None
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """A shard's impressions as the graph's inputs, in order, with which candidates are there: bool (N, K).

    `wanted`: the impressions' places in the shard, default all.
    """
    wanted = np.arange(shard.impressions) if wanted is None else wanted
    for begin in range(0, len(wanted), REQUESTS_AT_ONCE):
        rows = wanted[begin : begin + REQUESTS_AT_ONCE]
        end = shard.history_end[rows]
        start = np.maximum(shard.history_start[rows], end - history_length)
        length = end - start
        within = np.arange(max(1, int(length.max())))
        inside = within < length[:, None]
        play = np.where(inside, start[:, None] + within, 0)

        def past(column: np.ndarray, fill: float, inside: np.ndarray = inside, play: np.ndarray = play) -> np.ndarray:
            return np.where(inside, column[play] if len(column) else fill, fill)

        first = shard.candidate_start[rows]
        width = shard.candidate_start[rows + 1] - first
        place = np.arange(int(width.max()))
        there = place < width[:, None]
        request = {
            "history_title": past(shard.play_title, 0).astype(np.int64),
            "history_artwork": past(shard.play_artwork, 0).astype(np.int64),
            "history_watched": past(shard.play_watched, np.nan).astype(np.float32),
            "history_time": past(shard.play_time, 0).astype(np.int64) // MICROSECONDS,
            "history_length": length.astype(np.int64),
            "country": shard.country[rows].astype(np.int64),
            "device": shard.device[rows].astype(np.int64),
            "hour": shard.shown_at[rows] // MICROSECONDS_AN_HOUR % 24,
            "row": shard.row[rows].astype(np.int64),
            "column": shard.column[rows].astype(np.int64),
            "play_count": (end - shard.history_start[rows]).astype(np.int64),
            "title": shard.title[rows].astype(np.int64),
            "artworks": np.where(there, shard.candidate[np.where(there, first[:, None] + place, 0)], 0).astype(
                np.int64
            ),
        }
        yield request, there


def _write(source: Path, target: Path, lists: dict[str, list[np.ndarray]]) -> None:
    """The scores of one shard, beside the ids and candidates as they were logged."""
    logged = pq.read_table(source)
    candidates = logged["candidates"].combine_chunks()
    if isinstance(candidates, pa.ChunkedArray):
        candidates = pa.concat_arrays(candidates.chunks)
    offsets = pa.array(candidates.offsets.to_numpy() - candidates.offsets[0].as_py(), pa.int32())

    def aligned(parts: list[np.ndarray]) -> pa.ListArray:
        return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(parts), pa.float32()))

    columns = {"impression_id": logged["impression_id"], "candidates": logged["candidates"]}
    pq.write_table(pa.table(columns | {name: aligned(values) for name, values in lists.items()}), target)
