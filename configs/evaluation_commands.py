"""The commands that judge logs: `keyart value`, `test`, `plan`, `drift`. Imports wait until a command runs, as in `keyart.py`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from configs.terminal import print_next_command, stderr_console, stdout_console
from foundation.shell import shell_word

TYPE_CHECKING = False  # not typing's: see keyart.py
if TYPE_CHECKING:
    from evaluation.experiment import ExperimentConfig
    from evaluation.plan import PlanConfig


def value(
    dataset: Path,
    scores: list[Path],
    out: Path,
    *,
    base: Path | None = None,
    period: Literal["test", "validation", "all"] = "test",
    like: Path | None = None,
    log_policy: str = "all",
    weights: Literal["auto", "per-policy", "balanced"] = "auto",
    allow_missing: bool = False,
) -> None:
    """Estimate a policy's value on a log by every estimator, with intervals and how far the log supports it.

    Args:
        dataset: A dataset by the contract; its impressions are enough, further tables add to the report.
        scores: A scores table by the contract, made by any model. Several are compared, so that the best is not the luckiest.
        out: Folder for value.json and value.html.
        base: Another scores table of the same impressions, to compare with the first.
        period: test, validation or all. The first two begin as they did for the scored model: by --like; else by _scores.json
            beside the scores; else test is the newest 15 % of the impressions, validation the 15 % before. A line says which.
        like: Shards whose split times to use: those the scored model was trained on.
        log_policy: Only impressions logged by the policy of this name; all: every one.
        weights: Of several logging policies: per-policy divides by the propensity of the one that logged the impression, balanced
            by their mixture, which assumes that impressions were assigned to them at random; auto: balanced only where the
            log shows that, and no policy is personalised.
        allow_missing: Leave out impressions without scores, and count them; otherwise they are an error.
    """
    from evaluation.report.selection_section import selection_table
    from evaluation.report.value_table import value_table
    from evaluation.value import value as value_scores

    estimate = partial(value_scores, base=base, period=period, like=like, log_policy=log_policy, weights=weights)
    first, *also = scores
    record = estimate(dataset, first, out, also=also, allow_missing=allow_missing, console=stderr_console())
    stdout_console().print(value_table(record))
    for selection in record.get("selection", []):
        stdout_console().print(selection_table(selection))
    other = ["SCORES --policy epsilon:0.1"] if base else ["OTHER; keyart value", dataset, "OTHER OUT --base", first]
    print_next_command(f"{out / 'value.html'} and value.json written", "keyart score BUNDLE", dataset, *other)


def read_test(dataset: Path, out: Path, *, settings: ExperimentConfig) -> None:
    """Read out a running or finished randomised test of artworks: who wins, by intervals that may be looked at every day.

    Args:
        dataset: A dataset by the contract, of which the impressions are read; or a table of counts as CSV or Parquet with the
            columns arm, impressions, clicks [engaged, day, test].
        out: Folder for test.json and test.html.
    """
    from evaluation.experiment import experiment, experiment_table

    record = experiment(dataset, out, settings, console=stderr_console())
    stdout_console().print(experiment_table(record))
    title = [] if settings.title is None else ["--title", shell_word(settings.title)]
    more = [] if record["arms_are"] == "arms of a table" or settings.scores is not None else ["--scores SCORES"]
    print_next_command(f"{out / 'test.html'} and test.json written", "keyart test", dataset, out, *title, *more)


def plan(log: Path, *, settings: PlanConfig) -> None:
    """Plan how much traffic to explore, and for how long, until the log can say whether a policy has the asked lift.

    Args:
        log: A dataset by the contract whose impressions span two days or more, some of them randomised.
    """
    from evaluation.plan import plan as plan_exploration
    from evaluation.plan import plan_table

    record = plan_exploration(log, settings, console=stderr_console())
    stdout_console().print(plan_table(record))
    share = record["recommended"] or record["plans"][-1]["share"]
    command = ["keyart score BUNDLE", log, f"SCORES --policy epsilon:{share:g}"]
    print_next_command(f"{settings.out / 'plan.html'} and plan.json written", *command)


def drift(bundle: Path, log: Path, *, since: str | None = None, json: Path | None = None) -> None:
    """Compare a newer log with the bundle's validation period: click probabilities, history lengths, ranks of what was shown,
    propensities, and shares of unknown ids. A change is a warning.

    Args:
        bundle: A bundle written by `keyart export`, where the run's shards were.
        log: A dataset by the contract, valid by `keyart check`; its whole histories are read.
        since: Only impressions shown at or after this date or time (ISO 8601, UTC); default: the begin of the bundle's test period.
        json: File for the counts, indices and limits.
    """
    from foundation.times import parse_time
    from serving.scoring.drift_log import drift_of_log, print_drift

    moment = None if since is None else parse_time("since", since)
    record = drift_of_log(bundle, log, moment, json, stderr_console())
    print_drift(record, stdout_console())
    print_next_command("" if json is None else f"{json} written", "keyart evaluate", bundle, log, "REPORT")
