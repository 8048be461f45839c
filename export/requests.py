"""What is asked over HTTP: JSON in, the graph's inputs out, every fault named by field, value and remedy.

A body is one request or a list of them. Ids are strings; those the bundle does not know meet the unknown row and keep their
names. What a client may send, and how much of it, is written once, here: `export.interface` shows it as OpenAPI.

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

from datamodules.contract import UserError
from export.bundle import Bundle
from export.score import DRAWS, Policy

MOST_CANDIDATES, MOST_REQUESTS = 10_000, 256
"""In one body: candidates of all its requests, and requests."""
MOST_DRAWN = MOST_CANDIDATES * DRAWS
"""Candidates x draws of Thompson sampling: what is held at once stays below about 200 MB."""
AHEAD = 300
"""Seconds that another machine's clock may be ahead of this one's."""
DAY, EARLIEST, LATEST = 86_400, -2_208_988_800, 4_102_444_800
"""Seconds: of a day; 1900 and 2100 since 1970."""
REWARDS = ("clicked", "engaged")
MOST_PLACE, MOST_COUNT, MOST_SEED = 32_767, 2**31 - 1, 2**53

Schema = dict[str, Any]
TIME: Schema = {"type": ["string", "number", "null"]}
PLAY: dict[str, Schema] = {
    "title": {"type": "string", "description": "id of the title played"},
    "artwork": {"type": ["string", "null"], "description": "id of the artwork it was clicked through, where known"},
    "watched": {"type": ["number", "null"], "minimum": 0, "maximum": 1, "description": "fraction watched, where known"},
    "time": TIME
    | {"description": "when, ISO 8601 (UTC where it names no zone) or seconds since 1970; else a day apart"},
}
REQUEST: dict[str, Schema] = {
    "title": {"type": "string", "description": "id of the title whose artwork is chosen"},
    "artworks": {
        "type": "array",
        "items": {"type": "string"},
        "minItems": 1,
        "maxItems": MOST_CANDIDATES,
        "uniqueItems": True,
        "description": "ids of the candidates",
    },
    "history": {
        "type": ["array", "null"],
        "items": {"$ref": "#/components/schemas/Play"},
        "description": "the member's plays, oldest first; of more than the bundle reads, the last count",
    },
    "country": {"type": ["string", "null"], "description": "as in the log the model learned from"},
    "device": {"type": ["string", "null"], "description": "as in that log"},
    "hour": {
        "type": ["integer", "null"],
        "minimum": 0,
        "maximum": 23,
        "description": "of the day, UTC; default: of time",
    },
    "time": TIME | {"description": "when the artwork is shown, as a play's; default: now. Not beside hour"},
    "row": {"type": ["integer", "null"], "minimum": -1, "maximum": MOST_PLACE, "description": "on the page, from 0"},
    "column": {"type": ["integer", "null"], "minimum": -1, "maximum": MOST_PLACE, "description": "in the row, from 0"},
    "play_count": {
        "type": ["integer", "null"],
        "minimum": 0,
        "maximum": MOST_COUNT,
        "description": "plays of the member so far; default: those in history",
    },
    "policy": {
        "type": ["string", "null"],
        "description": "greedy (default), epsilon:SHARE, softmax:TEMPERATURE or thompson[:DRAWS[:WIDTH]]",
    },
    "reward": {
        "type": ["string", "null"],
        "enum": [*REWARDS, None],
        "description": "what the policy chooses by: clicked (default) or engaged, a click that leads to a real viewing; "
        "thompson by clicked alone",
    },
    "seed": {
        "type": ["integer", "null"],
        "minimum": 0,
        "maximum": MOST_SEED,
        "description": "of the choice where the policy leaves it to chance; default: another one each time",
    },
    "explain": {"type": ["boolean", "null"], "description": "say why the chosen artwork, where there are two or more"},
}
REQUIRED = ("title", "artworks")


class Refused(Exception):
    """Something asked that is not answered: a status of HTTP and one line that names field, value and remedy."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request, checked, its ids looked up."""

    artworks: list[int]
    names: list[str]
    """Of the artworks, as they were given."""
    played: list[str]
    """Titles of the history, as they were given: the last plays, oldest first."""
    history: tuple[list[int], list[int], list[float], list[int]]
    """Of each of those plays: title, artwork, watched (NaN: not known), time in seconds."""
    scalars: tuple[int, ...]
    """By `SCALARS`."""
    policy: Policy
    reward: str
    """By which the policy chooses: one of REWARDS."""
    seed: int | None
    explain: bool


SCALARS = ("country", "device", "hour", "row", "column", "play_count", "title")


class Reader:
    """Bodies -> requests of one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        kinds = ("titles", "artworks", "countries", "devices")
        # a dict each: Arrow's lookup builds its table anew for every call
        self.titles, self.artworks, self.countries, self.devices = (
            {value: row for row, value in enumerate(bundle.vocabularies[kind].values, 1)} for kind in kinds
        )
        self.history_length = bundle.history_length

    def read(self, body: bytes, now: float) -> tuple[list[Request], bool]:
        """The requests of a body, and whether it is a list; `now`: seconds since 1970. Refused where any is not in order."""
        try:
            found = json.loads(body.decode(), parse_constant=_no_constant)
        except RecursionError:
            raise Refused(400, "body: is nested too deep to be a request. GET /docs shows one.") from None
        except ValueError as error:
            raise Refused(400, f"body: is no JSON ({str(error)[:100]}). GET /docs shows a request.") from None
        if not isinstance(found, list):
            return [self._request(found, "", now)], False
        if len(found) > MOST_REQUESTS:
            raise Refused(422, f"body: {len(found):,} requests. Send at most {MOST_REQUESTS} at a time.")
        read = [self._request(one, f"[{place}].", now) for place, one in enumerate(found)]
        total = sum(len(one.artworks) for one in read)
        if total > MOST_CANDIDATES:
            raise Refused(422, f"artworks: {total:,} in one body. Send at most {MOST_CANDIDATES:,} at a time.")
        return read, True

    def _request(self, found: Any, at: str, now: float) -> Request:
        if not isinstance(found, dict):
            raise Refused(
                422, f"{at.rstrip('.') or 'body'}: is {_said(found)}. Give an object with title and artworks."
            )
        _known(found, REQUEST, at)
        title = _text(found, "title", at, required=True)
        names = found.get("artworks")
        if not isinstance(names, list) or not names:
            raise Refused(422, f"{at}artworks={_said(names)}: holds no candidates. Give a list of one id or more.")
        if len(names) > MOST_CANDIDATES:
            raise Refused(422, f"{at}artworks: {len(names):,} candidates. Give at most {MOST_CANDIDATES:,}.")
        for place, name in enumerate(names):
            if type(name) is not str:
                raise Refused(422, f"{at}artworks[{place}]={_said(name)}: is no id. Ids are strings.")
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise Refused(422, f"{at}artworks: {_said(twice)} stands there twice. Give each candidate once.")

        time = found.get("time")
        moment = now if time is None else _moment(time, f"{at}time")
        hour = _whole(found, "hour", at, 0, 23, math.floor(moment) // 3600 % 24)
        if time is not None and found.get("hour") is not None:
            raise Refused(422, f"{at}hour={hour}: stands beside time. Give one of the two.")
        plays = found.get("history")
        if plays is not None and not isinstance(plays, list):
            raise Refused(422, f"{at}history={_said(plays)}: is no list. Give the plays, oldest first, or [].")
        played, history = self._history(plays or [], at, moment + AHEAD)
        count = _whole(found, "play_count", at, 0, MOST_COUNT, len(plays or []))
        if count < len(played):
            raise Refused(
                422, f"{at}play_count={count}: is less than the {len(played)} plays in history. Leave it out."
            )
        scalars = (
            self.countries.get(_text(found, "country", at), 0),
            self.devices.get(_text(found, "device", at), 0),
            hour,
            _whole(found, "row", at, -1, MOST_PLACE, -1),
            _whole(found, "column", at, -1, MOST_PLACE, -1),
            count,
            self.titles.get(title, 0),
        )
        policy, reward = _policy(found, at, len(names)), _text(found, "reward", at) or REWARDS[0]
        if reward not in REWARDS:
            raise Refused(422, f"{at}reward={_said(reward)}: is none. Give {' or '.join(REWARDS)}.")
        if policy.kind == "thompson" and reward != REWARDS[0]:
            raise Refused(
                422, f"{at}reward={reward}: the posterior is of clicks. Give reward=clicked, or policy=epsilon:SHARE."
            )
        explain = found.get("explain")
        if explain is not None and type(explain) is not bool:
            raise Refused(422, f"{at}explain={_said(explain)}: is neither true nor false.")
        return Request(
            artworks=[self.artworks.get(name, 0) for name in names],
            names=names,
            played=played,
            history=history,
            scalars=scalars,
            policy=policy,
            reward=reward,
            seed=None if found.get("seed") is None else _whole(found, "seed", at, 0, MOST_SEED, 0),
            explain=bool(explain),
        )

    def _history(
        self, plays: list[Any], at: str, end: float
    ) -> tuple[list[str], tuple[list[int], list[int], list[float], list[int]]]:
        """The last plays: titles as given, and their columns. None may be after `end` or before the one it follows."""
        played: list[str] = []
        artworks: list[int] = []
        watched: list[float] = []
        times: list[int | None] = []
        first, last = max(0, len(plays) - self.history_length), float(EARLIEST)
        for place, play in enumerate(plays[first:], first):
            where = f"{at}history[{place}]"
            if type(play) is not dict:
                raise Refused(422, f"{where}={_said(play)}: is no play. Give an object with title.")
            _known(play, PLAY, f"{where}.")
            played.append(_text(play, "title", f"{where}.", required=True))
            artworks.append(self.artworks.get(_text(play, "artwork", f"{where}."), 0))
            watched.append(_fraction(play.get("watched"), f"{where}.watched"))
            time = play.get("time")
            if time is None:
                times.append(None)
                continue
            moment = _moment(time, f"{where}.time")
            if moment > end:
                raise Refused(
                    422, f"{where}.time={_said(time)}: is after the request's time. Give plays from before it."
                )
            if moment < last:
                raise Refused(422, f"{where}.time={_said(time)}: is before the play it follows. Give the oldest first.")
            last = moment
            times.append(math.floor(moment))
        return played, ([self.titles.get(title, 0) for title in played], artworks, watched, _filled(times))


def inputs(asked: Sequence[Request]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The graph's inputs for some requests, padded to the longest, and which candidates are there: bool (N, K)."""
    n = len(asked)
    length_N = np.array([len(one.played) for one in asked], np.int64)
    width_N = np.array([len(one.artworks) for one in asked], np.int64)
    t, k = max(1, int(length_N.max())), int(width_N.max())
    past_NT, there_NK = np.arange(t) < length_N[:, None], np.arange(k) < width_N[:, None]
    fills = ((0, np.int64), (0, np.int64), (np.nan, np.float32), (0, np.int64))
    names = ("history_title", "history_artwork", "history_watched", "history_time")
    found: dict[str, np.ndarray] = {}
    for column, (name, (fill, kind)) in enumerate(zip(names, fills, strict=True)):
        found[name] = np.full((n, t), fill, kind)
        found[name][past_NT] = [value for one in asked for value in one.history[column]]
    found["history_length"] = length_N
    scalars = np.array([one.scalars for one in asked], np.int64)
    found |= {name: scalars[:, place] for place, name in enumerate(SCALARS)}
    found["artworks"] = np.zeros((n, k), np.int64)
    found["artworks"][there_NK] = [row for one in asked for row in one.artworks]
    return found, there_NK


def _filled(times: list[int | None]) -> list[int]:
    """A time for every play: where there is none, a day before the next one, but not before the one it follows."""
    if None not in times:
        return [time for time in times if time is not None]
    filled: list[int] = []
    following = DAY * (len(times) + 1)
    for time in reversed(times):
        following = following - DAY if time is None else time
        filled.append(following)
    return np.maximum.accumulate(filled[::-1]).tolist()


def _policy(found: dict[str, Any], at: str, candidates: int) -> Policy:
    text = _text(found, "policy", at) or "greedy"
    try:
        policy = Policy.parse(text)
    except UserError:
        forms = "greedy, epsilon:SHARE (0 .. 1), softmax:TEMPERATURE (above 0) or thompson:DRAWS:WIDTH"
        raise Refused(422, f"{at}policy={_said(text)}: is none. Give {forms}.") from None
    if policy.kind == "thompson" and candidates * policy.strength > MOST_DRAWN:
        most = MOST_DRAWN // candidates
        raise Refused(422, f"{at}policy={text}: too many draws for {candidates:,} candidates. Give thompson:{most}.")
    return policy


def _known(found: dict[str, Any], fields: dict[str, Schema], at: str) -> None:
    if found.keys() <= fields.keys():
        return
    name = next(name for name in found if name not in fields)
    near = get_close_matches(name[:40], fields, 1)
    hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(fields)}."
    raise Refused(422, f"{at}{_said(name)}: is no field. {hint}")


def _text(found: dict[str, Any], name: str, at: str, *, required: bool = False) -> str:
    value = found.get(name)
    if type(value) is str:
        return value
    if value is None and not required:
        return ""
    if name not in found:
        raise Refused(422, f"{at}{name}: is missing. GET /docs shows a request.")
    raise Refused(422, f"{at}{name}={_said(value)}: is no string. Put it in quotes.")


def _whole(found: dict[str, Any], name: str, at: str, least: int, most: int, default: int) -> int:
    value = found.get(name)
    if value is None:
        return default
    if type(value) is not int or not least <= value <= most:
        raise Refused(422, f"{at}{name}={_said(value)}: give a whole number, {least} .. {most:,}.")
    return value


def _fraction(value: Any, where: str) -> float:
    """NaN where not known."""
    if value is None:
        return math.nan
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise Refused(422, f"{where}={_said(value)}: give a fraction, 0 .. 1, or null where it is not known.")
    return float(value)


def _moment(value: Any, where: str) -> float:
    """Seconds since 1970."""
    seconds = math.nan
    if type(value) in (int, float):
        seconds = value
    elif type(value) is str:
        try:
            moment = datetime.fromisoformat(value)
            seconds = (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp()
        except ValueError:
            pass
    if not EARLIEST <= seconds <= LATEST:
        raise Refused(
            422, f"{where}={_said(value)}: is no time from 1900 to 2100. Give ISO 8601, or seconds (not ms) since 1970."
        )
    return seconds


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON; null is what is not known")


_KINDS: dict[type, Callable[[Any], str]] = {
    dict: lambda _: "an object",
    list: lambda value: "[]" if not value else "a list",
}


def _said(value: Any) -> str:
    """A value as it may stand in one line."""
    if type(value) in _KINDS:
        return _KINDS[type(value)](value)
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
