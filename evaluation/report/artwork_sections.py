"""The page's sections on artworks: clickbait, exposure, changes from day to day, and example members."""

from collections.abc import Iterator, Sequence
from html import escape

from evaluation.audits.examples import ArtworkLabels
from evaluation.audits.exposure import FLAG_RULE
from evaluation.record.rows import Clickbait, EngagementRow, ExampleMember, ExposureRow, Reason, StabilityRow
from evaluation.report import charts
from evaluation.report.markup import marked, picture, table, table_row

MAX_CARDS, MAX_FLAGGED = 12, 12


def clickbait_section(summary: Clickbait | None, catalogue: ArtworkLabels) -> Iterator[str]:
    """Artworks that are clicked more and watched less than the title's others, with their pictures."""
    if summary is None:
        return
    yield "<h2>Clicked, and not watched</h2>"
    if summary["verdict"] == "unanswerable":
        yield "<p>Unanswerable: what is wrong with the log does not allow to compare artworks.</p>"
        return
    weak = " The log has defects: all of this is weak." if summary["verdict"] == "weak" else ""
    yield (
        f"<p>Of {summary['tested']:,} artworks with {summary['least_clicks']} clicks or more, "
        f"{summary['clickbait']:,} are clicked more and watched less than their title’s others, and another "
        f"{summary['misleading']:,} are watched less; at most {summary['false_discoveries']:.0%} of either are expected "
        f"to be false discoveries. From {summary['impressions']:,} impressions, weighted as if shown to anybody and compared with "
        f"those of about the same time; gaps are shrunk by their sampling noise.{weak}</p>"
    )
    cards = []
    for row in summary["artworks"][:MAX_CARDS]:
        flag = f"<b>{marked(row['flag'], row['verdict'])}</b><br>" if row["flag"] else ""
        cards.append(
            f'<div class="card">{picture(row["artwork"], catalogue, row["name"])}{flag}{escape(row["name"])}<br>'
            f"clicked {row['click_rate']:.1%}, others {row['click_rate_of_others']:.1%}<br>"
            f"then watched {row['engaged_after_click']:.0%}, others {row['engaged_after_click_of_others']:.0%}<br>"
            f'<span class="soft">gap {row["engaged_gap"]:+.1%} after shrinking, {row["clicks"]:,} clicks</span></div>'
        )
    if cards:
        yield f'<div class="cards">{"".join(cards)}</div>'


def engagement_section(rows: Sequence[EngagementRow]) -> Iterator[str]:
    """The share of clicks that leads to a viewing, by segment and policy."""
    if not rows:
        return
    yield "<h2>Do clicks lead to viewings?</h2>"
    yield "<p>Of the clicks that a policy would get, the share that leads to a viewing; in points above the uniform policy's.</p>"
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    lines = []
    for segment, level in dict.fromkeys((row["segment"], row["level"]) for row in rows):
        by_key = {row["policy"]: row for row in rows if (row["segment"], row["level"]) == (segment, level)}
        uniform = by_key[policies[0]]["uniform"]
        cells = [escape(f"{segment}: {level}" if level else segment), "–" if uniform is None else f"{uniform:.1%}"]
        for policy in policies:
            row = by_key[policy]
            if row["value"] is None or row["gap"] is None or row["low"] is None or row["high"] is None:
                cells.append("unanswerable")
                continue
            ends = f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
            value = marked(f"{row['value']:.1%}", row["verdict"])
            cells.append(f'{value} <span class="of">{100 * row["gap"]:+.1f} {ends}</span>')
        lines.append(table_row(cells))
    yield table(["members", "uniform", *(charts.POLICY_NAMES[policy] for policy in policies)], lines)


def exposure_section(rows: Sequence[ExposureRow]) -> Iterator[str]:
    """Exposure by segment, and what is watched less after a click."""
    if not rows:
        return
    yield "<h2>Who is shown whom</h2>"
    yield f'<div class="charts">{charts.exposure(rows)}</div>'
    # worst first: the viewings that the policy's clicks in the segment lose
    flagged = sorted((r for r in rows if r["flag"]), key=_lost_viewings)
    if not flagged:
        tested = any(row["engaged_verdict"] != "unanswerable" for row in rows)
        nothing = "Nothing depicted is watched less after a click than its titles’ other artworks."
        yield f"<p>{nothing if tested else 'What is watched less after a click: unanswerable.'}</p>"
        return
    lines = [
        table_row(
            [
                escape(f"{r['depicts']} · {r['level'] or r['segment']}"),
                f"{r['scored']:.1%}",
                f"{r['uniform']:.1%}",
                f"{r['engaged_after_click']:.0%}",
                f"{r['of_others']:.0%}",
                _points(r),
                escape(marked(r["flag"], r["engaged_verdict"])),
            ]
        )
        for r in flagged[:MAX_FLAGGED]
    ]
    yield f"<p>What is watched less after a click than its titles’ other artworks. {escape(FLAG_RULE)}</p>"
    yield table(["depicts · segment", "shown", "uniform", "watched", "others", "gap, points", ""], lines)


def _lost_viewings(row: ExposureRow) -> tuple[bool, float]:
    return row["flag"] == "watched less", (row["engaged_gap"] or 0.0) * (row["share_of_clicks"] or 0.0)


def _points(row: ExposureRow) -> str:
    gap, low, high = row["engaged_gap"], row["engaged_low"], row["engaged_high"]
    if gap is None or low is None or high is None:
        return "–"
    return f'{100 * gap:+.0f} <span class="of">[{100 * low:+.0f}, {100 * high:+.0f}]</span>'


def stability_section(rows: Sequence[StabilityRow]) -> Iterator[str]:
    """The probability that a title's artwork changes for a member, by days between."""
    if not rows:
        return
    yield "<h2>How often the artwork changes</h2>"
    days = list(dict.fromkeys(row["days"] for row in rows))
    by_key = {(row["policy"], row["days"]): row for row in rows}
    lines = []
    for policy in ("scored", "logged", "uniform"):
        cells = [escape(charts.POLICY_NAMES[policy])]
        for day in days:
            row = by_key[policy, day]
            ends = "" if row["low"] is None else f'<span class="of">[{row["low"]:.0%}, {row["high"]:.0%}]</span>'
            cells.append(
                "unanswerable" if row["value"] is None else marked(f"{row['value']:.0%}", row["verdict"]) + f" {ends}"
            )
        lines.append(table_row(cells, policy))
    pairs = ", ".join(f"{by_key['scored', day]['pairs']:,} {day}" for day in days)
    yield f"<p>Probability that a title’s artwork for a member differs from the last time ({pairs}).</p>"
    yield table(["", *days], lines)


def reason_in_words(why: Reason) -> str:
    """The framed artwork's click logit minus the mean of the others', in words: exact contributions that add up."""
    clauses = []
    for play in why["plays"]:
        parts = {part: play[part] for part in ("learned", "image", "people", "genres")}
        largest = max(parts, key=lambda part: abs(parts[part]))
        clauses.append(f"{play.get('name') or 'an unknown title'} {sum(parts.values()):+.2f} (mostly {WORDS[largest]})")
    own_clicks, fatigue = why.get("own_clicks", 0.0), why.get("fatigue", 0.0)
    rest = why["appeal"] - why["itself"] - why["context"] - why["state"] - own_clicks - fatigue
    rest -= sum(play[part] for play in why["plays"] for part in ("learned", "image", "people", "genres"))
    clauses.append(f"all other plays {rest:+.2f}")
    clauses.append(f"the artwork itself, for anybody, {why['itself']:+.2f}")
    of_context = ", ".join(f"{name} {value:+.2f}" for name, value in why.get("context_features", {}).items())
    clauses.append(f"the context {why['context']:+.2f}" + (f" ({of_context})" if of_context else ""))
    if own_clicks:
        clauses.append(f"what the member clicked and left before {own_clicks:+.2f}")
    if fatigue:
        clauses.append(f"that it was shown before and left {fatigue:+.2f}")
    if abs(why["state"]) > 1e-3:
        clauses.append(f"the attention state of the plays {why['state']:+.2f}")
    people = [f"{person['name']} ({person['likeness']:+.2f})" for person in why["people"] if person["name"]]
    shows = f" It shows {', '.join(people)}." if people else ""
    text = f"Above the others by {why['appeal']:+.2f}: {'; '.join(clauses)}.{shows}"
    return f'<p class="soft">{escape(text)}</p>'


WORDS = {"learned": "what its viewers like", "image": "its picture", "people": "its people", "genres": "its genres"}
"""The parts of a play's contribution, in words."""


def examples(rows: Sequence[ExampleMember], catalogue: ArtworkLabels) -> Iterator[str]:
    """Random members with what they watched and what they would be shown."""
    if not rows:
        return
    yield f"<h2>{len(rows)} members, drawn at random</h2>"
    yield (
        "<p>What they watched last, and the artworks of titles they were shown, best scored first; framed is what the policy "
        "shows most. In explanations, the numbers are what each past play and the rest add to the logit of a click.</p>"
    )
    yield '<div class="members">'
    for row in rows:
        strip = "".join(
            f"<div>{picture(play['artwork'], catalogue, play['name'])}{escape(play['name'])}</div>"
            for play in row["plays"]
        )
        yield f'<div class="member"><h3>{escape(row["member"])}, {row["plays_before"]:,} plays before</h3>'
        yield f'<div class="strip">{strip}</div>' if strip else '<p class="soft">No plays.</p>'
        for shown in row["shown"]:
            genres = f" ({', '.join(shown['genres'])})" if shown["genres"] else ""
            cells = []
            for index, candidate in enumerate(shown["candidates"]):
                labels = [
                    f"{candidate['click_probability']:.1%}",
                    *([f"shown {candidate['policy']:.0%}"] if 0 < candidate["policy"] < 1 else []),
                ]
                labels += ["best for all"] if candidate["best_fixed"] else []
                labels += [f"was shown{', clicked' if shown['clicked'] else ''}"] if candidate["logged"] else []
                kind = ' class="first"' if index == 0 else ""
                cells.append(
                    f"<div{kind}>{picture(candidate['artwork'], catalogue, candidate['artwork'])}{', '.join(labels)}</div>"
                )
            yield f'<p>{escape(shown["name"] + genres)}</p><div class="strip">{"".join(cells)}</div>'
            if shown["why"] is not None:
                yield reason_in_words(shown["why"])
        yield "</div>"
    yield "</div>"
