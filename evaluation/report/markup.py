"""Building blocks of pages: style, tables, numbers with intervals, small pictures."""

import base64
import io
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path

from PIL import Image

from datamodules.contract.image_decoding import decode_image, strict_image_decoding
from evaluation.audits.examples import ArtworkLabels
from evaluation.record.rows import IntervalColumns, RelativeColumns, Verdict

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #6b6b70; --line: #d9d9de; --paper: #fff; --mark: #0b63ce;
  --violet: #7a3fc4; --green: #1a7f4b; --orange: #b45309; --tint: #f3f4f7 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf0; --soft: #a0a0a8; --line: #3a3a40; --paper: #17171a; --mark: #6aaeff; --violet: #b794f6;
    --green: #5ec896; --orange: #f0a65a; --tint: #222227 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; max-width: 74rem;
  padding: 1.2rem }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .6rem 0 } h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem }
h3 { font-size: 1rem; margin: 1rem 0 .3rem }
.verdict { display: inline-block; border-radius: 1rem; padding: .1rem .8rem; font-weight: 650; border: 2px solid }
.reliable { color: var(--green) } .weak { color: var(--orange) } .unanswerable { color: var(--orange) }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: .94rem;
  font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600; color: var(--soft) } tr.group th { text-align: left; color: var(--ink); padding-top: 1rem }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem }
tr.scored td { font-weight: 650 } .soft { color: var(--soft) } td .of { display: block; white-space: nowrap;
  font-size: .82rem; font-weight: 400; color: var(--soft); line-height: 1.2 }
td .reason { white-space: normal; width: 8rem; margin-left: auto }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem;
  align-items: start } .charts > * { min-width: 0 }
figure { margin: .6rem 0 } figcaption { color: var(--soft); font-size: .9rem }
svg { width: 100%; max-width: 34rem; height: auto; display: block; overflow: visible }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem }
.card img, .strip img, .none { width: 100%; aspect-ratio: 2/3; object-fit: cover; border-radius: .4rem; display: block;
  background: var(--tint) } .none { padding: .4rem; font-size: .8rem; color: var(--soft); overflow: hidden }
.card, .strip { font-size: .82rem; line-height: 1.35 }
.member { border-top: 1px solid var(--line); padding: .8rem 0 }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(4.3rem, 5.2rem)); gap: .6rem }
.strip > div { overflow-wrap: anywhere } .strip img, .strip .none { margin-bottom: .3rem }
.members { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 32rem), 1fr)); gap: 0 2rem }
.first img, .first .none { outline: 3px solid var(--mark); outline-offset: 1px }
.occluded { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); gap: 1.2rem }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem; align-items: start; margin-bottom: .3rem }
.pair img { aspect-ratio: auto } .pair svg, .pair img { border-radius: .4rem; overflow: hidden }
details > summary { cursor: pointer; color: var(--mark); margin: .4rem 0 }
@media (max-width: 45rem) { th, td { padding: .35rem .3rem }
  th:first-child, td:first-child { min-width: 6.5rem; overflow-wrap: anywhere } th { white-space: normal } }
"""


def html_document(title: str, body: str) -> str:
    """The whole document."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'


def notes(headings: dict[str, str], more: Sequence[str] = ()) -> list[str]:
    """How to read the page, and what it leaves out."""
    parts = [
        "<h2>How to read this</h2>",
        *(f"<p><b>{escape(h)}.</b> {escape(text)}</p>" for h, text in headings.items()),
    ]
    if more:
        parts += ["<h2>Said beside</h2><ul>", *(f"<li>{escape(text)}</li>" for text in more), "</ul>"]
    return parts


def per_mille(value: float | None) -> str:
    """Per 1,000 impressions."""
    return "–" if value is None else f"{1000 * value:.1f}"


def with_interval(row: IntervalColumns | None) -> str:
    """A value per 1,000 with its interval."""
    if row is None or row["value"] is None:
        return "unanswerable"
    if row["low"] is None or row["high"] is None:
        return per_mille(row["value"])
    ends = f"[{1000 * row['low']:.1f}, {1000 * row['high']:.1f}]"
    return f'{per_mille(row["value"])} <span class="of">{ends}</span>'


def relative(row: RelativeColumns | None) -> str:
    """A relative difference with its interval."""
    if row is None or row["relative"] is None:
        return "–"
    text = f"{row['relative']:+.1%}"
    if row["relative_low"] is None or row["relative_high"] is None:
        return text
    return f'{text} <span class="of">[{row["relative_low"]:+.1%}, {row["relative_high"]:+.1%}]</span>'


def marked(text: str, verdict: Verdict) -> str:
    """A number with the mark of its verdict: none where it is reliable."""
    return text if verdict == "reliable" else f"{text} ({verdict})"


def table(heads: Sequence[str], rows: Sequence[str]) -> str:
    """A table that scrolls where it is too wide; `rows` are results of `table_row`."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in heads)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def table_row(cells: Sequence[str], kind: str = "") -> str:
    """A row of cells, which are HTML."""
    return f'<tr class="{kind}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def picture(artwork: str | None, catalogue: ArtworkLabels, words: str) -> str:
    """An artwork's image, or the words instead where it has none."""
    path = catalogue.images.get(artwork or "")
    source = thumbnail(path) if path is not None else None
    if source is None:
        return f'<div class="none">{escape(words)}</div>'
    return f'<img src="{source}" alt="{escape(words)}">'


def grey_picture(artwork: str, catalogue: ArtworkLabels, words: str, shapes: str) -> str:
    """An artwork's image in grey as SVG, under `shapes` in shares of its width and height; the words where it has none."""
    path = catalogue.images.get(artwork)
    small = small_image(path) if path is not None else None
    if small is None:
        return f'<div class="none">{escape(words)}</div>'
    width, height = small.size
    return (
        f'<svg role="img" aria-label="{escape(words)}" viewBox="0 0 {width} {height}">'
        f'<image href="{_data_uri(small.convert("L"))}" width="{width}" height="{height}"/>{shapes}</svg>'
    )


WIDTH, QUALITY = 150, 60


def thumbnail(path: Path) -> str | None:
    """An image file as a JPEG data URI of at most `WIDTH` by 3/2 of that; None where it cannot be read."""
    try:
        state = path.stat()
    except (OSError, ValueError):
        return None
    return _thumbnail(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=2048)
def _thumbnail(path: Path, _changed: int, _size: int) -> str | None:
    """`thumbnail` of the file as it was changed last: a later report of the same process shows what replaced it."""
    small = small_image(path)
    return None if small is None else _data_uri(small)


def small_image(path: Path) -> Image.Image | None:
    """An image file of at most `WIDTH` by 3/2 of that; None where it cannot be read."""
    try:
        with strict_image_decoding():
            small, _ = decode_image(path, at_least=3 * WIDTH)
    except Exception:  # on broken bytes Pillow's decoders raise whatever they stumble over
        return None
    small.thumbnail((WIDTH, WIDTH * 3 // 2))
    return small


def _data_uri(image: Image.Image) -> str:
    target = io.BytesIO()
    image.save(target, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode("ascii")
