"""The report's charts, drawn by matplotlib as SVG that takes its colours from the page, light or dark; no scripts.

In: rows of a report. Out: `<figure>` with an SVG 440 wide, so that a phone shows its text at nearly full size. The drawing
uses placeholder colours, which are replaced by the page's variables.
"""

import io
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # first: it tells of its caches when it is imported
import matplotlib  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from evaluation.record.log_rows import PropensityRow  # noqa: E402
from evaluation.record.rows import (  # noqa: E402
    EstimateRow,
    ExplorationRow,
    ExposureRow,
    ReliabilityPoints,
    WeightRow,
)

INK, SOFT, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
POLICY_COLOURS = {"scored": "#050505", "base": "#060606", "best_fixed": "#070707", "logged": "#080808", "uniform": SOFT}
VARIABLES = {
    INK: "ink", SOFT: "soft", LINE: "line", PAPER: "paper", "#050505": "mark", "#060606": "violet", "#070707": "green",
    "#080808": "orange",
}  # fmt: skip
POLICY_NAMES = {
    "scored": "scored policy",
    "base": "the other scores",
    "best_fixed": "best artwork per title",
    "logged": "logging policy",
    "uniform": "uniform",
}
STYLE: Any = {
    "svg.fonttype": "none",  # keep text as text
    "svg.hashsalt": "keyart",
    "text.parse_math": False,  # a tag with two dollars is no formula
    "font.family": "sans-serif",
    "font.size": 12,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "grid.color": LINE,
    "legend.frameon": False,
    "legend.fontsize": 11,
}
WIDTH = 440


def chart(height: int, caption: str, draw: Callable[[Axes], None]) -> str:
    """A figure with one set of axes; `height` in the page's pixels; the caption is also the label for screen readers."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        figure.patch.set_alpha(0)
        draw(figure.subplots())
        target = io.StringIO()
        with warnings.catch_warnings():
            # text stays text, which the reader's browser draws in fonts that have it; here it is only measured
            warnings.filterwarnings("ignore", message="Glyph .* missing from|Matplotlib currently does not support")
            figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawn = target.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' id="[a-zA-Z]+_\d+"', "", drawn)
    drawn = re.sub(
        r"<svg [^>]*?viewBox", f'<svg role="img" aria-label="{escape(caption)}" viewBox', drawn, flags=re.DOTALL
    )
    drawn = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawn).replace("xlink:href", "href")
    for number, name in VARIABLES.items():
        drawn = drawn.replace(number, f"var(--{name})")
    drawn = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", drawn)
    return f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>"


def forest(estimates: Sequence[EstimateRow], reward: str, truth: dict[str, float] | None = None) -> str:
    """Policies by every estimator; hollow where the verdict is weak, absent where it is unanswerable."""
    rows = [(row, row["value"]) for row in estimates if row["reward"] == reward and row["value"] is not None]
    if not rows:
        return ""
    estimators = list(dict.fromkeys(row["estimator"] for row, _ in rows))
    policies = [policy for policy in POLICY_COLOURS if any(row["policy"] == policy for row, _ in rows)]

    def draw(axes: Axes) -> None:
        step = 0.8 / len(policies)
        for index, policy in enumerate(policies):
            own = [(row, value) for row, value in rows if row["policy"] == policy]
            shift, colour = (index - (len(policies) - 1) / 2) * step, POLICY_COLOURS[policy]
            for row, _ in own:
                if row["low"] is not None and row["high"] is not None:
                    y = estimators.index(row["estimator"]) + shift
                    axes.hlines(y, 1000 * row["low"], 1000 * row["high"], color=colour, linewidth=1.6)
            for reliable in (True, False):
                selected = [(row, value) for row, value in own if (row["verdict"] == "reliable") == reliable]
                x = [1000 * value for _, value in selected]
                y = [estimators.index(row["estimator"]) + shift for row, _ in selected]
                fill = colour if reliable else PAPER
                axes.plot(x, y, "o", markersize=4.5, color=colour, markerfacecolor=fill, zorder=3)
        for policy, true in (truth or {}).items():
            axes.axvline(1000 * true, color=POLICY_COLOURS.get(policy, INK), linewidth=1, linestyle=(0, (2, 2)))
        for policy in policies:
            axes.plot([], [], "o-", markersize=4.5, color=POLICY_COLOURS[policy], label=POLICY_NAMES[policy])
        axes.set_yticks(range(len(estimators)), estimators)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(estimators) - 0.5, -0.5)
        axes.grid(axis="x", linewidth=0.8)
        axes.set_xlabel(f"{reward} per 1,000 impressions")
        axes.figure.legend(loc="outside upper left", ncols=2)

    caption = (
        f"{reward.capitalize()} per 1,000 impressions by every estimator, with 95 % intervals by member; hollow: weak"
    )
    caption += "; dashed: the true value." if truth else "."
    return chart(90 + 34 * len(estimators), caption, draw)


def reliability(points: ReliabilityPoints, what: str = "clicked") -> str:
    """Observed against predicted rates in bins of equal count, with each bin's 95 % sampling range, and the counts."""
    predicted, observed = np.array(points["predicted"]), np.array(points["observed"])
    count = np.array(points["count"])
    bar = 1.96 * np.sqrt(observed * (1 - observed) / count)

    def draw(axes: Axes) -> None:
        limit = 1.05 * max(float(predicted.max()), float((observed + bar).max()), 1e-3)
        axes.plot([0, 100 * limit], [0, 100 * limit], color=LINE)
        mark = POLICY_COLOURS["scored"]
        axes.errorbar(100 * predicted, 100 * observed, 100 * bar, fmt="o", color=mark, markersize=4, linewidth=1)
        axes.set_xlim(0, 100 * limit)
        axes.set_ylim(0, 100 * limit)
        axes.set_xlabel("predicted, %")
        axes.set_ylabel(f"{what}, %")

    least, greatest = int(count.min()), int(count.max())
    size = f"{least:,}" if least == greatest else f"{least:,} to {greatest:,}"
    caption = (
        f"Share that was {what} against the predicted probability, {len(count)} bins of {size} each; "
        "bars: 95 % sampling range. On the diagonal, probabilities are right."
    )
    return chart(330, caption, draw)


def propensities(rows: Sequence[PropensityRow]) -> str:
    """How often candidates were shown against how often they should have been."""

    def draw(axes: Axes) -> None:
        expected = 100 * np.array([row["propensity"] for row in rows])
        shown = 100 * np.array([row["shown"] for row in rows])
        bar = 196 * np.array([row["standard_error"] for row in rows])
        axes.plot([0, 100], [0, 100], color=LINE)
        axes.errorbar(expected, shown, bar, fmt="o", color=POLICY_COLOURS["logged"], markersize=4, linewidth=1)
        limit = 1.05 * max(float(expected.max()), float((shown + bar).max()))
        axes.set_xlim(0, limit)
        axes.set_ylim(0, limit)
        axes.set_xlabel("logged propensity, %")
        axes.set_ylabel("shown, %")

    total = sum(row["candidates"] for row in rows)
    caption = f"How often {total:,} candidates were shown against their logged propensity; on the diagonal, the log says what "
    caption += "was done."
    return chart(300, caption, draw)


def exploration(rows: Sequence[ExplorationRow]) -> str:
    """Lift against how often another artwork than the best is shown; empty where no lift can be estimated."""
    lifts = [(row["relative"], row) for row in rows if row["relative"] is not None]
    if not lifts:
        return ""

    def draw(axes: Axes) -> None:
        for family, colour in (("epsilon", POLICY_COLOURS["best_fixed"]), ("softmax", POLICY_COLOURS["scored"])):
            selected = sorted(
                ((lift, row) for lift, row in lifts if row["family"] == family), key=lambda pair: pair[1]["explored"]
            )
            if not selected:
                continue
            x = [100 * row["explored"] for _, row in selected]
            axes.plot(x, [100 * lift for lift, _ in selected], "-", color=colour)
            for reliable, fill in ((True, colour), (False, PAPER)):
                part = [(lift, row) for lift, row in selected if (row["verdict"] == "reliable") == reliable]
                ends = [100 * row["explored"] for _, row in part], [100 * lift for lift, _ in part]
                axes.plot(*ends, "o", color=colour, markerfacecolor=fill, markersize=4)
            axes.plot([], [], "o-", color=colour, markersize=4, label=family)
            low, high = (
                [100 * (lift if end is None else end) for (lift, _), end in zip(selected, ends, strict=True)]
                for ends in (
                    [row["relative_low"] for _, row in selected],
                    [row["relative_high"] for _, row in selected],
                )
            )
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(0, color=LINE)
        axes.set_xlabel("impressions that show another than the best scored, %")
        axes.set_ylabel("lift over uniform, %")
        axes.legend(loc="upper right")

    caption = (
        "Lift in clicks by how much is explored, doubly robust, 95 % bands by member. Epsilon shows a random artwork in a "
        "share of impressions; softmax shows artworks more often the better they are scored; hollow: weak."
    )
    return chart(300, caption, draw)


def weights(rows: Sequence[WeightRow], policy: str = "scored") -> str:
    """Impressions, and the weight they carry, by weight."""
    selected = [row for row in rows if row["policy"] == policy]

    def words(row: WeightRow) -> str:
        if row["high"] is not None and row["high"] < 1e-6:
            return "0"
        return (
            f"above {row['low']:g}"
            if row["high"] is None
            else f"{0 if row['low'] < 1e-6 else row['low']:g}–{row['high']:g}"
        )

    def draw(axes: Axes) -> None:
        index = np.arange(len(selected))
        total = sum(row["impressions"] for row in selected)
        axes.barh(
            index - 0.2, [100 * row["impressions"] / total for row in selected], 0.38, color=SOFT, label="impressions"
        )
        axes.barh(
            index + 0.2,
            [100 * row["share_of_weight"] for row in selected],
            0.38,
            color=POLICY_COLOURS["scored"],
            label="weight",
        )
        for y, row in zip(index, selected, strict=True):
            axes.text(
                100 * row["impressions"] / total,
                y - 0.2,
                f" {row['impressions']:,}",
                va="center",
                fontsize=10,
                color=SOFT,
            )
        axes.set_yticks(index, [words(row) for row in selected])
        axes.invert_yaxis()
        axes.set_xlabel("share, %")
        axes.margins(x=0.18)
        axes.legend(loc="lower right")

    caption = (
        "Weights of the scored policy, its probability over the log's: how many impressions have them, and what share of all "
        "weight they carry. Little weight in large weights is what makes an estimate steady."
    )
    return chart(80 + 32 * len(selected), caption, draw)


def exposure(rows: Sequence[ExposureRow], limit: int = 16) -> str:
    """Pairs of segment and tag that the policy moves most, its share beside the uniform policy's and the catalogue's."""
    apart = [
        row
        for row in rows
        if row["above_low"] is not None
        and row["above_high"] is not None
        and (row["above_low"] > 0 or row["above_high"] < 0)
    ]
    selected = sorted(apart, key=lambda row: -abs(row["above_uniform"]))[:limit]
    if not selected:
        return ""

    def draw(axes: Axes) -> None:
        for y, row in enumerate(selected):
            axes.plot([100 * row["uniform"], 100 * row["scored"]], [y, y], color=LINE, linewidth=2)
            if row["low"] is not None and row["high"] is not None:
                axes.plot([100 * row["low"], 100 * row["high"]], [y, y], color=POLICY_COLOURS["scored"], linewidth=1.2)
        positions = range(len(selected))
        axes.plot([100 * r["catalogue"] for r in selected], positions, "|", color=INK, markersize=10, label="catalogue")
        axes.plot([100 * r["uniform"] for r in selected], positions, "o", color=SOFT, markersize=5, label="uniform")
        axes.plot(
            [100 * r["scored"] for r in selected],
            positions,
            "o",
            color=POLICY_COLOURS["scored"],
            markersize=5,
            label="scored",
        )
        axes.set_yticks(positions, [f"{r['depicts']} · {r['level'] or r['segment']}" for r in selected])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(selected) - 0.5, -0.5)
        axes.grid(axis="x", linewidth=0.8)
        axes.set_xlabel("of impressions depict it, %")
        axes.figure.legend(loc="outside upper left", ncols=3)

    caption = (
        "What is shown to whom: the pairs of tag and segment whose share of impressions the scored policy moves most, with 95 % "
        "intervals by member; the tick is the share of the catalogue's artworks."
    )
    return chart(80 + 26 * len(selected), caption, draw)
