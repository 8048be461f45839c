"""The period of a log that is evaluated, by the split times that the scored model was trained with.

In: a dataset, its scores, and shards where the user names them. Out: `SplitTimes`, whose source is named. With other split
times a model could be evaluated on impressions that it was trained on.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from datamodules.contract.tables import IMPRESSIONS
from datamodules.prepare.prepare import PrepareConfig
from datamodules.shards.shard import Shards
from evaluation.logs.columns import read_columns, to_array
from evaluation.logs.scored_log import record_beside
from evaluation.logs.seen_scores import SCORES_RECORD
from foundation.errors import UserError
from foundation.shell import shell_word

Period = Literal["test", "validation", "all"]


@dataclass(frozen=True, kw_only=True)
class SplitTimes:
    """First instants of validation and of test, and their source."""

    validation_from: datetime | None
    """First instant of validation; None where the source lacks it."""
    test_from: datetime
    source: str
    """The source in words, to follow "by"."""

    def bounds(self, period: Period) -> tuple[datetime | None, datetime | None]:
        """First instants of a period and of the one after it, None for an open end; UserError where the source lacks it."""
        if period == "all":
            return None, None
        if period == "test":
            return self.test_from, None
        if self.validation_from is None:
            raise UserError(
                f"period=validation: {self.source} does not say when validation began. Name the shards by --like SHARDS."
            )
        return self.validation_from, self.test_from


def split_times(dataset: Path, scores: Path, like: Path | None = None) -> SplitTimes:
    """The split times of the shards `like`; else of the scores' own record; else the newest shares of the log's impressions.

    UserError: shards that cannot be opened, a record that is not JSON or whose times are not dates, an empty log.
    """
    if like is not None:
        manifest = Shards.open(like).manifest
        validation_from, test_from = (datetime.fromisoformat(manifest[n]) for n in ("validation_from", "test_from"))
        return SplitTimes(validation_from=validation_from, test_from=test_from, source=f"the shards {like}")
    path = record_beside(scores, SCORES_RECORD)
    if path.is_file():
        recorded = _recorded(path)
        if recorded is not None:
            return recorded
    return newest_shares(dataset)


def _recorded(path: Path) -> SplitTimes | None:
    """The split times of a scores record; None where it has none, as one of an older keyart."""
    try:
        record = json.loads(path.read_text("utf-8"))
        moments = {name: record.get(name) for name in ("validation_from", "test_from")}
        times = {name: None if moment is None else datetime.fromisoformat(moment) for name, moment in moments.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: is not a record of scores ({error}). Score the log again.") from None
    if times["test_from"] is None:
        return None
    if any(time is not None and time.tzinfo is None for time in times.values()):
        raise UserError(f"{path}: validation_from and test_from must have a time zone. Score the log again.")
    return SplitTimes(validation_from=times["validation_from"], test_from=times["test_from"], source=str(path))


def newest_shares(dataset: Path, config: PrepareConfig | None = None) -> SplitTimes:
    """The times at which `keyart prepare` would split this log by shares: the newest impressions are test, those before
    validation."""
    shares = config or PrepareConfig()
    columns = [column for column in IMPRESSIONS.columns if column.name in ("impression_id", "shown_at")]
    table = read_columns(
        dataset / IMPRESSIONS.name,
        IMPRESSIONS.files(dataset),
        columns,
        remedy=f"Run keyart check {shell_word(dataset)}.",
    )
    times = np.asarray(to_array(table["shown_at"].cast(pa.timestamp("us", "UTC"), safe=False)).cast(pa.int64()))
    if not len(times):
        raise UserError(f"{dataset}/impressions: is empty. Name a dataset with logged impressions.")
    ranks = [int(len(times) * (1 - shares.validation - shares.test)), int(len(times) * (1 - shares.test))]
    first = [datetime.fromtimestamp(int(at) / 1e6, UTC) for at in np.partition(times, ranks)[ranks]]
    source = f"shares of this log, of which the newest {shares.test:.0%} are test and the {shares.validation:.0%} before validation"
    return SplitTimes(validation_from=first[0], test_from=first[1], source=source)
