"""The read-out of tests as one page: self-contained HTML, light and dark, readable on a phone; no network, no scripts.

In: the record of `evaluation.experiment`. Out: HTML: the answer in words, the arms with their intervals, how they went over time.
"""

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from matplotlib.axes import Axes

from evaluation.record.experiments import ArmRow, ExperimentRecord, GuardrailRow, LiftColumns, SingleTest
from evaluation.report.charts import LINE, chart
from evaluation.report.markup import html_document, notes, table, table_row

GREEN_ANSWERS = ("winner", "no difference")
COLOURS = ("#050505", "#060606", "#070707", "#080808")
"""Placeholders of the page's colours, as in `charts`."""
MOST_CHARTED = 4
"""Arms of a chart, those with the most evidence."""
MOST_DETAILED = 12
"""Tests shown in full where several are read out, those with answers first."""

NOTES = {
    "Anytime-valid": "These intervals may be looked at every day and the test stopped at any look: in at most 5 % of tests does "
    "any look miss the truth of any arm. They are wider than the usual interval, which is right for one look that was planned.",
    "Answers": "Winner: the interval lies above 0, above every other such arm, and the guardrails hold. Preferred: by weaker "
    "evidence (80 %), or not separated from another arm, or a guardrail is open. No difference: the whole interval is smaller than "
    "what is worth it. Worse: the interval lies below 0. Not yet: none of these.",
    "Guardrails": "A winner must not lower engaged plays or minutes per impression: not by its estimate, and where engaged "
    "plays of those clicked fall, engaged plays per impression must be shown to rise.",
    "Still needed": "How many more impressions the whole test takes until an answer, if the lift stays: a rough guide, because "
    "the estimate itself will move.",
}
"""Notes on how to read the page."""


def experiment_page(record: ExperimentRecord) -> str:
    """The page of `keyart test`."""
    tests = record["tests"]
    body = [f"<h1>{escape(record['headline'])}</h1>"]
    if len(tests) == 1:
        body += _single(tests[0], record)
    else:
        body += _several(tests, record)
    body += notes(NOTES, [*record["notes"], *record["not_read"]])
    return html_document("keyart test", "\n".join(body))


def _several(tests: Sequence[SingleTest], record: ExperimentRecord) -> Iterator[str]:
    ranked = sorted(tests, key=lambda test: -max(row["e_value"] for row in test["arms"]))
    yield "<h2>All tests</h2>"
    yield table(
        ["test", "answer", "impressions", "largest lift"],
        [
            table_row([escape(test["test"]), escape(test["headline"]), f"{test['impressions']:,}", _largest(test)])
            for test in ranked
        ],
    )
    for test in ranked[:MOST_DETAILED]:
        yield f"<h2>{escape(test['test'])}</h2>"
        yield from _single(test, record)


def _largest(test: SingleTest) -> str:
    rows = [row for row in test["arms"] if row["lift"] is not None]
    return lift_cell(max(rows, key=lambda row: row["lift"] or 0.0)) if rows else "–"


def _single(test: SingleTest, record: ExperimentRecord) -> Iterator[str]:
    period = f", {test['since'][:10]} to {test['until'][:10]}" if test["since"] and test["until"] else ""
    units = "members" if record["unit"] == "member" else "units"
    words = f"{test['test']}: {test['impressions']:,} impressions of {test['members']:,} {units}{period}; "
    words += f"{record['metric']} per impression; a lift of {100 * record['worth']:g} % matters. "
    words += (
        f"Intervals are at {100 * (1 - test['level']):.4g} % for one comparison, which allows for all of them together."
    )
    yield f'<p class="soft">{escape(words)}</p>'
    yield f"<p>{escape(shares_line(test))}</p>"
    yield table(
        ["arm", "answer", "impressions", "rate", "anytime-valid", "one look", "unadjusted", "still needed"],
        [_arm_row(row) for row in test["arms"]],
    )
    if len(test["looks"]) > 1 and not test["mismatch"]["mismatched"]:
        yield f'<div class="charts">{sequence_chart(test)}</div>'
    guards = [(row["arm"], guard) for row in test["arms"] for guard in row["guardrails"]]
    if guards and not test["mismatch"]["mismatched"]:
        yield "<h3>Guardrails</h3>"
        yield table(
            ["arm", "reward", "against", "lift, at the level of a warning", ""],
            [_guard_row(arm, guard) for arm, guard in guards],
        )
    if test["pairs"]:
        yield "<h3>Arms that both beat the control</h3>"
        yield table(
            ["arm", "against", "lift"],
            [table_row([escape(pair["arm"]), escape(pair["against"]), lift_cell(pair)]) for pair in test["pairs"]],
        )
    if test["notes"]:
        yield "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in test["notes"]) + "</ul>"


def shares_line(test: SingleTest) -> str:
    """What the test of shares says, in a sentence."""
    mismatch = test["mismatch"]
    shares = ", ".join(f"{row['arm']} {row['share']:.2%} ({row['expected_share']:.2%})" for row in test["arms"][:8])
    words = "Sample ratio mismatch" if mismatch["mismatched"] else "Shares are as expected"
    return f"{words}, by {mismatch['counted']} and {mismatch['source']}: {shares}."


def _arm_row(row: ArmRow) -> str:
    colour = "reliable" if row["answer"] in GREEN_ANSWERS else "weak"
    answer = (
        f'<span class="{colour}">{escape(row["answer"])}</span><span class="of reason">{escape(row["reason"])}</span>'
    )
    fixed: LiftColumns = {"lift": row["lift"], "low": row["fixed_low"], "high": row["fixed_high"]}
    plain: LiftColumns = {"lift": row["unadjusted_lift"], "low": row["unadjusted_low"], "high": row["unadjusted_high"]}
    hidden = row["answer"] == "mismatch"  # such lifts mean nothing
    return table_row(
        [
            escape(row["arm"]),
            answer,
            f"{row['impressions']:,}",
            "–" if row["rate"] is None or hidden else f"{row['rate']:.4g}",
            "–" if hidden else lift_cell(row),
            "–" if hidden else lift_cell(fixed),
            "–" if hidden else lift_cell(plain),
            "–" if row["more_impressions"] is None else f"{row['more_impressions']:,}",
        ],
        "scored" if row["answer"] == "winner" else "",
    )


def _guard_row(arm: str, guard: GuardrailRow) -> str:
    return table_row(
        [escape(arm), escape(guard["reward"]), escape(guard["against"]), lift_cell(guard), escape(guard["state"])]
    )


def lift_cell(row: LiftColumns) -> str:
    """A lift with its interval as HTML."""
    if row["lift"] is None:
        return "–"
    text = f"{row['lift']:+.1%}"
    if row["low"] is None or row["high"] is None:
        return text
    return f'{text} <span class="of">[{row["low"]:+.1%}, {row["high"]:+.1%}]</span>'


def sequence_chart(test: SingleTest) -> str:
    """Lifts with their anytime-valid intervals at every look; looks before an interval are left blank."""
    ranked = sorted((row for row in test["arms"] if row["arm"] != test["control"]), key=lambda row: -row["e_value"])
    arms = [row["arm"] for row in ranked[:MOST_CHARTED]]
    looks = test["looks"]
    x = np.arange(len(looks))

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=LINE)
        for colour, arm in zip(COLOURS, arms, strict=False):
            rows = [next(lift for lift in look["arms"] if lift["arm"] == arm) for look in looks]
            seen = np.array([row["low"] is not None and row["high"] is not None for row in rows])
            middle, low, high = (
                100 * np.array([np.nan if row[name] is None else row[name] for row in rows], float)
                for name in ("lift", "low", "high")
            )
            axes.plot(x[seen], middle[seen], color=colour, label=arm, marker="o", markersize=2.5)
            axes.fill_between(x, low, high, where=seen.tolist(), color=colour, alpha=0.15, linewidth=0)
        ends = [
            abs(end)
            for look in looks[len(looks) // 3 :]
            for row in look["arms"]
            for end in (row["low"], row["high"])
            if end
        ]
        if ends:  # the first intervals are so wide that the others would be lines
            axes.set_ylim(-100 * min(1.0, 1.2 * max(ends)), 120 * max(ends))
        some = np.unique(np.linspace(0, len(looks) - 1, min(4, len(looks))).astype(int))
        axes.set_xticks(some, [looks[index]["until"][:10] for index in some])
        axes.set_ylabel(f"lift over {test['control']}, %")
        axes.legend(loc="upper right")

    caption = (
        "Lift at every look, looks drawn evenly apart, with the anytime-valid interval: it may be looked at every day."
    )
    more = "" if len(ranked) <= MOST_CHARTED else f" The {MOST_CHARTED} arms with the most evidence."
    return chart(300, caption + more, draw)
