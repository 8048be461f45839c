"""Parts of the trained ranker that a serving team runs by themselves: a member's vector once, candidates against it, and why.

    member   history -> `member`, which meets candidates, and `title_query`, which meets titles
    choose   `member` + context + candidates -> what `Ranking` gives
    choose_vectors   the same, of candidates given as vectors, which `models.content_towers` makes of what the catalogue gains
    explain  as `Ranking` -> the terms that appeal is the sum of

Legend: N requests, T plays, K candidates, S a member's vector, W one for titles, D width, C content, F context features of
appeal, L people on an artwork.
"""

import torch
from torch import Tensor, nn

from models.history import given_plays
from models.ranking import OUTPUTS, Candidates, Ranking, coplay_norm
from models.types import States

MEMBER_OUTPUTS = ("member", "title_query")
CHOOSE_OUTPUTS = OUTPUTS[:4]
VECTORS = ("artwork_vector", "artwork_content", "artwork_bias", "artwork_engaged")
PLAY_TERMS = ("by_play", "by_image", "by_people", "by_genres")
EXPLAIN_OUTPUTS = (*PLAY_TERMS, "by_person", "by_context", "of_artwork", "of_state", "of_title", "appeal")


class Member(nn.Module):
    """A member's vectors from the history: one that `Choose` reads, and the title query of `TwoTower.member_vectors`."""

    def __init__(self, ranking: Ranking) -> None:
        super().__init__()
        self.ranking = ranking

    def forward(
        self,
        history_title: Tensor,
        history_artwork: Tensor,
        history_watched: Tensor,
        history_length: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(N, S) and (N, W); arguments as of `Ranking`."""
        ranking, length_N = self.ranking, given_plays(history_length, history_title)
        plays = ranking.plays(history_title, history_artwork, length_N)
        learned_ND = ranking.learned_state(plays, history_title, history_watched, length_N)
        parts = [part.squeeze(1) for part in ranking.means(plays)]
        member = torch.cat([*parts, learned_ND] if ranking.reads_learned_state else parts, dim=-1)
        return member, ranking.model.member_vectors(learned_ND, history_title, length_N)


class Choose(nn.Module):
    """Candidates ranked for a member whose vector is known, given as rows or as vectors."""

    def __init__(self, ranking: Ranking, *, vectors: bool = False) -> None:
        """`vectors`: candidates are given as the inputs `VECTORS`, and the graph's catalogue need not contain them."""
        super().__init__()
        self.ranking, self.vectors = ranking, vectors
        self.inputs = ("member", *ranking.context, "title", "played_before", *(VECTORS if vectors else ("artworks",)))
        """Inputs of `forward`, in order."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs of `Ranking` without its two artwork queries; the arguments are those that `inputs` names.

        `member`: (N, S) of `Member`; `played_before`: bool (N,), whether the title is among the last plays, as many as the
        history encoder's span; `VECTORS`: the parts of `ArtworkEncoding`, (N, K, ...).
        """
        given, ranking = dict(zip(self.inputs, inputs, strict=True)), self.ranking
        model, member = ranking.model, given["member"].unsqueeze(1)
        content, rank = sum(model.content_widths()), model.config.coplay.rank
        recent, coplay, learned = member.split([content, rank, member.shape[2] - content - rank], dim=2)
        # as in a whole request, an unknown title is no other's
        rewatch_N = given["played_before"] & (given["title"] > 0)
        if self.vectors:
            vector, content, *own = (given[name] for name in VECTORS)
            candidates = Candidates(vector, content, torch.stack(own, dim=2))
        else:
            candidates = ranking.candidates(given["artworks"])
        rewatch_N11 = rewatch_N.to(member.dtype).unsqueeze(1).unsqueeze(2)
        state, title_N1 = States(learned, recent, coplay), given["title"].unsqueeze(1)
        return ranking.ranked(state, given, title_N1, candidates, rewatch_N11)[: len(CHOOSE_OUTPUTS)]


class Explain(nn.Module):
    """Appeal shared out over what it is made of, exactly: it is a sum and dot products.

        appeal(k) = of_artwork(k) + of_state(k) + of_title + sum_c by_context(k, c)
                    + sum_t by_play(t, k) + by_image(t, k) + by_people(t, k) + by_genres(t, k)

    by_play is the learned part: the artwork query is linear in the mean of what was played, and in the direction of co-play,
    which is linear in each play given its length. by_image, by_people and by_genres are the likeness of the candidate to each
    play. by_person shares out the sum of by_people by whom the candidate shows. of_state is what a history encoder that
    attends adds and cannot be shared out by play; zero where the encoder is the mean. of_title takes out what the mean of the
    title's artworks has for this member, which is the title's and not the artwork's.
    """

    def __init__(self, ranking: Ranking) -> None:
        super().__init__()
        self.ranking, self.inputs = ranking, ranking.inputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """`EXPLAIN_OUTPUTS` from the inputs of `Ranking`: the terms of plays (N, T, K), of people (N, K, L), of the context
        (N, K, F), of_title (N, 1), and the others (N, K)."""
        ranking, given = self.ranking, dict(zip(self.inputs, inputs, strict=True))
        plays, state = ranking.read(given)
        title_N1, candidates = given["title"].unsqueeze(1), ranking.candidates(given["artworks"])
        queries = ranking.queries(state, given)
        vector_NKD, content_NKC, own_NK2 = candidates
        widths, width = ranking.model.content_widths(), ranking.model.config.width

        content_NTC = torch.cat([plays.image_NTD + plays.mean_image_NTD, plays.content_NT], dim=2) * plays.weight_N1T.mT
        coplay_NTR = plays.coplay_NTR * plays.counts_N1T.mT / coplay_norm(state)
        weight_WD = ranking.heads_weight[:, 2 * width : 3 * width]
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
        vectors = [ranking.feature_rows(feature, given)[:, :width] for feature in features]
        by_context_NKF = vector_NKD @ torch.stack(vectors, dim=2) if vectors else vector_NKD[..., :0]
        of_artwork_NK = vector_NKD @ ranking.heads_bias[2 * width : 3 * width] + own_NK2[..., 0]
        of_title_N1 = -torch.cat(ranking.title_share(queries, title_N1), dim=2).sum(2)
        appeal_NK = ranking.ranked(state, given, title_N1, candidates, ranking.rewatch(plays, given))[2]
        of_state_NK = torch.zeros_like(appeal_NK)
        if ranking.reads_learned_state:
            of_state_NK = (vector_NKD @ (state.learned @ weight_WD[linear:]).mT).squeeze(2)
        return by_play_NTK, *by_part, by_person_NKL, by_context_NKF, of_artwork_NK, of_state_NK, of_title_N1, appeal_NK
