"""Shards scored by a bundle: requests gathered from a shard, ranked by ONNX Runtime, written as a scores table.

This is what executors of Spark load: it needs numpy, pyarrow, onnxruntime, safetensors and rich alone.

Legend: N requests, T plays, K candidates.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.shards.padding import PLAY_FILLS
from datamodules.shards.shard import REQUESTS, Shard
from foundation.errors import UserError
from serving.bundle.bundle import Bundle
from serving.bundle.requests import RequestLengths, Runs, ranking_inputs
from serving.scoring.explain import reasons
from serving.scoring.policies import ServingPolicy
from serving.scoring.thompson import Thompson

REQUESTS_AT_ONCE = 128


class Scorer:
    """A bundle and a policy, opened to score shards with: in this process, or in any that sees the same files."""

    def __init__(self, bundle: Bundle, policy: str, reward: str = "clicked", threads: int = 1) -> None:
        """`threads`: requests ranked side by side. UserError where bundle, policy and reward do not go together."""
        # one thread of ONNX Runtime each: parallel over requests, not within one
        self.bundle, self.threads = replace(bundle, threads=1), threads
        self.choice_policy = ServingPolicy.parse(policy)
        self.score_name = "click_probability" if reward == "clicked" else "engaged_probability"
        self.thompson = None
        if self.choice_policy.kind == "thompson":
            chosen = self.choice_policy
            self.thompson = Thompson(bundle, int(chosen.strength), chosen.width, chosen.floor)
            if reward != "clicked":
                raise UserError(
                    f"policy={policy}, reward={reward}: the posterior is of clicks. Give reward=clicked, or epsilon:SHARE."
                )

    def score_shard(
        self, folder: Path, target: Path, max_explained: int, advance: Callable[[int], None] = lambda n: None
    ) -> tuple[int, list[dict[str, Any]]]:
        """Write the scores of the shard in `folder` to `target`; returns their number and at most `max_explained` explanations.

        A shard without impressions has no file. `advance` is called with numbers of impressions as they are ranked.
        """
        shard = Shard.open(folder, self.bundle.context)
        explained: list[dict[str, Any]] = []
        clicks, engaged, policies = [], [], []
        for index, (request, mask, outputs) in enumerate(self._ranked(shard)):
            clicks.append(outputs["click_probability"][mask])
            engaged.append(outputs["engaged_probability"][mask])
            if self.thompson is None:
                policy_NK = self.choice_policy.probabilities(outputs[self.score_name], mask)
            else:
                policy_NK = self.thompson.probabilities(request, outputs, mask)
            policies.append(policy_NK[mask])
            if index == 0 and max_explained:
                ids = pq.read_table(folder / REQUESTS, columns=["impression_id"])
                explained = _reasons(self.bundle, request, mask, policy_NK, ids["impression_id"], max_explained)
            advance(len(mask))
        if shard.impressions:
            lists = {"click_probability": clicks, "policy": policies, "engaged_probability": engaged}
            _write(folder / REQUESTS, target, lists)
        return shard.impressions, explained

    def _ranked(self, shard: Shard) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]]:
        """A shard's requests in order, with mask and answer: threads rank some while the next are gathered."""
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[tuple[dict[str, np.ndarray], np.ndarray, Future[dict[str, np.ndarray]]]] = deque()
            for request, mask_NK in shard_requests(shard, self.bundle.request_lengths):
                waiting.append((request, mask_NK, pool.submit(self.bundle.rank, request)))
                if len(waiting) > self.threads:
                    request, mask_NK, answer = waiting.popleft()
                    yield request, mask_NK, answer.result()
            for request, mask_NK, answer in waiting:
                yield request, mask_NK, answer.result()


def _reasons(
    bundle: Bundle,
    request: dict[str, np.ndarray],
    mask_NK: np.ndarray,
    policy_NK: np.ndarray,
    ids: pa.ChunkedArray,
    max_explained: int,
) -> list[dict[str, Any]]:
    """Why the likeliest artwork of some impressions: those first in the shard with a choice and a history."""
    rows = np.flatnonzero((mask_NK.sum(1) > 2) & (request["history_length"] > 2))
    # one per member, whose impressions are adjacent
    rows = rows[np.unique(request["history_title"][rows, 0], return_index=True)[1]][: max(0, max_explained)]
    if not len(rows):
        return []
    some = {name: values[rows] for name, values in request.items()}
    explanations = reasons(bundle, some, mask_NK[rows], policy_NK[rows].argmax(1))
    return [
        {"impression_id": ids[int(row)].as_py()} | explanation
        for row, explanation in zip(rows, explanations, strict=True)
    ]


def shard_requests(
    shard: Shard, lengths: RequestLengths, rows_wanted: np.ndarray | None = None
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """A shard's impressions as the graph's inputs, in order, with the mask of candidates: bool (N, K).

    `rows_wanted`: the impressions' rows in the shard, default all.
    """
    plays = {name: getattr(shard, name) for name in PLAY_FILLS}
    rows_wanted = np.arange(shard.impressions) if rows_wanted is None else rows_wanted
    for begin in range(0, len(rows_wanted), REQUESTS_AT_ONCE):
        rows = rows_wanted[begin : begin + REQUESTS_AT_ONCE]
        end = shard.history_end[rows]
        start = np.maximum(shard.history_start[rows], end - lengths.plays)
        first = shard.candidate_start[rows]
        yield ranking_inputs(
            plays,
            Runs(start=start, length=end - start),
            shard.context_at(rows),
            end - shard.history_start[rows],
            shard.title[rows],
            shard.candidate,
            Runs(start=first, length=shard.candidate_start[rows + 1] - first),
            shard.past_impressions(rows, lengths.past),
        )


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
