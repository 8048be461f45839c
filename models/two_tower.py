"""The two-tower ranker: click logit = affinity(member, title) + appeal(member, artwork) + presentation.

In: rows of plays, of titles and of artworks, and the context. Out: the three terms and the logit of engagement given a
click. Affinity and appeal are dot products with one encoding of the member; titles and artworks share the tables of
people and genres and one projection of the images, so that what a member watched and what an artwork shows meet in one
space, also where an id was never trained: the member encoding holds, beside a learned state, the recent mean of exactly
that content, and its dot product with an artwork's content, times a learned gain, is the likeness of the two.

Legend: M members, T plays, N impressions, K candidates, D width, I titles, A artworks, E image embedding, L list length.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.dropout import Dropout, kept
from models.history import HistoryConfig, HistoryEncoder, RecentMean, time_apart
from models.parts import Artworks, Content, Context, Plays, Sizes, States, Terms, Titles, bent_line, straight
from models.titles import Coplay, CoplayConfig

MOST_ROWS = 32
"""Rows and columns of a page past this one share its presentation."""
HOURS = 24
TABLES = ("title_id.weight", "title_bias.weight", "artwork_bias.weight", "person.weight")
"""Parameters that grow with the catalogue, by row. Where an embedding's `sparse` is set, its gradient is."""
START = 0.15
"""Spread of the people's and genres' vectors before training."""


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig:
    """The ranker's shape."""

    width: int = 64
    """Of the member vector, and of everything that meets it in a dot product."""
    history: HistoryConfig = field(default_factory=HistoryConfig)
    """The history encoder."""
    dropout: float = 0.4
    """Of play tokens and artwork content, while training."""
    id_dropout: float = 0.7
    """Share of title ids sent to the unknown row while training, so that content alone learns to stand for a title."""
    coplay: CoplayConfig = field(default_factory=CoplayConfig)
    """What is played together, where titles are ranked."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 2 <= self.width <= 4096:
            raise ValueError(f"width={self.width}: must lie in 2 .. 4096.")
        for name, share in (("dropout", self.dropout), ("id_dropout", self.id_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"{name}={share}: must lie in [0, 1).")


def _dots(x_NKC: Tensor, y_NC: Tensor) -> Tensor:
    """Dot products of each of K vectors with the one of its row, (N, K)."""
    if x_NKC.shape[1] == 1:  # as in training; a matrix product for each row takes ten times as long there
        return (x_NKC.squeeze(1) * y_NC).sum(-1, keepdim=True)
    return (x_NKC @ y_NC.unsqueeze(-1)).squeeze(-1)


def _gathered(parts: States | Titles | Artworks, place_of: Tensor) -> Iterator[Tensor]:
    """Each part, computed for distinct rows, for every row that asks for it."""
    for part in parts:
        flat = part if part.ndim > 1 else part.unsqueeze(-1)
        found = F.embedding(place_of, flat)
        yield found if part.ndim > 1 else found.squeeze(-1)


def _table(rows: int, width: int, scale: float) -> nn.Embedding:
    """An embedding table whose row 0, unknown, starts at zero and is trained like any other."""
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=scale)
    with torch.no_grad():
        table.weight[0].zero_()
    return table


def _mean_of_known(table: nn.Embedding, rows_xL: Tensor) -> Tensor:
    """Mean of the vectors of a list's rows, padding left out; zero for an empty list. (..., L) -> (..., D)."""
    return _mean_of_rows(table.weight, rows_xL, table.sparse)


def _mean_of_rows(table_RD: Tensor, rows_xL: Tensor, sparse: bool = False) -> Tensor:
    flat = F.embedding_bag(rows_xL.flatten(0, -2), table_RD, mode="mean", padding_idx=0, sparse=sparse)
    return flat.view(*rows_xL.shape[:-1], table_RD.shape[1])


class TwoTower(nn.Module):
    """The ranker. `content` gives the catalogue, `sizes` the trained rows; ids past those count as unknown."""

    title_genres_IL: Tensor
    title_people_IL: Tensor
    title_year_I: Tensor
    title_artworks_IL: Tensor
    artwork_people_AL: Tensor
    artwork_genres_AL: Tensor
    artwork_image_AE: Tensor
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

        self.genre, self.person = _table(sizes.genres, width, START), _table(sizes.people, width, 2 * START)
        self.image = nn.Linear(image_width, width, bias=False)
        nn.init.normal_(self.image.weight, std=START / image_width**0.5)

        self.title_id = _table(sizes.titles, width, 0.02)
        self.title_content, self.title_vector = nn.Linear(3 * width + 1, width), nn.Linear(width, width)
        self.title_bias = _table(sizes.titles, 1, 0.0)
        self.next_vector, self.next_bias = nn.Linear(width, width), _table(sizes.titles, 1, 0.0)
        self.token_content, self.watched = nn.Linear(4 * width, width), nn.Linear(2, width)
        self.token_image = nn.Linear(width, width, bias=False)
        self.history = HistoryEncoder(width, config.history)
        self.coplay = Coplay(sizes.titles, config.coplay) if config.coplay.rank else None
        self.recent = RecentMean(config.history.span, config.history.time)
        self.likeness_gain = nn.Parameter(torch.full((3,), 0.3))
        self.fit_gain = nn.Parameter(torch.full((2,), 0.3))

        self.country, self.device = _table(sizes.countries, width, 0.02), _table(sizes.devices, width, 0.02)
        self.hour = _table(HOURS, width, 0.02)
        self.member_affinity, self.member_appeal = nn.Linear(width, width), nn.Linear(width, width)
        self.member_next = nn.Linear(width, width)

        self.artwork_vector = nn.Linear(3 * width, width)
        self.artwork_content_bias = nn.Linear(3 * width, 1)
        self.artwork_bias = _table(sizes.artworks, 1, 0.0)

        places = MOST_ROWS + 2
        self.at_row = nn.Embedding(places * sizes.devices, 1)
        self.at_column, self.at_hour = nn.Embedding(places, 1), nn.Embedding(HOURS, 1)
        self.on_device, self.in_country = nn.Embedding(sizes.devices, 1), nn.Embedding(sizes.countries, 1)
        for table in (self.at_row, self.at_column, self.at_hour, self.on_device, self.in_country):
            nn.init.zeros_(table.weight)
        self.base = nn.Parameter(torch.zeros(()))

        self.engaged_member, self.engaged_artwork = nn.Linear(width, width), nn.Linear(width, width)
        self.engaged_title = nn.Linear(width, width)
        self.engaged_base = nn.Linear(3 * width, 1)
        self.dropout = Dropout(config.dropout)
        self.fresh: tuple[Tensor, Tensor] | None = None
        """Artwork rows (n,), ascending, and embeddings (n, E) that stand for those of the table: of a step's images."""

    def _title_rows(self, rows: Tensor) -> Tensor:
        """Rows of trained titles; others, and a share of all while training, become the unknown row."""
        rows = torch.where(rows < self.sizes.titles, rows, 0)
        if self.training and self.config.id_dropout:
            rows = rows * kept(self.config.id_dropout, rows.shape, rows.device)[0]
        return rows

    def table_rows(self, play_title_MT: Tensor, title_N: Tensor, artworks_NK: Tensor) -> dict[str, Tensor]:
        """The distinct rows of each of TABLES that a batch may look up, the unknown row included."""

        def distinct(*parts: Tensor) -> Tensor:
            return torch.unique(torch.cat([*(part.flatten() for part in parts), title_N.new_zeros(1)]))

        titles, artworks = distinct(play_title_MT, title_N), distinct(artworks_NK)
        people = distinct(self.title_people_IL[titles], self.artwork_people_AL[artworks])
        titles, artworks = titles[titles < self.sizes.titles], artworks[artworks < self.sizes.artworks]
        return dict(zip(TABLES, (titles, titles, artworks, people), strict=True))

    def images(self, rows: Tensor) -> Tensor:
        """Projected image embeddings of artworks, (...,) -> (..., D)."""
        found = self.artwork_image_AE[rows]
        if self.fresh is not None and len(self.fresh[0]):
            known, vectors = self.fresh
            place = torch.searchsorted(known, rows).clamp(max=len(known) - 1)
            found = torch.where((known[place] == rows).unsqueeze(-1), F.embedding(place, vectors), found)
        return self.image(found)

    def artwork_content(self, rows: Tensor) -> Tensor:
        """Image, people and moods of artworks, (...,) -> (..., 3 D)."""
        people = _mean_of_known(self.person, self.artwork_people_AL[rows])
        moods = _mean_of_known(self.genre, self.artwork_genres_AL[rows])
        return torch.cat([self.images(rows), people, moods], dim=-1)

    def artworks(self, rows: Tensor) -> Artworks:
        """The artwork tower, for artwork rows of any shape."""
        content = self.artwork_content(rows)
        dropped = self.dropout(content)
        trained = torch.where(rows < self.sizes.artworks, rows, 0)
        bias = self.artwork_content_bias(dropped) + self.artwork_bias(trained)
        return Artworks(self.artwork_vector(dropped), content, bias.squeeze(-1))

    def titles(self, rows: Tensor) -> Titles:
        """The title tower, for title rows of any shape."""
        ids = self._title_rows(rows)
        people, genres = self._title_content(rows)
        vector = self.title_vector(self._title_hidden(people, genres, rows, ids))
        return Titles(vector, torch.cat([people, genres], dim=-1), self.title_bias(ids).squeeze(-1))

    def _title_content(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        people = _mean_of_known(self.person, self.title_people_IL[rows])
        return people, _mean_of_known(self.genre, self.title_genres_IL[rows])

    def _title_hidden(self, people: Tensor, genres: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        year = self.title_year_I[rows].unsqueeze(-1)
        return F.gelu(self.title_content(torch.cat([genres, people, self.title_id(ids), year], dim=-1)))

    def plays(self, rows: Tensor) -> Plays:
        """What a play of a title says, for title rows of any shape."""
        ids = self._title_rows(rows)
        people, genres = self._title_content(rows)
        parts = [self._title_hidden(people, genres, rows, ids), genres, people, self.title_id(ids)]
        mean_image = _mean_of_rows(self.artwork_image_AE, self.title_artworks_IL[rows])
        token = self.token_content(self.dropout(torch.cat(parts, dim=-1)))
        return Plays(token, torch.cat([people, genres], dim=-1), self.image(mean_image))

    def watched_tokens(self, watched: Tensor) -> Tensor:
        """What the fraction watched adds, (..., D); NaN = not logged."""
        known = ~torch.isnan(watched)
        shares = torch.where(known, watched - 0.5, 0.0)
        return self.watched(torch.stack([shares, known.to(shares.dtype)], dim=-1))

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
        token_MTD = plays.token + self.token_image(self.dropout(image_MTD)) + self.watched_tokens(watched_MT)
        content_MTC = torch.cat([image_MTD, plays.content], dim=-1)
        apart_MTT = time_apart(time_MT) if self.config.history.time else None
        return States(self.history(token_MTD, apart_MTT), self.recent(content_MTC, apart_MTT))

    def members(self, state_ND: Tensor, context: Context) -> Tensor:
        """The learned part of the member encoding, (N, D): history state and context."""
        return state_ND + self.country(context.country) + self.device(context.device) + self.hour(context.hour)

    def member_vectors(self, state_MD: Tensor, play_title_MT: Tensor, length_M: Tensor) -> Tensor:
        """What ranks titles for a member after the first `length_M` plays, in no particular place: (M, D + R + 1).

        `state_MD`: the learned state then. The dot product with a title vector is the title's affinity; R is 0 without
        co-play, and the last column, 1, meets the title's bias.
        """
        parts = [self.member_next(state_MD)]
        if self.coplay is not None:
            parts.append(self.coplay.states(play_title_MT, length_M, self.config.history.span))
        return torch.cat([*parts, torch.ones_like(parts[0][:, :1])], dim=-1)

    def title_vectors(self, rows: Tensor) -> Tensor:
        """What a title is found by, (..., D + R + 1), the last of it the title's bias."""
        parts = [*self.next_titles(rows)]
        if self.coplay is not None:
            parts.insert(1, self.coplay.targets(rows))
        return torch.cat(parts, dim=-1)

    def next_titles(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (..., D) and biases (..., 1) by which titles are told that are played next.

        Content and id as in the title tower, the id also as it is. The click's affinity has projections of its own: it is
        some tenths of a logit, and what tells one title of ten thousand is several.
        """
        ids = self._title_rows(rows)
        people, genres = self._title_content(rows)
        content = self.next_vector(self._title_hidden(people, genres, rows, ids))
        return content + self.title_id(ids), self.next_bias(ids)

    def presentation(self, context: Context) -> Tensor:
        """What place, device and hour add to the click logit, (N,)."""
        row, column = context.row.clamp(-1, MOST_ROWS) + 1, context.column.clamp(-1, MOST_ROWS) + 1
        by_device = self.at_row(row * self.sizes.devices + context.device)
        terms = by_device + self.at_column(column) + self.at_hour(context.hour) + self.on_device(context.device)
        return (terms + self.in_country(context.country)).squeeze(-1) + self.base

    def rank(
        self, state: States, context: Context, title_N: Tensor, artworks_NK: Tensor, asked_n: Tensor | None = None
    ) -> Terms:
        """The terms of every candidate, from the member's state (N, ...) at the impression.

        `asked_n`: the impressions whose engagement is asked for; default: all.
        """
        titles, title_of = torch.unique(title_N, return_inverse=True)
        artworks, artwork_of = torch.unique(artworks_NK, return_inverse=True)
        title, artwork = self.titles(titles), self.artworks(artworks)
        asked_of = title_of if asked_n is None else title_of[asked_n]
        of_N = Titles(
            F.embedding(title_of, title.vector),
            F.embedding(asked_of, title.content),
            F.embedding(title_of, title.bias[:, None])[:, 0],
        )
        return self.rank_vectors(state, context, of_N, Artworks(*_gathered(artwork, artwork_of)), asked_n)

    def rank_vectors(
        self, state: States, context: Context, title: Titles, artwork: Artworks, asked_n: Tensor | None = None
    ) -> Terms:
        """The terms from the towers' outputs, `title` of shape (N, ...) and `artwork` of shape (N, K, ...).

        Where engagement is asked for n impressions, `title.content` is of those alone.
        """
        width = self.config.width
        scale = width**-0.5
        member_ND = self.members(state.learned, context)
        affinity_N = (self.member_affinity(member_ND) * title.vector).sum(-1) * scale + title.bias
        taste_ND, liked_NC = self.appeal_vectors(state, member_ND)
        appeal_NK = _dots(artwork.vector, taste_ND) + _dots(artwork.content, liked_NC) + artwork.bias
        if asked_n is not None:
            member_ND = F.embedding(asked_n, member_ND)
            title = Titles(F.embedding(asked_n, title.vector), title.content, title.bias)
            artwork = Artworks(*(part[asked_n] for part in artwork))
        engaged_NK = self.engaged(member_ND, title, artwork)
        return Terms(affinity_N, appeal_NK, self.presentation(context), engaged_NK)

    def appeal_vectors(self, state: States, member_ND: Tensor) -> tuple[Tensor, Tensor]:
        """What meets an artwork's vector, (N, D), and its content, (N, 3 D): appeal is the two dot products and a bias."""
        liked_NC = state.recent * self.likeness_gain.repeat_interleave(self.config.width)
        return self.member_appeal(member_ND) * self.config.width**-0.5, liked_NC

    def appeal_features(self, taste_ND: Tensor, liked_NC: Tensor, artwork: Artworks) -> Tensor:
        """Appeal as a last layer: features (N, K, D + 3) whose sum, with the artwork's bias, is appeal.

        The D products of the learned part, and the likeness of images, of people and of moods.
        """
        learned_NKD = artwork.vector * taste_ND.unsqueeze(1)
        likeness_NKC = artwork.content * liked_NC.unsqueeze(1)
        return torch.cat([learned_NKD, likeness_NKC.unflatten(-1, (3, -1)).sum(-1)], dim=-1)

    def engaged(self, member_ND: Tensor, title: Titles, artwork: Artworks) -> Tensor:
        """Logit of a real viewing given a click, (N, K)."""
        width = self.config.width
        meets_ND = (self.engaged_member(member_ND) + self.engaged_title(title.vector)) * width**-0.5
        # does the artwork show whom and what the title holds? people and moods, as in the title's own content
        fits_NC = title.content * self.fit_gain.repeat_interleave(width)
        fits_NK = _dots(artwork.content[..., width:], fits_NC)
        level_N = self.engaged_base(torch.cat([member_ND, title.vector, member_ND * title.vector], dim=-1))
        return _dots(self.engaged_artwork(artwork.vector), meets_ND) + fits_NK + level_N

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
        return self.rank(self.state_at(states, member_N, position_N), context, title_N, artworks_NK, asked_n)

    def state_at(self, states: States, member_N: Tensor, position_N: Tensor) -> States:
        """The states (N, ...) of some members after some numbers of plays, from those of all, (M, T + 1, ...)."""
        # F.embedding, here and above, where an index would read the same: on a CPU the gradient of an index is summed
        # in any order, that of an embedding always in the same, and a resumed run must end with the same weights
        place_N = member_N * states.learned.shape[1] + position_N
        return States(*(F.embedding(place_N, part.flatten(0, 1)) for part in states))

    def probabilities(self, terms: Terms) -> tuple[Tensor, Tensor]:
        """Calibrated probabilities (N, K) of a click, and of a click that leads to a real viewing."""
        click_NK = torch.sigmoid(bent_line(terms.click_NK(), self.calibration[0]))
        return click_NK, click_NK * torch.sigmoid(bent_line(terms.engaged_NK, self.calibration[1]))
