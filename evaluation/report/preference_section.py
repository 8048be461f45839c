"""The page's section on what the ranker looks at: artworks by their appeal for groups of members, and the parts of some images
that raise or lower it."""

from collections.abc import Iterator, Sequence
from html import escape

from evaluation.audits.examples import ArtworkLabels
from evaluation.report.markup import grey_picture, picture
from foundation.preferences import OccludedArtwork, Preferences, PreferredArtwork

RAISES, LOWERS = "#f76707", "#1c7ed6"
"""Colours of cells that raise and lower appeal: they lie on a grey picture, the same in light and dark."""
OPACITY = 0.8
"""Opacity of an image's strongest cell."""


def preference_section(record: Preferences | None, catalogue: ArtworkLabels) -> Iterator[str]:
    """The most and the least preferred artworks of each group, then images with the parts that count."""
    if record is None or not record["groups"]:
        return
    yield "<h2>What the ranker looks at</h2>"
    yield (
        "<p>The artworks that the ranker prefers most and least. The number is appeal: what an artwork adds to the logit of a "
        "click, above the mean artwork of its title. For members who had played a genre most it is also above the appeal for all "
        f"members. Means over {_sample(record)}; {record['artworks']:,} artworks were candidates. It is what the ranker learned, "
        "right or wrong.</p>"
    )
    for group in record["groups"]:
        heading = _members(group["genre"])
        yield f"<h3>{escape(heading[0].upper() + heading[1:])}</h3>"
        yield f'<p class="soft">{group["members"]:,} members, {group["impressions"]:,} impressions</p>'
        yield '<div class="members">'
        for words, artworks in (("Most preferred", group["most"]), ("Least preferred", group["least"])):
            yield f'<div><p>{words}</p><div class="strip">{_artworks(artworks, catalogue)}</div></div>'
        yield "</div>"
    yield "<h3>Which parts of an image count</h3>"
    if record["left_out"]:
        yield f"<p>{escape(record['left_out'])}</p>"
        return
    yield (
        "<p>Each cell of an image was covered by the image’s mean colour, and the artwork encoded anew. "
        f'<b style="color: {RAISES}">Orange</b> cells raise its appeal for the members named: covered, it is lower. '
        f'<b style="color: {LOWERS}">Blue</b> cells lower it. The stronger the colour, the larger the change, relative to '
        "the largest of the image; the range is given below it, in logits. One cell changes little of an artwork’s appeal, because "
        "the others and what it depicts stay as they are. A cover also adds edges of its own.</p>"
    )
    if record["unreadable"]:
        yield f"<p>Left out, because their image is missing or cannot be read: {record['unreadable']}.</p>"
    yield f'<div class="occluded">{"".join(_occluded(row, catalogue) for row in record["occluded"])}</div>'


def _sample(record: Preferences) -> str:
    if record["impressions"] == record["impressions_in_period"]:
        return f"all {record['impressions']:,} impressions"
    return f"{record['impressions']:,} of {record['impressions_in_period']:,} impressions, evenly spaced"


def _members(genre: str) -> str:
    return f"members who had played {genre} most" if genre else "all members"


def _artworks(artworks: Sequence[PreferredArtwork], catalogue: ArtworkLabels) -> str:
    return "".join(
        f"<div>{picture(row['artwork'], catalogue, row['artwork'])}{escape(row['name'])} "
        f'<span class="soft">{row["appeal"]:+.2f}</span></div>'
        for row in artworks
    )


def _occluded(row: OccludedArtwork, catalogue: ArtworkLabels) -> str:
    """An image beside itself in grey with its cells in colour."""
    artwork, cells = row["artwork"], row["cells"]
    values = [value for line in cells for value in line]
    largest = max(map(abs, values))
    height, width = 1 / len(cells), 1 / len(cells[0])
    shapes = "".join(
        f'<rect x="{x * width:.2%}" y="{y * height:.2%}" width="{width:.2%}" height="{height:.2%}" '
        f'fill="{RAISES if value > 0 else LOWERS}" fill-opacity="{OPACITY * abs(value) / (largest or 1):.2f}">'
        f"<title>{_logits(value)}</title></rect>"
        for y, line in enumerate(cells)
        for x, value in enumerate(line)
    )
    words = f"{artwork['name']}: cells that raise appeal in orange, that lower it in blue"
    return (
        f'<div class="card"><div class="pair">{picture(artwork["artwork"], catalogue, artwork["artwork"])}'
        f"{grey_picture(artwork['artwork'], catalogue, words, shapes)}</div>"
        f"<b>{escape(artwork['name'])}</b><br>{row['shown_as']} preferred by {escape(_members(row['genre']))} "
        f'({artwork["appeal"]:+.2f})<br><span class="soft">cells from {_logits(min(values))} to {_logits(max(values))}</span>'
        "</div>"
    )


def _logits(value: float) -> str:
    """Three decimals with a sign; without one where it rounds to 0."""
    rounded = round(value, 3)
    return f"{rounded:+.3f}" if rounded else "0"
