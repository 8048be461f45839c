"""Requests -> answers: ranked artworks, the policy's choice with its propensity, and why.

In: requests that `export.requests` read, any number together. Out: for each what `RANKED` says, as JSON has it. Requests are
padded to the longest, which changes nothing but the last bits of a float32.

Legend: N requests, K candidates.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from export.bundle import POSTERIOR, TABLES, Bundle
from export.explain import reasons
from export.requests import Refused, Request, inputs
from export.score import MOST_DRAWS, Policy
from export.thompson import Thompson

OUTPUTS = ("click_probability", "engaged_probability", "appeal", "affinity")
CELLS = 16_384
"""Candidates ranked in one run of the graph, padding included; one request may have more."""
LARGE = 2048
"""Candidates ranked in one run past which its memory is given back: once in a while, and no two such runs are alike."""
KEPT_POLICIES = 8
"""Of Thompson sampling, whose draws are kept from one request to the next; their draws are MOST_DRAWS at most, together."""

Answer = dict[str, Any]


class Answers:
    """A bundle, ready to answer. One thread at a time."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.explores = (bundle.folder / POSTERIOR).is_file()
        self.explains = (bundle.folder / TABLES).is_file()
        self.chance = np.random.default_rng()
        self.drawn: dict[tuple[int, float], Thompson] = {}

    def thompson(self, draws: int, width: float) -> Thompson:
        """The draws of a policy. Clients choose the policies, and MOST_DRAWS draws of a ranker of width 64 are 27 MB."""
        drawn = self.drawn.pop((draws, width), None) or Thompson(self.bundle, draws, width)
        self.drawn[draws, width] = drawn  # at the end, as the one asked for last
        while len(self.drawn) > KEPT_POLICIES or sum(draws for draws, _ in self.drawn) > MOST_DRAWS:
            del self.drawn[next(iter(self.drawn))]
        return drawn

    def require(self, asked: Request) -> None:
        """Refused where an older bundle lacks what is asked of it."""
        if (asked.explain and not self.explains) or (asked.policy.kind == "thompson" and not self.explores):
            what = "explain" if asked.explain and not self.explains else "policy=thompson"
            raise Refused(
                422, f"{what}: the bundle was made before there was any. Export the run again and serve that."
            )

    def answer(self, asked: Sequence[Request]) -> list[Answer]:
        """Of each request, in order."""
        found: list[Answer] = [{} for _ in asked]
        for group in _groups(asked):
            for place, answer in zip(group, self._together([asked[place] for place in group]), strict=True):
                found[place] = answer
        return found

    def _together(self, asked: list[Request]) -> list[Answer]:
        given, there_NK = inputs(asked)
        explores = any(one.policy.kind == "thompson" for one in asked)
        outputs = (*OUTPUTS, "taste", "liked") if explores else OUTPUTS
        found = self.bundle.rank(given, outputs, give_back=there_NK.size > LARGE)
        policy_NK = np.zeros(there_NK.shape)
        for policy, reward in {(one.policy, one.reward) for one in asked}:
            rows = [row for row, one in enumerate(asked) if (one.policy, one.reward) == (policy, reward)]
            policy_NK[rows] = self._policy(policy, reward, rows, given, found, there_NK)
        answers = []
        for row, one in enumerate(asked):
            k = len(one.names)
            answer, chosen = self._answer(one, {name: found[name][row] for name in OUTPUTS}, policy_NK[row, :k])
            if one.explain:
                alone = {name: values[row : row + 1] for name, values in given.items()}
                alone["artworks"] = alone["artworks"][:, :k]
                answer["explanation"] = self._explained(one, alone, chosen)
            answers.append(answer)
        return answers

    def _policy(
        self,
        policy: Policy,
        reward: str,
        rows: list[int],
        given: dict[str, np.ndarray],
        found: dict[str, np.ndarray],
        there_NK: np.ndarray,
    ) -> np.ndarray:
        """Probabilities of some rows' candidates."""
        if policy.kind != "thompson":
            by = found["click_probability" if reward == "clicked" else "engaged_probability"]
            return policy.probabilities(by[rows], there_NK[rows])
        thompson = self.thompson(int(policy.strength), policy.width)
        k = there_NK[rows].any(0).sum()
        shares = thompson.probabilities(
            {"artworks": given["artworks"][rows, :k]},
            {
                name: found[name][rows, :k] if name == "appeal" else found[name][rows]
                for name in ("appeal", "taste", "liked")
            },
            there_NK[rows, :k],
        )
        return np.pad(shares, ((0, 0), (0, there_NK.shape[1] - k)))

    def _answer(self, one: Request, found: dict[str, np.ndarray], policy_K: np.ndarray) -> tuple[Answer, int]:
        """The answer and the place of the chosen candidate."""
        k = len(one.names)
        chosen = int(policy_K.argmax())
        if policy_K[chosen] < 1:
            chance = self.chance if one.seed is None else np.random.default_rng(one.seed)
            chosen = int(
                np.searchsorted(policy_K.cumsum(), chance.random() * policy_K.sum(), side="right").clip(max=k - 1)
            )
        order = np.argsort(-found["click_probability"][:k], kind="stable")
        columns = [found[name][order].tolist() for name in OUTPUTS[:3]] + [policy_K[order].tolist()]
        ranked = [
            {
                "artwork": one.names[place],
                "click_probability": click,
                "engaged_probability": engaged,
                "appeal": appeal,
                "propensity": propensity,
            }
            for place, click, engaged, appeal, propensity in zip(order.tolist(), *columns, strict=True)
        ]
        choice = {"artwork": one.names[chosen], "propensity": float(policy_K[chosen])}
        return {"chosen": choice, "artworks": ranked, "affinity": float(found["affinity"])}, chosen

    def _explained(self, one: Request, alone: dict[str, np.ndarray], chosen: int) -> dict[str, Any] | None:
        """Why the chosen candidate and not the others; None where there are none."""
        if len(one.names) < 2:
            return None
        (told,) = reasons(self.bundle, alone, np.ones(alone["artworks"].shape, bool), np.array([chosen]))
        told["artwork"] = one.names[chosen]
        for play in told["plays"]:
            place = play.pop("place")
            play |= {"title": one.played[place], "ago": len(one.played) - place}
        return told


def _groups(asked: Sequence[Request]) -> Iterator[list[int]]:
    """Places of requests that are ranked together: of like width, so that few candidates are not padded to thousands."""
    group: list[int] = []
    for place in sorted(range(len(asked)), key=lambda place: len(asked[place].names)):
        if group and (len(group) + 1) * len(asked[place].names) > CELLS:
            yield group
            group = []
        group.append(place)
    if group:
        yield group
