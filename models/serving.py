"""Parts of the trained ranker that can be served separately: a member's vector once, then candidates against it.

    member   history -> `member`, which meets candidates, and `title_query`, which meets titles
    choose   `member` + context + candidates -> the outputs of `Ranking`
    choose_vectors   the same for candidates given as vectors, which `models.content_towers` computes for added artworks

Legend: N requests, T plays, K candidates, S length of a member's vector, W length of a title query.
"""

import torch
from torch import Tensor, nn

from models.context import Context
from models.ranking import OUTPUTS, Ranking
from models.types import ArtworkEncoding, States

MEMBER_OUTPUTS = ("member", "title_query")
CHOOSE_OUTPUTS = OUTPUTS[:4]
VECTORS = ("artwork_vector", "artwork_content", "artwork_bias", "artwork_engaged")


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
        """The member's vector (N, S) and the title query (N, W); arguments as of `Ranking.forward`."""
        history = (history_title, history_artwork, history_watched, history_length)
        state, model = self.ranking.state(*history, learned=True), self.ranking.model
        parts = [state.recent, state.coplay, *([] if model.artwork_query_state is None else [state.learned])]
        return torch.cat(parts, dim=-1), model.member_vectors(state.learned, history_title, history_length)


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
        given = dict(zip(self.inputs, inputs, strict=True))
        by_row = not self.vectors
        artworks = self.ranking.artworks(given["artworks"]) if by_row else ArtworkEncoding(*(given[v] for v in VECTORS))
        context = {name: given[name] for name in self.ranking.context}
        return _choose(self.ranking, given["member"], context, given["title"], given["played_before"], artworks)


def _choose(
    ranking: Ranking, member: Tensor, context: Context, title: Tensor, played_before: Tensor, artworks: ArtworkEncoding
) -> tuple[Tensor, ...]:
    model = ranking.model
    content, rank = sum(model.content_widths()), model.config.coplay.rank
    state = States(member[:, content + rank :], member[:, :content], member[:, content : content + rank])
    rewatch = played_before & (title > 0)  # as in a whole request, where an unknown title equals no other
    return ranking.ranked(state, context, title, artworks, rewatch)[: len(CHOOSE_OUTPUTS)]
