"""`keyart score`: a bundle over a dataset -> a scores table, without torch.

In: raw tables. Histories are cut by the same code that prepared the training log, so that a request holds exactly the
plays strictly before it. Out: Parquet files of impression_id, candidates, click_probability, policy, engaged_probability
(aligned lists).
"""

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from datamodules.contract.tables import dataset_fingerprint, tables_with
from foundation.atomic import atomic_folder, claimed_output
from foundation.context import CONTEXT_BESIDE_PARQUET, save_context
from foundation.fingerprint import fingerprint
from foundation.machine import available_cores
from foundation.progress import progress_bar
from serving.bundle.bundle import Bundle

if TYPE_CHECKING:  # executors load this module, and need no engine
    from datamodules.contract.engines import Engine, EngineConfig

from serving.scoring.scorer import Scorer

SCORES_FILE, REASONS_FILE = "_scores.json", "_reasons.json"
"""Beside Parquet files, whose readers pass over names that begin with _."""
SCORES_VERSION = 3
"""Version of scores and their record; raised when their content changes, so that older ones are made again."""
MAX_EXPLAINED = 40
"""Impressions whose choice is explained."""


def scores_fingerprint(
    bundle: Bundle, dataset: Path, policy: str, since: datetime | None, reward: str = "clicked"
) -> str:
    """The fingerprint of scores of this dataset by this bundle and policy."""
    return fingerprint(bundle.content_checksums, dataset_fingerprint(dataset), policy, since, reward, SCORES_VERSION)


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
    allow_unknown: bool = False,
    keep_shards: Path | None = None,
) -> int:
    """Score every impression shown at or after `since` (default: all); returns how many. `out` appears when complete.

    The policy chooses by `reward`: clicked, the click probability; engaged, that of a click that leads to a viewing.
    Where `engine` is Spark, its executors rank the shards, to the same files; else threads of this process do. UserError where
    the bundle knows next to none of the dataset's titles or artworks, unless `allow_unknown`. `keep_shards`: where to leave the
    impressions' shards, which are otherwise deleted.
    """
    from datamodules.prepare.prepare import (  # here: executors load this module, and need no engine
        PrepareConfig,
        prepare,
    )
    from serving.scoring.unknown_ids import count_unknown, require_known

    console = console or Console(stderr=True)
    scorer = Scorer(bundle, policy, reward, threads=available_cores())
    with (
        claimed_output(out, SCORES_FILE, dataset=dataset, sources=[bundle.folder]),
        atomic_folder(out, marker=SCORES_FILE) as folder,
    ):
        work = keep_shards or folder / "work"
        manifest = prepare(
            dataset,
            work,
            PrepareConfig(outcome_delay=bundle.outcome_delay),
            vocabularies=bundle.vocabularies,
            features=bundle.context,
            since=since,
            keep_requests=True,
            engine=engine,
            console=console,
        )
        total, shards = manifest["impressions"], manifest["shards"]
        counted = count_unknown([work / f"shard-{index:05d}" for index in range(shards)], bundle)
        require_known(counted, bundle, dataset, console, allow=allow_unknown)
        max_explained = -(-MAX_EXPLAINED // shards)
        explained: list[dict[str, Any]] = []
        if engine is not None and engine.session is not None:
            from serving.scoring.score_spark import ScoringTask, score_on_executors

            scoring_task = ScoringTask.of(
                bundle, work, engine.folder, policy=policy, reward=reward, max_explained=max_explained
            )
            explained = score_on_executors(engine, scoring_task, shards, total, folder, console)
        else:
            with progress_bar(console) as progress:
                task = progress.add_task("score", total=total)
                for index in range(shards):
                    part, shard = folder / f"part-{index:05d}.parquet", work / f"shard-{index:05d}"
                    still_wanted = max_explained if len(explained) < MAX_EXPLAINED else 0
                    explained += scorer.score_shard(shard, part, still_wanted, lambda n: progress.advance(task, n))[1]
        if keep_shards is None:
            shutil.rmtree(work)
        (folder / REASONS_FILE).write_text(json.dumps(explained[:MAX_EXPLAINED], indent=1), encoding="utf-8")
        record = {
            "fingerprint": scores_fingerprint(bundle, dataset, policy, since, reward),
            "bundle": bundle.digest,
            "policy": policy,
            "reward": reward,
            "impressions": total,
            "since": since and since.isoformat(),
            # when validation and test began for the model, which an evaluation of the scores needs
            "validation_from": bundle.metadata.get("validation_from"),
            # until when its weights were fitted, and until when it was stopped, calibrated and given its posterior
            "trained_until": bundle.metadata.get("validation_from"),
            "tuned_until": bundle.metadata.get("test_from"),
            "test_from": bundle.metadata.get("test_from"),
        }
        save_context(bundle.context, folder, CONTEXT_BESIDE_PARQUET)
        (folder / SCORES_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")
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
    allow_unknown: bool = False,
) -> int:
    """Check a dataset and score it, by one engine. UserError where it breaks a rule of the contract."""
    from datamodules.contract.check import require_valid
    from datamodules.contract.engines import open_engine, spill_folder

    Scorer(bundle, policy, reward)  # refused before an engine starts
    with (
        claimed_output(out, SCORES_FILE, dataset=dataset, sources=[bundle.folder]),
        open_engine(config, spill_folder(out)) as engine,
    ):
        tables = tables_with(bundle.context)
        require_valid(dataset, images=False, console=console, engine=engine, tables=tables)
        return score(
            bundle,
            dataset,
            out,
            policy=policy,
            reward=reward,
            since=since,
            engine=engine,
            console=console,
            allow_unknown=allow_unknown,
        )
