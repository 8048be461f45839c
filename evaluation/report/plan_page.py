"""A plan as one page: self-contained HTML with a chart; no network, no scripts.

In: the record of `evaluation.plan`. Out: HTML.
"""

from html import escape

from matplotlib.axes import Axes

from evaluation.record.plan_record import PlanRecord, PlanRow
from evaluation.report import charts
from evaluation.report.markup import html_document, notes, table, table_row

COLOURS = ("#050505", "#060606", "#070707", "#080808", charts.SOFT, charts.INK)
"""Placeholders of the page's colours, as in `evaluation.report.charts`."""
NOTES = {
    "Explored": "The share of the traffic in which every candidate is equally likely to be shown, impression by impression. The "
    "rest shows what it shows today, and does not enter the estimate: plan for less where it, too, gives every artwork a chance.",
    "Days": "The fewest after which the 95 % interval of the difference lies above 0 with the asked probability, if the policy "
    "truly has the asked lift, and after which the verdict can be reliable. In brackets: the days were the noise at the ends of "
    "its own 95 % interval. A first log with few rewards is a rough guide.",
    "Noise": "By member, from the explored impressions of this log: the variance of one impression's influence on the difference, "
    "and the covariance of two of one member, as far as the log shows one. Members are assumed to come back as often as in this "
    "log, new ones to arrive as in its second half.",
    "Cost": "Rewards that are lost while exploring: explored impressions times what one of them earns less.",
}
"""Notes on how to read the page."""


def headline(record: PlanRecord) -> str:
    """What is recommended, in words."""
    lift = f"a lift of {100 * record['lift']:.3g} % in {record['reward']} over {record['base']} (power {record['power']:g})"
    row = next((row for row in record["plans"] if row["share"] == record["recommended"]), None)
    if row is None:
        return f"No share considered detects {lift} within {record['within']} days."
    days = "1 day" if row["days"] == 1 else f"{row['days']} days"
    return f"Exploring {100 * row['share']:.3g} % of the traffic for {days} detects {lift}."


def days_cell(row: PlanRow) -> str:
    """The days with their interval, in words."""
    if row["days"] is None:
        return "too many"
    high = "…" if row["days_high"] is None else str(row["days_high"])
    return f"{row['days']} [{row['days_low']}, {high}]"


def cost_cell(row: PlanRow) -> str:
    """The cost with its interval, in words."""
    if row["cost"] is None:
        return ""
    if row["cost_low"] is None or row["cost_high"] is None:
        return f"{row['cost']:,.0f}"
    return f"{row['cost']:,.0f} [{row['cost_low']:,.0f}, {row['cost_high']:,.0f}]"


def plan_page(record: PlanRecord) -> str:
    """The page of `keyart plan`."""
    log = record["first_log"]
    lines = []
    for row in record["plans"]:
        numbers = ["" if row[name] is None else f"{row[name]:,}" for name in ("explored", "members")]
        cells = [f"{100 * row['share']:.3g} %", days_cell(row), cost_cell(row), *numbers]
        cells.append("" if row["power"] is None else f"{row['power']:.2f}")
        lines.append(table_row(cells, "scored" if row["share"] == record["recommended"] else ""))
    estimators = [
        table_row(
            [
                row["estimator"],
                f"{row['variance']:.4g}",
                f"{row['covariance']:.3g}",
                "too many" if row["days"] is None else f"{row['days']}",
            ]
        )
        for row in record["estimators"]
    ]
    heads = ["explored", "days", f"cost in {record['reward']}", "explored impressions", "members", "power"]
    body = [
        f"<h1>{escape(headline(record))}</h1>",
        f'<p class="soft">Planned for {escape(record["policy"])}, from {log["explored"]:,} explored impressions, '
        f"{log['rewarded']:,} of them {record['reward']}, of {log['impressions']:,} in {log['days']:.1f} days by "
        f"{log['members']:,} members. Served where nothing is explored: {escape(record['served'])}.</p>",
        table(heads, lines),
        f'<div class="charts">{_chart(record)}</div>',
        "<details><summary>By estimator</summary>",
        table(["estimator", "variance", "covariance", "days"], estimators),
        "</details>",
        *notes(NOTES),
    ]
    return html_document("keyart plan", "\n".join(body))


def _chart(record: PlanRecord) -> str:
    """The lift that is detected, by days, for every share."""
    shares = list(dict.fromkeys(row["share"] for row in record["curve"]))

    def draw(axes: Axes) -> None:
        for index, share in enumerate(shares):
            rows = [row for row in record["curve"] if row["share"] == share]
            colour = COLOURS[index % len(COLOURS)]
            style = "-" if index < len(COLOURS) else "--"
            lifts = [100 * row["detectable"] for row in rows]
            axes.plot([row["days"] for row in rows], lifts, style, color=colour, label=f"{100 * share:.3g} %")
        axes.axhline(100 * record["lift"], color=charts.INK, linewidth=1, linestyle=(0, (2, 2)))
        axes.axvline(record["within"], color=charts.LINE, linewidth=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda number, _: f"{number:g}")
            axis.set_minor_formatter(lambda number, _: "")
        axes.set_xlabel("days")
        axes.set_ylabel("lift detected, %")
        axes.figure.legend(loc="outside upper left", ncols=4, title="explored")

    caption = f"The lift that is detected with power {record['power']:g} by days, for every share explored; dashed: the asked lift."
    return charts.chart(340, caption, draw)
