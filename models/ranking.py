"""The trained ranker as it is served: its catalogue computed, its weights stacked. rank.onnx and explanations are traced from it.

In: the recent history, the context and the candidates of each request. Out: probabilities and terms. Every vector of a
title or an artwork is computed once, at construction, so that a request costs gathers, one member encoding and dot products.
A request by itself costs its operators, some .3 us each, and hardly its arithmetic (docs/experiments.md): heads that read
the same are one product, a context feature is one table for all terms, and what depends on a whole number alone is a table
of that number. `TwoTower` is the same formula as it is trained; tests hold the two together.

Clicks cannot separate what all of a title's artworks have in common from what the title adds: only the sum matters. It counts
as the title's: appeal is an artwork's logit minus the mean over its title's artworks, for this member; the rest is affinity.

Legend: N requests, T plays, K candidates, D width, P own preferences, C content, R rank of co-play, W member features,
I titles, A artworks, S span; 1: an axis of length 1, which saves reshaping.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foundation.context import ContextFeature
from models.context import Context, lookup
from models.history import given_plays
from models.layers import repeated
from models.linear_title_models import COARSE_RANK
from models.own_taste import Past, evidence, residuals
from models.presentation import PLAY_COUNT_BINS
from models.two_tower import MEANS, ArtworkEncoding, States, TwoTower
from models.types import Candidates, Fatigue, Plays, Queries

OUTPUTS = ("click_probability", "engaged_probability", "appeal", "affinity", "artwork_query", "content_query")
HISTORY = ("history_title", "history_artwork", "history_watched", "history_length")
"""What a member's vectors are made of, and `PAST` where past impressions are read."""
PAST = ("past_artwork", "past_clicked", "past_hours")
EXCLUDED_LOGIT = -1e9
"""Logit of a play that does not count."""
MIN_NORM = 1e-6
"""Norm of a sum of co-play vectors below which it has no direction."""


class Ranking(nn.Module):
    """A `TwoTower` in evaluation mode, its towers' outputs kept as tables and its weights stacked."""

    artwork_content: Tensor
    artwork_image: Tensor
    play_mean_image: Tensor
    artwork_people: Tensor
    heads_weight: Tensor
    heads_bias: Tensor
    by_play_count: Tensor
    similarity_gain: Tensor
    fit_gain: Tensor
    coplay_patterns: Tensor
    request_sums: Tensor
    candidate_sums: Tensor
    scale: Tensor
    shift: Tensor
    knots: Tensor
    knot_bends: Tensor

    def __init__(self, model: TwoTower) -> None:
        super().__init__()
        assert not model.training, "dropout would be baked into the tables"
        self.model = model
        self.reads_learned_state = model.artwork_query_state is not None
        """Whether the click reads the learned state."""
        self.features = model.sizes.context
        self.context = (*(feature.name for feature in self.features), "play_count")
        """Inputs that are the context."""
        history = [name for name in HISTORY if self.reads_learned_state or name != "history_watched"]
        self.reads_past = model.own_taste.is_read
        """Whether past impressions change anything."""
        self.history = (*HISTORY, *PAST) if self.reads_past else HISTORY
        """Inputs that a member's vectors are made of."""
        self.inputs = (*history, *(PAST if self.reads_past else ()), *self.context, "title", "artworks")
        """Inputs of `forward`, in order."""
        self.vector_width = model.config.width + model.own_preferences.width
        """D + P: length of an artwork's vector."""
        with torch.no_grad():
            self._compute_catalogue()
            catalogue = [name for name, _ in self.named_buffers(recurse=False)]
            self._stack_weights()
        self.tables = (*catalogue, *(f"context_{feature.name}" for feature in self.features))
        """Tables that keep their names in a graph: by row of titles and artworks, and of context features."""

    def _compute_catalogue(self) -> None:
        """What the towers give of every title and artwork."""
        model = self.model
        titles, artworks = torch.arange(len(model.title_year_I)), torch.arange(len(model.artwork_image_AE))
        tables = {"play": model.plays(titles), "title": model.titles(titles), "artwork": model.artworks(artworks)}
        for name, table in tables.items():
            for part, values in table._asdict().items():
                self.register_buffer(f"{name}_{part}", _in_rows(values))
        # an artwork's content begins with its projected image
        self.register_buffer("artwork_image", self.artwork_content[:, : model.config.width].clone())
        # rows 0 say nothing: of each play, one of the two images is such a row
        assert not self.artwork_image[0].any()
        assert not self.play_mean_image[0].any()
        for part, values in tables["artwork"]._asdict().items():
            self.register_buffer(f"mean_{part}", _in_rows(_mean_by_title(values, model.title_artworks_IL)))
        self.register_buffer("artwork_people", model.artwork_people_AL.clone())
        if self.reads_past:
            self.register_buffer("artwork_expected", _in_rows(model.own_taste.expected(artworks)))
            self.register_buffer("artwork_title", _in_rows(model.artwork_title_A).clone())

    def _stack_weights(self) -> None:
        """Weights that are read together side by side, and tables of whole numbers."""
        model, width, own = self.model, self.model.config.width, self.model.own_preferences
        bias_S, span = model.recent.band.bias_1S[0].double(), model.config.history.span
        plays_S = torch.arange(1, span + 1).double()
        # softmax and what shrinks it, as logarithms: of the sum over a number of plays, by that number
        level_S = torch.logcumsumexp(bias_S, 0) - torch.log(plays_S / (plays_S + model.recent.log_prior.double().exp()))
        self.register_buffer("recent_level", _in_rows(F.pad(level_S, (1, 0), value=-EXCLUDED_LOGIT).float()))
        # by how many plays from the end, the last one's being 1; 0 and span + 1 stand for all that do not count
        self.register_buffer("recent_logit", _in_rows(F.pad(bias_S, (1, 1), value=EXCLUDED_LOGIT).float()))
        self.register_buffer("recent_counts", _in_rows(F.pad(torch.ones(span), (1, 1))))

        # title query, engagement's query, artwork query; the context adds to the last and to the logits of both heads
        heads = (model.title_query, model.engagement.member, model.artwork_query)
        weight_WH = torch.cat([head.weight for head in heads]).T
        weight_WH[: sum(model.content_widths())] *= MEANS
        if model.artwork_query_state is not None and model.title_query_state is not None:
            state_DD = model.artwork_query_state.weight
            weights = (model.title_query_state.weight, torch.zeros_like(state_DD), state_DD)
            weight_WH = torch.cat([weight_WH, torch.cat(weights).T])
        base_2 = torch.stack([model.presentation.base, torch.zeros(())])
        bias_1H = torch.cat([head.bias for head in heads])[None]
        # engagement reads no own preferences, and the artwork query has those of the context
        widths = (width, width + own.width, width + own.width)
        weight_WH, bias_1H = (
            torch.cat([F.pad(x, (0, to - width)) for x, to in zip(part.split(width, 1), widths, strict=True)], dim=1)
            for part in (weight_WH, bias_1H)
        )
        self.register_buffer("heads_weight", F.pad(weight_WH, (0, 2)).contiguous())
        self.register_buffer("heads_bias", torch.cat([bias_1H[0], base_2]))
        levels = width + own.width
        terms = (
            (slice(width), model.artwork_query_context),
            (slice(levels, levels + 1), model.presentation.context),
            (slice(levels + 1, levels + 2), model.engagement.context),
        )
        for feature in self.features:
            table = torch.zeros(feature.rows(model.sizes.categories), levels + 2)
            table[:, width:levels] = own.rows_by_value(feature, len(table))
            for columns, term in terms:
                if feature in term.features:
                    table[:, columns] = term.weights(feature).weight
            self.register_buffer(f"context_{feature.name}", table)

        self.register_buffer("similarity_gain", repeated(model.similarity_gain, model.content_widths()))
        self.register_buffer("fit_gain", repeated(model.engagement.fit_gain, model.content_widths()[1:]))
        counts = torch.arange(2 ** (PLAY_COUNT_BINS - 1))
        self.register_buffer("by_play_count", _in_rows(model.play_count(counts)))
        scale_2, shift_2 = model.calibration[:, 0], model.calibration[:, 1]
        knots_2B, bends_2B = model.calibration[:, 2:].chunk(2, dim=1)
        self.bends = bool(bends_2B.any())
        for name, values in (("scale", scale_2), ("shift", shift_2), ("knots", knots_2B), ("knot_bends", bends_2B)):
            self.register_buffer(name, values.clone())
        # what is summed up of a request, in the order of `ranked`, into: the logits of a click and of engagement, what its
        # title's artworks share, and affinity, which has that too
        by_affinity, by_appeal = model.engagement.gain.tolist()
        in_affinity, shared, click, engagement = torch.tensor(
            [[1.0, by_affinity, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
        )
        gains = [torch.ones(1)] if self.reads_past else []
        gains += [model.rewatch_gain[None], torch.ones(3)]
        if model.coplay is not None:
            patterns_R2 = torch.ones(model.coplay.config.rank, 2)
            patterns_R2[COARSE_RANK:, 0] = 0
            self.register_buffer("coplay_patterns", patterns_R2 / model.coplay.score_std_2)
            gains.append(model.coplay_gain)
        rows = [
            torch.cat(gains)[:, None] * in_affinity,
            shared.expand(3, 4),
            torch.stack([click, engagement, engagement]),
        ]
        request_sums, candidate_sums = torch.cat(rows), torch.tensor([[1, by_appeal], [0, 1]])
        if not self.bends:
            request_sums[:, :2] *= scale_2
            candidate_sums *= scale_2
        self.register_buffer("request_sums", request_sums)
        self.register_buffer("candidate_sums", candidate_sums)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Rank the candidates of N requests, given by `inputs`.

        `history_*`: (N, T), the last plays, oldest first, padded on the right; `history_length`: (N,), 0 for a member
        without history, clamped to 0 .. T; `past_*`: (N, J), past impressions, padded with artwork row 0; `artworks`: (N, K) rows,
        padded with 0.
        All int64 but `history_watched`, `past_clicked`, `past_hours` and numbers of the context, float32, NaN where not known.
        Returns click and engaged
        probabilities (N, K), appeal (N, K) and affinity (N,) as logits, and the two vectors that meet artworks, (N, D + P) and
        (N, C).
        """
        given = dict(zip(self.inputs, inputs, strict=True))
        plays, state = self.read(given)
        queries, candidates = self.queries(state, given), self.candidates(given["artworks"])
        rewatch_N11, title_N1 = self.rewatch(plays, given), given["title"].unsqueeze(1)
        fatigue = self.fatigue(given) if self.reads_past else None
        return self.ranked(state, queries, given["play_count"], title_N1, candidates, rewatch_N11, fatigue)

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Rows of a table, (..., D)."""
        return F.embedding(index, self.get_buffer(name))

    def candidates(self, rows_NK: Tensor) -> Candidates:
        """What is kept of artworks by row."""
        vector, content, bias, engaged = (self.rows(f"artwork_{part}", rows_NK) for part in ArtworkEncoding._fields)
        return Candidates(vector, content, torch.cat([bias, engaged], dim=2))

    def plays(self, title_NT: Tensor, artwork_NT: Tensor, length_N: Tensor) -> Plays:
        """What is kept of the plays of a history, by row."""
        span, length_N1 = self.model.config.history.span, length_N.unsqueeze(1)
        index_T = torch.arange(title_NT.shape[1], device=length_N.device)
        nth_N1T = (length_N1.unsqueeze(2) - index_T).clamp(0, span + 1)
        level_N11 = self.rows("recent_level", length_N1.clamp(0, span))
        unclicked_NT = torch.where(artwork_NT > 0, 0, title_NT)
        return Plays(
            self.rows("artwork_image", artwork_NT),
            self.rows("play_mean_image", unclicked_NT),
            self.rows("play_content", title_NT),
            self.rows("play_coplay", title_NT),
            # a matrix product by a row takes less time than by a column that is to be turned
            torch.exp(self.rows("recent_logit", nth_N1T).squeeze(3) - level_N11),
            self.rows("recent_counts", nth_N1T).squeeze(3),
        )

    def means(self, plays: Plays) -> tuple[Tensor, Tensor]:
        """The mean content (N, 1, C) of a history, and the sum (N, 1, R) of its co-play vectors."""
        weight_N1T = plays.weight_N1T
        image_N1D = weight_N1T @ plays.image_NTD + weight_N1T @ plays.mean_image_NTD
        return torch.cat([image_N1D, weight_N1T @ plays.content_NT], dim=2), plays.counts_N1T @ plays.coplay_NTR

    def learned_state(self, plays: Plays, title_NT: Tensor, watched_NT: Tensor, length_N: Tensor) -> Tensor:
        """The sequence tower's state after the last play, (N, D)."""
        image_NTD = plays.image_NTD + plays.mean_image_NTD
        return self.model.sequence_tower.last(self.rows("play_token", title_NT), image_NTD, watched_NT, length_N)

    def read(self, given: Mapping[str, Tensor]) -> tuple[Plays, States]:
        """Plays and the states (N, 1, ...) after the last of them; the learned one of length 0 where no click reads it."""
        title_NT = given["history_title"]
        length_N = given_plays(given["history_length"], title_NT)
        plays = self.plays(title_NT, given["history_artwork"], length_N)
        recent_N1C, coplay_N1R = self.means(plays)
        learned_N1D = recent_N1C[..., :0]
        if self.reads_learned_state:
            learned_N1D = self.learned_state(plays, title_NT, given["history_watched"], length_N).unsqueeze(1)
        evidence_N1x = self.evidence(given).unsqueeze(1) if self.reads_past else recent_N1C[..., :0]
        return plays, States(learned_N1D, recent_N1C, coplay_N1R, evidence_N1x)

    def past_features(self, given: Mapping[str, Tensor]) -> Tensor:
        """Components of the artworks of past impressions, (N, J, S)."""
        vectors_NJD = self.rows("artwork_vector", given["past_artwork"])[..., : self.model.config.width]
        return self.model.own_taste.features(vectors_NJD)

    def residuals(self, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """`models.own_taste.residuals` of past impressions."""
        artwork_NJ = given["past_artwork"]
        return residuals(artwork_NJ, given["past_clicked"], self.rows("artwork_expected", artwork_NJ).squeeze(2))

    def evidence(self, given: Mapping[str, Tensor]) -> Tensor:
        """What past impressions sum up to, (N, S + 1): see `models.own_taste`."""
        return evidence(*self.residuals(given), self.past_features(given))

    def fatigue(self, given: Mapping[str, Tensor]) -> Fatigue:
        """What past impressions that were not clicked add to the candidates."""
        past = Past(*(given[name] for name in PAST))
        past_title_NJ = self.rows("artwork_title", given["past_artwork"]).squeeze(2)
        by_artwork_NK, by_title_N1 = self.model.own_taste.fatigue(
            past, past_title_NJ, given["title"], given["artworks"]
        )
        return Fatigue(by_artwork_NK, by_title_N1.unsqueeze(2))

    def rewatch(self, plays: Plays, given: Mapping[str, Tensor]) -> Tensor:
        """1 where a recent play was of the very title, else 0, (N, 1, 1); an unknown title, row 0, is no other's."""
        title_NT = given["history_title"]
        same_NT = torch.where(title_NT == given["title"].unsqueeze(1), title_NT, 0).to(plays.counts_N1T.dtype)
        return (plays.counts_N1T @ same_NT.unsqueeze(2)).clamp(max=1)

    def member_features(self, state: States) -> Tensor:
        """What the heads are linear in, (N, 1, W): the means, the direction of co-play and the learned state, if any."""
        return torch.cat([state.recent, state.coplay / coplay_norm(state), state.learned], dim=2)

    def queries(self, state: States, context: Context) -> Queries:
        """What a member in a state (N, 1, ...) looks for in a context."""
        width, wide = self.model.config.width, self.vector_width
        heads_N1H = self.member_features(state) @ self.heads_weight + self.heads_bias
        title_N1D, engagement_N1D, rest_N1 = heads_N1H.split([width, wide, wide + 2], dim=2)
        if self.features:
            first, *others = (self.feature_rows(feature, context) for feature in self.features)
            rest_N1 = rest_N1 + sum(others, start=first).unsqueeze(1)
        artwork_N1D, levels_N12 = rest_N1.split([wide, 2], dim=2)
        own_level_N11 = levels_N12[..., :0]
        own_N1D = artwork_N1D[..., :0]
        if self.reads_past:
            own_N1D, own_level_N11 = self.model.own_taste.query(state.evidence, artwork_N1D[..., :width])
            artwork_N1D = artwork_N1D + F.pad(own_N1D, (0, wide - width))
        content_N1C = state.recent * self.similarity_gain
        return Queries(title_N1D, artwork_N1D, content_N1C, engagement_N1D, levels_N12, own_N1D, own_level_N11)

    def feature_rows(self, feature: ContextFeature, context: Context) -> Tensor:
        """What a feature adds to the artwork query and to both logits, (N, D + P + 2)."""
        name = f"context_{feature.name}"
        rows, above, share = lookup(feature, context, self.model.sizes.categories)
        values = self.rows(name, rows)
        if above is None or share is None:
            return values
        return torch.lerp(values, self.rows(name, above), share.unsqueeze(1))

    def title_share(self, queries: Queries, title_N1: Tensor) -> list[Tensor]:
        """The parts of what the mean of the title's artworks has in appeal, (N, 1, 1) each."""
        by_vector = queries.artwork_N1D @ self.rows("mean_vector", title_N1).mT
        by_content = queries.content_N1C @ self.rows("mean_content", title_N1).mT
        return [by_vector, by_content, self.rows("mean_bias", title_N1)]

    def affinity(self, queries: Queries, state: States, play_count_N: Tensor, title_N1: Tensor) -> list[Tensor]:
        """The parts of affinity but for a rewatch and the title's share, (N, 1, 1) or (N, 1, 2) each."""
        count_N1 = play_count_N.clamp(0, len(self.by_play_count) - 1).unsqueeze(1)
        parts = [queries.title_N1D @ self.rows("title_vector", title_N1).mT, self.rows("title_bias", title_N1)]
        parts.append(self.rows("by_play_count", count_N1))
        if self.model.coplay is not None:
            products_N1R = state.coplay * self.rows("title_coplay", title_N1)
            parts.append(torch.asinh(products_N1R @ self.coplay_patterns))
        return parts

    def ranked(
        self,
        state: States,
        queries: Queries,
        play_count_N: Tensor,
        title_N1: Tensor,
        candidates: Candidates,
        rewatch_N11: Tensor,
        fatigue: Fatigue | None = None,
    ) -> tuple[Tensor, ...]:
        """The outputs from a member's state (N, 1, ...) and queries; `rewatch_N11`: 1 where a recent play was of the title."""
        width = self.model.config.width
        engagement_N1D, level_N11 = self.rows("title_engaged", title_N1).split([self.vector_width, 1], dim=2)
        own = [] if fatigue is None else [queries.own_level_N11 + fatigue.affinity_N11]
        parts = [*own, rewatch_N11, *self.affinity(queries, state, play_count_N, title_N1)]
        parts += [*self.title_share(queries, title_N1), queries.levels_N12, level_N11]
        sums_N14 = torch.cat(parts, dim=2) @ self.request_sums
        levels_N12, shared_N11, affinity_N11 = sums_N14.split([2, 1, 1], dim=2)

        # of each candidate two numbers: appeal, and what it adds to engagement beside appeal
        vector_NKD, content_NKC, own_NK2 = candidates
        fits_N1C = F.pad(self.rows("title_content", title_N1) * self.fit_gain, (width, 0))
        by_vector_N2D = torch.cat([queries.artwork_N1D, queries.engagement_N1D + engagement_N1D], dim=1)
        by_content_N2C = torch.cat([queries.content_N1C, fits_N1C], dim=1)
        terms_NK2 = vector_NKD @ by_vector_N2D.mT + content_NKC @ by_content_N2C.mT + own_NK2
        if fatigue is not None:
            terms_NK2 = terms_NK2 + F.pad(fatigue.appeal_NK.unsqueeze(2), (0, 1))
        probability_NK2 = torch.sigmoid(self._calibrated(terms_NK2 @ self.candidate_sums + levels_N12))
        click_NK, appeal_NK = probability_NK2[..., 0], terms_NK2[..., 0] - shared_N11.squeeze(2)
        terms = (click_NK, click_NK * probability_NK2[..., 1], appeal_NK, affinity_N11.squeeze((1, 2)))
        return *terms, queries.artwork_N1D.squeeze(1), queries.content_N1C.squeeze(1)

    def _calibrated(self, logit_NK2: Tensor) -> Tensor:
        """Calibrated logits of both heads: see `models.types.piecewise_linear_calibration`."""
        if not self.bends:  # the scale is in the sums
            return logit_NK2 + self.shift
        above = (logit_NK2.unsqueeze(3) - self.knots).relu()
        return logit_NK2 * self.scale + self.shift + (above * self.knot_bends).sum(3)


def coplay_norm(state: States) -> Tensor:
    """The norm of the sum of co-play, (N, 1, 1), by which it becomes a direction."""
    return torch.linalg.vector_norm(state.coplay, dim=2, keepdim=True).clamp(min=MIN_NORM)


def _in_rows(values: Tensor) -> Tensor:
    """A table of one number a row as rows of length 1."""
    return values.unsqueeze(1) if values.ndim == 1 else values


def _mean_by_title(values_A: Tensor, artworks_IL: Tensor) -> Tensor:
    """Mean over a title's artworks, (A, ...) -> (I, ...); 0 for a title that has none."""
    mask_IL = (artworks_IL > 0).to(values_A.dtype)
    share_IL = mask_IL / mask_IL.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("il,il...->i...", share_IL, values_A[artworks_IL])
