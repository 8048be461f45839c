"""What a member's own past impressions add: a taste of its own for artworks, and fatigue.

Own taste. A member's artwork query q, which all members share the weights of, is the prior mean of a query of its own. Each past
impression j of an artwork with features x_j is evidence: its click y_j against p_j, what is expected of that artwork whoever
sees it. One Newton step of the logistic posterior from the population's, with the curvature of the log's average artwork
instead of that of the member's own, gives in closed form, by component r of x,

    E = sum_j (y_j - p_j) x_j        W = sum_j p_j (1 - p_j)
    u_r = v_r (E_r - W c_r q_r) / (1 + v_r W c_r)

with prior variances v, c_r the mean square of x_r, and q the shared query in the same components: a hybrid of a shared and a
linear model for each member (Li and others, *A Contextual-Bandit Approach to Personalized News Article Recommendation*, 2010,
hybrid LinUCB), whose covariances are taken as diagonal. E and W are sums, so that a new impression is added to them, and 10
impressions weigh as little as 10 should. x are the leading principal components of the artwork tower's vectors, and a 1 that
stands for how readily the member clicks at all: u is a query that is added to the artwork query.

Fatigue. k counts past impressions that were not clicked, each as 2 ** -(age / half life): those of the very artwork, and those
of the title. Appeal falls by f_artwork ln(1 + k_artwork), affinity by f_title ln(1 + k_title). A constant shift of affinity
balances both terms.

No gradient trains these numbers: `train.own_taste` fits them after training, by how well each impression of the training period
is predicted from those before it. They are 0 until then, and where they do not help.

Legend: N requests, J past impressions, K candidates, A artworks, D width, R components, S = R + 1: those and the constant.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_COMPONENTS = 16
"""R, at most."""
HALF_LIVES = (24.0, 168.0, 720.0)
"""Hours that the half life of fatigue is chosen from: a day, a week, 30 days."""

OWN_TASTE_BUFFERS = tuple(
    f"own_taste.{name}"
    for name in (
        *("expected_A", "centre_D", "basis_DR", "variance_S", "spread_S", "mean_query_R"),
        *("fatigue_2", "half_life", "shift"),
    )
)
"""Names of what the training of the ranker leaves as it is, in its state."""


class Past(NamedTuple):
    """A member's past impressions at an impression, padded with artwork row 0."""

    artwork_NJ: Tensor
    """int64."""
    clicked_NJ: Tensor
    """float32, 0 or 1."""
    hours_NJ: Tensor
    """float32: hours ago, NaN where not known, which then is no fatigue."""


class OwnTaste(nn.Module):
    """The terms of a member's own past impressions."""

    expected_A: Tensor
    centre_D: Tensor
    basis_DR: Tensor
    variance_S: Tensor
    spread_S: Tensor
    mean_query_R: Tensor
    fatigue_2: Tensor
    half_life: Tensor
    shift: Tensor

    def __init__(self, artworks: int, width: int) -> None:
        """`artworks`: trained ones and the unknown row; `width`: D."""
        super().__init__()
        components = min(MAX_COMPONENTS, width)
        zeros = {
            "expected_A": artworks,
            "centre_D": width,
            "variance_S": components + 1,
            "spread_S": components + 1,
            "mean_query_R": components,
            "fatigue_2": 2,
        }
        for name, length in zeros.items():
            self.register_buffer(name, torch.zeros(length))
        self.register_buffer("basis_DR", torch.zeros(width, components))
        self.register_buffer("half_life", torch.tensor(HALF_LIVES[1]))
        self.register_buffer("shift", torch.zeros(()))

    @property
    def is_read(self) -> bool:
        """Whether past impressions change anything."""
        return bool(self.variance_S.any() or self.fatigue_2.any())

    def clear(self) -> None:
        """Let past impressions change nothing."""
        for buffer in (self.variance_S, self.fatigue_2, self.shift):
            buffer.zero_()

    def expected(self, rows: Tensor) -> Tensor:
        """Click rate of artworks whoever sees them, (...,), that of all for those that were not trained."""
        return self.expected_A[torch.where(rows < len(self.expected_A), rows, 0)]

    def features(self, vector: Tensor) -> Tensor:
        """Components of the artwork tower's vectors and the constant, (..., D) -> (..., S)."""
        return F.pad((vector - self.centre_D) @ self.basis_DR, (0, 1), value=1.0)

    def evidence(self, past: Past, features_NJS: Tensor) -> Tensor:
        """What past impressions sum up to, E and then W, (N, S + 1), with the features of their artworks."""
        return evidence(*residuals(past.artwork_NJ, past.clicked_NJ, self.expected(past.artwork_NJ)), features_NJS)

    def query(self, evidence: Tensor, artwork_query_ND: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the artwork query, (..., D), and to the logit of a click whichever the artwork, (..., 1)."""
        own_NS = self.components(evidence, artwork_query_ND)
        own_ND = own_NS[..., :-1] @ self.basis_DR.T
        return own_ND, own_NS[..., -1:] - (own_ND * self.centre_D).sum(-1, keepdim=True) + self.shift

    def components(self, evidence_Nx: Tensor, artwork_query_ND: Tensor) -> Tensor:
        """u, (..., S), of evidence E and W, (..., S + 1), and the shared query, (..., D)."""
        query_NR = artwork_query_ND @ self.basis_DR - self.mean_query_R
        return own_components(evidence_Nx, query_NR, self.variance_S, self.spread_S)

    def fatigue(self, past: Past, past_title_NJ: Tensor, title_N: Tensor, artworks_NK: Tensor) -> tuple[Tensor, Tensor]:
        """What fatigue adds to appeal, (N, K), and to affinity, (N, 1)."""
        by_artwork_NK, by_title_N1 = unclicked_counts(
            unclicked_weights(past, self.half_life), past.artwork_NJ, past_title_NJ, title_N, artworks_NK
        )
        return -self.fatigue_2[0] * by_artwork_NK.log1p(), -self.fatigue_2[1] * by_title_N1.log1p()


def residuals(artwork_NJ: Tensor, clicked_NJ: Tensor, expected_NJ: Tensor) -> tuple[Tensor, Tensor]:
    """By how much each past impression was clicked more than expected, and p (1 - p), (N, J); 0 for unknown artworks."""
    known_NJ = (artwork_NJ > 0).to(expected_NJ.dtype)
    return (clicked_NJ - expected_NJ) * known_NJ, expected_NJ * (1 - expected_NJ) * known_NJ


def evidence(residual_NJ: Tensor, information_NJ: Tensor, features_NJS: Tensor) -> Tensor:
    """E and then W, (N, S + 1)."""
    by_component_NS = (residual_NJ.unsqueeze(1) @ features_NJS).squeeze(1)
    return torch.cat([by_component_NS, information_NJ.sum(1, keepdim=True)], dim=1)


def own_components(evidence_Nx: Tensor, query_NR: Tensor, variance_S: Tensor, spread_S: Tensor) -> Tensor:
    """u, (..., S), by the formula above; `query_NR`: the shared query in the components, minus its mean."""
    known_NS = evidence_Nx[..., -1:] * spread_S
    return variance_S * (evidence_Nx[..., :-1] - known_NS * F.pad(query_NR, (0, 1))) / (1 + variance_S * known_NS)


def unclicked_weights(past: Past, half_life: Tensor | float) -> Tensor:
    """What each past impression counts in fatigue, (N, J)."""
    weight_NJ = torch.exp2(-past.hours_NJ / half_life)
    return torch.where(past.hours_NJ.isnan(), 0.0, weight_NJ) * (1 - past.clicked_NJ)


def unclicked_counts(
    weight_NJ: Tensor, artwork_NJ: Tensor, title_NJ: Tensor, title_N: Tensor, artworks_NK: Tensor
) -> tuple[Tensor, Tensor]:
    """k of each candidate, (N, K), and of the title, (N, 1); an unknown artwork or title, row 0, is no other's."""
    same_NJK = (artwork_NJ.unsqueeze(2) == artworks_NK.unsqueeze(1)) & (artworks_NK > 0).unsqueeze(1)
    same_NJ1 = ((title_NJ == title_N.unsqueeze(1)) & (title_NJ > 0)).unsqueeze(2)
    by_artwork_NK, by_title_N1 = (
        (weight_NJ.unsqueeze(1) @ same.to(weight_NJ.dtype)).squeeze(1) for same in (same_NJK, same_NJ1)
    )
    return by_artwork_NK, by_title_N1


def title_of_artworks(title_artworks_IL: Tensor, artworks: int) -> Tensor:
    """The title row of each artwork row, int64 (A,); 0 where it is not known."""
    title_I1 = torch.arange(len(title_artworks_IL))[:, None]
    titles = torch.zeros(artworks, dtype=torch.int64)
    titles[title_artworks_IL.long()] = title_I1.expand_as(title_artworks_IL)
    titles[0] = 0
    return titles
