"""The fields and limits of requests: the one declaration by which requests are read and OpenAPI is written."""

from collections.abc import Iterable
from typing import Any

from datamodules.contract.stored_types import BLANK_RANGES
from foundation.context import ContextFeature
from serving.scoring.policies import DEFAULT_DRAWS

MAX_CANDIDATES, MAX_REQUESTS = 10_000, 256
"""Limits of one body: candidates of all its requests, and requests."""
MAX_DRAWN = MAX_CANDIDATES * DEFAULT_DRAWS
"""Limit of candidates x draws of Thompson sampling in one body."""
MAX_EXPLAINED = 1_000
"""Limit of candidates of the requests of one body that are to be explained."""
MAX_CLOCK_SKEW = 300
"""Seconds that another machine's clock may be ahead of this one's."""
EARLIEST, LATEST = -2_208_988_800, 4_102_444_800
"""1900 and 2100, in seconds since 1970."""
REWARD_KINDS = ("clicked", "engaged")
MAX_PLAY_COUNT, MAX_SEED = 2**31 - 1, 2**53

Schema = dict[str, Any]
_DAYS = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])"
_CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\\.[0-9]{1,6})?)?(Z|[+-](0[0-9]|1[0-4]):[0-5][0-9])?"
TIME: Schema = {
    "anyOf": [
        {"type": "string", "pattern": f"^(19[1-9][0-9]|20[0-9][0-9])-({_DAYS})([T ]{_CLOCK})?$"},
        {"type": "number", "minimum": EARLIEST, "maximum": LATEST},
        {"type": "null"},
    ]
}
"""A time in ISO 8601, seconds since 1970, or null. Pattern for what most clients send; 29 February is read as well."""
ID: Schema = {"type": "string", "pattern": f"[^{BLANK_RANGES}]"}
"""An id: it has a character that can be seen."""
_SHARE = "(0?\\.[0-9]{1,6}|0|1(\\.0{1,6})?)"
_SMALL = "0?\\.0{0,2}[1-9][0-9]{0,3}"
_TEMPERATURE, _WIDTH = (f"([1-9][0-9]{{0,{digits}}}(\\.[0-9]{{1,6}})?|{_SMALL})" for digits in (2, 1))
POLICY_PATTERN = (
    f"^(greedy|epsilon:{_SHARE}|softmax:{_TEMPERATURE}|thompson(:[1-9][0-9]{{0,2}}(:{_WIDTH}(:{_SHARE})?)?)?)$"
)
"""What most clients send; longer numbers are read as well."""
PLAY: dict[str, Schema] = {
    "title": ID | {"description": "id of the title played"},
    "artwork": {"type": ["string", "null"], "description": "id of the artwork it was clicked through, where known"},
    "watched": {"type": ["number", "null"], "minimum": 0, "maximum": 1, "description": "fraction watched, where known"},
    "time": TIME
    | {
        "description": "when, ISO 8601 (UTC where it names no zone) or seconds since 1970. Where every play has one, it is their "
        "order; a play later than the request is left out, and counted in the answer"
    },
}
IMPRESSION: dict[str, Schema] = {
    "artwork": ID | {"description": "id of the artwork that was shown"},
    "clicked": {"type": ["boolean", "null"], "description": "whether the member clicked; default: false"},
    "time": TIME | {"description": "when it was shown, as a play's"},
}
REQUEST: dict[str, Schema] = {
    "title": ID | {"description": "id of the title whose artwork is chosen"},
    "artworks": {
        "type": "array",
        "items": ID,
        "minItems": 1,
        "maxItems": MAX_CANDIDATES,
        "uniqueItems": True,
        "description": "ids of the candidates",
    },
    "member": {
        "type": ["string", "null"],
        "description": "id of the member. Read by `keyart serve --sticky` alone, which makes the seed of it",
    },
    "history": {
        "type": ["array", "null"],
        "items": {"$ref": "#/components/schemas/Play"},
        "description": "the member's plays, oldest first or each with its time; of more than the bundle reads, the last "
        "count",
    },
    "impressions": {
        "type": ["array", "null"],
        "items": {"$ref": "#/components/schemas/Impression"},
        "description": "the member's past impressions, oldest first or each with its time; of more than the bundle reads, the "
        "last count. Those later than the request, or so short before it that their outcome is not known yet, are left out, and "
        "counted in the answer",
    },
    "time": TIME | {"description": "when the artwork is shown, as a play's; default: now. Not beside hour"},
    "play_count": {
        "type": ["integer", "null"],
        "minimum": 0,
        "maximum": MAX_PLAY_COUNT,
        "description": "plays of the member so far; default, and at least: those in history",
    },
    "policy": {
        "type": ["string", "null"],
        "pattern": POLICY_PATTERN,
        "description": "greedy (default), epsilon:SHARE, softmax:TEMPERATURE or thompson[:DRAWS[:WIDTH[:FLOOR]]]",
    },
    "reward": {
        "type": ["string", "null"],
        "enum": [*REWARD_KINDS, None],
        "description": "what the policy chooses by: clicked (default) or engaged, a click that leads to a real viewing; "
        "thompson by clicked alone",
    },
    "seed": {
        "type": ["integer", "null"],
        "minimum": 0,
        "maximum": MAX_SEED,
        "description": "seed of the choice where the policy is random; default: a new one each time, or under --sticky one by "
        "member, title and time",
    },
    "explain": {"type": ["boolean", "null"], "description": "explain the chosen artwork, where there are two or more"},
}
REQUIRED = ("title", "artworks")


RULES: list[Schema] = [
    {"anyOf": [{"properties": {"hour": {"type": "null"}}}, {"properties": {"time": {"type": "null"}}}]},
    {
        "anyOf": [
            {"properties": {"policy": {"not": {"type": "string", "pattern": "^thompson"}}}},
            {"properties": {"reward": {"enum": [REWARD_KINDS[0], None]}}},
        ]
    },
]
"""Rules over several fields of a request: an hour or a time; Thompson sampling by clicks alone."""


def request_schema(features: Iterable[ContextFeature]) -> dict[str, Schema]:
    """The fields of a request, those of the context features among them."""
    return REQUEST | {feature.name: _feature_schema(feature) for feature in features}


def _feature_schema(feature: ContextFeature) -> Schema:
    meaning = feature.description or f"{feature.source} of the log"
    if feature.kind == "category":
        meaning += "; as the log has it: where that has true and false, 1 and 0 are unknown"
        return {"type": ["string", "integer", "boolean", "null"], "description": meaning}
    if feature.kind == "number":
        return {"type": ["number", "boolean", "null"], "description": f"{meaning}; true counts as 1, false as 0"}
    if feature.from_time:
        meaning += "; default: of time"
    minimum = 0 if feature.kind == "hour" else -1
    return {"type": ["integer", "null"], "minimum": minimum, "maximum": feature.maximum, "description": meaning}
