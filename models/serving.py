"""What is traced into the ranking graphs of a bundle, see `export.graphs`: the ranker in one go, and candidates against a member's
vector.

    whole    history, context, title, candidates -> what `Ranking` gives, the member's vectors, and the terms of appeal
    choose   a member's vector, context, title, candidates -> what `Ranking` gives

Legend: N requests, T plays, K candidates, S a member's vector, W one for titles, D width, C content, F context features of
appeal, L people on an artwork.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.history import given_plays
from models.ranking import HISTORY, OUTPUTS, PAST, Ranking, coplay_norm
from models.retrieval import member_vectors
from models.types import Candidates, Fatigue, Plays, Queries, States

MEMBER_OUTPUTS = ("member", "title_query")
CHOOSE_OUTPUTS = OUTPUTS[:4]
VECTORS = ("artwork_vector", "artwork_content", "artwork_bias", "artwork_engaged")
PLAY_TERMS = ("by_play", "by_image", "by_people", "by_genres")
TERMS = (*PLAY_TERMS, "by_person", "by_context", "of_artwork", "of_state", "of_title")
PAST_TERMS = ("by_past", "of_past", "by_fatigue")
"""Terms where past impressions are read."""


class Whole(nn.Module):
    """All that a bundle says of whole requests, so that graphs with some of it are parts of one trace.

    `MEMBER_OUTPUTS`: the vector that `Choose` reads, (N, S), and the title query of `models.retrieval.member_vectors`, (N, W).
    `TERMS` share out appeal over what it is made of, exactly: it is a sum and dot products.

        appeal(k) = of_artwork(k) + of_state(k) + of_title + sum_c by_context(k, c)
                    + sum_t by_play(t, k) + by_image(t, k) + by_people(t, k) + by_genres(t, k)

    by_play is the learned part: the artwork query is linear in the mean of what was played, and in the direction of co-play,
    which is linear in each play given its length. by_image, by_people and by_genres are the likeness of the candidate to each
    play. by_person shares out the sum of by_people by whom the candidate shows. of_state is what a history encoder that
    attends adds and cannot be shared out by play; zero where the encoder is the mean. of_title takes out what the mean of the
    title's artworks has for this member, which is the title's and not the artwork's.

    Where past impressions are read, by_past(j, k) is what impression j adds by the member's own taste, of_past(k) what own taste
    takes back of the shared query, which past clicks have confirmed or not, and by_fatigue(k) is fatigue.
    """

    def __init__(self, ranking: Ranking) -> None:
        super().__init__()
        self.ranking = ranking
        self.inputs = (*ranking.history, *ranking.context, "title", "artworks")
        """Inputs of `forward`, in order; `Ranking` describes them."""
        self.terms = (*TERMS, *(PAST_TERMS if ranking.reads_past else ()))
        """Names of the terms of appeal."""
        self.outputs = (*OUTPUTS, *MEMBER_OUTPUTS, *self.terms)
        """Names of what `forward` returns, in order."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """`outputs`: of `Ranking`, the member's vectors, and of the terms those of plays (N, T, K), of people (N, K, L), of the
        context (N, K, F), of_title (N, 1), and the others (N, K)."""
        ranking, given = self.ranking, dict(zip(self.inputs, inputs, strict=True))
        plays, state = ranking.read(given)
        title_N1, candidates = given["title"].unsqueeze(1), ranking.candidates(given["artworks"])
        queries = ranking.queries(state, given)
        rewatch_N11 = ranking.rewatch(plays, given)
        fatigue = ranking.fatigue(given) if ranking.reads_past else None
        ranked = ranking.ranked(state, queries, given["play_count"], title_N1, candidates, rewatch_N11, fatigue)
        history_title, _, history_watched, history_length = (given[name] for name in HISTORY)
        length_N = given_plays(history_length, history_title)
        if ranking.reads_learned_state:
            learned_ND = state.learned.squeeze(1)
        else:
            learned_ND = ranking.learned_state(plays, history_title, history_watched, length_N)
        # the learned state and the evidence are of length 0 where no click reads them
        member_NS = torch.cat([state.recent, state.coplay, state.learned, state.evidence], dim=2).squeeze(1)
        title_query_NW = member_vectors(ranking.model, learned_ND, history_title, length_N)
        terms = self._terms(given, plays, state, queries, candidates)
        if fatigue is not None:
            terms += self._past_terms(given, state, queries, candidates, fatigue)
        return *ranked, member_NS, title_query_NW, *terms

    def _past_terms(
        self, given: dict[str, Tensor], state: States, queries: Queries, candidates: Candidates, fatigue: Fatigue
    ) -> tuple[Tensor, ...]:
        """`PAST_TERMS`."""
        ranking, taste = self.ranking, self.ranking.model.own_taste
        width = ranking.model.config.width
        vector_NKD = candidates.vector_NKD[..., :width]
        information_N11 = state.evidence[..., -1:]
        gain_N1S = taste.variance_S / (1 + taste.variance_S * information_N11 * taste.spread_S)
        residual_NJ, _ = ranking.residuals(given)
        by_component_NJS = residual_NJ.unsqueeze(2) * ranking.past_features(given) * gain_N1S
        by_past_NJK = (by_component_NJS[..., :-1] @ taste.basis_DR.T) @ vector_NKD.mT
        of_past_NK = (vector_NKD @ queries.own_N1D.mT).squeeze(2) - by_past_NJK.sum(1)
        return by_past_NJK, of_past_NK, fatigue.appeal_NK

    def _terms(
        self, given: dict[str, Tensor], plays: Plays, state: States, queries: Queries, candidates: Candidates
    ) -> tuple[Tensor, ...]:
        """What appeal is the sum of: `TERMS`."""
        ranking, title_N1 = self.ranking, given["title"].unsqueeze(1)
        vector_NKD, content_NKC, own_NK2 = candidates
        widths, wide = ranking.model.content_widths(), ranking.vector_width
        begin = ranking.model.config.width + wide

        content_NTC = torch.cat([plays.image_NTD + plays.mean_image_NTD, plays.content_NT], dim=2) * plays.weight_N1T.mT
        coplay_NTR = plays.coplay_NTR * plays.counts_N1T.mT / coplay_norm(state)
        weight_WD = ranking.heads_weight[:, begin : begin + wide]
        linear = content_NTC.shape[2] + coplay_NTR.shape[2]
        by_play_NTK = (torch.cat([content_NTC, coplay_NTR], dim=2) @ weight_WD[:linear]) @ vector_NKD.mT
        likeness_NTC = (content_NTC * ranking.similarity_gain).split(widths, dim=2)
        by_part = [x @ y.mT for x, y in zip(likeness_NTC, content_NKC.split(widths, dim=2), strict=True)]

        people_NKL = ranking.rows("artwork_people", given["artworks"]).long()
        shown_NKL = (people_NKL > 0).to(vector_NKD.dtype)
        people_N1D = queries.content_N1C.split(widths, dim=2)[1]
        by_person_NKL = (ranking.model.person(people_NKL) @ people_N1D.unsqueeze(3)).squeeze(3)
        by_person_NKL = by_person_NKL * shown_NKL / shown_NKL.sum(2, keepdim=True).clamp(min=1)

        features = [feature for feature in ranking.features if "appeal" in feature.read_by]
        vectors = [ranking.feature_rows(feature, given)[:, :wide] for feature in features]
        by_context_NKF = vector_NKD @ torch.stack(vectors, dim=2) if vectors else vector_NKD[..., :0]
        of_artwork_NK = vector_NKD @ ranking.heads_bias[begin : begin + wide] + own_NK2[..., 0]
        of_title_N1 = -torch.cat(ranking.title_share(queries, title_N1), dim=2).sum(2)
        of_state_NK = torch.zeros_like(of_artwork_NK)
        if ranking.reads_learned_state:
            of_state_NK = (vector_NKD @ (state.learned @ weight_WD[linear:]).mT).squeeze(2)
        return by_play_NTK, *by_part, by_person_NKL, by_context_NKF, of_artwork_NK, of_state_NK, of_title_N1


class Choose(nn.Module):
    """Candidates ranked for a member whose vector is known."""

    def __init__(self, ranking: Ranking) -> None:
        super().__init__()
        self.ranking = ranking
        past = PAST if ranking.reads_past else ()
        self.inputs = ("member", *past, *ranking.context, "title", "played_before", "artworks")
        """Inputs of `forward`, in order."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs of `Ranking` without its two artwork queries; the arguments are those that `inputs` names.

        `member`: (N, S) of `Whole`; `played_before`: bool (N,), whether the title is among the last plays, as many as the
        history encoder's span; `past_*`: (N, J), past impressions of which fatigue alone is read: the member's vector has the rest.
        """
        given, ranking = dict(zip(self.inputs, inputs, strict=True)), self.ranking
        model, member = ranking.model, given["member"].unsqueeze(1)
        content, rank = sum(model.content_widths()), model.config.coplay.rank
        evidence = len(model.own_taste.variance_S) + 1 if ranking.reads_past else 0
        learned = member.shape[2] - content - rank - evidence
        recent, coplay, learned, evidence = member.split([content, rank, learned, evidence], dim=2)
        # as in a whole request, an unknown title is no other's
        rewatch_N = given["played_before"] & (given["title"] > 0)
        rewatch_N11 = rewatch_N.to(member.dtype).unsqueeze(1).unsqueeze(2)
        state, title_N1 = States(learned, recent, coplay, evidence), given["title"].unsqueeze(1)
        queries, candidates = ranking.queries(state, given), ranking.candidates(given["artworks"])
        fatigue = ranking.fatigue(given) if ranking.reads_past else None
        ranked = ranking.ranked(state, queries, given["play_count"], title_N1, candidates, rewatch_N11, fatigue)
        return ranked[: len(CHOOSE_OUTPUTS)]


class Update(nn.Module):
    """A member's vector after one more impression whose outcome is known."""

    inputs = ("member", "artwork", "clicked")

    def __init__(self, ranking: Ranking) -> None:
        super().__init__()
        self.ranking = ranking

    def forward(self, *inputs: Tensor) -> Tensor:
        """(N, S) of the arguments that `inputs` names: the evidence alone changes, a sum over past impressions. An unknown artwork
        adds nothing."""
        member_NS, artwork_N, clicked_N = inputs
        given = {PAST[0]: artwork_N.unsqueeze(1), PAST[1]: clicked_N.unsqueeze(1)}
        evidence_Nx = self.ranking.evidence(given)
        return member_NS + F.pad(evidence_Nx, (member_NS.shape[1] - evidence_Nx.shape[1], 0))
