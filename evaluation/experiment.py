"""`keyart test`: a log's randomised impressions, or a table of counts -> which artwork wins, and whether that may be said yet.

In: a dataset by the contract, whose `impressions/` alone is read, or an aggregated table. Out: `test.json`, `test.html`.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.experiments.aggregated import is_table, read_counted_tests
from evaluation.experiments.experiment_log import read_traffic
from evaluation.experiments.read_out import Settings, read_out
from evaluation.experiments.select import (
    Selection,
    parse_arms,
    parse_share,
    parse_split,
    policy_tests,
    table_tests,
    title_tests,
)
from evaluation.logs.scored_log import record_beside
from evaluation.period import SCORES_RECORD, split_times
from evaluation.record.experiments import TEST_FILE, TEST_VERSION, ArmRow, ExperimentRecord, SingleTest, write_test
from evaluation.report.experiment_page import experiment_page, shares_line
from foundation.atomic import atomic_folder, claimed_output
from foundation.errors import UserError
from foundation.output_path import require_output
from foundation.shell import shell_word
from foundation.times import parse_time

TEST_PAGE = "test.html"
LEVEL = 0.05
MOST_LISTED = 20
"""Tests listed in a terminal."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Which arms of which test are compared, by what."""

    title: str | None = None
    """The title whose artworks are compared; default: every title with randomised impressions. Of a table: the test."""
    arms: str | None = None
    """What is compared, names with commas between them; default: all artworks of the title, or all logging policies."""
    by: Literal["artwork", "policy"] = "artwork"
    """What the arms are: artworks of a title, or the logging policies that impressions or members were assigned to."""
    control: str | None = None
    """The arm that the others are compared with; default: the first of the arms."""
    unit: Literal["auto", "member", "impression"] = "auto"
    """Whose impressions are independent of others': each member's, or each impression; auto: member, or impression for a table."""
    metric: Literal["clicked", "engaged", "minutes"] = "clicked"
    """What is counted per impression: clicked, engaged, or minutes where the log has them."""
    worth: str = "2%"
    """The smallest relative lift that matters, such as 2%."""
    typical: str = "30%"
    """Typical size of a true lift, stated before the test: at its size the intervals are narrowest."""
    split: str | None = None
    """The arms' shares as planned, in the order of the arms, such as 50,50; default: those of the logged propensities."""
    scores: Path | None = None
    """A scores table of a model that was trained before the test; its predictions make the intervals narrower."""
    since: str | None = None
    """The test began at this date or time (ISO 8601, UTC); default: with the log."""
    before: str | None = None
    """The test ended before this date or time; default: with the log."""


def experiment(
    source: Path, out: Path, config: ExperimentConfig, *, console: Console | None = None
) -> ExperimentRecord:
    """Read out a running or finished test; writes `test.json` and `test.html`.

    `source`: a dataset, or an aggregated table. UserError: see `evaluation.experiments.select`.
    """
    since, before = (
        None if text is None else parse_time(name, text)
        for name, text in (("since", config.since), ("before", config.before))
    )
    by, scores, metric = config.by, config.scores, config.metric
    console = console or Console(quiet=True)
    table = is_table(source)
    sources = [path for path in (scores, source if table else None) if path is not None]
    require_output(out, TEST_FILE, dataset=None if table else source, sources=sources)
    settings = Settings(
        metric=metric,
        worth=parse_share("worth", config.worth),
        typical=parse_share("typical", config.typical),
        level=LEVEL,
    )
    units: Literal["member", "impression"] = (
        config.unit if config.unit != "auto" else "impression" if table else "member"
    )
    selection = Selection(
        title=config.title,
        arms=parse_arms(config.arms),
        control=config.control,
        unit=units,
        metric=metric,
        split=parse_split(config.split),
    )
    notes: list[str] = []
    with claimed_output(out, TEST_FILE):
        if table:
            _refuse_options_of_logs(source, by, scores, since, before)
            tests, not_read = table_tests(read_counted_tests(source), selection, source)
        else:
            traffic = read_traffic(source, scores, since, before)
            notes = _notes_on_scores(source, scores, int(traffic.shown_at_N[0]))
            tests, not_read = (policy_tests if by == "policy" else title_tests)(traffic, selection)
        for words in not_read[:3]:
            console.print(f"test: left out: {words}", soft_wrap=True)
        rows = read_out(tests, settings)
        record: ExperimentRecord = {
            "headline": _headline(rows),
            "schema_version": TEST_VERSION,
            "source": str(source),
            "arms_are": "arms of a table" if table else "logging policies" if by == "policy" else "artworks",
            "unit": units,
            "metric": metric,
            "worth": settings.worth,
            "typical": settings.typical,
            "level": settings.level,
            "tests": rows,
            "not_read": not_read,
            "notes": [*_notes(rows, by), *notes],
        }
        with atomic_folder(out, marker=TEST_FILE) as folder:
            (folder / TEST_PAGE).write_text(experiment_page(record), encoding="utf-8")
            write_test(folder, record)
    return record


def _refuse_options_of_logs(
    source: Path, by: str, scores: Path | None, since: datetime | None, before: datetime | None
) -> None:
    given = {"by=policy": by == "policy", "scores": scores, "since": since, "before": before}
    for name, value in given.items():
        if value:
            raise UserError(f"{name}: needs a log, and {source} is a table of counts. Leave it out.")


def _notes_on_scores(source: Path, scores: Path | None, first: int) -> list[str]:
    """What to know of the scores; UserError where their model was trained on clicks of the period: it has seen the outcomes.

    `first`: when the period's first impression was shown, in microseconds since 1970.
    """
    if scores is None:
        return []
    if not record_beside(scores, SCORES_RECORD).is_file():
        return ["The scores have no record of when their model was trained: it must have been before the test."]
    times = split_times(source, scores)
    trained_until = times.validation_from or times.test_from
    if first < int(trained_until.timestamp() * 1e6):
        day = f"{trained_until:%Y-%m-%d}"
        raise UserError(
            f"{scores}: their model was trained on clicks until {trained_until:%Y-%m-%d %H:%M} UTC, and the period begins before. "
            f"Give --since {shell_word(day)} or later, or leave --scores out."
        )
    return []


def _notes(rows: list[SingleTest], by: str) -> list[str]:
    notes = []
    if by == "policy":
        notes.append("Policies are compared as if impressions, or members, had been assigned to them at random.")
    if len(rows) > 1:
        notes.append(
            f"{len(rows)} tests at once: of the arms that are declared different, at most 5 % are not, on average (e-BH)."
        )
    return notes


def _headline(rows: list[SingleTest]) -> str:
    if len(rows) == 1:
        return rows[0]["headline"]
    counts = {
        answer: sum(any(arm["answer"] == answer for arm in row["arms"]) for row in rows)
        for answer in ("winner", "clicked, not watched", "mismatch")
    }
    words = f"{len(rows)} tests: {counts['winner']} with a winner"
    if counts["clicked, not watched"]:
        words += f", {counts['clicked, not watched']} with an artwork that is clicked and not watched"
    if counts["mismatch"]:
        words += f", {counts['mismatch']} with a sample ratio mismatch"
    return f"{words}."


def experiment_table(record: ExperimentRecord) -> Table:
    """The arms of a test, or the tests where there are several, for reading in a terminal."""
    if len(record["tests"]) == 1:
        return _arms_table(record["tests"][0], record)
    shown = sorted(record["tests"], key=lambda row: -max(arm["e_value"] for arm in row["arms"]))
    table = Table(title=record["headline"], title_justify="left", caption=_rest(len(shown)))
    for heading in ("test", "impressions", "answer"):
        table.add_column(heading, justify="right" if heading == "impressions" else "left")
    for row in shown[:MOST_LISTED]:
        table.add_row(*map(Text, (row["test"], f"{row['impressions']:,}", row["headline"])))
    return table


def _rest(count: int) -> str | None:
    return None if count <= MOST_LISTED else f"the {MOST_LISTED} with the most evidence; all are in {TEST_FILE}"


def _arms_table(test: SingleTest, record: ExperimentRecord) -> Table:
    reasons = [f"{row['arm']}: {row['answer']}, {row['reason']}" for row in test["arms"] if row["answer"] != "control"]
    look = f"lift in {record['metric']} per impression over {test['control']}; one look: the usual interval"
    table = Table(
        title=f"{test['headline']}\n{shares_line(test)}",
        caption="\n".join(reasons if test["mismatch"]["mismatched"] else [*reasons, look]),
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("arm", "answer", "shown", "rate", "lift", "one look", "more needed"):
        table.add_column(heading, justify="left" if heading in ("arm", "answer") else "right", overflow="fold")
    for row in test["arms"]:
        table.add_row(*map(Text, _cells(row)), style="bold" if row["answer"] == "winner" else None)
    return table


def _cells(row: ArmRow) -> list[str]:
    """An arm's cells; none on lifts where the shares are off, because such lifts mean nothing."""
    rate = "" if row["rate"] is None else f"{row['rate']:.4g}"
    more = "" if row["more_impressions"] is None else f"{row['more_impressions']:,}"
    lift = "" if row["lift"] is None else f"{row['lift']:+.1%}{_ends(row['low'], row['high'])}"
    one_look = _ends(row["fixed_low"], row["fixed_high"]).strip()
    if row["answer"] == "mismatch":
        rate = lift = one_look = ""
    return [row["arm"], row["answer"], f"{row['impressions']:,}", rate, lift, one_look, more]


def _ends(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:+.1%}, {high:+.1%}]"
