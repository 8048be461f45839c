"""The service's description, as OpenAPI 3.1 and as one self-contained HTML page."""

from html import escape
from typing import Any

from foundation.context import categories_of
from serving.bundle.bundle import Bundle
from serving.http.schema import IMPRESSION, MAX_REQUESTS, PLAY, REQUIRED, RULES, request_schema

Spec = dict[str, Any]

_NUMBER: Spec = {"type": "number"}
RANKED: dict[str, Spec] = {
    "artwork": {"type": "string", "description": "its id, as it was given"},
    "click_probability": _NUMBER | {"description": "calibrated probability of a click, were it shown"},
    "engaged_probability": _NUMBER | {"description": "of a click that leads to a real viewing"},
    "appeal": _NUMBER
    | {"description": "what it adds to the click logit above its title's mean artwork, for this member"},
    "propensity": _NUMBER | {"description": "probability with which the policy shows it"},
    "known": {
        "type": "boolean",
        "description": "whether the bundle knows the artwork; others are ranked as a typical one",
    },
}
TITLE: dict[str, Spec] = {
    "id": {"type": "string", "description": "as it was given"},
    "known": {"type": "boolean", "description": "whether the bundle knows the title"},
}
HISTORY: dict[str, Spec] = {
    "plays": {"type": "integer", "description": "plays that were read"},
    "left_out": {
        "type": "integer",
        "description": "plays that were later than the request's time, which no model is shown",
    },
}
IMPRESSIONS: dict[str, Spec] = {
    "read": {"type": "integer", "description": "past impressions that were read: 0 where the bundle reads none"},
    "left_out": {
        "type": "integer",
        "description": "those that were later than the request's time, or whose outcome was not known yet",
    },
}
CHOSEN: dict[str, Spec] = {
    "artwork": {"type": "string", "description": "the one to show"},
    "propensity": _NUMBER | {"description": "with which it was chosen: log it beside what the member does"},
}
EXPLANATION: dict[str, Spec] = {
    "artwork": {"type": "string", "description": "the chosen one"},
    "appeal": _NUMBER | {"description": "above the mean of the other candidates; what follows adds up to it"},
    "itself": _NUMBER | {"description": "the artwork's own, the same for every member"},
    "context": _NUMBER | {"description": "what the context features add, together"},
    "context_features": {"type": "object", "description": "its parts by context feature"},
    "state": _NUMBER | {"description": "contribution of the history's order, which no single play has"},
    "plays": {
        "type": "array",
        "items": {"type": "object"},
        "description": "those that contribute most: title, ago (1: the last), and by part: learned, image, people, genres",
    },
    "people": {"type": "array", "items": {"type": "object"}, "description": "people it shows: name, likeness"},
    "own_clicks": _NUMBER
    | {"description": "what the member's own clicks add, where the bundle reads past impressions"},
    "fatigue": _NUMBER | {"description": "what it loses by being shown and not clicked, likewise"},
}
OF_PAST = ("own_clicks", "fatigue")
"""Parts of an explanation that bundles have which read past impressions."""
ANSWER: dict[str, Spec] = {
    "chosen": {"$ref": "#/components/schemas/Chosen"},
    "artworks": {
        "type": "array",
        "items": {"$ref": "#/components/schemas/Ranked"},
        "description": "by click_probability, the best first",
    },
    "title": {"$ref": "#/components/schemas/Title"},
    "history": {"$ref": "#/components/schemas/History"},
    "impressions": {"$ref": "#/components/schemas/Impressions"},
    "bundle": {"type": "string", "description": "digest of the bundle that answered: log it beside the propensity"},
    "affinity": _NUMBER | {"description": "what the title adds to the click logit, for this member"},
    "explanation": {
        "anyOf": [{"$ref": "#/components/schemas/Explanation"}, {"type": "null"}],
        "description": "where requested; null for a single candidate",
    },
}
ERROR_STATUSES = {
    400: "no JSON, or no host in the head",
    408: "the head or the body took too long",
    413: "the body is too large",
    415: "the body's content type is not JSON",
    422: "a field is invalid: error names it, its value and the remedy",
    431: "the head is too large",
    503: "too busy to answer within the deadline: retry after the seconds of the header Retry-After",
}
GENERAL_STATUSES = {404: "no such path", 405: "the path has another method"}
OTHER_PATHS = {
    "/health": ("The process works (503: restart it): the bundle's digest.", "application/json"),
    "/ready": ("Requests are answered (503: not now): the bundle's digest.", "application/json"),
    "/metrics": ("Metrics of the service, for Prometheus.", "text/plain"),
    "/openapi.json": ("This description.", "application/json"),
    "/docs": ("This description as a page.", "text/html"),
    "/": ("The list of paths.", "application/json"),
}


def example(bundle: Bundle) -> dict[str, Any]:
    """An example request with ids that the bundle knows."""
    vocabularies = {name: vocabulary.values for name, vocabulary in bundle.vocabularies.items()}
    request: dict[str, Any] = {
        "title": (vocabularies["titles"] or ["a title"])[0],
        "artworks": vocabularies["artworks"][:3],
    }
    request["history"] = [{"title": title, "watched": 0.9} for title in vocabularies["titles"][1:3]]
    request |= {name: vocabularies[name][0] for name in categories_of(bundle.context) if vocabularies[name]}
    return request | {"policy": "epsilon:0.1"}


def openapi(bundle: Bundle, version: str, *, secured: bool = False) -> Spec:
    """The description of a bundle's service; `secured`: whether it wants a token."""
    request_reference, answer_reference = (
        {"$ref": "#/components/schemas/Request"},
        {"$ref": "#/components/schemas/Answer"},
    )
    fields = request_schema(bundle.context)
    explanation = {name: spec for name, spec in EXPLANATION.items() if bundle.past_length or name not in OF_PAST}
    unauthorised = {401: "the token is missing or wrong"} if secured else {}
    rank = {
        "summary": "Rank a title's artworks for a member and choose one; a list of requests is answered by a list.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _one_or_list(request_reference), "example": example(bundle)}},
        },
        "responses": {
            "200": {
                "description": "ranked",
                "content": {"application/json": {"schema": _one_or_list(answer_reference)}},
            },
            **_refusals(ERROR_STATUSES | unauthorised | GENERAL_STATUSES),
        },
    }
    refused = _refusals(unauthorised | GENERAL_STATUSES | {431: ERROR_STATUSES[431], 503: "not now"})
    others = {
        path: {
            "get": {"summary": summary, "responses": {"200": {"description": summary, "content": {kind: {}}}} | refused}
        }
        for path, (summary, kind) in OTHER_PATHS.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "keyart",
            "version": version,
            "description": "Which artwork of a title makes this member want to watch it. The bundle reads the last "
            f"{bundle.history_length} plays of a history. Ids it does not know are ranked as unknown, under their names.",
        },
        "paths": {"/rank": {"post": rank}} | others,
        "components": {
            "schemas": {
                "Request": _object(fields, REQUIRED) | {"allOf": RULES},
                "Play": _object(PLAY, ("title",)),
                "Impression": _object(IMPRESSION, ("artwork",)),
                "Answer": _object(ANSWER, tuple(name for name in ANSWER if name != "explanation")),
                "Title": _object(TITLE, tuple(TITLE)),
                "History": _object(HISTORY, tuple(HISTORY)),
                "Impressions": _object(IMPRESSIONS, tuple(IMPRESSIONS)),
                "Chosen": _object(CHOSEN, tuple(CHOSEN)),
                "Ranked": _object(RANKED, tuple(RANKED)),
                "Explanation": _object(explanation, tuple(explanation)),
                "Refusal": _object({"error": {"type": "string", "description": "one line"}}, ("error",)),
            }
        },
    }


def _refusals(summaries: dict[int, str]) -> dict[str, Spec]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    return {str(status): {"description": summary, "content": content} for status, summary in summaries.items()}


def _one_or_list(schema: Spec) -> Spec:
    return {"oneOf": [schema, {"type": "array", "items": schema, "maxItems": MAX_REQUESTS}]}


def _object(fields: dict[str, Spec], required: tuple[str, ...]) -> Spec:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .2rem .8rem .2rem 0; vertical-align: top }
tr { border-bottom: 1px solid #ddd } code, pre { background: #f4f4f4; padding: .1rem .3rem } pre { padding: .8rem; overflow: auto }
"""


def page(spec: Spec, curl: str) -> str:
    """The description as HTML, without scripts, fonts or images."""
    info, parts = spec["info"], []
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>")
            if "requestBody" in operation:
                rows = ((status, entry["description"]) for status, entry in operation["responses"].items())
                parts.append(f"<pre>{escape(curl)}</pre>{_table(('status', 'meaning'), rows)}")
    for name, schema in spec["components"]["schemas"].items():
        rows = (
            (field + ("" if field in schema["required"] else "?"), _kind(entry), entry.get("description", ""))
            for field, entry in schema["properties"].items()
        )
        parts.append(f"<h2 id='{name}'>{name}</h2>{_table(('field', 'kind', 'meaning'), rows)}")
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(info['title'])}</title>"
        f"<style>{STYLE}</style><h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f"<p>{escape(info['description'])} A field marked ? may be left out.</p>{''.join(parts)}</html>"
    )


def _table(headers: tuple[str, ...], rows: Any) -> str:
    head = "".join(f"<th>{escape(word)}</th>" for word in headers)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _kind(schema: Spec) -> str:
    """A schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(_kind(part) for part in schema["anyOf"])
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "type" not in schema:
        return ""
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    words = " or ".join(f"list of {_kind(schema['items'])}" if kind == "array" else kind for kind in kinds)
    return f"{words}, {schema['minimum']} .. {schema['maximum']:,}" if "minimum" in schema else words
