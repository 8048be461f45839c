"""The fields and limits of requests: the one declaration by which requests are read and OpenAPI is written."""

from collections.abc import Iterable
from typing import Any

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
TIME: Schema = {"type": ["string", "number", "null"]}
PLAY: dict[str, Schema] = {
    "title": {"type": "string", "description": "id of the title played"},
    "artwork": {"type": ["string", "null"], "description": "id of the artwork it was clicked through, where known"},
    "watched": {"type": ["number", "null"], "minimum": 0, "maximum": 1, "description": "fraction watched, where known"},
    "time": TIME
    | {
        "description": "when, ISO 8601 (UTC where it names no zone) or seconds since 1970. Checked, and not read by the "
        "model: what counts is the order of the plays"
    },
}
REQUEST: dict[str, Schema] = {
    "title": {"type": "string", "description": "id of the title whose artwork is chosen"},
    "artworks": {
        "type": "array",
        "items": {"type": "string"},
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
        "description": "the member's plays, oldest first; of more than the bundle reads, the last count",
    },
    "time": TIME | {"description": "when the artwork is shown, as a play's; default: now. Not beside hour"},
    "play_count": {
        "type": ["integer", "null"],
        "minimum": 0,
        "maximum": MAX_PLAY_COUNT,
        "description": "plays of the member so far; default: those in history",
    },
    "policy": {
        "type": ["string", "null"],
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
