"""Artworks that are clicked and not watched: clicks above, engagement after a click below the title's other artworks.

In: impressions and their outcomes. Out: rows per artwork. Rates are weighted by inverse propensity, so that they are
those of an artwork shown to anybody, not to the members an older policy aimed it at; artworks are compared with those shown at
about the same time, so that drift is no artwork's fault; variances are by member; gaps are shrunk to 0 as far as their spread is
noise; and of the flagged artworks at most a stated share is expected to be false
discoveries.

Legend: N impressions, A artworks, T titles.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.audits.stratified_gap import Gap, drift_by_time, stratified_gap, time_strata
from evaluation.logs.logged_impressions import Outcomes
from evaluation.off_policy.verdict import assess_groups, verdict_of_log
from evaluation.record.rows import Clickbait, ClickbaitRow

FALSE_DISCOVERIES = 0.1
MIN_CLICKS = 10
"""Clicks below which an artwork is not tested; its title's other artworks need as many together."""
MAX_LISTED = 50
"""How many artworks are listed."""
TOGETHER_CLICKED, TOGETHER_ENGAGED = 200, 16
"""About how many of a title's impressions, or clicks, are compared with one another: those of about the same time."""


def gap(
    outcome_N: NDArray,
    weight_N: NDArray,
    artwork_N: NDArray,
    member_N: NDArray,
    title_A: NDArray[np.integer],
    *,
    time_N: NDArray[np.integer] | None = None,
    together: int = TOGETHER_CLICKED,
) -> Gap:
    """Rates sum w o / sum w of artworks, against the same over the other artworks of the title, (A,), by `stratified_gap`.

    `time_N`: artworks are compared within parts of the title's impressions of about `together` each, consecutive in time, after
    what time adds to every title is taken off; None: all impressions of a title together.
    """
    title_N = title_A[artwork_N]
    return stratified_gap(
        outcome_N,
        weight_N,
        member_N,
        stratum_N=title_N if time_N is None else time_strata(title_N, time_N, together),
        title_N=title_N,
        row_E=np.arange(len(artwork_N)),
        group_E=artwork_N,
        groups=len(title_A),
        drift_N=None if time_N is None else drift_by_time(outcome_N, weight_N, title_N, time_N),
    )


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


def clickbait(outcomes: Outcomes, name_of: Callable[[str], str], doubts: Sequence[str] = ()) -> Clickbait | None:
    """The artworks that are clicked more and watched less than their title's others, worst first, with counts; None where
    engagement is not known.

    An artwork is `clickbait` where its clicks are significantly above and its engagement significantly below that of the
    title's other artworks (the larger of the two one-sided P values is tested, as Berger, 1982); `misleading` where only
    its engagement is below. `name_of` maps an artwork's id to a name; `doubts`: defects of the log.
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
    clicks = gap(outcomes.clicked, weight_N, outcomes.artwork, outcomes.member, title_A, time_N=outcomes.shown_at)
    at = outcomes.clicked > 0
    engaged = gap(
        outcomes.engaged[at],
        weight_N[at],
        outcomes.artwork[at],
        outcomes.member[at],
        title_A,
        time_N=outcomes.shown_at[at],
        together=TOGETHER_ENGAGED,
    )
    clicked_A = np.bincount(outcomes.artwork[at], minlength=count)
    others_A = np.bincount(title_A, clicked_A)[title_A] - clicked_A
    enough_A = (clicked_A >= MIN_CLICKS) & (others_A >= MIN_CLICKS)
    verdicts = assess_groups(
        np.minimum(clicks.expected_rewarded_A, engaged.expected_rewarded_A),
        np.minimum(clicks.members_A, engaged.members_A),
        doubts,
    )
    answered_A = np.array(verdicts) != "unanswerable"
    tested_A = enough_A & np.isfinite(engaged.gap_A) & np.isfinite(clicks.gap_A) & answered_A
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
            "verdict": verdicts[a],
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
        "verdict": verdict_of_log(doubts),
        "artworks": rows,
    }
