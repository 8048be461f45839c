"""The two-tower ranker: click logit = affinity(member, title) + appeal(member, artwork) + presentation.

In: rows of plays, of titles and of artworks, and the context. Out: the three terms and the logit of engagement given a
click. Affinity and appeal are dot products with one encoding of the member, whose core is the mean of what the recent
plays' titles are: their images, people, genres and ids. The towers are linear in it and of low rank, and training holds
their weights to normal priors (`train.prior`): of clicks there are few, and deeper encodings learned less from them
(docs/experiments.md). Titles and artworks share the tables of people and genres and one projection of the images, so that
what a member watched and what an artwork shows meet in one space, also where an id was never trained: the dot product of
the two contents, times a learned gain, is their likeness.

Legend: M members, T plays, N impressions, K candidates, D width, I titles, A artworks, E image embedding, G genres,
L list length, R rank of what is played together, C = 2 D + G: an image, people and genres.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.engagement import Engagement
from models.history import HistoryConfig, RecentMean, time_apart
from models.layers import dots, gathered, linked, mean_of_known, mean_of_rows, repeated, sums_of_last, table
from models.parts import Artworks, Content, Context, Held, Plays, Sizes, States, Terms, Titles, bent_line, straight
from models.presentation import HOURS, PlayCount, Presentation
from models.reading import Reading
from models.titles import Coplay, CoplayConfig, Order, OrderConfig

TABLES = ("reading.title_id.weight", "title_bias.weight", "artwork_bias.weight", "person.weight")
"""Parameters that grow with the catalogue, by row. Where an embedding's `sparse` is set, its gradient is."""
PERSON = 0.3
"""Spread of the people's vectors before training."""
PICTURE = 2.5
"""Root mean square norm of a picture's features, about that of a person's vector, so that one prior fits both."""
MEANS = 5.0
"""Means over histories lie about a fifth as far apart as what they are means of."""
LINKED = 0.05
"""Spread of the weights before training that link a member's means to what meets artworks and titles."""


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig:
    """The ranker's shape."""

    width: int = 64
    """Of the member vector, and of everything that meets it in a dot product."""
    history: HistoryConfig = field(default_factory=HistoryConfig)
    """The history encoder."""
    dropout: float = 0.4
    """Of the tokens that the learned state reads, while training."""
    id_dropout: float = 0.7
    """Share of title ids sent to the unknown row there while training, so that content alone learns to stand for a title."""
    coplay: CoplayConfig = field(default_factory=CoplayConfig)
    """What is played together, which tells clicks."""
    order: OrderConfig = field(default_factory=OrderConfig)
    """What is played next, which ranks titles."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 2 <= self.width <= 4096:
            raise ValueError(f"width={self.width}: must lie in 2 .. 4096.")
        for name, share in (("dropout", self.dropout), ("id_dropout", self.id_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"{name}={share}: must lie in [0, 1).")


class TwoTower(nn.Module):
    """The ranker. `content` gives the catalogue, `sizes` the trained rows; ids past those count as unknown."""

    title_genres_IL: Tensor
    title_people_IL: Tensor
    title_year_I: Tensor
    title_artworks_IL: Tensor
    artwork_people_AL: Tensor
    artwork_genres_AL: Tensor
    artwork_image_AE: Tensor
    picture_centre_E: Tensor
    picture_scale: Tensor
    genre_share_G: Tensor
    one_genre_GG: Tensor
    calibration: Tensor
    posterior_FF: Tensor
    posterior_own_A: Tensor

    def __init__(self, config: TwoTowerConfig, sizes: Sizes, content: Content) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        width, image_width = config.width, content.artwork_image_AE.shape[1]
        for name, value in content._asdict().items():
            self.register_buffer(name, value)
        self.register_buffer("calibration", straight())
        # of the last layer: see `appeal_features`, and train.posterior, which fills them
        self.register_buffer("posterior_FF", torch.zeros(config.width + 3, config.width + 3))
        self.register_buffer("posterior_own_A", torch.zeros(sizes.artworks))
        self._centre(content)

        self.person = table(sizes.people, width, PERSON)
        self.image = linked(image_width, width, PERSON / 2 / PICTURE, bias=False)
        self.recent = RecentMean(config.history.span, config.history.time)
        self.likeness_gain = nn.Parameter(torch.tensor([0.3, 1.0, 1.0]))

        wide = 2 * width + sizes.genres + config.coplay.rank
        self.taste, self.interest = linked(wide, width, LINKED), linked(wide, width, LINKED)
        attention = config.history.encoder == "attention"
        self.taste_state = linked(width, width, 0.01, bias=False) if attention else None
        self.interest_state = linked(width, width, 0.01, bias=False) if attention else None
        self.taste_country, self.taste_device = table(sizes.countries, width, 0.02), table(sizes.devices, width, 0.02)
        self.taste_hour = table(HOURS, width, 0.02)
        shown = image_width + width + sizes.genres
        self.artwork_vector = linked(shown, width, image_width**-0.5)
        self.artwork_content_bias, self.artwork_bias = linked(shown, 1, 0.0), table(sizes.artworks, 1, 0.0)
        held = sizes.genres + width + 1
        self.title_vector, self.title_content_bias = linked(held, width, LINKED), linked(held, 1, 0.0)
        self.title_bias = table(sizes.titles, 1, 0.0)
        self.coplay = Coplay(sizes.titles, config.coplay) if config.coplay.rank else None
        self.order = Order(sizes.titles, config.order) if config.order.rank else None
        # without co-play no loss reaches its gain, and ranks that average their gradients would wait for it
        self.coplay_gain, self.again_gain = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))
        self.coplay_gain.requires_grad_(self.coplay is not None)
        self.play_count = PlayCount()
        self.presentation = Presentation(sizes)

        self.reading = Reading(width, config.history, sizes, config.dropout, config.id_dropout)
        self.engagement = Engagement(width, wide, held, shown, sizes.devices)
        self.reads_state = True
        """Whether anything reads the learned state."""
        self.fresh: tuple[Tensor, Tensor] | None = None
        """Artwork rows (n,), ascending, and embeddings (n, E) that stand for those of the table: of a step's images."""

    def forget_titles(self) -> None:
        """Train without ranking titles, which what is played next then does alone: weights that no loss reaches stay as they
        are, and where the click does not read the learned state, it is not computed from here on."""
        self.reads_state = self.taste_state is not None
        self.reading.freeze(history=not self.reads_state)

    def _centre(self, content: Content) -> None:
        """What of images and genres is the catalogue's mean: members and artworks are told by how they differ from it."""
        images_AE = content.artwork_image_AE[1 : self.sizes.artworks]
        centre_E = images_AE.sum(0) / max(1, len(images_AE))
        spread = ((images_AE - centre_E).square().sum() / max(1, len(images_AE))).sqrt()
        self.register_buffer("picture_centre_E", centre_E)
        # of one image, or of equal ones, nothing is known of how far others lie apart
        self.register_buffer("picture_scale", PICTURE / torch.where(spread > 1e-3, spread, 1.0))
        self.register_buffer("one_genre_GG", torch.eye(self.sizes.genres), persistent=False)
        shares_IG = self._shares(content.title_genres_IL[1 : self.sizes.titles])
        self.register_buffer("genre_share_G", shares_IG.sum(0) / max(1, len(shares_IG)))

    def _title_rows(self, rows: Tensor) -> Tensor:
        """Rows of trained titles; others become the unknown row."""
        return torch.where(rows < self.sizes.titles, rows, 0)

    def pictures(self, rows: Tensor) -> Tensor:
        """Image embeddings of artworks, centred and scaled, (...,) -> (..., E); zero for the unknown row."""
        found = self.artwork_image_AE[rows]
        if self.fresh is not None and len(self.fresh[0]):
            known, vectors = self.fresh
            place = torch.searchsorted(known, rows).clamp(max=len(known) - 1)
            found = torch.where((known[place] == rows).unsqueeze(-1), F.embedding(place, vectors), found)
        return (found - self.picture_centre_E) * (self.picture_scale * (rows > 0)).unsqueeze(-1)

    def images(self, rows: Tensor) -> Tensor:
        """Projected pictures of artworks, (...,) -> (..., D)."""
        return self.image(self.pictures(rows))

    def artworks(self, rows: Tensor) -> Artworks:
        """The artwork tower, for artwork rows of any shape."""
        return self.artworks_of(rows, self.pictures(rows), self.artwork_people_AL[rows], self.artwork_genres_AL[rows])

    def artworks_of(self, rows: Tensor, picture: Tensor, people_xL: Tensor, genres_xL: Tensor) -> Artworks:
        """The same from what artworks show: centred and scaled embeddings (..., E), people and moods; row 0 for one that is new."""
        people, moods = mean_of_known(self.person, people_xL), self._shares(genres_xL)
        told = torch.cat([picture, people, moods], dim=-1)
        bias = self.artwork_content_bias(told) + self.artwork_bias(torch.where(rows < self.sizes.artworks, rows, 0))
        content = torch.cat([self.image(picture), people, moods], dim=-1)
        return Artworks(self.artwork_vector(told), content, bias.squeeze(-1), self.engagement.of_artworks(told))

    def titles(self, rows: Tensor) -> Titles:
        """The title tower, for title rows of any shape."""
        return self.titles_of(self._held(rows))

    def titles_of(self, held: Held) -> Titles:
        """The same from what titles are."""
        ids, genres, people = self._title_rows(held.rows), self._shares(held.genres_xL), held.people
        known = torch.cat([genres, people, held.year.unsqueeze(-1)], dim=-1)
        bias = (self.title_content_bias(known) + self.title_bias(ids)).squeeze(-1)
        together = torch.zeros(*ids.shape, 0, device=ids.device) if self.coplay is None else self.coplay.target_IR[ids]
        content = torch.cat([people, genres], dim=-1)
        return Titles(self.title_vector(known), content, bias, together, self.engagement.of_titles(known))

    def _shares(self, genres_xL: Tensor) -> Tensor:
        """Equal shares of a list's genres, (..., L) -> (..., G); zero for an empty list."""
        return mean_of_rows(self.one_genre_GG, genres_xL)

    def _held(self, rows: Tensor) -> Held:
        """What is known of the catalogue's titles."""
        people = mean_of_known(self.person, self.title_people_IL[rows])
        return Held(rows, people, self.title_genres_IL[rows], self.title_year_I[rows])

    def plays(self, rows: Tensor) -> Plays:
        """What a play of a title says, for title rows of any shape."""
        artworks_xL = self.title_artworks_IL[rows]
        there_x1 = (artworks_xL > 0).any(-1, keepdim=True).to(self.picture_scale.dtype)
        picture = mean_of_rows(self.artwork_image_AE, artworks_xL) - self.picture_centre_E
        return self.plays_of(self._held(rows), self.image(picture * self.picture_scale * there_x1))

    def plays_of(self, held: Held, mean_image: Tensor) -> Plays:
        """The same from what titles are, and the projected mean of their artworks' images (..., D)."""
        shares, rows = self._shares(held.genres_xL), held.rows
        token = self.reading.tokens(*held) if self.reads_state else torch.zeros_like(held.people)
        content = torch.cat([held.people, shares - self.genre_share_G * shares.sum(-1, keepdim=True)], dim=-1)
        together = torch.zeros(*rows.shape, 0, device=rows.device)
        if self.coplay is not None:
            together = self.coplay.source_IR[self._title_rows(rows)]
        return Plays(token, content, mean_image, together)

    def states(
        self, play_title_MT: Tensor, play_artwork_MT: Tensor, play_watched_MT: Tensor, play_time_MT: Tensor
    ) -> States:
        """States after every number of plays, (M, T + 1, ...).

        A play says its title's id and content, how much of it was watched, and the image of the artwork it was clicked
        through; where none was logged, the mean of the title's artworks stands for it. Each distinct title and artwork
        of the batch is computed once.
        """
        titles, title_of = torch.unique(play_title_MT, return_inverse=True)
        artworks, artwork_of = torch.unique(play_artwork_MT, return_inverse=True)
        plays = Plays(*(F.embedding(title_of, table) for table in self.plays(titles)))
        clicked_image_MTD = F.embedding(artwork_of, self.images(artworks))
        return self.read(plays, clicked_image_MTD, play_artwork_MT, play_watched_MT, play_time_MT)

    def read(
        self, plays: Plays, clicked_image_MTD: Tensor, artwork_MT: Tensor, watched_MT: Tensor, time_MT: Tensor
    ) -> States:
        """States (M, T + 1, ...) from what the plays (M, T) say, the images they were clicked through, watched and time."""
        image_MTD = torch.where((artwork_MT > 0).unsqueeze(-1), clicked_image_MTD, plays.mean_image)
        content_MTC = torch.cat([image_MTD, plays.content], dim=-1)
        apart_MTT = time_apart(time_MT) if self.config.history.time else None
        recent = self.recent(content_MTC, apart_MTT)
        if self.reads_state:
            learned = self.reading(plays.token, image_MTD, watched_MT, apart_MTT)
        else:
            learned = torch.zeros(*recent.shape[:2], self.config.width, device=recent.device)
        return States(learned, recent, sums_of_last(plays.together, self.config.history.span))

    def member_vectors(self, state_MD: Tensor, play_title_MT: Tensor, length_M: Tensor) -> Tensor:
        """What ranks titles for a member after the first `length_M` plays, in no particular place: (M, D + R + 1).

        `state_MD`: the learned state then. The dot product with a title vector is the title's score; R is the rank of
        what is played next, and the last column, 1, meets the title's bias.
        """
        parts = [self.reading.member_next(state_MD)]
        if self.order is not None:
            parts.append(self.order.states(play_title_MT, length_M, self.config.history.reach))
        return torch.cat([*parts, torch.ones_like(parts[0][:, :1])], dim=-1)

    def title_vectors(self, rows: Tensor) -> Tensor:
        """What a title is found by, (..., D + R + 1), the last of it the title's bias."""
        return self.found_by(self._held(rows))

    def found_by(self, held: Held) -> Tensor:
        """The same from what titles are."""
        parts = [*self.reading.next_titles(*held)]
        if self.order is not None:
            parts.insert(1, self.order.targets(held.rows))
        return torch.cat(parts, dim=-1)

    def next_titles(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (..., D) and biases (..., 1) by which titles are told that are played next, but for `order`."""
        return self.reading.next_titles(*self._held(rows))

    def rank(
        self,
        state: States,
        context: Context,
        title_N: Tensor,
        artworks_NK: Tensor,
        again_N: Tensor,
        asked_n: Tensor | None = None,
    ) -> Terms:
        """The terms of every candidate, from the member's state (N, ...) at the impression.

        `again_N`: whether a recent play was of the very title, bool; `asked_n`: the impressions whose engagement is asked
        for; default: all.
        """
        titles, title_of = torch.unique(title_N, return_inverse=True)
        artworks, artwork_of = torch.unique(artworks_NK, return_inverse=True)
        title, artwork = self.titles(titles), self.artworks(artworks)
        of_N = Titles(*gathered(title, title_of))
        return self.rank_vectors(state, context, of_N, Artworks(*gathered(artwork, artwork_of)), again_N, asked_n)

    def rank_vectors(
        self,
        state: States,
        context: Context,
        title: Titles,
        artwork: Artworks,
        again_N: Tensor,
        asked_n: Tensor | None = None,
    ) -> Terms:
        """The terms from the towers' outputs, `title` of shape (N, ...) and `artwork` of shape (N, K, ...)."""
        affinity_N = self.affinity(state, context, title, again_N)
        taste_ND, liked_NC = self.appeal_vectors(state, context)
        appeal_NK = dots(artwork.vector, taste_ND) + dots(artwork.content, liked_NC) + artwork.bias
        terms = Terms(affinity_N, appeal_NK, self.presentation(context), appeal_NK)
        if asked_n is None:
            return terms._replace(engaged_NK=self.engaged(state, context, title, artwork, terms))
        # of distinct rows, so that the gradient of an index has one order of summing
        engaged_nK = self.engaged(
            States(*(part[asked_n] for part in state)),
            Context(*(part[asked_n] for part in context)),
            Titles(*(part[asked_n] for part in title)),
            Artworks(*(part[asked_n] for part in artwork)),
            Terms(*(part[asked_n] for part in terms)),
        )
        return terms._replace(engaged_NK=engaged_nK)

    def affinity(self, state: States, context: Context, title: Titles, again_N: Tensor) -> Tensor:
        """What the title adds for this member, (N,), and how readily one with so many plays clicks on anything."""
        interest_ND = self.interest(self._told(state))
        if self.interest_state is not None:
            interest_ND = interest_ND + self.interest_state(state.learned)
        affinity_N = (interest_ND * title.vector).sum(-1) + title.bias + self.again_gain * again_N
        if self.coplay is not None:
            affinity_N = affinity_N + self.coplay.likeness(state.together, title.together) @ self.coplay_gain
        return affinity_N + self.play_count(context.play_count)

    def parts_of_content(self) -> tuple[int, int, int]:
        """How long the parts of an artwork's content are, of a member's means alike: image, people, genres."""
        return self.config.width, self.config.width, self.sizes.genres

    def _told(self, state: States) -> Tensor:
        """What the towers are linear in, (N, C + R): the means, and the direction of what is played together."""
        return torch.cat([state.recent * MEANS, F.normalize(state.together, dim=-1, eps=1e-6)], dim=-1)

    def appeal_vectors(self, state: States, context: Context) -> tuple[Tensor, Tensor]:
        """What meets an artwork's vector, (N, D), and its content, (N, C): appeal is the two dot products and a bias."""
        taste_ND = self.taste(self._told(state)) + self.taste_device(context.device)
        taste_ND = taste_ND + self.taste_country(context.country) + self.taste_hour(context.hour)
        if self.taste_state is not None:
            taste_ND = taste_ND + self.taste_state(state.learned)
        return taste_ND, state.recent * repeated(self.likeness_gain, self.parts_of_content())

    def appeal_features(self, taste_ND: Tensor, liked_NC: Tensor, artwork: Artworks) -> Tensor:
        """Appeal as a last layer: features (N, K, D + 3) whose sum, with the artwork's bias, is appeal.

        The D products of the learned part, and the likeness of images, of people and of moods.
        """
        learned_NKD = artwork.vector * taste_ND.unsqueeze(1)
        likeness_NKC = artwork.content * liked_NC.unsqueeze(1)
        image, people, genres = likeness_NKC.split(self.parts_of_content(), dim=-1)
        return torch.cat([learned_NKD, *(part.sum(-1, keepdim=True) for part in (image, people, genres))], dim=-1)

    def engaged(self, state: States, context: Context, title: Titles, artwork: Artworks, terms: Terms) -> Tensor:
        """Logit of a real viewing given a click, (N, K)."""
        return self.engagement(self._told(state), context, title, artwork, terms)

    def forward(
        self,
        play_title_MT: Tensor,
        play_artwork_MT: Tensor,
        play_watched_MT: Tensor,
        play_time_MT: Tensor,
        member_N: Tensor,
        position_N: Tensor,
        context: Context,
        title_N: Tensor,
        artworks_NK: Tensor,
        asked_n: Tensor | None = None,
        states: States | None = None,
    ) -> Terms:
        """Encode each member once and rank every impression that points into it, as in `datamodules.feed.Batch`.

        `states`: what `states` gave for these plays, where it is known already.
        """
        if states is None:
            states = self.states(play_title_MT, play_artwork_MT, play_watched_MT, play_time_MT)
        again_N = self.played(F.embedding(member_N, play_title_MT), position_N, title_N)
        return self.rank(self.state_at(states, member_N, position_N), context, title_N, artworks_NK, again_N, asked_n)

    def played(self, play_title_NT: Tensor, length_N: Tensor, title_N: Tensor) -> Tensor:
        """Whether one of the last `span` of the first `length_N` plays was of the title, bool (N,)."""
        ago_NT = length_N[:, None] - torch.arange(play_title_NT.shape[1], device=title_N.device)
        recent_NT = (ago_NT > 0) & (ago_NT <= self.config.history.span)
        return ((play_title_NT == title_N[:, None]) & recent_NT & (title_N > 0)[:, None]).any(1)

    def state_at(self, states: States, member_N: Tensor, position_N: Tensor) -> States:
        """The states (N, ...) of some members after some numbers of plays, from those of all, (M, T + 1, ...)."""
        # F.embedding, here and above, where an index would read the same: on a CPU the gradient of an index is summed in
        # any order, that of an embedding always in the same, and a resumed run must end with the same weights
        place_N = member_N * states.learned.shape[1] + position_N
        return States(*(F.embedding(place_N, part.flatten(0, 1)) for part in states))

    def probabilities(self, terms: Terms) -> tuple[Tensor, Tensor]:
        """Calibrated probabilities (N, K) of a click, and of a click that leads to a real viewing."""
        click_NK = torch.sigmoid(bent_line(terms.click_NK(), self.calibration[0]))
        return click_NK, click_NK * torch.sigmoid(bent_line(terms.engaged_NK, self.calibration[1]))
