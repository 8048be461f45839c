"""Types of the rows of `value.json` and `report.json` that describe the log: who logged it, tests of propensities, faults."""

from typing import TypedDict


class LoggingPolicyRow(TypedDict):
    """A logging policy, split where it sometimes shows an artwork for certain, and how many impressions it logged.

    `unsupported`: mean probability of the scored policy on artworks that it never shows; None where that is not known. `used`:
    whether its impressions are valued.
    """

    policy: str
    impressions: int
    certain: bool
    unsupported: float | None
    used: bool


class AssignmentRow(TypedDict):
    """How strongly the logging policy of an impression depends on an attribute of it: the level that differs most.

    `share`: impressions that one logging policy logged, in that level; `chance`: the p value, adjusted for the number of tests.
    """

    policy: str
    attribute: str
    level: str
    share: float
    overall: float
    standard_errors: float
    chance: float


class PropensityTestRow(TypedDict):
    """How often something was shown, and should have been by the logged propensities, in the whole log or a level of a context.

    `tested`: an artwork, or a function of the candidates. `chance`: the p value, adjusted for the number of tests.
    """

    tested: str
    artwork: str | None
    attribute: str | None
    level: str | None
    impressions: int
    shown: float
    expected: float
    standard_errors: float
    chance: float


class PropensityChecks(TypedDict):
    """All tests of propensities at one error rate, and those that reject most."""

    tests: int
    rejected: int
    error_rate: float
    worst: list[PropensityTestRow]


class LogFaultRow(TypedDict):
    """A fault of how the log was written, in words; times in ISO 8601 where it concerns a stretch of the period."""

    kind: str
    fault: str
    impressions: int
    since: str | None
    until: str | None
