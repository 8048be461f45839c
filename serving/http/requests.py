"""Reading of HTTP requests: JSON in, the graph's inputs out, every fault named by field, value and remedy.

A body is one request or a list of them. Ids are strings; those the bundle does not know are ranked as the unknown row and keep
their names. Fields and limits are declared in `serving.http.schema`, which `serving.http.interface` shows as OpenAPI.

Legend: N requests, T plays, K candidates.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

import numpy as np

from datamodules.contract.stored_types import is_blank
from datamodules.shards.padding import PLAY_FILLS
from foundation.context import HOURS, LARGEST_FLOAT, ContextFeature, categories_of, category_text
from foundation.errors import UserError
from serving.bundle.bundle import Bundle
from serving.bundle.requests import Runs, ranking_inputs
from serving.http.schema import (
    EARLIEST,
    LATEST,
    MAX_CANDIDATES,
    MAX_CLOCK_SKEW,
    MAX_DRAWN,
    MAX_EXPLAINED,
    MAX_PLAY_COUNT,
    MAX_REQUESTS,
    MAX_SEED,
    PLAY,
    REWARD_KINDS,
    Schema,
    request_schema,
)
from serving.http.sticky import sticky_seed
from serving.scoring.policies import MAX_DRAWS, ServingPolicy


class RequestError(Exception):
    """A request that is refused: an HTTP status and one line that names field, value and remedy."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request, checked, its ids looked up."""

    artworks: list[int]
    names: list[str]
    """Ids of the candidates, as they were given."""
    history_titles: list[str]
    """Titles of the history, as they were given: the last plays, oldest first."""
    history: tuple[list[int], list[int], list[float]]
    """Columns of those plays: rows of titles and artworks, and watched (NaN: not known)."""
    context: dict[str, int | float]
    """By feature: row of a category, number (float), hour or position."""
    title: int
    play_count: int
    policy: ServingPolicy
    reward: str
    """The reward that the policy chooses by: one of REWARDS."""
    seed: int | None
    explain: bool
    title_name: str
    """Id of the title, as it was given."""
    categories: tuple[str, ...]
    """Categories of the context that are given."""
    left_out: int
    """Plays of the history that were later than the request."""

    @property
    def drawn(self) -> int:
        """Candidates x draws of Thompson sampling; 0 for other policies."""
        return len(self.names) * int(self.policy.strength) if self.policy.kind == "thompson" else 0


class RequestReader:
    """Bodies -> requests of one bundle."""

    def __init__(self, bundle: Bundle, max_draws: int = MAX_DRAWS, sticky_seconds: float = 0.0) -> None:
        """`max_draws`: of Thompson sampling, for a request; `sticky_seconds`: see `serving.http.sticky`, 0: new seeds."""
        self.max_draws, self.sticky_seconds = max_draws, sticky_seconds
        owner = bundle.tables.get("artwork_title")
        self.owner = None if owner is None else owner.tolist()
        self.features = bundle.context
        self.fields = request_schema(self.features)
        # a dict each: Arrow's lookup builds its table anew for every call
        kinds = ("titles", "artworks", *categories_of(self.features))
        self.rows = {k: {value: row for row, value in enumerate(bundle.vocabularies[k].values, 1)} for k in kinds}
        self.titles, self.artworks = self.rows["titles"], self.rows["artworks"]
        self.title_names, self.categories = bundle.vocabularies["titles"].values, categories_of(self.features)
        self.history_length = bundle.history_length

    def read(self, body: bytes, now: float) -> tuple[list[Request], bool]:
        """The requests of a body, and whether it is a list; `now`: seconds since 1970. RequestError where any is invalid."""
        try:
            payload = json.loads(body.decode(), parse_constant=_no_constant)
        except RecursionError:
            raise RequestError(400, "body: is nested too deep to be a request. GET /docs shows one.") from None
        except ValueError as error:
            raise RequestError(400, f"body: invalid JSON ({str(error)[:100]}). GET /docs shows a request.") from None
        if not isinstance(payload, list):
            return [self._request(payload, "", now)], False
        if len(payload) > MAX_REQUESTS:
            raise RequestError(422, f"body: {len(payload):,} requests. Send at most {MAX_REQUESTS} at a time.")
        read = [self._request(request, f"[{index}].", now) for index, request in enumerate(payload)]
        total = sum(len(request.artworks) for request in read)
        if total > MAX_CANDIDATES:
            raise RequestError(422, f"artworks: {total:,} in one body. Send at most {MAX_CANDIDATES:,} at a time.")
        drawn = sum(request.drawn for request in read)
        if drawn > MAX_DRAWN:
            raise RequestError(
                422,
                f"policy: {drawn:,} candidates x draws in one body. Send at most {MAX_DRAWN:,}: fewer requests or draws.",
            )
        explained = sum(len(request.names) for request in read if request.explain)
        if explained > MAX_EXPLAINED:
            raise RequestError(
                422, f"explain: {explained:,} candidates in one body. Send at most {MAX_EXPLAINED:,} to be explained."
            )
        return read, True

    def _request(self, fields_given: Any, prefix: str, now: float) -> Request:
        if not isinstance(fields_given, dict):
            raise RequestError(
                422,
                f"{prefix.rstrip('.') or 'body'}: is {_quoted(fields_given)}. Give an object with title and artworks.",
            )
        _require_known_fields(fields_given, self.fields, prefix)
        title = _id(fields_given, "title", prefix)
        names = fields_given.get("artworks")
        if not isinstance(names, list) or not names:
            raise RequestError(
                422, f"{prefix}artworks={_quoted(names)}: holds no candidates. Give a list of one id or more."
            )
        if len(names) > MAX_CANDIDATES:
            raise RequestError(422, f"{prefix}artworks: {len(names):,} candidates. Give at most {MAX_CANDIDATES:,}.")
        for index, name in enumerate(names):
            if type(name) is not str or is_blank(name):
                raise RequestError(
                    422, f"{prefix}artworks[{index}]={_quoted(name)}: invalid id. Ids are strings that are not blank."
                )
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise RequestError(
                422, f"{prefix}artworks: duplicate candidate {_quoted(twice)}. Give each candidate once."
            )

        time = fields_given.get("time")
        timestamp = now if time is None else _timestamp(time, f"{prefix}time")
        context = {
            feature.name: self._context_value(feature, fields_given, prefix, timestamp) for feature in self.features
        }
        plays = fields_given.get("history")
        if plays is not None and not isinstance(plays, list):
            raise RequestError(
                422, f"{prefix}history={_quoted(plays)}: must be a list. Give the plays, oldest first, or []."
            )
        history_titles, history, left_out = self._history(plays or [], prefix, timestamp + MAX_CLOCK_SKEW)
        given_plays = len(plays or []) - left_out
        count = max(given_plays, _integer(fields_given, "play_count", prefix, 0, MAX_PLAY_COUNT, 0))
        policy, reward = (
            _policy(fields_given, prefix, len(names), self.max_draws),
            _string(fields_given, "reward", prefix, default=REWARD_KINDS[0]),
        )
        if reward not in REWARD_KINDS:
            raise RequestError(
                422, f"{prefix}reward={_quoted(reward)}: unknown reward. Give {' or '.join(REWARD_KINDS)}."
            )
        if policy.kind == "thompson" and reward != REWARD_KINDS[0]:
            raise RequestError(
                422,
                f"{prefix}reward={reward}: the posterior is of clicks. Give reward=clicked, or policy=epsilon:SHARE.",
            )
        explain = fields_given.get("explain")
        if explain is not None and type(explain) is not bool:
            raise RequestError(422, f"{prefix}explain={_quoted(explain)}: must be true or false.")
        if explain and len(names) > MAX_EXPLAINED:
            raise RequestError(
                422, f"{prefix}explain: {len(names):,} candidates. Explain at most {MAX_EXPLAINED:,} at a time."
            )
        artwork_rows, title_row = [self.artworks.get(name, 0) for name in names], self.titles.get(title, 0)
        self._require_own_artworks(title_row, artwork_rows, names, title, prefix)
        member = _string(fields_given, "member", prefix)
        seed = None if fields_given.get("seed") is None else _integer(fields_given, "seed", prefix, 0, MAX_SEED, 0)
        if seed is None and member and self.sticky_seconds:
            seed = sticky_seed(member, title, timestamp, self.sticky_seconds)
        return Request(
            artworks=artwork_rows,
            names=names,
            history_titles=history_titles,
            history=history,
            context=context,
            title=title_row,
            play_count=count,
            policy=policy,
            reward=reward,
            seed=seed,
            explain=bool(explain),
            title_name=title,
            left_out=left_out,
            categories=tuple(name for name in self.categories if fields_given.get(name) not in (None, "")),
        )

    def _require_own_artworks(
        self, title_row: int, artwork_rows: list[int], names: list[str], title: str, prefix: str
    ) -> None:
        """RequestError where a known artwork is of another title: of what the title's row adds nothing would be right."""
        if self.owner is None or not title_row:
            return
        for index, row in enumerate(artwork_rows):
            if row and (owner := self.owner[row]) not in (0, title_row):
                raise RequestError(
                    422,
                    f"{prefix}artworks[{index}]={_quoted(names[index])}: is an artwork of title "
                    f"{_quoted(self.title_names[owner - 1])}, not of {_quoted(title)}. Give the title's own artworks.",
                )

    def _context_value(
        self, feature: ContextFeature, fields_given: dict[str, Any], prefix: str, timestamp: float
    ) -> int | float:
        """A feature's value, its unknown one where the request lacks the field; an hour is that of the request's time."""
        name, value = feature.name, fields_given.get(feature.name)
        if feature.kind == "category":
            if type(value) in (bool, int):
                return self.rows[name].get(category_text(value), 0)
            return self.rows[name].get(_string(fields_given, name, prefix), 0)
        if feature.kind == "number":
            if value is None:
                return math.nan
            if type(value) not in (int, float, bool) or not abs(value) <= LARGEST_FLOAT:
                raise RequestError(
                    422, f"{prefix}{name}={_quoted(value)}: give a number of 32 bits, or null where it is not known."
                )
            return float(value)
        if feature.kind == "position":
            return _integer(fields_given, name, prefix, -1, feature.maximum, -1)
        if not feature.from_time:
            return _integer(fields_given, name, prefix, 0, feature.maximum, -1)
        if value is not None and fields_given.get("time") is not None:
            raise RequestError(422, f"{prefix}{name}={_quoted(value)}: given beside time. Give one of the two.")
        return _integer(fields_given, name, prefix, 0, feature.maximum, math.floor(timestamp) // 3600 % HOURS)

    def _history(
        self, plays: list[Any], prefix: str, end: float
    ) -> tuple[list[str], tuple[list[int], list[int], list[float]], int]:
        """The last plays: titles as given, and their columns; and how many were left out as later than `end`, as in training.

        Where every play has a time, time is their order, else it is that of the list.
        """
        for index, play in enumerate(plays):
            if type(play) is not dict:
                raise RequestError(
                    422, f"{prefix}history[{index}]={_quoted(play)}: invalid play. Give an object with title."
                )
        first = 0 if all("time" in play for play in plays) else max(0, len(plays) - self.history_length)
        moments: list[tuple[float, int]] = []
        for index, play in enumerate(plays[first:], first):
            time = play.get("time")
            moments.append((math.nan if time is None else _timestamp(time, f"{prefix}history[{index}].time"), index))
        past = [moment for moment in moments if not moment[0] > end]
        if not any(math.isnan(timestamp) for timestamp, _ in past):
            past.sort()
        history_titles: list[str] = []
        artworks: list[int] = []
        watched: list[float] = []
        for _, index in past[-self.history_length :]:
            play, where = plays[index], f"{prefix}history[{index}]"
            _require_known_fields(play, PLAY, f"{where}.")
            history_titles.append(_id(play, "title", f"{where}."))
            artworks.append(self.artworks.get(_string(play, "artwork", f"{where}."), 0))
            watched.append(_fraction(play.get("watched"), f"{where}.watched"))
        columns = ([self.titles.get(title, 0) for title in history_titles], artworks, watched)
        return history_titles, columns, len(moments) - len(past)


def ids_by_kind(requests: Sequence[Request]) -> dict[str, tuple[int, int]]:
    """By kind (title, artwork, play, and each category of the context): ids given, and of those unknown to the bundle."""
    counts = {
        "title": (len(requests), sum(not request.title for request in requests)),
        "artwork": (
            sum(len(request.artworks) for request in requests),
            sum(request.artworks.count(0) for request in requests),
        ),
        "play": (
            sum(len(request.history[0]) for request in requests),
            sum(request.history[0].count(0) for request in requests),
        ),
    }
    for request in requests:
        for name in request.categories:
            given, unknown = counts.get(name, (0, 0))
            counts[name] = (given + 1, unknown + (not request.context[name]))
    return counts


def inputs(requests: Sequence[Request]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The graph's inputs for some requests, padded to the longest, and the mask of candidates: bool (N, K)."""
    columns: list[list[Any]] = [[value for request in requests for value in request.history[c]] for c in range(3)]
    plays = {
        name: np.array(column, dtype) for (name, (_, dtype)), column in zip(PLAY_FILLS.items(), columns, strict=True)
    }
    context = {}
    for name, first in requests[0].context.items():
        context[name] = np.array(
            [request.context[name] for request in requests], np.float32 if isinstance(first, float) else np.int64
        )
    return ranking_inputs(
        plays,
        Runs.of([len(request.history_titles) for request in requests]),
        context,
        np.array([request.play_count for request in requests]),
        np.array([request.title for request in requests]),
        np.array([row for request in requests for row in request.artworks]),
        Runs.of([len(request.artworks) for request in requests]),
    )


def _policy(fields_given: dict[str, Any], prefix: str, candidates: int, max_draws: int) -> ServingPolicy:
    text = _string(fields_given, "policy", prefix, default="greedy")
    try:
        policy = ServingPolicy.parse(text)
    except UserError:
        forms = "greedy, epsilon:SHARE (0 .. 1), softmax:TEMPERATURE (above 0) or thompson:DRAWS:WIDTH:FLOOR"
        raise RequestError(422, f"{prefix}policy={_quoted(text)}: unknown policy. Give {forms}.") from None
    most = min(max_draws, MAX_DRAWN // candidates)
    if policy.kind == "thompson" and policy.strength > most:
        raise RequestError(
            422, f"{prefix}policy={text}: too many draws for {candidates:,} candidates. Give thompson:{most}."
        )
    return policy


def _require_known_fields(fields_given: dict[str, Any], fields: dict[str, Schema], prefix: str) -> None:
    if fields_given.keys() <= fields.keys():
        return
    name = next(name for name in fields_given if name not in fields)
    close_matches = get_close_matches(name[:40], fields, 1)
    hint = f"Did you mean {close_matches[0]}?" if close_matches else f"Fields: {', '.join(fields)}."
    raise RequestError(422, f"{prefix}{_quoted(name)}: unknown field. {hint}")


def _string(fields_given: dict[str, Any], name: str, prefix: str, *, required: bool = False, default: str = "") -> str:
    value = fields_given.get(name)
    if type(value) is str:
        return value
    if value is None and not required:
        return default
    if name not in fields_given:
        raise RequestError(422, f"{prefix}{name}: is missing. GET /docs shows a request.")
    raise RequestError(422, f"{prefix}{name}={_quoted(value)}: must be a string. Put it in quotes.")


def _id(fields_given: dict[str, Any], name: str, prefix: str) -> str:
    """An id that must be there: a blank one is as good as null."""
    value = _string(fields_given, name, prefix, required=True)
    if is_blank(value):
        raise RequestError(422, f"{prefix}{name}={_quoted(value)}: is blank. Give the id.")
    return value


def _integer(fields_given: dict[str, Any], name: str, prefix: str, minimum: int, maximum: int, default: int) -> int:
    value = fields_given.get(name)
    if value is None:
        return default
    if type(value) is float and value.is_integer():  # 1.0 is an integer of JSON Schema
        value = int(value)
    if type(value) is not int or not minimum <= value <= maximum:
        raise RequestError(422, f"{prefix}{name}={_quoted(value)}: give a whole number, {minimum} .. {maximum:,}.")
    return value


def _fraction(value: Any, where: str) -> float:
    """A fraction, 0 .. 1; NaN for null."""
    if value is None:
        return math.nan
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise RequestError(422, f"{where}={_quoted(value)}: give a fraction, 0 .. 1, or null where it is not known.")
    return float(value)


def _timestamp(value: Any, where: str) -> float:
    """Seconds since 1970."""
    seconds = math.nan
    if type(value) in (int, float):
        seconds = value
    elif type(value) is str:
        try:
            parsed = datetime.fromisoformat(value)
            seconds = (parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed).timestamp()
        except ValueError:
            pass
    if not EARLIEST <= seconds <= LATEST:
        raise RequestError(
            422,
            f"{where}={_quoted(value)}: invalid time, must lie in 1900 to 2100. Give ISO 8601, or seconds (not ms) since 1970.",
        )
    return seconds


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; write null where a value is not known")


_KINDS: dict[type, Callable[[Any], str]] = {
    dict: lambda _: "an object",
    list: lambda value: "[]" if not value else "a list",
}


def _quoted(value: Any) -> str:
    """A value on one line, cut where it is long."""
    if type(value) in _KINDS:
        return _KINDS[type(value)](value)
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
