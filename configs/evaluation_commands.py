"""The commands that evaluate logs: `keyart value`, `test` and `plan`. Imports wait until a command runs, as in `keyart.py`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from configs.terminal import print_next_command, stderr_console, stdout_console
from foundation.shell import shell_word

TYPE_CHECKING = False  # not typing's: see keyart.py
if TYPE_CHECKING:
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
        period: test, validation or all. The first two begin as they did for the scored model: by --like; else by scores.json
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


def read_test(
    dataset: Path,
    out: Path,
    *,
    title: str | None = None,
    arms: str | None = None,
    by: Literal["artwork", "policy"] = "artwork",
    control: str | None = None,
    unit: Literal["auto", "member", "impression"] = "auto",
    metric: Literal["clicked", "engaged", "minutes"] = "clicked",
    worth: str = "2%",
    typical: str = "30%",
    split: str | None = None,
    scores: Path | None = None,
    since: str | None = None,
    before: str | None = None,
) -> None:
    """Read out a running or finished randomised test of artworks: who wins, by intervals that may be looked at every day.

    Args:
        dataset: A dataset by the contract, of which the impressions are read; or a table of counts as CSV or Parquet with the
            columns arm, impressions, clicks [engaged, day, test].
        out: Folder for test.json and test.html.
        title: The title whose artworks are compared; default: every title with randomised impressions. Of a table: the test.
        arms: What is compared, names with commas between them; default: all artworks of the title, or all logging policies.
        by: What the arms are: artworks of a title, or the logging policies that impressions or members were assigned to.
        control: The arm that the others are compared with; default: the first of the arms.
        unit: Whose impressions are independent of others': each member's, or each impression; auto: member, or impression for
            a table.
        metric: What is counted per impression: clicked, engaged, or minutes where the log has them.
        worth: The smallest relative lift that matters, such as 2%.
        typical: Typical size of a true lift, stated before the test: at its size the intervals are narrowest.
        split: The arms' shares as planned, in the order of the arms, such as 50,50; default: those of the logged propensities.
        scores: A scores table of a model that was trained before the test; its predictions make the intervals narrower.
        since: The test began at this date or time (ISO 8601, UTC); default: with the log.
        before: The test ended before this date or time; default: with the log.
    """
    from evaluation.experiment import experiment, experiment_table
    from foundation.times import parse_time

    first, end = (
        None if text is None else parse_time(name, text) for name, text in (("since", since), ("before", before))
    )
    named = partial(experiment, title=title, arms=arms, by=by, control=control, unit=unit, metric=metric, worth=worth)
    shaped = partial(named, typical=typical, split=split, scores=scores, since=first, before=end)
    record = shaped(dataset, out, console=stderr_console())
    stdout_console().print(experiment_table(record))
    again = ["keyart test", dataset, out] + ([] if title is None else ["--title", shell_word(title)])
    more = [] if record["arms_are"] == "arms of a table" or scores is not None else ["--scores SCORES"]
    print_next_command(f"{out / 'test.html'} and test.json written", *again, *more)


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
