"""Artworks that are clicked and not watched: clicks above, engagement after a click below the title's other artworks.

In: impressions and their outcomes. Out: rows per artwork. Rates are weighted by inverse propensity, so that they are
those of an artwork shown to anybody, not to the members an older policy aimed it at; variances are by member; gaps are
shrunk to 0 as far as their spread is noise; and of the flagged artworks at most a stated share is expected to be false
discoveries.

Legend: N impressions, A artworks, T titles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import erfc, sqrt

import numpy as np
from numpy.typing import NDArray

from evaluation.logs.logged_impressions import Outcomes
from evaluation.record.rows import Clickbait, ClickbaitRow

FALSE_DISCOVERIES = 0.1
MIN_CLICKS = 10
"""Clicks below which an artwork is not tested; its title's other artworks need as many together."""
MAX_LISTED = 50
"""How many artworks are listed."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Each artwork's rate against that of its title's other artworks; arrays (A,), NaN where either has no impressions."""

    rate_A: NDArray[np.float64]
    expected_A: NDArray[np.float64]
    error_A: NDArray[np.float64]
    """Standard error of the difference."""

    @property
    def gap_A(self) -> NDArray[np.float64]:
        """The difference of the two rates, not shrunk."""
        return self.rate_A - self.expected_A

    def shrunk_A(self, tested_A: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The difference times t^2 / (t^2 + error^2), t^2 the spread of differences beyond noise (Efron and Morris, 1973)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            if not tested_A.any():
                return np.full(len(self.rate_A), np.nan)
            noise_A = self.error_A**2
            weight_A = 1 / np.maximum(noise_A[tested_A], 1e-12)
            spread = max(0.0, float(np.average(self.gap_A[tested_A] ** 2 - noise_A[tested_A], weights=weight_A)))
            return self.gap_A * spread / (spread + noise_A)

    def p_value_A(self, above: bool) -> NDArray[np.float64]:
        """P value of the difference being above (or below) 0: one-sided, normal approximation."""
        with np.errstate(invalid="ignore", divide="ignore"):
            z_A = self.gap_A / self.error_A * (1 if above else -1)
        return np.array([0.5 * erfc(z / sqrt(2)) if np.isfinite(z) else np.nan for z in z_A])


def gap(
    outcome_N: NDArray, weight_N: NDArray, artwork_N: NDArray, member_N: NDArray, title_A: NDArray[np.integer]
) -> Gap:
    """Rates sum w o / sum w of artworks, against the same over the other artworks of the title, (A,).

    Variance by member, around the rate of the whole title, which both sides have under the null hypothesis, and never less
    than the binomial variance at that rate: few outcomes that are all alike have no spread of their own. A member's
    impressions of two artworks of a title count as independent.
    """
    count = len(title_A)
    titles = int(title_A.max(initial=-1)) + 1
    weight_A, earned_A, square_A = (
        np.bincount(artwork_N, v, count) for v in (weight_N, weight_N * outcome_N, weight_N**2)
    )

    def of_title(values_A: NDArray) -> NDArray:
        return np.bincount(title_A, values_A, titles)[title_A]

    with np.errstate(invalid="ignore", divide="ignore"):
        level_A = of_title(earned_A) / of_title(weight_A)
        squares_A = _by_member(weight_N * (outcome_N - level_A[artwork_N]), artwork_N, member_N, count)
        bernoulli_variance_A = level_A * (1 - level_A)
        other_A = of_title(weight_A) - weight_A
        other_squares_A, other_coin_A = (
            of_title(squares_A) - squares_A,
            bernoulli_variance_A * (of_title(square_A) - square_A),
        )
        noise_A = np.maximum(squares_A, bernoulli_variance_A * square_A) / weight_A**2
        noise_A += np.maximum(other_squares_A, other_coin_A) / other_A**2
        return Gap(
            rate_A=earned_A / weight_A,
            expected_A=(of_title(earned_A) - earned_A) / other_A,
            error_A=np.sqrt(noise_A),
        )


def _by_member(values_N: NDArray, artwork_N: NDArray, member_N: NDArray, count: int) -> NDArray[np.float64]:
    """Per artwork, the sum over members of (the sum of a member's values)^2."""
    pair_N = artwork_N.astype(np.int64) * (int(member_N.max(initial=0)) + 1) + member_N
    pairs, index_N = np.unique(pair_N, return_inverse=True)
    sums = np.bincount(index_N.reshape(-1), values_N, len(pairs))
    return np.bincount(pairs // (int(member_N.max(initial=0)) + 1), sums**2, count).astype(np.float64)


def benjamini_hochberg(p_value: NDArray[np.float64], share: float = FALSE_DISCOVERIES) -> NDArray[np.bool_]:
    """Which null hypotheses to reject, so that at most `share` of the rejected ones are expected to be true; NaN: not tested.

    Benjamini and Hochberg (1995), Controlling the false discovery rate.
    """
    tested = np.flatnonzero(np.isfinite(p_value))
    order = tested[np.argsort(p_value[tested], kind="stable")]
    below = np.flatnonzero(p_value[order] <= share * np.arange(1, len(order) + 1) / max(len(order), 1))
    rejected = np.zeros(len(p_value), bool)
    rejected[order[: below[-1] + 1 if len(below) else 0]] = True
    return rejected


def clickbait(outcomes: Outcomes, name_of: Callable[[str], str]) -> Clickbait | None:
    """The artworks that are clicked more and watched less than their title's others, worst first, with counts; None where
    engagement is not known.

    An artwork is `clickbait` where its clicks are significantly above and its engagement significantly below that of the
    title's other artworks (the larger of the two one-sided P values is tested, as Berger, 1982); `misleading` where only
    its engagement is below. `name_of` maps an artwork's id to a name.
    """
    if outcomes.engaged is None:
        return None
    count = len(outcomes.artworks)
    title_A = np.zeros(count, np.int64)
    title_A[outcomes.artwork] = outcomes.title
    shown_A = np.bincount(outcomes.artwork, minlength=count)
    # an artwork that was never shown has no title here and is left out
    title_A[shown_A == 0] = int(outcomes.title.max(initial=0)) + 1
    weight_N = 1 / (outcomes.width * outcomes.propensity)
    clicks = gap(outcomes.clicked, weight_N, outcomes.artwork, outcomes.member, title_A)
    at = outcomes.clicked > 0
    engaged = gap(outcomes.engaged[at], weight_N[at], outcomes.artwork[at], outcomes.member[at], title_A)
    clicked_A = np.bincount(outcomes.artwork[at], minlength=count)
    others_A = np.bincount(title_A, clicked_A)[title_A] - clicked_A
    enough_A = (clicked_A >= MIN_CLICKS) & (others_A >= MIN_CLICKS)
    tested_A = enough_A & np.isfinite(engaged.gap_A) & np.isfinite(clicks.gap_A)
    click_p_value_A, engaged_p_value_A = (
        np.where(tested_A, p_value_A, np.nan) for p_value_A in (clicks.p_value_A(True), engaged.p_value_A(False))
    )
    bait_A, misleading_A = (
        benjamini_hochberg(np.fmax(click_p_value_A, engaged_p_value_A)),
        benjamini_hochberg(engaged_p_value_A),
    )
    above_A, below_A = clicks.shrunk_A(tested_A), engaged.shrunk_A(tested_A)
    # cost to members: clicks beyond those of the others, times the viewings that do not follow
    worse_A = np.nan_to_num(np.maximum(above_A, 0) * np.maximum(-below_A, 0))
    order = np.lexsort((np.nan_to_num(below_A), -worse_A, ~misleading_A, ~bait_A))
    listed = [a for a in order.tolist() if tested_A[a] and below_A[a] < 0][:MAX_LISTED]
    rows: list[ClickbaitRow] = [
        {
            "artwork": outcomes.artworks[a].as_py(),
            "name": name_of(outcomes.artworks[a].as_py()),
            "flag": "clickbait" if bait_A[a] else "misleading" if misleading_A[a] else "",
            "impressions": int(shown_A[a]),
            "clicks": int(clicked_A[a]),
            "click_rate": float(clicks.rate_A[a]),
            "click_rate_of_others": float(clicks.expected_A[a]),
            "click_gap": float(above_A[a]),
            "engaged_after_click": float(engaged.rate_A[a]),
            "engaged_after_click_of_others": float(engaged.expected_A[a]),
            "engaged_gap": float(below_A[a]),
            "chance": float(np.fmax(click_p_value_A[a], engaged_p_value_A[a])),
            "chance_of_engaged_gap": float(engaged_p_value_A[a]),
        }
        for a in listed
    ]
    return {
        "tested": int(tested_A.sum()),
        "clickbait": int(bait_A.sum()),
        "misleading": int((misleading_A & ~bait_A).sum()),
        "false_discoveries": FALSE_DISCOVERIES,
        "least_clicks": MIN_CLICKS,
        "impressions": len(outcomes.clicked),
        "artworks": rows,
    }
