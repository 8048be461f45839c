"""The value of a policy as one page: self-contained HTML, light and dark, readable on a phone; no network, no scripts.

In: the record of `evaluation.value`, and the dataset, for pictures. Out: HTML. `value_page` makes the whole page of
`keyart value`, `sections` the part that every report has.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from evaluation.audits.attribution import CONTRASTS
from evaluation.audits.examples import read_artwork_labels
from evaluation.off_policy.valuation import FALLBACK_ESTIMATOR, HEADLINE_ESTIMATOR
from evaluation.record.log_rows import DriftRow
from evaluation.record.records import PolicyRow, ValueRecord, ValueSections
from evaluation.record.rows import (
    CalibrationSliceRow,
    ContributionRow,
    DifferenceRow,
    EstimateRow,
    Estimates,
    FitMetrics,
    Metrics,
    SliceRow,
)
from evaluation.report import charts
from evaluation.report.artwork_sections import (
    clickbait_section,
    engagement_section,
    examples,
    exposure_section,
    stability_section,
)
from evaluation.report.log_section import log_section
from evaluation.report.markup import (
    html_document,
    marked,
    notes,
    per_mille,
    relative,
    table,
    table_row,
    with_interval,
)
from evaluation.report.preference_section import preference_section
from evaluation.report.selection_section import selection_section
from foundation.preferences import Preferences

NO_CURVE = "This log does not support an estimate at any rate of exploring."
NOTES = {
    "Value": "The mean reward per impression, had the policy chosen the artworks of these impressions, with titles and "
    "positions as they were logged. Impressions with a single candidate are left out: every policy earns the same on them.",
    "Verdict": "Reliable: on simulated logs, such intervals contain the truth in 92 to 98 % of cases. Weak: a number, with a "
    "reason to doubt it. Unanswerable: the log does not support an estimate, and none is given.",
    "Intervals": "95 %, by member: a member's impressions resemble each other, so members, not impressions, are the sampling "
    "unit. Differences are on the same members on both sides: they can be certain where two intervals overlap. One of twenty "
    "intervals misses the truth at random, except for slices, whose intervals are wider: in 95 % of reports none of them misses.",
    "Estimators": "ips and snips weight shown artworks by policy over logging probability; dm uses only a model of rewards; "
    "dr and the like (sndr, switch_dr, dr_os) correct the model by weights; replay "
    "keeps randomised impressions that match; title_snips compares within titles. dr is the main one.",
}
"""Notes on how to read the page."""


def value_page(record: ValueRecord, dataset: Path) -> str:
    """The page of `keyart value`."""
    verdict = record["verdict"]
    period = "the whole log" if record["split"] is None else f"the {record['period']} period by {record['split']}"
    body = [
        f'<p><span class="verdict {verdict["verdict"]}">{verdict["verdict"]}</span></p>',
        f"<h1>{escape(headline(record))}</h1>",
        f"<p>{escape(verdict['reason'].capitalize())}.</p>",
        f'<p class="soft">{record["impressions"]:,} impressions of {record["members"]:,} members, {escape(period)}'
        f"{_since(record)}; {record['randomised']:,} of them randomised. {escape(record['weights'].capitalize())}.</p>",
        *sections(record, dataset),
        *notes(NOTES, record["notes"]),
    ]
    return html_document("keyart value", "\n".join(body))


def _since(record: ValueRecord) -> str:
    return "" if record["since"] is None else f", since {record['since'][:16].replace('T', ' ')} UTC"


def main_estimate(record: Estimates, policy: str, reward: str) -> EstimateRow | None:
    """The main estimate: doubly robust, else SNIPS; None where neither was computed."""
    rows = {e["estimator"]: e for e in record["estimates"] if (e["policy"], e["reward"]) == (policy, reward)}
    return rows.get(HEADLINE_ESTIMATOR) or rows.get(FALLBACK_ESTIMATOR)


def headline(record: ValueSections, name: str = "the scored policy") -> str:
    """The result in words: the scored policy, called `name`, against uniform."""
    if record["verdict"]["verdict"] == "unanswerable":
        return f"This log does not support an estimate of {name}."
    base = "base" if any(row["policy"] == "base" for row in record["estimates"]) else "uniform"
    row = next(
        d
        for d in record["differences"]
        if (d["policy"], d["base"], d["reward"], d["estimator"]) == ("scored", base, "clicked", HEADLINE_ESTIMATOR)
    )
    against = "the other scores" if base == "base" else "showing artworks at random"
    relative, ends = row["relative"], (row["relative_low"], row["relative_high"])
    if relative is None or ends[0] is None or ends[1] is None:
        return f"This log cannot separate {name} from {against}."
    value, low, high = 100 * relative, 100 * ends[0], 100 * ends[1]
    interval = f"95 % interval: {low:+.1f} to {high:+.1f} %"
    subject = name[0].upper() + name[1:] if name.startswith("the ") else name
    doubt = "" if row["verdict"] == "reliable" else f" This difference is weak: {row['reason']}."
    if low > 0:
        return f"{subject} would earn {value:.1f} % more clicks than {against} ({interval}).{doubt}"
    if high < 0:
        return f"{subject} would earn {-value:.1f} % fewer clicks than {against} ({interval}).{doubt}"
    return f"This log cannot separate {name} from {against}: {value:+.1f} % clicks ({interval})."


def sections(
    record: ValueSections,
    dataset: Path,
    policies: Sequence[PolicyRow] = (),
    fit: FitMetrics | None = None,
    preferences: Preferences | None = None,
) -> Iterator[str]:
    """Everything between the verdict and the notes.

    `policies`: by policy and reward, a label and the true value, if known. `fit`: metrics to show instead of the record's own.
    `preferences`: what the ranker looks at, where a bundle scored.
    """
    yield "<h2>What each policy would earn</h2>"
    yield _values(record, policies)
    truth = {
        row["policy"]: row["true_value"]
        for row in policies
        if row["reward"] == "clicked" and row["true_value"] is not None
    }
    drawn = [charts.forest(record["estimates"], "clicked", truth)]
    drawn += [charts.forest(record["estimates"], reward) for reward in ("engaged", "minutes")]
    yield f'<div class="charts">{"".join(drawn)}</div>'
    yield from selection_section(record.get("selection", []))
    yield "<h2>How much of it is the artwork’s</h2>"
    yield _alone(record["artwork_alone"])
    yield "<h2>Does the log support it?</h2>"
    yield from log_section(record)
    checks = [charts.weights(record["weight_histogram"])]
    if record["calibration"]:
        checks.append(charts.propensities(record["calibration"]))
    yield f'<div class="charts">{"".join(checks)}</div>'
    yield _drift(record["drift"])
    yield "<h2>What exploring costs</h2>"
    drawn = charts.exploration(record["exploration"])
    yield f'<div class="charts">{drawn}</div>' if drawn else f"<p>{NO_CURVE}</p>"
    yield "<h2>Are the probabilities right?</h2>"
    fit = fit or record
    yield _fit("Clicks of what was shown", fit["metrics"])
    drawn = [charts.reliability(fit["reliability"])]
    if "engaged_metrics" in fit and "engaged_reliability" in fit:
        yield _fit("Viewings after a click", fit["engaged_metrics"])
        drawn.append(charts.reliability(fit["engaged_reliability"], "watched after a click"))
    yield f'<div class="charts">{"".join(drawn)}</div>'
    yield _calibrated(record["calibration_by_slice"])
    yield "<h2>For whom, and where</h2>"
    yield "<p>Intervals are simultaneous: in 95 % of reports, every slice’s interval contains the truth.</p>"
    yield _slices(record["attribution"])
    catalogue = read_artwork_labels(dataset)
    yield from clickbait_section(record["clickbait"], catalogue)
    yield from engagement_section(record["holds"])
    yield from exposure_section(record["exposure"])
    yield from stability_section(record["stability"])
    yield from preference_section(preferences, catalogue)
    yield from examples(record["examples"], catalogue)
    yield from _chosen(record)


def _values(record: ValueSections, policies: Sequence[PolicyRow]) -> str:
    above = {(d["policy"], d["base"], d["reward"], d["estimator"]): d for d in record["differences"]}
    rewards = list(dict.fromkeys(e["reward"] for e in record["estimates"]))
    names = charts.POLICY_NAMES | {row["policy"]: row["label"] for row in policies}
    true = {(row["policy"], row["reward"]): row["true_value"] for row in policies if row["true_value"] is not None}
    valued = {e["policy"] for e in record["estimates"]} | {policy for policy, _ in true}
    rows = []
    for policy in (name for name in names if name in valued):
        cells = [escape(names[policy])]
        for reward in rewards:
            row = main_estimate(record, policy, reward)
            if true:
                cells.append(per_mille(true.get((policy, reward))))
            if row is None:
                cells += ["", ""]
                continue
            cells.append(with_interval(row) + ("" if row["verdict"] != "weak" else " (weak)"))
            cells.append("" if policy == "uniform" else _against_uniform(above, policy, reward, row["estimator"]))
        rows.append(table_row(cells, policy))
    heads = ["per 1,000 impressions"]
    for reward in rewards:
        heads += [*([f"{reward}, true"] if true else []), reward, "above uniform"]
    return table(heads, rows)


def _against_uniform(above: Mapping[tuple[str, ...], DifferenceRow], policy: str, reward: str, by: str) -> str:
    row = above.get((policy, "uniform", reward, by))
    if row is not None:
        return _relative_of(row)
    row = above.get(("uniform", policy, reward, by))
    if row is None or row["relative"] is None:
        return "–"
    # the inverse of uniform's relative difference, 1 / (1 + x) - 1, which swaps the ends of the interval
    value, high, low = (
        None if number is None else 1 / (1 + number) - 1
        for number in (row["relative"], row["relative_low"], row["relative_high"])
    )
    return marked(relative({"relative": value, "relative_low": low, "relative_high": high}), row["verdict"])


def _relative_of(row: DifferenceRow | SliceRow | None) -> str:
    """A row's relative difference with the mark of its verdict; a dash where it is unanswerable."""
    if row is None or row["relative"] is None:
        return "–"
    return marked(relative(row), row["verdict"])


def _alone(rows: Sequence[ContributionRow]) -> str:
    rewards = list(dict.fromkeys(row["reward"] for row in rows))
    by_key = {(r["policy"], r["base"], r["reward"], r["estimator"]): r for r in rows}
    lines = []
    for estimator in ("title_snips", "dr"):
        words = "within each title (title_snips)" if estimator == "title_snips" else "on the same impressions (dr)"
        lines.append(f'<tr class="group"><th colspan="{1 + len(rewards)}">{words}</th></tr>')
        for policy, base, due_to in CONTRASTS:
            if any((policy, base, reward, estimator) in by_key for reward in rewards):
                contributions = [by_key.get((policy, base, reward, estimator)) for reward in rewards]
                cells = [
                    with_interval(row) + (" (weak)" if row and row["verdict"] == "weak" else "")
                    for row in contributions
                ]
                lines.append(table_row([escape(due_to), *cells]))
    intro = "<p>With the title held fixed, of 1,000 impressions so many rewards are due to:</p>"
    return intro + table(["due to", *rewards], lines)


def _drift(rows: Sequence[DriftRow]) -> str:
    clicked = [row for row in rows if row["reward"] == "clicked"]
    quarters = ", ".join(f"from {row['since'][:10]} {_period(row)}" for row in clicked if row["part"] != "before")
    text = f"Clicks of the uniform policy per 1,000, in quarters of the period: {quarters}."
    for row in (row for row in clicked if row["part"] == "before"):
        text += f" Before the period, from {row['since'][:10]}: {_period(row)}."
    return f'<p class="soft">{text}</p>'


def _period(row: DriftRow) -> str:
    return with_interval(row) + (" (weak)" if row["verdict"] == "weak" else "")


def _fit(what: str, metrics: Metrics) -> str:
    auc = "–" if metrics["auc"] is None else f"{metrics['auc']:.4f}"
    low, high = metrics["by_chance"]
    error = metrics["expected_calibration_error"]
    text = "within" if error <= high else "above"
    return (
        f"<p>{what}: log loss {metrics['log_loss']:.5f} (a constant: {metrics['log_loss_of_a_constant']:.5f}), AUC {auc}, "
        f"expected calibration error {error:.4f} over 20 bins of equal count, {text} the 95 % range of right "
        f"probabilities, {low:.4f} to {high:.4f}.</p>"
    )


def _calibrated(rows: Sequence[CalibrationSliceRow]) -> str:
    """Calibration by slice; errors beyond the range of right probabilities are marked."""
    if not rows:
        return ""
    off = sum(row["expected_calibration_error"] > row["by_chance"][1] for row in rows)
    lines = []
    for row in rows:
        low, high = row["by_chance"]
        mark = "" if row["expected_calibration_error"] <= high else " (above)"
        cells = [escape(f"{row['slice']}: {row['level']}"), row["reward"], f"{row['rows']:,}"]
        cells += [f"{row['predicted']:.2%}", f"{row['observed']:.2%}"]
        cells.append(f'{row["expected_calibration_error"]:.4f}{mark} <span class="of">[{low:.4f}, {high:.4f}]</span>')
        lines.append(table_row(cells))
    text = f"Slice by slice: {off} of {len(rows)} errors are above the 97.5 percentile of right ones (by chance, one in 40)"
    heads = ["slice", "", "impressions or clicks", "predicted", "actual", "calibration error, if right"]
    return f"<details><summary>{text}</summary>{table(heads, lines)}</details>"


def _slices(rows: Sequence[SliceRow]) -> str:
    against_uniform = [row for row in rows if row["reward"] == "clicked" and row["base"] == "uniform"]
    fixed = {(r["slice"], r["level"]): r for r in rows if r["reward"] == "clicked" and r["base"] == "best_fixed"}
    engaged = {(r["slice"], r["level"]): r for r in rows if r["reward"] == "engaged" and r["base"] == "uniform"}
    heads = ["clicks per 1,000", "impressions", "scored", "above uniform", "above the best for all"]
    heads.append("engaged above uniform")
    lines, name = [], None
    for row in against_uniform:
        if row["slice"] != name:
            name = row["slice"]
            lines.append(f'<tr class="group"><th colspan="{len(heads)}">{escape(name)}</th></tr>')
        key = row["slice"], row["level"]
        size = f'{row["impressions"]:,} <span class="of">{row["members"]:,} members</span>'
        cells = [escape(row["level"]), size]
        if row["verdict"] == "unanswerable":
            cells += ["unanswerable", "", "", ""]
        else:
            cells += [
                marked(per_mille(row["value"]), row["verdict"]),
                _relative_of(row),
                _relative_of(fixed.get(key)),
                _relative_of(engaged.get(key)),
            ]
        lines.append(table_row(cells))
    return table(heads, lines)


def _chosen(record: Estimates) -> Iterator[str]:
    """Details for reviewers: parameters chosen on the data, verdicts, and estimates that could not be computed."""
    yield "<h2>Details for reviewers</h2>"
    lines = [
        table_row(
            [
                escape(f"{row['policy']}, {row['reward']}, {row['estimator']}"),
                escape(row["parameter"]),
                "no bound" if row["chosen"] is None else f"{row['chosen']:g}",
            ]
        )
        for row in record["parameters"]
    ]
    rule = escape(record["parameters"][0]["rule"]) if record["parameters"] else ""
    yield f"<details><summary>Parameters chosen on the data: {rule}</summary>"
    yield table(["estimate", "parameter", "chosen"], lines) + "</details>"
    lines = [
        table_row(
            [
                escape(f"{row['policy']}, {row['reward']}, {row['estimator']}"),
                row["verdict"],
                f"<span>{escape(row['reason'])}</span>",
            ]
        )
        for row in record["verdicts"]
    ]
    yield "<details><summary>The verdict on every estimate</summary>"
    yield table(["estimate", "verdict", "reason"], lines) + "</details>"
    if record["left_out"]:
        lines = [
            table_row([escape(f"{row['policy']}, {row['reward']}, {row['estimator']}"), escape(row["reason"])])
            for row in record["left_out"]
        ]
        yield "<details><summary>What was left out, and why</summary>"
        yield table(["estimate", "reason"], lines) + "</details>"
