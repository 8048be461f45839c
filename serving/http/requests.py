"""Reading of HTTP requests: JSON in, the graph's inputs out, every fault named by field, value and remedy.

A body is one request or a list of them. Ids are strings; those the bundle does not know are ranked as the unknown row and keep
their names. Fields and limits are declared in `serving.http.schema`, which `serving.http.interface` shows as OpenAPI.

Legend: N requests, T plays, K candidates.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.contract.stored_types import is_blank
from datamodules.shards.padding import PLAY_FILLS
from foundation.context import HOURS, LARGEST_FLOAT, ContextFeature, categories_of, category_text
from foundation.errors import UserError
from foundation.times import duration
from serving.bundle.bundle import Bundle
from serving.bundle.requests import Runs, ranking_inputs
from serving.http.fields import (
    RequestError,
    fraction_of,
    id_of,
    integer_of,
    quoted,
    refuse_constant,
    require_known_fields,
    string_of,
    timestamp_of,
)
from serving.http.past_impressions import Past, PastReader, padded_past
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
    request_schema,
)
from serving.http.sticky import sticky_seed
from serving.scoring.policies import MAX_DRAWS, ServingPolicy

NUMBERS = (int, float)


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
    past: Past
    """Columns of past impressions: rows of artworks, clicked (1 or 0), and hours ago (NaN: not known)."""
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
    past_left_out: int
    """Past impressions whose outcome was not known at the request."""
    member: str | None
    """Id of the member, where it was given."""
    policy_text: str
    """The policy as it was given."""

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
        self.history_length, past_length = bundle.request_lengths
        self.past = PastReader(self.artworks, past_length, duration("outcome_delay", bundle.outcome_delay))

    def read(self, body: bytes, now: float) -> tuple[list[Request], bool]:
        """The requests of a body, and whether it is a list; `now`: seconds since 1970. RequestError where any is invalid."""
        try:
            payload = json.loads(body.decode(), parse_constant=refuse_constant)
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
                f"{prefix.rstrip('.') or 'body'}: is {quoted(fields_given)}. Give an object with title and artworks.",
            )
        require_known_fields(fields_given, self.fields, prefix)
        title = id_of(fields_given, "title", prefix)
        names = fields_given.get("artworks")
        if not isinstance(names, list) or not names:
            raise RequestError(
                422, f"{prefix}artworks={quoted(names)}: holds no candidates. Give a list of one id or more."
            )
        if len(names) > MAX_CANDIDATES:
            raise RequestError(422, f"{prefix}artworks: {len(names):,} candidates. Give at most {MAX_CANDIDATES:,}.")
        for index, name in enumerate(names):
            if type(name) is not str or is_blank(name):
                raise RequestError(
                    422, f"{prefix}artworks[{index}]={quoted(name)}: invalid id. Ids are strings that are not blank."
                )
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise RequestError(422, f"{prefix}artworks: duplicate candidate {quoted(twice)}. Give each candidate once.")

        time = fields_given.get("time")
        timestamp = now if time is None else timestamp_of(time, f"{prefix}time")
        context = {
            feature.name: self._context_value(feature, fields_given, prefix, timestamp) for feature in self.features
        }
        plays = fields_given.get("history")
        if plays is not None and not isinstance(plays, list):
            raise RequestError(
                422, f"{prefix}history={quoted(plays)}: must be a list. Give the plays, oldest first, or []."
            )
        history_titles, history, left_out = self._history(plays or [], prefix, timestamp + MAX_CLOCK_SKEW)
        past, past_left_out = self.past.read(fields_given.get("impressions"), prefix, timestamp)
        given_plays = len(plays or []) - left_out
        count = max(given_plays, integer_of(fields_given, "play_count", prefix, 0, MAX_PLAY_COUNT, 0))
        policy_text = string_of(fields_given, "policy", prefix, default="greedy")
        policy, reward = (
            _policy(policy_text, prefix, len(names), self.max_draws),
            string_of(fields_given, "reward", prefix, default=REWARD_KINDS[0]),
        )
        if reward not in REWARD_KINDS:
            raise RequestError(
                422, f"{prefix}reward={quoted(reward)}: unknown reward. Give {' or '.join(REWARD_KINDS)}."
            )
        if policy.kind == "thompson" and reward != REWARD_KINDS[0]:
            raise RequestError(
                422,
                f"{prefix}reward={reward}: the posterior is of clicks. Give reward=clicked, or policy=epsilon:SHARE.",
            )
        explain = fields_given.get("explain")
        if explain is not None and type(explain) is not bool:
            raise RequestError(422, f"{prefix}explain={quoted(explain)}: must be true or false.")
        if explain and len(names) > MAX_EXPLAINED:
            raise RequestError(
                422, f"{prefix}explain: {len(names):,} candidates. Explain at most {MAX_EXPLAINED:,} at a time."
            )
        artwork_rows, title_row = [self.artworks.get(name, 0) for name in names], self.titles.get(title, 0)
        self._require_own_artworks(title_row, artwork_rows, names, title, prefix)
        member = string_of(fields_given, "member", prefix)
        seed = None if fields_given.get("seed") is None else integer_of(fields_given, "seed", prefix, 0, MAX_SEED, 0)
        if seed is None and member and self.sticky_seconds:
            seed = sticky_seed(member, title, timestamp, self.sticky_seconds)
        return Request(
            artworks=artwork_rows,
            names=names,
            history_titles=history_titles,
            history=history,
            past=past,
            past_left_out=past_left_out,
            context=context,
            title=title_row,
            play_count=count,
            policy=policy,
            reward=reward,
            seed=seed,
            explain=bool(explain),
            title_name=title,
            left_out=left_out,
            member=member or None,
            policy_text=policy_text,
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
                    f"{prefix}artworks[{index}]={quoted(names[index])}: is an artwork of title "
                    f"{quoted(self.title_names[owner - 1])}, not of {quoted(title)}. Give the title's own artworks.",
                )

    def _context_value(
        self, feature: ContextFeature, fields_given: dict[str, Any], prefix: str, timestamp: float
    ) -> int | float:
        """A feature's value, its unknown one where the request lacks the field; an hour is that of the request's time."""
        name, value = feature.name, fields_given.get(feature.name)
        if feature.kind == "category":
            if type(value) in (bool, int):
                return self.rows[name].get(category_text(value), 0)
            return self.rows[name].get(string_of(fields_given, name, prefix), 0)
        if feature.kind == "number":
            if value is None:
                return math.nan
            if type(value) not in (int, float, bool) or not abs(value) <= LARGEST_FLOAT:
                raise RequestError(
                    422, f"{prefix}{name}={quoted(value)}: give a number of 32 bits, or null where it is not known."
                )
            return float(value)
        if feature.kind == "position":
            return integer_of(fields_given, name, prefix, -1, feature.maximum, -1)
        if not feature.from_time:
            return integer_of(fields_given, name, prefix, 0, feature.maximum, -1)
        if value is not None and fields_given.get("time") is not None:
            raise RequestError(422, f"{prefix}{name}={quoted(value)}: given beside time. Give one of the two.")
        return integer_of(fields_given, name, prefix, 0, feature.maximum, math.floor(timestamp) // 3600 % HOURS)

    def _history(
        self, plays: list[Any], prefix: str, end: float
    ) -> tuple[list[str], tuple[list[int], list[int], list[float]], int]:
        """The last plays: titles as given, and their columns; and how many were left out as later than `end`, as in training.

        Where every play has a time, time is their order, else it is that of the list.
        """
        titles, artworks, watched, timestamps = _plays(plays, f"{prefix}history")
        kept = len(plays)
        known = not math.isnan(sum(timestamps))
        if not (known and timestamps == sorted(timestamps) and timestamps[-1:] <= [end]):
            past = [index for index, timestamp in enumerate(timestamps) if not timestamp > end]
            if known:
                past.sort(key=timestamps.__getitem__)
            kept = len(past)
            titles, artworks = [titles[index] for index in past], [artworks[index] for index in past]
            watched = [watched[index] for index in past]
        last = slice(-self.history_length, None)
        history_titles, row_of_title, row_of_artwork = titles[last], self.titles.get, self.artworks.get
        columns = (
            [row_of_title(title, 0) for title in history_titles],
            [row_of_artwork(artwork, 0) for artwork in artworks[last]],
            watched[last],
        )
        return history_titles, columns, len(plays) - kept


def _plays(plays: list[Any], where: str) -> tuple[list[str], list[str], list[float], list[float]]:
    """Columns of what `_any_play` returns. Plays as most clients send them are read here: requests hold hundreds."""
    titles: list[str] = []
    artworks: list[str] = []
    watched: list[float] = []
    times: list[float] = []
    for index, play in enumerate(plays):
        if type(play) is dict:
            field = play.get
            title, artwork, fraction, time = field("title"), field("artwork"), field("watched"), field("time")
            if (
                len(play) == 1 + (artwork is not None) + (fraction is not None) + (time is not None)  # no other field
                and type(title) is str
                and "!" <= title[:1] <= "~"
                and (artwork is None or type(artwork) is str)
                and (fraction is None or (type(fraction) is float and 0 <= fraction <= 1))
                and (time is None or (type(time) in NUMBERS and EARLIEST <= time <= LATEST))
            ):
                titles.append(title)
                artworks.append(artwork or "")
                watched.append(math.nan if fraction is None else fraction)
                times.append(math.nan if time is None else time)
                continue
        title, artwork, fraction, time = _any_play(play, f"{where}[{index}]")
        titles.append(title)
        artworks.append(artwork)
        watched.append(fraction)
        times.append(time)
    return titles, artworks, watched, times


def _any_play(play: Any, where: str) -> tuple[str, str, float, float]:
    """Ids of title and artwork, watched and the time in seconds since 1970, NaN where not known; RequestError otherwise."""
    if type(play) is not dict:
        raise RequestError(422, f"{where}={quoted(play)}: invalid play. Give an object with title.")
    require_known_fields(play, PLAY, f"{where}.")
    title, artwork = id_of(play, "title", f"{where}."), string_of(play, "artwork", f"{where}.")
    watched, time = fraction_of(play.get("watched"), f"{where}.watched"), play.get("time")
    return title, artwork, watched, math.nan if time is None else timestamp_of(time, f"{where}.time")


def ids_by_kind(requests: Sequence[Request]) -> dict[str, tuple[int, int]]:
    """By kind (title, artwork, play, and each category of the context): ids given, and of those unknown to the bundle."""
    counts: dict[str, tuple[int, int]] = {}
    for request in requests:
        rows = {"title": [request.title], "artwork": request.artworks, "play": request.history[0]}
        rows |= {"impression": request.past[0]} if request.past[0] else {}
        ids = {kind: (len(of_kind), of_kind.count(0)) for kind, of_kind in rows.items()}
        ids |= {name: (1, int(not request.context[name])) for name in request.categories}
        for kind, (given, unknown) in ids.items():
            before = counts.get(kind, (0, 0))
            counts[kind] = (before[0] + given, before[1] + unknown)
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
        padded_past([request.past for request in requests]),
    )


def _policy(text: str, prefix: str, candidates: int, max_draws: int) -> ServingPolicy:
    try:
        policy = ServingPolicy.parse(text)
    except UserError:
        forms = "greedy, epsilon:SHARE (0 .. 1), softmax:TEMPERATURE (above 0) or thompson:DRAWS:WIDTH:FLOOR"
        raise RequestError(422, f"{prefix}policy={quoted(text)}: unknown policy. Give {forms}.") from None
    most = min(max_draws, MAX_DRAWN // candidates)
    if policy.kind == "thompson" and policy.strength > most:
        raise RequestError(
            422, f"{prefix}policy={text}: too many draws for {candidates:,} candidates. Give thompson:{most}."
        )
    return policy
