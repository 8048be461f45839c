"""The page's sections on artworks: clickbait, exposure, changes from day to day, and members with what they would see."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from evaluation import charts
from evaluation.examples import Catalogue
from evaluation.exposure import RULE
from evaluation.markup import line, picture, table

WORST, FLAGGED = 12, 12


def clickbait(told: dict[str, Any] | None, catalogue: Catalogue) -> Iterator[str]:
    """Artworks that are clicked more and watched less than they should be, with their pictures."""
    if told is None:
        return
    yield "<h2>Clicked, and not watched</h2>"
    yield (
        f"<p>Of {told['tested']:,} artworks with {told['least_clicks']} clicks or more, {told['clickbait']:,} are clicked more "
        f"and watched less than their title’s others, and another {told['misleading']:,} are watched less; at most "
        f"{told['false_discoveries']:.0%} of either are expected to be chance. From {told['impressions']:,} impressions, as "
        "anybody would have been shown them; gaps are shrunk by what chance alone makes of them.</p>"
    )
    cards = []
    for row in told["artworks"][:WORST]:
        flag = f"<b>{row['flag']}</b><br>" if row["flag"] else ""
        cards.append(
            f'<div class="card">{picture(row["artwork"], catalogue, row["name"])}{flag}{escape(row["name"])}<br>'
            f"clicked {row['click_rate']:.1%}, others {row['click_rate_of_others']:.1%}<br>"
            f"then watched {row['engaged_after_click']:.0%}, others {row['engaged_after_click_of_others']:.0%}<br>"
            f'<span class="soft">gap {row["engaged_gap"]:+.1%} after shrinking, {row["clicks"]:,} clicks</span></div>'
        )
    if cards:
        yield f'<div class="cards">{"".join(cards)}</div>'


def held(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How well clicks hold, by segment."""
    if not rows:
        return
    yield "<h2>Do the clicks hold?</h2>"
    yield "<p>Of the clicks that a policy would get, the share that leads to a viewing; in points above the uniform policy's.</p>"
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    lines = []
    for segment, level in dict.fromkeys((row["segment"], row["level"]) for row in rows):
        found = {row["policy"]: row for row in rows if (row["segment"], row["level"]) == (segment, level)}
        uniform = found[policies[0]]["uniform"]
        cells = [escape(f"{segment}: {level}" if level else segment), "–" if uniform is None else f"{uniform:.1%}"]
        for policy in policies:
            row = found[policy]
            if row["gap"] is None or row["low"] is None:
                cells.append("cannot be told")
                continue
            ends = f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
            cells.append(f'{row["value"]:.1%} <span class="of">{100 * row["gap"]:+.1f} {ends}</span>')
        lines.append(line(cells))
    yield table(["members", "uniform", *(charts.NAMES[policy] for policy in policies)], lines)


def exposed(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What the policy shows to whom, and what does not hold after a click."""
    if not rows:
        return
    yield "<h2>Who is shown whom</h2>"
    yield f'<div class="charts">{charts.exposure(rows)}</div>'
    flagged = sorted((r for r in rows if r["flag"]), key=lambda r: (r["flag"] == "watched less", r["engaged_gap"]))
    if not flagged:
        yield "<p>What no segment watches less than its other clicks, after a click: none was found.</p>"
        return
    lines = [
        line(
            [
                escape(f"{r['depicts']} · {r['level'] or r['segment']}"),
                f"{r['scored']:.1%}",
                f"{r['uniform']:.1%}",
                f"{r['engaged_after_click']:.0%}",
                f"{r['of_others']:.0%}",
                _points(r),
                escape(r["flag"]),
            ]
        )
        for r in flagged[:FLAGGED]
    ]
    yield f"<p>What is watched less after a click than the segment’s other clicks. {escape(RULE)}</p>"
    yield table(["depicts · segment", "shown", "uniform", "watched", "other clicks", "gap, points", ""], lines)


def _points(row: dict[str, Any]) -> str:
    ends = f"[{100 * row['engaged_low']:+.0f}, {100 * row['engaged_high']:+.0f}]"
    return f'{100 * row["engaged_gap"]:+.0f} <span class="of">{ends}</span>'


def changes(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How often a member would meet another artwork."""
    if not rows:
        return
    yield "<h2>How often the artwork changes</h2>"
    days = list(dict.fromkeys(row["days"] for row in rows))
    found = {(row["policy"], row["days"]): row for row in rows}
    lines = []
    for policy in ("scored", "logged", "uniform"):
        cells = [escape(charts.NAMES[policy])]
        for day in days:
            row = found[policy, day]
            ends = "" if row["low"] is None else f'<span class="of">[{row["low"]:.0%}, {row["high"]:.0%}]</span>'
            cells.append(f"{row['value']:.0%} {ends}")
        lines.append(line(cells, policy))
    pairs = ", ".join(f"{found['scored', day]['pairs']:,} {day}" for day in days)
    yield f"<p>Chance that a member meets another artwork on a title than the last time ({pairs}).</p>"
    yield table(["", *days], lines)


def _why(why: dict[str, Any]) -> str:
    """What speaks for the framed artwork against the mean of the others, in its click logit: exact, and adds up."""
    said = []
    for play in why["plays"]:
        parts = {part: play[part] for part in ("learned", "image", "people", "genres")}
        most = max(parts, key=lambda part: abs(parts[part]))
        said.append(f"{play['name'] or 'an unknown title'} {sum(parts.values()):+.2f} (mostly {WORDS[most]})")
    rest = why["appeal"] - why["itself"] - why["context"] - why["state"]
    rest -= sum(play[part] for play in why["plays"] for part in ("learned", "image", "people", "genres"))
    said.append(f"all other plays {rest:+.2f}")
    said.append(f"the artwork itself, for anybody, {why['itself']:+.2f}")
    said.append(f"country, device and hour {why['context']:+.2f}")
    if abs(why["state"]) > 1e-3:
        said.append(f"what attention read of the plays together {why['state']:+.2f}")
    people = [f"{one['name']} ({one['likeness']:+.2f})" for one in why["people"] if one["name"]]
    shows = f" It shows {', '.join(people)}." if people else ""
    told = f"Above the others by {why['appeal']:+.2f}: {'; '.join(said)}.{shows}"
    return f'<p class="soft">{escape(told)}</p>'


WORDS = {"learned": "what its viewers like", "image": "its picture", "people": "its people", "genres": "its genres"}
"""What the parts of a play's share are."""


def examples(rows: Sequence[dict[str, Any]], catalogue: Catalogue) -> Iterator[str]:
    """Members with what they watched and what they would be shown."""
    if not rows:
        return
    yield f"<h2>{len(rows)} members, drawn by chance</h2>"
    yield (
        "<p>What they watched last, and the artworks of titles they met, best scored first; framed is what the policy shows "
        "most. Where it is said why, the numbers are what each past play and the rest add to the logit of a click.</p>"
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
            for place, one in enumerate(shown["candidates"]):
                said = [
                    f"{one['click_probability']:.1%}",
                    *([f"shown {one['policy']:.0%}"] if 0 < one["policy"] < 1 else []),
                ]
                said += ["best for all"] if one["best_fixed"] else []
                said += [f"was shown{', clicked' if shown['clicked'] else ''}"] if one["logged"] else []
                kind = ' class="first"' if place == 0 else ""
                cells.append(f"<div{kind}>{picture(one['artwork'], catalogue, one['artwork'])}{', '.join(said)}</div>")
            yield f'<p>{escape(shown["name"] + genres)}</p><div class="strip">{"".join(cells)}</div>'
            if shown.get("why"):
                yield _why(shown["why"])
        yield "</div>"
    yield "</div>"
