"""`test.json` as a typed record: the read-out of randomised tests, written and read here alone.

Lifts are relative to the control, as shares (.05 is 5 %); `low` and `high` are the ends of the anytime-valid interval,
`fixed_low` and `fixed_high` those of the usual one, which holds for a single look that was planned. None is a number that the
test does not support yet.
"""

import json
from pathlib import Path
from typing import Literal, TypedDict, cast

from foundation.records import read_versioned

TEST_FILE, TEST_VERSION = "test.json", 1
"""Schema version, raised when fields change or change their meaning."""

Answer = Literal[
    "winner", "preferred", "no difference", "not yet", "worse", "clicked, not watched", "control", "mismatch"
]
"""The answer on an arm; `mismatch`: the shares of the arms are off, so that no arm is compared."""
Guard = Literal["holds", "open", "fails"]
"""Whether an arm keeps a guardrail: its estimate is no loss; it is one, within chance; it is one, beyond chance."""


class LiftColumns(TypedDict):
    """A lift with its anytime-valid interval."""

    lift: float | None
    low: float | None
    high: float | None


class GuardrailRow(LiftColumns):
    """What an arm does to a reward that must not fall, at the level of a warning."""

    reward: str
    state: Guard
    against: str


class ArmRow(LiftColumns):
    """An arm of a test; the lift is against the control, and none is given for the control itself."""

    arm: str
    answer: Answer
    reason: str
    impressions: int
    members: int
    """Members who saw the arm; impressions of an aggregated table."""
    share: float
    expected_share: float
    rewards: float
    """Sum of the metric."""
    rate: float | None
    """The metric per impression, weighted by inverse propensity where propensities vary."""
    fixed_low: float | None
    fixed_high: float | None
    unadjusted_lift: float | None
    unadjusted_low: float | None
    unadjusted_high: float | None
    variance_reduction: float
    e_value: float
    p_value: float
    """Anytime-valid, of this arm alone."""
    effective_units: float
    more_impressions: int | None
    """About how many more of the whole test until an answer, if the lift stays; None where answered or out of reach."""
    guardrails: list[GuardrailRow]


class MismatchRow(TypedDict):
    """The test of the arms' shares; `source` says where the expected shares come from."""

    mismatched: bool
    counted: str
    source: str
    counts: list[float]
    expected: list[float]
    chi_square: float
    e_value: float
    level: float


class LookLift(LiftColumns):
    """An arm at a look."""

    arm: str


class LookRow(TypedDict):
    """The test as it stood at an earlier moment."""

    until: str
    impressions: int
    arms: list[LookLift]


class PairRow(LiftColumns):
    """Two arms that both beat the control, compared."""

    arm: str
    against: str


class SingleTest(TypedDict):
    """One test: the artworks of a title, or logging policies."""

    test: str
    headline: str
    control: str
    level: float
    """The level of one comparison, several arms and tests allowed for."""
    impressions: int
    members: int
    left_out: int
    since: str | None
    until: str | None
    by_member: bool
    """Whether members keep their arm."""
    mismatch: MismatchRow
    arms: list[ArmRow]
    pairs: list[PairRow]
    looks: list[LookRow]
    covariates: list[str]
    notes: list[str]


class ExperimentRecord(TypedDict):
    """`test.json`."""

    headline: str
    schema_version: int
    source: str
    arms_are: str
    unit: str
    metric: str
    worth: float
    typical: float
    level: float
    """How often the read-out misleads at any look, at most: in one arm or more of one test; of several tests, the share of false
    discoveries."""
    tests: list[SingleTest]
    not_read: list[str]
    """Titles that could not be read out, and why."""
    notes: list[str]


def write_test(folder: Path, record: ExperimentRecord) -> None:
    """Write `test.json`; ValueError where a number is not finite."""
    (folder / TEST_FILE).write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")


def read_test(folder: Path) -> ExperimentRecord:
    """Read `test.json` of a folder; UserError as `foundation.records.read_versioned`."""
    return cast("ExperimentRecord", read_versioned(folder / TEST_FILE, TEST_VERSION, "Run keyart test again."))
