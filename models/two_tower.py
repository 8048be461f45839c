"""The two-tower ranker: click logit = affinity(member, title) + appeal(member, artwork) + presentation.

In: rows of plays, of titles and of artworks, and the context. Out: the three terms and the logit of engagement given a
click. Affinity and appeal are dot products with one encoding of the member, whose core is the mean of what the recent
plays' titles are: their images, people, genres and ids. The towers are linear in it and of low rank, and training holds
their weights to normal priors (`train.prior`): clicks are few, and deeper encodings learned less from them
(docs/experiments.md). Titles and artworks share the tables of people and genres and one projection of the images, so that
what a member watched and what an artwork shows lie in one space, also where an id was never trained: the dot product of
the two contents, times a learned gain, is their similarity.

Legend: M members, T plays, N impressions, K candidates, D width, I titles, A artworks, E image embedding, G genres,
L list length, R rank of co-play, C = 2 D + G: an image, people and genres, P own preferences.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.context import Context, ContextSum
from models.engagement import Engagement
from models.history import RecentMean, is_rewatch
from models.layers import dots, gather_rows, mean_of_known, mean_of_rows, repeated, scaled_linear, sums_of_last, table
from models.linear_title_models import LowRankEase, NextItemRegression
from models.own_preferences import OwnPreferences
from models.own_taste import OwnTaste, Past, title_of_artworks
from models.presentation import PlayCount, Presentation
from models.sequence_tower import SequenceTower
from models.two_tower_config import TwoTowerConfig
from models.types import (
    ArtworkEncoding,
    Content,
    LogitTerms,
    PlayEncoding,
    Sizes,
    States,
    TitleEncoding,
    TitleFeatures,
    identity_calibration,
    piecewise_linear_calibration,
)

PERSON_STD = 0.3
"""Standard deviation of the people's initial vectors."""
IMAGE_NORM = 2.5
"""Root mean square norm of a picture's features, about that of a person's vector, so that one prior fits both."""
MEANS = 5.0
"""Factor of the means over histories, which lie about a fifth as far apart as the plays' own features."""
LINEAR_STD = 0.05
"""Standard deviation of the initial weights from member features to the artwork and title queries."""


class TwoTower(nn.Module):
    """The ranker. `content` gives the catalogue, `sizes` the trained rows; ids past those count as unknown."""

    title_genres_IL: Tensor
    title_people_IL: Tensor
    title_year_I: Tensor
    title_artworks_IL: Tensor
    artwork_people_AL: Tensor
    artwork_genres_AL: Tensor
    artwork_image_AE: Tensor
    image_mean_E: Tensor
    image_scale_E: Tensor
    engaged_scale_E: Tensor
    main_scale_E: Tensor
    mean_genres_G: Tensor
    genre_identity_GG: Tensor
    calibration: Tensor
    posterior_FF: Tensor
    posterior_own_A: Tensor
    artwork_title_A: Tensor

    def __init__(self, config: TwoTowerConfig, sizes: Sizes, content: Content) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        width, image_width = config.width, content.artwork_image_AE.shape[1]
        for name, value in content._asdict().items():
            self.register_buffer(name, value)
        self.register_buffer("calibration", identity_calibration())
        # the posterior of the last layer: `train.posterior` fills it
        self.register_buffer("posterior_FF", torch.zeros(config.width + 3, config.width + 3))
        self.register_buffer("posterior_own_A", torch.zeros(sizes.artworks))
        self._normalise_content(content)
        self.register_buffer(
            "artwork_title_A", title_of_artworks(self.title_artworks_IL, len(self.artwork_image_AE)), persistent=False
        )

        self.person = table(sizes.people, width, PERSON_STD)
        self.image = scaled_linear(image_width, width, PERSON_STD / 2 / IMAGE_NORM, bias=False)
        self.recent = RecentMean(config.history.span)
        self.similarity_gain = nn.Parameter(torch.tensor([0.3, 1.0, 1.0]))

        member_features = 2 * width + sizes.genres + config.coplay.rank
        self.artwork_query = scaled_linear(member_features, width, LINEAR_STD)
        self.title_query = scaled_linear(member_features, width, LINEAR_STD)
        attention = config.history.encoder == "attention"
        self.artwork_query_state = scaled_linear(width, width, 0.01, bias=False) if attention else None
        self.title_query_state = scaled_linear(width, width, 0.01, bias=False) if attention else None
        self.artwork_query_context = ContextSum(sizes, "appeal", width, 0.02)
        artwork_features = image_width + width + sizes.genres
        self.artwork_vector = scaled_linear(artwork_features, width, image_width**-0.5)
        self.artwork_content_bias = scaled_linear(artwork_features, 1, 0.0)
        self.artwork_bias = table(sizes.artworks, 1, 0.0)
        self.own_preferences = OwnPreferences(sizes)
        self.own_taste = OwnTaste(sizes.artworks, width)
        title_features = sizes.genres + width + 1
        self.title_vector = scaled_linear(title_features, width, LINEAR_STD)
        self.title_content_bias = scaled_linear(title_features, 1, 0.0)
        self.title_bias = table(sizes.titles, 1, 0.0)
        self.coplay = LowRankEase(sizes.titles, config.coplay) if config.coplay.rank else None
        self.next_item = NextItemRegression(sizes.titles, config.next_item) if config.next_item.rank else None
        # without co-play its gain gets no gradient, and ranks that average their gradients would wait for one
        self.coplay_gain, self.rewatch_gain = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))
        self.coplay_gain.requires_grad_(self.coplay is not None)
        self.play_count = PlayCount()
        self.presentation = Presentation(sizes)

        self.sequence_tower = SequenceTower(width, config.history, sizes, config.dropout, config.id_dropout)
        unread = self.own_preferences.width
        self.engagement = Engagement(width, member_features, title_features, artwork_features, sizes, unread)
        self.uses_learned_state = True
        """Whether anything reads the learned state."""
        self.batch_images: tuple[Tensor, Tensor] | None = None
        """Artwork rows (n,), ascending, and embeddings (n, E) computed from a step's images, used instead of the table's."""

    def disable_title_ranking(self) -> None:
        """Train without the loss on the next title, which the next-item regression then predicts alone: weights that get no
        gradient stay as they are, and where the click does not read the learned state, it is no longer computed."""
        self.uses_learned_state = self.artwork_query_state is not None
        self.sequence_tower.freeze(history=not self.uses_learned_state)

    def _normalise_content(self, content: Content) -> None:
        """Set the catalogue's mean image, mean genres and image scale: members and artworks are described relative to them."""
        images_AE = content.artwork_image_AE[1 : self.sizes.artworks]
        centre_E = images_AE.sum(0) / max(1, len(images_AE))
        spread = ((images_AE - centre_E).square().sum() / max(1, len(images_AE))).sqrt()
        self.register_buffer("image_mean_E", centre_E)
        # one image, or equal ones, say nothing about the spread of others
        scale = IMAGE_NORM / torch.where(spread > 1e-3, spread, 1.0)
        self.register_buffer("image_scale_E", scale.expand(len(centre_E)).clone())
        # of the two biases by content, in units of `image_scale_E`: see `train.evidence`
        self.register_buffer("main_scale_E", torch.ones_like(centre_E))
        self.register_buffer("engaged_scale_E", torch.ones_like(centre_E))
        self.register_buffer("genre_identity_GG", torch.eye(self.sizes.genres), persistent=False)
        shares_IG = self._genre_shares(content.title_genres_IL[1 : self.sizes.titles])
        self.register_buffer("mean_genres_G", shares_IG.sum(0) / max(1, len(shares_IG)))

    def _title_rows(self, rows: Tensor) -> Tensor:
        """Rows of trained titles; others become the unknown row."""
        return torch.where(rows < self.sizes.titles, rows, 0)

    def centred_images(self, rows: Tensor) -> Tensor:
        """Image embeddings of artworks, centred and scaled, (...,) -> (..., E); zero for the unknown row."""
        embedding = self.artwork_image_AE[rows]
        if self.batch_images is not None and len(self.batch_images[0]):
            known, vectors = self.batch_images
            index = torch.searchsorted(known, rows).clamp(max=len(known) - 1)
            embedding = torch.where((known[index] == rows).unsqueeze(-1), F.embedding(index, vectors), embedding)
        return (embedding - self.image_mean_E) * self.image_scale_E * (rows > 0).unsqueeze(-1)

    def images(self, rows: Tensor) -> Tensor:
        """Projected pictures of artworks, (...,) -> (..., D)."""
        return self.image(self.centred_images(rows))

    def own_bias(self, rows: Tensor) -> Tensor:
        """What an artwork adds whatever it shows, (...,) -> (..., 1); for artworks that were not trained, the unknown row's."""
        return self.artwork_bias(torch.where(rows < self.sizes.artworks, rows, 0))

    def artworks(self, rows: Tensor) -> ArtworkEncoding:
        """Encodings of artworks by the artwork tower, for rows of any shape."""
        return self.encode_artworks(
            rows, self.centred_images(rows), self.artwork_people_AL[rows], self.artwork_genres_AL[rows]
        )

    def encode_artworks(self, rows: Tensor, picture: Tensor, people_xL: Tensor, genres_xL: Tensor) -> ArtworkEncoding:
        """Encodings of artworks from their content: centred and scaled embeddings (..., E), rows of people and of moods (..., L);
        `rows`: (...,), 0 for an artwork that is not in the catalogue."""
        people, moods = mean_of_known(self.person, people_xL), self._genre_shares(genres_xL)
        artwork_features = torch.cat([picture, people, moods], dim=-1)
        main_features = torch.cat([picture * self.main_scale_E, people, moods], dim=-1)
        bias = self.artwork_content_bias(main_features) + self.own_bias(rows)
        content = torch.cat([self.image(picture), people, moods], dim=-1)
        return ArtworkEncoding(
            torch.cat([self.artwork_vector(artwork_features), self.own_preferences(rows)], dim=-1),
            content,
            bias.squeeze(-1),
            self.engagement.encode_artworks(torch.cat([picture * self.engaged_scale_E, people, moods], dim=-1)),
        )

    def titles(self, rows: Tensor) -> TitleEncoding:
        """Encodings of titles by the title tower, for rows of any shape."""
        return self.encode_titles(self.title_features_of(rows))

    def encode_titles(self, title_features: TitleFeatures) -> TitleEncoding:
        """Encodings of titles from their features."""
        ids, people = self._title_rows(title_features.rows), title_features.people
        genres = self._genre_shares(title_features.genres_xL)
        known = torch.cat([genres, people, title_features.year.unsqueeze(-1)], dim=-1)
        bias = (self.title_content_bias(known) + self.title_bias(ids)).squeeze(-1)
        coplay = torch.zeros(*ids.shape, 0, device=ids.device) if self.coplay is None else self.coplay.target_IR[ids]
        content = torch.cat([people, genres], dim=-1)
        return TitleEncoding(self.title_vector(known), content, bias, coplay, self.engagement.encode_titles(known))

    def _genre_shares(self, genres_xL: Tensor) -> Tensor:
        """Equal shares of a list's genres, (..., L) -> (..., G); zero for an empty list."""
        return mean_of_rows(self.genre_identity_GG, genres_xL)

    def title_features_of(self, rows: Tensor) -> TitleFeatures:
        """Features of the catalogue's titles, for rows of any shape."""
        people = mean_of_known(self.person, self.title_people_IL[rows])
        return TitleFeatures(rows, people, self.title_genres_IL[rows], self.title_year_I[rows])

    def plays(self, rows: Tensor) -> PlayEncoding:
        """Encodings of plays of titles, for title rows of any shape."""
        artworks_xL = self.title_artworks_IL[rows]
        mask_x1 = (artworks_xL > 0).any(-1, keepdim=True).to(self.image_scale_E.dtype)
        picture = mean_of_rows(self.artwork_image_AE, artworks_xL) - self.image_mean_E
        return self.encode_plays(self.title_features_of(rows), self.image(picture * self.image_scale_E * mask_x1))

    def encode_plays(self, title_features: TitleFeatures, mean_image: Tensor) -> PlayEncoding:
        """Encodings of plays from their titles' features and the projected mean of the titles' artwork images (..., D)."""
        shares, rows = self._genre_shares(title_features.genres_xL), title_features.rows
        token = (
            self.sequence_tower.tokens(*title_features)
            if self.uses_learned_state
            else torch.zeros_like(title_features.people)
        )
        content = torch.cat([title_features.people, shares - self.mean_genres_G * shares.sum(-1, keepdim=True)], dim=-1)
        coplay = torch.zeros(*rows.shape, 0, device=rows.device)
        if self.coplay is not None:
            coplay = self.coplay.source_IR[self._title_rows(rows)]
        return PlayEncoding(token, content, mean_image, coplay)

    def states(self, play_title_MT: Tensor, play_artwork_MT: Tensor, play_watched_MT: Tensor) -> States:
        """States after every number of plays, (M, T + 1, ...).

        A play is encoded from its title's id and content, the fraction watched, and the image of the artwork it was clicked
        through, or, where none was logged, the mean of the title's artworks. Each distinct title and artwork of the batch is
        encoded once.
        """
        titles, title_of = torch.unique(play_title_MT, return_inverse=True)
        artworks, artwork_of = torch.unique(play_artwork_MT, return_inverse=True)
        plays = PlayEncoding(*(F.embedding(title_of, table) for table in self.plays(titles)))
        clicked_image_MTD = F.embedding(artwork_of, self.images(artworks))
        return self.read(plays, clicked_image_MTD, play_artwork_MT, play_watched_MT)

    def read(self, plays: PlayEncoding, clicked_image_MTD: Tensor, artwork_MT: Tensor, watched_MT: Tensor) -> States:
        """States (M, T + 1, ...) from encodings of plays (M, T, ...), images (M, T, D) and rows (M, T) of the artworks they were
        clicked through, row 0 where none was logged, and the fraction watched (M, T), NaN where not logged."""
        image_MTD = torch.where((artwork_MT > 0).unsqueeze(-1), clicked_image_MTD, plays.mean_image)
        content_MTC = torch.cat([image_MTD, plays.content], dim=-1)
        recent = self.recent(content_MTC)
        if self.uses_learned_state:
            learned = self.sequence_tower(plays.token, image_MTD, watched_MT)
        else:
            learned = torch.zeros(*recent.shape[:2], self.config.width, device=recent.device)
        coplay = sums_of_last(plays.coplay, self.config.history.span)
        return States(learned, recent, coplay, recent[..., :0])

    def next_titles(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (..., D) and biases (..., 1) that score titles as the next play, without the next-item regression."""
        return self.sequence_tower.next_titles(*self.title_features_of(rows))

    def rank(
        self,
        state: States,
        context: Context,
        title_N: Tensor,
        artworks_NK: Tensor,
        rewatch_N: Tensor,
        engagement_rows_n: Tensor | None = None,
        past: Past | None = None,
    ) -> LogitTerms:
        """The terms of every candidate, from the member's state (N, ...) at the impression.

        `rewatch_N`: whether a recent play was of the same title, bool; `engagement_rows_n`: indices of the impressions whose
        engagement is computed; None: all. `past`: the past impressions that fatigue reads; the state has their evidence.
        """
        titles, title_of = torch.unique(title_N, return_inverse=True)
        artworks, artwork_of = torch.unique(artworks_NK, return_inverse=True)
        title, artwork = self.titles(titles), self.artworks(artworks)
        titles_N = TitleEncoding(*gather_rows(title, title_of))
        title_A = self.artwork_title_A
        fatigue = None if past is None else self.own_taste.fatigue(past, title_A[past.artwork_NJ], title_N, artworks_NK)
        artworks_NKx = ArtworkEncoding(*gather_rows(artwork, artwork_of))
        return self.rank_vectors(state, context, titles_N, artworks_NKx, rewatch_N, engagement_rows_n, fatigue)

    def rank_vectors(
        self,
        state: States,
        context: Context,
        title: TitleEncoding,
        artwork: ArtworkEncoding,
        rewatch_N: Tensor,
        engagement_rows_n: Tensor | None = None,
        fatigue: tuple[Tensor, Tensor] | None = None,
    ) -> LogitTerms:
        """The terms from the towers' outputs, `title` of shape (N, ...) and `artwork` of shape (N, K, ...), and from what fatigue
        adds to appeal, (N, K), and to affinity, (N, 1)."""
        artwork_query_ND, content_query_NC, level_N1 = self.appeal_queries(state, context)
        affinity_N = self.affinity(state, context, title, rewatch_N) + level_N1.squeeze(1)
        appeal_NK = dots(artwork.vector, artwork_query_ND) + dots(artwork.content, content_query_NC) + artwork.bias
        if fatigue is not None:
            appeal_NK, affinity_N = appeal_NK + fatigue[0], affinity_N + fatigue[1].squeeze(1)
        terms = LogitTerms(affinity_N, appeal_NK, self.presentation(context), appeal_NK)
        if engagement_rows_n is None:
            # not `_replace`, which torch 2.11 cannot compile
            return LogitTerms(*terms[:-1], self.engaged(state, context, title, artwork, terms))
        # distinct rows, so that the gradient of an index has one order of summing
        engaged_nK = self.engaged(
            States(*(part[engagement_rows_n] for part in state)),
            {name: values[engagement_rows_n] for name, values in context.items()},
            TitleEncoding(*(part[engagement_rows_n] for part in title)),
            ArtworkEncoding(*(part[engagement_rows_n] for part in artwork)),
            LogitTerms(*(part[engagement_rows_n] for part in terms)),
        )
        return LogitTerms(*terms[:-1], engaged_nK)

    def affinity(self, state: States, context: Context, title: TitleEncoding, rewatch_N: Tensor) -> Tensor:
        """What the title adds to the click logit for this member, (N,), the effect of the member's number of plays included."""
        title_query_ND = self.title_query(self.member_features(state))
        if self.title_query_state is not None:
            title_query_ND = title_query_ND + self.title_query_state(state.learned)
        affinity_N = (title_query_ND * title.vector).sum(-1) + title.bias + self.rewatch_gain * rewatch_N
        if self.coplay is not None:
            affinity_N = affinity_N + self.coplay.similarity(state.coplay, title.coplay) @ self.coplay_gain
        return affinity_N + self.play_count(context["play_count"])

    def content_widths(self) -> tuple[int, int, int]:
        """Lengths of the parts of an artwork's content, and of a member's means: image, people, genres."""
        return self.config.width, self.config.width, self.sizes.genres

    def member_features(self, state: States) -> Tensor:
        """The member features that the towers are linear in, (N, C + R): the means, and the normalised co-play vector."""
        return torch.cat([state.recent * MEANS, F.normalize(state.coplay, dim=-1, eps=1e-6)], dim=-1)

    def appeal_queries(self, state: States, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries for an artwork's vector, (N, D + P), and for its content, (N, C), whose dot products with a bias are appeal; and
        what the member's own clicks add to affinity, (N, 1)."""
        artwork_query_ND = self.artwork_query(self.member_features(state)) + self.artwork_query_context(context)
        if self.artwork_query_state is not None:
            artwork_query_ND = artwork_query_ND + self.artwork_query_state(state.learned)
        level_N1 = torch.zeros_like(artwork_query_ND[..., :1])
        if state.evidence.shape[-1]:
            own_ND, level_N1 = self.own_taste.query(state.evidence, artwork_query_ND)
            artwork_query_ND = artwork_query_ND + own_ND
        artwork_query_ND = torch.cat([artwork_query_ND, self.own_preferences.indicators(context)], dim=-1)
        return artwork_query_ND, state.recent * repeated(self.similarity_gain, self.content_widths()), level_N1

    def evidence(self, past: Past) -> Tensor:
        """What past impressions sum up to, (N, S + 1)."""
        artworks, artwork_of = torch.unique(past.artwork_NJ, return_inverse=True)
        features = self.own_taste.features(self.artworks(artworks).vector[..., : self.config.width])
        return self.own_taste.evidence(past, F.embedding(artwork_of, features))

    def engaged(
        self, state: States, context: Context, title: TitleEncoding, artwork: ArtworkEncoding, terms: LogitTerms
    ) -> Tensor:
        """Logit of a real viewing given a click, (N, K)."""
        return self.engagement(self.member_features(state), context, title, artwork, terms)

    def forward(
        self,
        play_title_MT: Tensor,
        play_artwork_MT: Tensor,
        play_watched_MT: Tensor,
        member_N: Tensor,
        position_N: Tensor,
        context: Context,
        title_N: Tensor,
        artworks_NK: Tensor,
        engagement_rows_n: Tensor | None = None,
        states: States | None = None,
        past: Past | None = None,
    ) -> LogitTerms:
        """Encode each member once and rank every impression that points into it, as in `datamodules.feed.impression_feed.Batch`.

        `states`: the result of the method `states` for these plays, where it is known already. `past`: past impressions, which
        training does not read.
        """
        if states is None:
            states = self.states(play_title_MT, play_artwork_MT, play_watched_MT)
        rewatch_N = is_rewatch(F.embedding(member_N, play_title_MT), position_N, title_N, self.config.history.span)
        state = self.state_at(states, member_N, position_N)
        if past is not None:
            state = state._replace(evidence=self.evidence(past))
        return self.rank(state, context, title_N, artworks_NK, rewatch_N, engagement_rows_n, past)

    def state_at(self, states: States, member_N: Tensor, position_N: Tensor) -> States:
        """The states (N, ...) of some members after some numbers of plays, from those of all, (M, T + 1, ...), without evidence."""
        # F.embedding, here and above, instead of indexing: on a CPU the gradient of an index is summed in any order, that
        # of an embedding always in the same, and a resumed run must end with the same weights
        index_N = member_N * states.learned.shape[1] + position_N
        parts = [F.embedding(index_N, part.flatten(0, 1)) for part in states[:3]]
        return States(*parts, evidence=parts[1][:, :0])

    def probabilities(self, terms: LogitTerms) -> tuple[Tensor, Tensor]:
        """Calibrated probabilities (N, K) of a click, and of a click that leads to a real viewing."""
        click_NK = torch.sigmoid(piecewise_linear_calibration(terms.click_NK(), self.calibration[0]))
        return click_NK, click_NK * torch.sigmoid(piecewise_linear_calibration(terms.engaged_NK, self.calibration[1]))
