"""Which tests a log or a table holds, by what a user names: a title, arms, a control.

In: `LoggedTraffic` or `CountedTest`. Out: `PreparedTest`, and words on titles that could not be read out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.experiments.aggregated import CountedTest
from evaluation.experiments.contrasts import Ratio
from evaluation.experiments.experiment_log import (
    ExperimentLog,
    LoggedTraffic,
    arms_of_policies,
    arms_of_title,
    randomised,
)
from evaluation.experiments.mismatch import LEVEL
from evaluation.experiments.prepared import PreparedTest, prepare_counts, prepare_log
from foundation.errors import UserError

SHARE_OF_TITLE = 0.5
"""Artworks that were candidates in at least this share of a title's randomised impressions are its arms by default."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a user names; empty where nothing is."""

    title: str | None
    arms: tuple[str, ...]
    control: str | None
    unit: Literal["member", "impression"]
    metric: str
    split: tuple[float, ...]


def parse_share(name: str, text: str) -> float:
    """`2%` or `.02` as a share; UserError where it is neither, or not above 0 and below 1."""
    words = text.strip()
    try:
        value = float(words.removesuffix("%").strip()) / (100 if words.endswith("%") else 1)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1:
        raise UserError(f"{name}={text}: must be a share above 0 and below 1, such as 2% or .02.")
    return value


def parse_arms(text: str | None) -> tuple[str, ...]:
    """Names with commas between them; UserError where one is empty or named twice."""
    if text is None:
        return ()
    arms = tuple(arm.strip() for arm in text.split(","))
    if not all(arms):
        raise UserError(f"arms={text}: an arm is empty. Give names with commas between them.")
    for arm, count in Counter(arms).items():
        if count > 1:
            raise UserError(f"arms={text}: {arm} is named {count} times, and arms must not overlap. Name each once.")
    if len(arms) < 2:
        raise UserError(f"arms={text}: is one arm. A test compares two or more.")
    return arms


def parse_split(text: str | None) -> tuple[float, ...]:
    """Planned shares with commas between them, in any unit, as shares that sum to 1."""
    if text is None:
        return ()
    try:
        parts = [float(part.strip().removesuffix("%")) for part in text.split(",")]
    except ValueError:
        parts = []
    if not parts or not all(0 < part < float("inf") for part in parts):
        raise UserError(f"split={text}: must be shares above 0 with commas between them, such as 50,50.")
    return tuple(part / sum(parts) for part in parts)


def _control(selection: Selection, arms: Sequence[str]) -> int:
    if selection.control is None:
        return 0
    if selection.control not in arms:
        raise UserError(f"control={selection.control}: is none of the arms {_named(arms)}. Name one of them.")
    return list(arms).index(selection.control)


def _split(selection: Selection, arms: Sequence[str]) -> NDArray[np.float64] | None:
    if not selection.split:
        return None
    if len(selection.split) != len(arms):
        raise UserError(
            f"split: {len(selection.split)} shares for {len(arms)} arms ({_named(arms)}). Give one for each arm, in their order."
        )
    return np.array(selection.split)


def _named(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _require_metric(selection: Selection, known: Sequence[str], source: object) -> None:
    if selection.metric not in known:
        raise UserError(
            f"metric={selection.metric}: {source} does not hold it for every impression. It holds {', '.join(known)}."
        )


def policy_tests(traffic: LoggedTraffic, selection: Selection) -> tuple[list[PreparedTest], list[str]]:
    """The test whose arms are logging policies: those named, or all of them."""
    _require_metric(selection, list(traffic.rewards), traffic.source)
    rows = _rows_of_title(traffic, selection.title) if selection.title is not None else np.arange(len(traffic))
    arms = selection.arms or tuple(sorted(np.array(traffic.policies)[np.unique(traffic.policy_N[rows])].tolist()))
    if len(arms) == 1:
        raise UserError(
            f"{traffic.source}: {arms[0]} logged every impression, which is one arm. A test compares two or more."
        )
    for arm in arms:
        if arm not in traffic.policies:
            raise UserError(f"arm {arm}: logged nothing in {traffic.source}. Policies: {_named(traffic.policies)}.")
    name = "logging policies" if selection.title is None else f"logging policies, title {selection.title}"
    log = arms_of_policies(traffic, rows, arms)
    return [_prepared(name, log, selection, with_looks=True)], []


def title_tests(traffic: LoggedTraffic, selection: Selection) -> tuple[list[PreparedTest], list[str]]:
    """The tests whose arms are artworks: of one title, or of every title with randomised impressions."""
    _require_metric(selection, list(traffic.rewards), traffic.source)
    title = selection.title
    if len(selection.arms) and title is None:
        title = _title_of(traffic, selection.arms)
    if title is not None:
        rows = _rows_of_title(traffic, title)
        arms = selection.arms or _default_arms(traffic, rows, title)
        _require_known(traffic, rows, arms, title)
        return [_prepared(f"title {title}", arms_of_title(traffic, rows, arms), selection, with_looks=True)], []
    if selection.control is not None or selection.split:
        raise UserError(
            "control and split: belong to one test, and all titles are read out. Name one by --title or --arms."
        )
    drawn = np.flatnonzero(randomised(traffic, np.arange(len(traffic))))
    if not len(drawn):
        raise UserError(
            f"{traffic.source}: no impression was drawn at random among artworks (propensity below 1). A test needs such a log."
        )
    drawn = drawn[np.argsort(traffic.title_N[drawn], kind="stable")]
    parts = np.split(drawn, np.flatnonzero(np.diff(traffic.title_N[drawn])) + 1)
    tests, not_read = [], []
    for part in parts:
        name = traffic.titles[int(traffic.title_N[part[0]])]
        try:
            log = arms_of_title(traffic, part, _default_arms(traffic, part, name))
        except UserError as error:
            not_read.append(f"title {name}: {str(error).removeprefix(f'{traffic.source}: ')}")
            continue
        tests.append(_prepared(f"title {name}", log, selection, with_looks=len(parts) == 1, of=len(parts)))
    if not tests:
        raise UserError(f"{traffic.source}: no title can be read out ({not_read[0]}).")
    return tests, not_read


def table_tests(
    counted: Sequence[CountedTest], selection: Selection, source: object
) -> tuple[list[PreparedTest], list[str]]:
    """The tests of an aggregated table: the one named by --title, or all."""
    if selection.title is not None:
        names = [test.name for test in counted]
        if selection.title not in names:
            raise UserError(f"title={selection.title}: is no test of {source}. Tests: {_named(names)}.")
        counted = [test for test in counted if test.name == selection.title]
    if selection.unit == "member":
        raise UserError(f"unit=member: {source} counts impressions, and has no members. Use --unit impression.")
    several = len(counted) > 1
    if several and (selection.arms or selection.control or selection.split):
        raise UserError(
            f"arms, control and split: belong to one test, and {source} holds {len(counted)}. Name one by --title."
        )
    tests, not_read = [], []
    for test in counted:
        try:
            tests.append(_counted(test, selection, source, len(counted)))
        except UserError as error:
            if not several:
                raise
            not_read.append(f"{test.name}: {error}")
    if not tests:
        raise UserError(f"{source}: no test can be read out ({not_read[0]}).")
    return tests, not_read


def _counted(test: CountedTest, selection: Selection, source: object, of: int) -> PreparedTest:
    _require_metric(selection, [name for name in test.counts if name != "impressions"], source)
    arms = selection.arms or test.arms
    for arm in arms:
        if arm not in test.arms:
            raise UserError(f"arm {arm}: is none of {source}. Arms: {_named(test.arms)}.")
    if len(arms) == 1:
        raise UserError(f"{source}: holds one arm, {arms[0]}. A test compares two or more.")
    index = [test.arms.index(arm) for arm in arms]
    counts = {name: count_DA[:, index] for name, count_DA in test.counts.items()}
    for arm, total in zip(arms, counts["impressions"].sum(0), strict=True):
        if not total:
            raise UserError(f"{source}: arm {arm} has no impressions. Leave it out by --arms.")
    return prepare_counts(
        test.name or "the table",
        tuple(arms),
        counts,
        test.days,
        _control(selection, arms),
        Ratio(numerator=selection.metric),
        split=_split(selection, arms),
        level_of_mismatch=LEVEL / of,
    )


def _prepared(name: str, log: ExperimentLog, selection: Selection, *, with_looks: bool, of: int = 1) -> PreparedTest:
    return prepare_log(
        name,
        log,
        _control(selection, log.arms),
        Ratio(numerator=selection.metric),
        by_impression=selection.unit == "impression",
        split=_split(selection, log.arms),
        level_of_mismatch=LEVEL / of,
        with_looks=with_looks,
    )


def _rows_of_title(traffic: LoggedTraffic, title: str) -> NDArray[np.int64]:
    if title not in traffic.titles:
        raise UserError(
            f"title={title}: has no impression in {traffic.source} in this period. Name a title of the log."
        )
    return np.flatnonzero(traffic.title_N == traffic.titles.index(title))


def _title_of(traffic: LoggedTraffic, arms: Sequence[str]) -> str:
    """The title whose impressions showed the first arm."""
    names = traffic.names.to_pylist()
    if arms[0] not in names:
        raise UserError(
            f"arm {arms[0]}: was no candidate in {traffic.source}. Name artworks of one title, or use --by policy."
        )
    rows = traffic.artwork_NK.row_C[traffic.artwork_NK.values_C == names.index(arms[0])]
    return traffic.titles[int(traffic.title_N[rows[0]])]


def _default_arms(traffic: LoggedTraffic, rows: NDArray[np.integer], title: str) -> tuple[str, ...]:
    drawn = rows[randomised(traffic, rows)]
    if not len(drawn):
        raise UserError(
            f"{traffic.source}: title {title} has no randomised impressions (propensity below 1, two candidates). Name another."
        )
    count = np.bincount(traffic.artwork_NK.take(drawn).values_C, minlength=len(traffic.names))
    arms = sorted(traffic.names[int(code)].as_py() for code in np.flatnonzero(count >= SHARE_OF_TITLE * len(drawn)))
    if len(arms) < 2:
        raise UserError(
            f"{traffic.source}: title {title} has {len(arms)} artwork that was a candidate in half of its randomised impressions. "
            "Name two or more by --arms."
        )
    return tuple(arms)


def _require_known(traffic: LoggedTraffic, rows: NDArray[np.integer], arms: Sequence[str], title: str) -> None:
    """Raise a UserError where an arm is no candidate of the title, or no impression of the title was drawn."""
    candidates = {traffic.names[int(code)].as_py() for code in np.unique(traffic.artwork_NK.take(rows).values_C)}
    for arm in arms:
        if arm not in candidates:
            raise UserError(f"arm {arm}: is no candidate of title {title}. Candidates: {_named(sorted(candidates))}.")
    if not randomised(traffic, rows).any():
        raise UserError(
            f"{traffic.source}: title {title} has no randomised impressions (propensity below 1, two candidates). Name another."
        )
