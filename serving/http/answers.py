"""Requests -> answers: ranked artworks, the policy's choice with its propensity, and an explanation.

In: requests from `serving.http.requests`, any number together. Out: for each an answer by the schema `RANKED`, as JSON values.
Requests are padded to the longest, which changes only the last bits of a float32.

Legend: N requests, K candidates.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from serving.bundle.bundle import EXPLAIN_ROWS, POSTERIOR, Bundle
from serving.http.fields import RequestError
from serving.http.requests import Request, inputs
from serving.scoring.explain import reasons
from serving.scoring.policies import DEFAULT_DRAWS, ServingPolicy, mixed_with_uniform
from serving.scoring.thompson import PosteriorDraws, Thompson

OUTPUTS = ("click_probability", "engaged_probability", "appeal", "affinity")
MAX_BATCH_CANDIDATES = 16_384
"""Candidates ranked in one run of the graph, padding included; one request may have more."""
FREE_PADDING = 64
"""Padded candidates that cost less than another run of the graph."""
RELEASE_MEMORY_ABOVE = 2048
"""Candidates of one run of the graph beyond which its memory is returned to the system: such runs are rare and differ in size."""
BASE_SECONDS, CANDIDATE_SECONDS, PLAY_SECONDS = 6e-5, 4e-6, 1e-6
DRAW_SECONDS, EXPLAIN_SECONDS, EXPLAIN_TERM_SECONDS = 1.5e-8, 1e-3, 1e-6
"""Seconds of one core that a request, a candidate, a play, a candidate's draw, an explanation and a candidate's play in it cost, in
round numbers: `serving.http.lanes` corrects their sum by what batches take."""

Answer = dict[str, Any]


def cost(request: Request) -> float:
    """Seconds of one core that a request takes, roughly."""
    seconds = BASE_SECONDS + CANDIDATE_SECONDS * len(request.names) + PLAY_SECONDS * len(request.history_titles)
    seconds += DRAW_SECONDS * request.drawn
    if request.explain:
        terms = len(request.names) * (1 + len(request.history_titles))
        seconds += EXPLAIN_SECONDS + EXPLAIN_TERM_SECONDS * terms
    return seconds


class ArtworkRanker:
    """A bundle, ready to answer in several threads. All that it reads is loaded when it is made."""

    def __init__(self, bundle: Bundle, draws: int = DEFAULT_DRAWS) -> None:
        """`draws` of Thompson sampling are made at once; more, when a request asks for them."""
        self.bundle, self.digest = bundle, bundle.digest
        self.explores = (bundle.folder / POSTERIOR).is_file()
        self.explains = (bundle.folder / EXPLAIN_ROWS).is_file()
        self.posterior = PosteriorDraws(bundle, draws) if self.explores else None
        if self.explains:
            _ = bundle.explain_session
        _ = bundle.session, bundle.tables, bundle.vocabularies

    def require(self, request: Request) -> None:
        """RequestError where an older bundle lacks a table that the request needs."""
        if (request.explain and not self.explains) or (request.policy.kind == "thompson" and not self.explores):
            field = "explain" if request.explain and not self.explains else "policy=thompson"
            raise RequestError(422, f"{field}: the bundle is too old for it. Export the run again and serve that.")

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """The answer to each request, in order."""
        answers: list[Answer] = [{} for _ in requests]
        for group in groups_of_similar_width(requests):
            for index, answer in zip(group, self._answer_group([requests[index] for index in group]), strict=True):
                answers[index] = answer
        return answers

    def _answer_group(self, requests: list[Request]) -> list[Answer]:
        features, mask_NK = inputs(requests)
        explores = any(request.policy.kind == "thompson" for request in requests)
        outputs = (*OUTPUTS, "artwork_query", "content_query") if explores else OUTPUTS
        graph_outputs = self.bundle.rank(features, outputs, release_memory=mask_NK.size > RELEASE_MEMORY_ABOVE)
        policy_NK = np.zeros(mask_NK.shape)
        for policy, reward in {(request.policy, request.reward) for request in requests}:
            rows = [row for row, request in enumerate(requests) if (request.policy, request.reward) == (policy, reward)]
            policy_NK[rows] = self._policy(policy, reward, rows, features, graph_outputs, mask_NK)
        answers = []
        for row, request in enumerate(requests):
            k = len(request.names)
            answer, chosen = self._answer(
                request, {name: graph_outputs[name][row] for name in OUTPUTS}, policy_NK[row, :k]
            )
            if request.explain:
                single_features = {name: values[row : row + 1] for name, values in features.items()}
                single_features["artworks"] = single_features["artworks"][:, :k]
                answer["explanation"] = self._explanation(request, single_features, chosen)
            answers.append(answer)
        return answers

    def _policy(
        self,
        policy: ServingPolicy,
        reward: str,
        rows: list[int],
        features: dict[str, np.ndarray],
        graph_outputs: dict[str, np.ndarray],
        mask_NK: np.ndarray,
    ) -> np.ndarray:
        """Probabilities of some rows' candidates."""
        if policy.kind != "thompson":
            score_name = graph_outputs["click_probability" if reward == "clicked" else "engaged_probability"]
            return policy.probabilities(score_name[rows], mask_NK[rows])
        assert self.posterior is not None, "require() refuses such requests"
        thompson = Thompson(self.posterior, int(policy.strength), policy.width)
        k = mask_NK[rows].any(0).sum()
        mask_nk = mask_NK[rows, :k]
        shares = thompson.probabilities(
            {"artworks": features["artworks"][rows, :k]},
            {
                name: graph_outputs[name][rows, :k] if name == "appeal" else graph_outputs[name][rows]
                for name in ("appeal", "artwork_query", "content_query")
            },
            mask_nk,
        )
        mixed = mixed_with_uniform(shares, mask_nk, policy.floor)
        return np.pad(mixed, ((0, 0), (0, mask_NK.shape[1] - k)))

    def _answer(
        self, request: Request, graph_outputs: dict[str, np.ndarray], policy_K: np.ndarray
    ) -> tuple[Answer, int]:
        """The answer and the index of the chosen candidate."""
        k = len(request.names)
        chosen = int(policy_K.argmax())
        if policy_K[chosen] < 1:
            rng = np.random.default_rng(request.seed)
            # in the order of their names, so that a seed's draw does not depend on the order that a client lists them in
            by_name = np.array(sorted(range(k), key=request.names.__getitem__))
            drawn = np.searchsorted(policy_K[by_name].cumsum(), rng.random() * policy_K.sum(), side="right")
            chosen = int(by_name[drawn.clip(max=k - 1)])
        order = np.argsort(-graph_outputs["click_probability"][:k], kind="stable")
        columns = [graph_outputs[name][order].tolist() for name in OUTPUTS[:3]] + [policy_K[order].tolist()]
        ranked = [
            {
                "artwork": request.names[index],
                "known": request.artworks[index] > 0,
                "click_probability": click,
                "engaged_probability": engaged,
                "appeal": appeal,
                "propensity": propensity,
            }
            for index, click, engaged, appeal, propensity in zip(order.tolist(), *columns, strict=True)
        ]
        choice = {"artwork": request.names[chosen], "propensity": float(policy_K[chosen])}
        title = {"id": request.title_name, "known": request.title > 0}
        affinity = float(graph_outputs["affinity"])
        return {
            "chosen": choice,
            "artworks": ranked,
            "title": title,
            "history": {"plays": len(request.history_titles), "left_out": request.left_out},
            "impressions": {"read": len(request.past[0]), "left_out": request.past_left_out},
            "affinity": affinity,
            "bundle": self.digest,
        }, chosen

    def _explanation(
        self, request: Request, single_features: dict[str, np.ndarray], chosen: int
    ) -> dict[str, Any] | None:
        """The chosen candidate against the others; None where there are no others."""
        if len(request.names) < 2:
            return None
        (explanation,) = reasons(
            self.bundle, single_features, np.ones(single_features["artworks"].shape, bool), np.array([chosen])
        )
        explanation["artwork"] = request.names[chosen]
        for play in explanation["plays"]:
            index = play.pop("place")
            play |= {"title": request.history_titles[index], "ago": len(request.history_titles) - index}
        return explanation


def groups_of_similar_width(requests: Sequence[Request]) -> Iterator[list[int]]:
    """Indices of requests that are ranked together: of similar width, so that padding at most doubles the work."""
    group: list[int] = []
    candidates = 0
    for index in sorted(range(len(requests)), key=lambda index: len(requests[index].names)):
        width = len(requests[index].names)
        padded = (len(group) + 1) * width
        if group and (padded > MAX_BATCH_CANDIDATES or padded > 2 * (candidates + width) + FREE_PADDING):
            yield group
            group, candidates = [], 0
        group.append(index)
        candidates += width
    if group:
        yield group
