"""Context features: the attributes of an impression beside member, title and artwork, each declared once.

Columns of shards and batches, embedding tables, inputs of the graphs, fields of a request, golden cases, explanations,
slices and descriptions are derived from these declarations by loop. `BUILT_IN` are the contract's own columns; any other
column of `impressions/` becomes a feature by configuration, `keyart prepare --context '[{name: language, kind: category}]'`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from foundation.atomic import atomic_file
from foundation.errors import UserError

ContextKind = Literal["category", "number", "hour", "position"]
Term = Literal["appeal", "presentation", "engagement"]

CONTEXT_FILE, CONTEXT_BESIDE_PARQUET = "context.json", "_context.json"
"""The second one is that of a folder of Parquet files, whose readers pass over names that begin with _."""
"""File in shards, runs and bundles: the features, numbers with the mean and standard deviation of the training period."""
HOURS = 24
LARGEST_POSITION = 2**15 - 1
"""The largest position in a log and in a request."""
SMALLEST_FLOAT, LARGEST_FLOAT = 1.1754943508222875e-38, 3.4028234663852886e38
"""The range of normal 32-bit numbers, in which numbers are kept and divided."""
OWN_COLUMNS = "keyart_"
"""How the columns begin that keyart computes beside those of a log."""
MAX_POSITION = 32
"""Positions past this one share its row."""
KNOTS = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Standardised values at which the effect of a number is learned; it is linear between them and constant outside."""
RESERVED = frozenset(
    {
        *("titles", "artworks", "people", "genres", "policies"),
        *("impression_id", "member_id", "title_id", "artwork_id", "shown_at", "candidates", "propensities"),
        *("propensity", "policy", "clicked", "engaged", "minutes"),
        *("title", "candidate", "history", "time", "play_count", "reward", "seed", "explain"),
        *(
            "member",
            "played_before",
            "artwork",
            "impressions",
            "updated",
            "played",
            "top",
            "choice",
            "image",
            "image_embedding",
            "embedding",
            "depicts",
            "cast",
            "release_year",
            "scores",
        ),
        *("click_probability", "engaged_probability", "appeal", "affinity"),
        *(
            "by_play",
            "by_image",
            "by_people",
            "by_genres",
            "by_person",
            "by_context",
            "of_artwork",
            "of_state",
            "of_title",
            "by_past",
            "of_past",
            "by_fatigue",
        ),
    }
)
"""Reserved names: columns of the contract, fields of a request, inputs and outputs of the graphs."""
RESERVED_PREFIXES = (
    "history_",
    "past_",
    "play_",
    "title_",
    "artwork_",
    "mean_",
    "retrieval_",
    "content_",
    "context_",
    "depicts_",
    "keyart_",
)
"""Reserved prefixes: of the graphs' tables, which grow with the catalogue by prefix, and of inputs."""


REFERENCES: dict[ContextKind, str] = {
    "category": "a text, a whole number, true or false",
    "number": "a number of 32 bits",
    "hour": f"a whole number, 0 to {HOURS - 1}",
    "position": f"a whole number, 0 to {LARGEST_POSITION:,}",
}
"""By kind: the values that a feature may have in a request."""


@dataclass(frozen=True, kw_only=True)
class ContextFeature:
    """One feature of an impression's context."""

    name: str
    """Name of the request's field, the graphs' input and the vocabulary: lower-case letters, digits and underscores."""
    kind: ContextKind
    """category: a text, whole number or truth value; number; hour: of the day, 0 .. 23; position: counted from 0."""
    terms: tuple[Term, ...] = ()
    """Terms that read it: appeal (which artwork), presentation (whether any is clicked), engagement (whether a click leads to a
    viewing). Empty: appeal and presentation; for a position, presentation only."""
    column: str = ""
    """Column of impressions/ that holds it; empty: the one of its name."""
    reference: str | bool | int | float | None = None
    """Its value in requests that keyart itself makes, such as those that compare two members; null: unknown. Over HTTP and in
    the graphs a feature that a request leaves out is unknown, whatever its reference."""
    description: str = ""
    """What it means, for those who make requests."""
    crossed_with: str = ""
    """A category; the position then has effects of its own for each value of it."""
    prior: Literal["context", "appeal"] = "context"
    """Which prior strength holds its part in appeal: see `train.prior`."""
    mean: float | None = None
    """Mean by which a number is standardised; null: that of the training period."""
    std: float | None = None
    """Standard deviation by which a number is standardised; null: that of the training period."""

    def __post_init__(self) -> None:
        """Check name and options."""
        where = f"context feature {self.name!r}"
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", self.name):
            raise UserError(
                f"{where}: names are lower-case letters, digits and underscores, 64 at most. Give such a name, and the "
                "column's own as column."
            )
        if self.name in RESERVED or self.name.startswith(RESERVED_PREFIXES):
            raise UserError(
                f"{where}: the name is taken by the contract. Give another name, and the column's own as column."
            )
        if self.kind not in ("category", "number", "hour", "position"):
            raise UserError(f"{where}: kind={self.kind!r} is unknown. Give category, number, hour or position.")
        unknown = set(self.terms) - {"appeal", "presentation", "engagement"}
        if unknown:
            raise UserError(f"{where}: terms={sorted(unknown)} are unknown. Give appeal, presentation or engagement.")
        object.__setattr__(self, "terms", tuple(self.terms))
        if self.kind != "number" and (self.mean, self.std) != (None, None):
            raise UserError(f"{where}: mean and std are for kind=number. Leave them out.")
        if self.mean is not None and not abs(self.mean) <= LARGEST_FLOAT:
            raise UserError(f"{where}: mean={self.mean}: must be a number of 32 bits.")
        if self.std is not None and not SMALLEST_FLOAT <= self.std <= LARGEST_FLOAT:
            raise UserError(f"{where}: std={self.std}: must be above 0 and a number of 32 bits.")
        if self.column.lower().startswith(OWN_COLUMNS):
            raise UserError(
                f"{where}: column={self.column}: columns that begin with {OWN_COLUMNS} are keyart's own. Rename it."
            )
        if not self._reference_fits():
            raise UserError(f"{where}: reference={self.reference!r} is no value of it. Give {REFERENCES[self.kind]}.")
        if self.crossed_with and self.kind != "position":
            raise UserError(f"{where}: crossed_with is for kind=position. Leave it out.")

    def _reference_fits(self) -> bool:
        """Whether the reference is a value that a column of the feature's kind can hold."""
        value = self.reference
        if value is None:
            return True
        if self.kind == "category":
            return not isinstance(value, float)
        if isinstance(value, str):
            return False
        if self.kind == "number":
            return abs(value) <= LARGEST_FLOAT
        return type(value) is int and 0 <= value <= self.maximum

    @property
    def read_by(self) -> tuple[Term, ...]:
        """The terms that read it."""
        return self.terms or (("presentation",) if self.kind == "position" else ("appeal", "presentation"))

    @property
    def source(self) -> str:
        """Its column in impressions/."""
        return self.column or self.name

    @property
    def from_time(self) -> bool:
        """Whether it is computed from `shown_at` and has no column of its own."""
        return self.kind == "hour" and self.source == "shown_at"

    @property
    def dtype(self) -> str:
        """NumPy's name of the type that batches and graphs over rows have."""
        return "float32" if self.kind == "number" else "int64"

    @property
    def stored_dtype(self) -> str:
        """NumPy's name of the type that shards have."""
        return {"category": "int16", "number": "float32", "hour": "int8", "position": "int16"}[self.kind]

    @property
    def maximum(self) -> int:
        """The largest value of an hour or a position."""
        return HOURS - 1 if self.kind == "hour" else LARGEST_POSITION

    @property
    def unknown(self) -> float:
        """The value of a missing one: NaN for a number, row 0 for a category, else -1."""
        return {"category": 0, "number": float("nan"), "hour": -1, "position": -1}[self.kind]

    def rows(self, categories: Mapping[str, int]) -> int:
        """Rows of its embedding table; `categories`: rows of every category's vocabulary, by name."""
        if self.kind == "category":
            return categories[self.name]
        if self.kind == "number":
            return len(KNOTS) + 1
        return HOURS + 1 if self.kind == "hour" else (MAX_POSITION + 2) * categories.get(self.crossed_with, 1)


BUILT_IN = (
    ContextFeature(name="country", kind="category", description="country, as in the log"),
    ContextFeature(
        name="device",
        kind="category",
        terms=("appeal", "presentation", "engagement"),
        prior="appeal",
        description="device, as in the log",
    ),
    ContextFeature(name="hour", kind="hour", column="shown_at", reference=20, description="hour of the day, UTC"),
    ContextFeature(
        name="row", kind="position", crossed_with="device", reference=0, description="row on the page, from 0"
    ),
    ContextFeature(name="column", kind="position", reference=0, description="column in the row, from 0"),
)


def context_features(declared: Sequence[ContextFeature] = ()) -> tuple[ContextFeature, ...]:
    """The built-in features and the declared ones; UserError where two share a name or one is crossed with no category."""
    features = (*BUILT_IN, *declared)
    _require_consistent(features)
    name_of: dict[str, str] = {}
    for feature in declared:
        # engines look columns up without regard to case, and cast a column once
        other = name_of.setdefault(feature.source.lower(), feature.name)
        if other != feature.name:
            raise UserError(
                f"context feature {feature.name!r}: column {feature.source} is read by {other!r} already. Leave one of them out, "
                "or write the column a second time under another name."
            )
    return features


def _require_consistent(features: Sequence[ContextFeature]) -> None:
    """UserError where two features share a name or one is crossed with no category."""
    names = [feature.name for feature in features]
    for feature in features:
        if names.count(feature.name) > 1:
            built_in = " (built in)" if feature.name in [f.name for f in BUILT_IN] else ""
            raise UserError(
                f"context feature {feature.name!r}{built_in}: is declared more than once. Give it another name."
            )
    categories = [feature.name for feature in features if feature.kind == "category"]
    for feature in features:
        if feature.crossed_with and feature.crossed_with not in categories:
            raise UserError(
                f"context feature {feature.name!r}: crossed_with={feature.crossed_with!r} is not a category. "
                f"Categories: {', '.join(categories)}."
            )


def categories_of(features: Iterable[ContextFeature]) -> tuple[str, ...]:
    """Names of the features that have a vocabulary."""
    return tuple(feature.name for feature in features if feature.kind == "category")


def category_text(value: object) -> str:
    """A category's value as a vocabulary has it: whole numbers in digits, truth values as true and false."""
    return value if isinstance(value, str) else str(value).lower()


def features_to_json(features: Iterable[ContextFeature]) -> list[dict[str, Any]]:
    """The features as JSON values."""
    return [asdict(feature) for feature in features]


def features_from_json(values: list[dict[str, Any]]) -> tuple[ContextFeature, ...]:
    """The features from the result of `features_to_json`; TypeError for something else, UserError for invalid features."""
    if not isinstance(values, list):
        raise TypeError("not a list of features")
    features = tuple(ContextFeature(**value) for value in values)
    _require_consistent(features)
    return features


def save_context(features: Iterable[ContextFeature], folder: Path, name: str = CONTEXT_FILE) -> None:
    """Write `context.json` into a folder; `name`: CONTEXT_BESIDE_PARQUET in one of Parquet files."""
    with atomic_file(folder / name) as partial:
        partial.write_text(json.dumps(features_to_json(features), indent=1), encoding="utf-8")


def load_context(folder: Path, remedy: str) -> tuple[ContextFeature, ...]:
    """Read what `save_context` wrote into a folder; UserError with `remedy` where it is missing or damaged."""
    path = folder / CONTEXT_BESIDE_PARQUET
    path = path if path.is_file() else folder / CONTEXT_FILE
    try:
        return features_from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{path}: is missing: {folder} was made before context features were declared. {remedy}"
        ) from None
    except (OSError, ValueError, TypeError, UserError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).rstrip('.')}). {remedy}") from None


def with_statistics(feature: ContextFeature, mean: float, std: float) -> ContextFeature:
    """A number with the mean and standard deviation of the training period where it declares none."""
    return replace(
        feature,
        mean=mean if feature.mean is None else feature.mean,
        std=std if feature.std is None else feature.std,
    )
