"""`bundle.json` as a typed record of a bundle's files, origin and measurements; written and read by `serving.bundle.seal`.

The record carries the version of its schema; a bundle of another version is refused by name, with what to do.
"""

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from datamodules.shards.embedding_origin import EmbeddingOrigin

BUNDLE_FILE = "bundle.json"
BUNDLE_VERSION = 11
"""Raised when the bundle's files or its record change their meaning."""
REQUIRED_FILES = (
    *("rank.onnx", "member.onnx", "choose.onnx", "choose_vectors.onnx", "titles.onnx", "explore.onnx"),
    *("rank_rows.onnx", "member_rows.onnx", "choose_rows.onnx", "titles_rows.onnx", "explain_rows.onnx", "weights.bin"),
    *(
        "titles.safetensors",
        "explain.safetensors",
        "posterior.safetensors",
        "vocabularies.json",
        "catalogue.json",
        "context.json",
    ),
    *("golden.jsonl", "golden_graphs.jsonl", "example.py", "example.mjs", "CARD.md"),
)
"""Files that every bundle has; others depend on how artworks were embedded and on which precisions ship."""
OLDEST_ONNXRUNTIME = "1.19"
"""The oldest ONNX Runtime that all golden cases hold in. In 1.18 a session of explain_rows.onnx that is kept for requests of other
shapes gives a wrong `appeal`, by its memory pattern: off by .048, and right with `enable_mem_pattern` off."""
GOLDEN_BOUND = 1e-4
"""Largest difference of an answer between torch and ONNX Runtime that a bundle may have."""
GRAPHS_BOUND = 2e-3
"""Largest difference of the outputs of single graphs from the recorded ones, relative to those above 1: six times what an image's
embedding differs by between ONNX Runtime 1.18 and 1.30."""


class TensorPort(TypedDict):
    """An input or output of a graph."""

    name: str
    dtype: str
    shape: str
    meaning: str


class GraphDescription(TypedDict):
    """Every input and output of a graph."""

    inputs: list[TensorPort]
    outputs: list[TensorPort]


class TensorDescription(TypedDict):
    """A tensor of a table; `axes` in the letters that the table's `letters` explain."""

    dtype: str
    shape: list[int]
    axes: str
    meaning: str


class FileDescription(TypedDict):
    """What a file is, and, of a table, its tensors by name."""

    what: str
    letters: NotRequired[str]
    tensors: NotRequired[dict[str, TensorDescription]]


class Difference(TypedDict):
    """The largest measured difference, and the bound above which a bundle is refused."""

    largest_difference: float
    bound: float


class GoldenDifference(Difference):
    """The largest difference over the golden cases."""

    cases: int


class ParityDifference(Difference):
    """The largest difference over random requests."""

    requests: int


class Figures(TypedDict):
    """Measurements of graphs of one precision on validation impressions: see `export.gates.measure`."""

    largest_difference: float | None
    log_loss: float | None
    log_loss_change: float | None
    same_choice: float | None
    captured_lift: float | None
    snips_lift: float | None
    impressions: int


class PrecisionRow(TypedDict):
    """Graphs of one precision: whether they ship, or why not, and the bounds they must keep; float32 has none.

    Figures that were not measured are absent.
    """

    precision: str
    ships: bool
    reasons: list[str]
    bounds: NotRequired[dict[str, float]]
    largest_difference: NotRequired[float | None]
    log_loss: NotRequired[float | None]
    log_loss_change: NotRequired[float | None]
    same_choice: NotRequired[float | None]
    captured_lift: NotRequired[float | None]
    snips_lift: NotRequired[float | None]
    impressions: NotRequired[int]
    golden_difference: NotRequired[float | None]
    size_share: NotRequired[float]
    bytes: NotRequired[int]


class Refreshed(TypedDict):
    """A refresh: when, in ISO 8601, and how many titles and artworks it added and withdrew."""

    at: str
    titles: int
    artworks: int
    withdrawn_titles: int
    withdrawn_artworks: int


class Estimate(TypedDict):
    """A value or a difference per 1,000 impressions with its 95 % interval; None where the log does not support it."""

    estimator: str
    verdict: str
    value: float | None
    low: float | None
    high: float | None


class EvaluatedPolicy(TypedDict):
    """A policy's true value, where it is known, and its estimates, where they were made; per 1,000 impressions."""

    policy: str
    label: str
    reward: str
    true: float | None
    estimated: Estimate | None
    above_uniform: Estimate | None


class FitMetrics(TypedDict):
    """Metrics of probabilities; in `by_chance` the 2.5 and 97.5 percentiles of the calibration error of right ones."""

    auc: float | None
    log_loss: float
    log_loss_of_a_constant: float
    expected_calibration_error: float
    by_chance: list[float]


class LogVerdict(TypedDict):
    """How far the log's estimate can be trusted, with reasons in words."""

    policy: str
    reward: str
    estimator: str
    verdict: str
    reason: str


class Evaluation(TypedDict):
    """The part of a report that a serving team needs."""

    policy: str
    verdict: LogVerdict
    per_1000: list[EvaluatedPolicy]
    since: str
    until: str
    impressions: int
    without_choice: int
    members: int
    randomised: int
    captured_lift: float | None
    metrics: FitMetrics
    engaged_metrics: NotRequired[FitMetrics]
    notes: dict[str, str]
    dataset: NotRequired[str]
    onnx_torch_largest_difference: NotRequired[float]
    refreshed_since: NotRequired[list[str]]


class ReferenceHistogram(TypedDict):
    """Counts of values by upper bound: `counts[i]` above `bounds[i - 1]` and up to `bounds[i]`, the last one above all of them.

    `design_effect`, 1 or more, and `effect_spread`, 0 or more, say how values of one member resemble each other: see
    `serving.scoring.drift_counts.Counted`.
    """

    bounds: list[float]
    counts: list[int]
    design_effect: float
    effect_spread: float


class Reference(TypedDict):
    """What the bundle was asked in the validation period, by name of `serving.bundle.reference.BOUNDS`.

    `impressions`: how many of the `sampled_from` validation impressions were counted, chosen by `seed`.
    """

    impressions: int
    sampled_from: int
    seed: int
    histograms: dict[str, ReferenceHistogram]


class RunOrigin(TypedDict, total=False):
    """Facts about the run that a bundle was made from."""

    fingerprint: str
    outcome_delay: str
    validation_from: str
    test_from: str
    log_fingerprint: str
    shards_fingerprint: str
    image_encoder: str
    embedding: EmbeddingOrigin
    provenance: Mapping[str, str]
    metrics: Mapping[str, object]
    """The run's `metrics.json`."""


class Licences(TypedDict):
    """Licences or owners of a bundle's parts."""

    ranker: str
    image_encoder: str
    code: str


class BundleRecord(RunOrigin):
    """`bundle.json`."""

    digest: str
    """SHA-256 over the record's text without this field; empty until it is sealed: see `serving.bundle.seal`."""
    schema_version: int
    contract_version: int
    opset: int
    history_length: int
    history_span: int
    past_length: int
    """Past impressions that a request reads, at most; 0: none change anything, and no graph has them as inputs."""
    fatigue_half_life_hours: float
    outcome_delay: NotRequired[str]
    """After which time an impression's outcome counts as known."""
    graphs: dict[str, GraphDescription]
    rows: str
    files: dict[str, FileDescription]
    licences: Licences
    sha256: dict[str, str]
    precisions: list[PrecisionRow]
    vectors: NotRequired[Difference]
    golden: GoldenDifference
    golden_graphs: GoldenDifference
    explanations: Difference
    parity: ParityDifference
    reference: NotRequired[Reference]
    """Absent where the run was exported without its shards."""
    refreshed: NotRequired[list[Refreshed]]
    evaluation: NotRequired[Evaluation]
