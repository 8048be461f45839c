"""Choices of a bundle for given histories, by ids alone.

`rank_histories` runs the graph as a serving team would. `opposite_members` finds two members of a dataset with opposite
tastes and lays their histories and the artworks each would be shown side by side.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from rich.table import Table as TextTable
from rich.text import Text

from datamodules.contract.stored_types import with_text_ids
from datamodules.contract.tables import ARTWORKS, PLAYS, TITLES, Table
from datamodules.simulator.opposite_histories import draw_opposite_histories
from foundation.context import categories_of
from foundation.errors import UserError
from serving.bundle.bundle import Bundle
from serving.bundle.requests import Runs, ranking_inputs, reference_context

TITLES_SHOWN = 3
MIN_PLAYS = 12


def rank_histories(
    bundle: Bundle,
    histories: list[list[str]],
    titles: list[str],
    candidates: list[list[str]],
    *,
    country: str = "",
    device: str = "",
) -> list[np.ndarray]:
    """Click probability of each candidate for each request, with the reference value of every context feature except those given.

    Request i: the title ids of `histories[i]`, oldest first (empty: a member without history), the title `titles[i]`,
    the artwork ids `candidates[i]`. Ids the bundle does not know count as unknown.
    """
    vocabularies, n = bundle.vocabularies, len(histories)
    recent = [history[-bundle.history_length :] for history in histories]
    plays = Runs.of([len(history) for history in recent])

    def rows(name: str, ids: list[list[str]]) -> np.ndarray:
        return vocabularies[name].rows(pa.array([value for of_request in ids for value in of_request], pa.string()))

    played = rows("titles", recent)
    columns = {
        "play_title": played,
        "play_artwork": np.zeros_like(played),
        "play_watched": np.full(len(played), np.nan),
    }
    row_of = {
        name: {v: row for row, v in enumerate(vocabularies[name].values, 1)} for name in categories_of(bundle.context)
    }
    request, _ = ranking_inputs(
        columns,
        plays,
        reference_context(bundle.context, row_of, n, {"country": country, "device": device}),
        np.array([len(history) for history in histories]),
        rows("titles", [titles]),
        rows("artworks", candidates),
        Runs.of([len(artworks) for artworks in candidates]),
    )
    click_NK = bundle.rank(request)["click_probability"]
    return [click_NK[i, : len(candidates[i])] for i in range(n)]


def share_flipped(bundle: Bundle, dataset: Path, count: int = 200, seed: int = 0) -> dict[str, float]:
    """The share of pairs of opposite histories for which both choices are right: by kind, and over `all`.

    Romance against comedy (`mood`) and one star against another (`star`), half each, on a simulated dataset; the choice
    is among the artworks that compete for the two tastes: see `datamodules.simulator.opposite_histories`.
    """
    pairs = draw_opposite_histories(dataset, count, seed)
    sides = [
        rank_histories(
            bundle,
            [pair.history_a if side == "a" else pair.history_b for pair in pairs],
            [pair.title_id for pair in pairs],
            [pair.candidates for pair in pairs],
            country=pairs[0].country,
            device=pairs[0].device,
        )
        for side in "ab"
    ]
    flipped: dict[str, list[bool]] = {"mood": [], "star": []}
    for pair, click_a, click_b in zip(pairs, *sides, strict=True):
        chosen_a, chosen_b = (pair.candidates[int(click_K.argmax())] for click_K in (click_a, click_b))
        flipped[pair.kind].append(chosen_a in pair.artwork_a and chosen_b in pair.artwork_b)
    shares = {kind: float(np.mean(flips)) for kind, flips in flipped.items()}
    return shares | {"all": float(np.mean([*flipped["mood"], *flipped["star"]]))}


def opposite_members(bundle: Bundle, dataset: Path) -> TextTable:
    """Two members whose plays share the fewest genres, and which artwork of the same titles each would be shown.

    The members are chosen by their plays and the titles by what their artworks depict (moods of both genres), never by
    the model's scores.
    """
    titles = _whole(TITLES, dataset)
    genres_of = dict(zip(titles["title_id"].to_pylist(), titles["genres"].to_pylist(), strict=True))
    names = dict(zip(titles["title_id"].to_pylist(), titles["name"].to_pylist(), strict=True))
    histories = _histories(dataset)
    (genre_a, member_a), (genre_b, member_b) = _opposites(histories, genres_of)
    chosen = _titles_of_both(_whole(ARTWORKS, dataset), genre_a, genre_b)

    table = TextTable(title=f"Two members: {member_a} plays {genre_a}, {member_b} plays {genre_b}", show_lines=True)
    table.add_column("")
    for member, genre in ((member_a, genre_a), (member_b, genre_b)):
        table.add_column(f"{member} ({genre})")
    table.add_row("watched last", *(_watched(histories[m], names, genres_of) for m in (member_a, member_b)))
    for title, artworks in chosen.items():
        ids = list(artworks)
        both = rank_histories(bundle, [histories[member_a], histories[member_b]], [title] * 2, [ids] * 2)
        cells = []
        for click_K in both:
            best = int(click_K.argmax())
            depicted = ", ".join(artworks[ids[best]]) or "nothing named"
            lines = f"\nshows {depicted}\nclick probability {click_K[best]:.1%}"
            cells.append(Text.assemble((ids[best], "bold"), lines))
        table.add_row(f"{names[title]}\n({', '.join(genres_of[title] or [])})", *cells)
    return table


def _whole(table: Table, dataset: Path) -> pa.Table:
    return with_text_ids(pa.concat_tables(pq.read_table(path) for path in table.files(dataset)))


def _histories(dataset: Path) -> dict[str, list[str]]:
    """Title ids each member played, oldest first."""
    plays = with_text_ids(pads.dataset(PLAYS.files(dataset)).to_table(columns=["member_id", "title_id", "played_at"]))
    plays = plays.sort_by([("member_id", "ascending"), ("played_at", "ascending"), ("title_id", "ascending")])
    grouped = plays.group_by("member_id", use_threads=False).aggregate([("title_id", "list")])
    return dict(zip(grouped["member_id"].to_pylist(), grouped["title_id_list"].to_pylist(), strict=True))


def _opposites(
    histories: dict[str, list[str]], genres_of: dict[str, list[str] | None]
) -> tuple[tuple[str, str], tuple[str, str]]:
    """Two pairs (genre, member): Romance and Comedy where the dataset has both, else the two most frequent genres."""
    total = Counter(genre for genres in genres_of.values() for genre in genres or [])
    if len(total) < 2:
        raise UserError("titles: fewer than two genres, so no two members have opposite tastes to show.")
    pair = ("Romance", "Comedy") if {"Romance", "Comedy"} <= set(total) else tuple(g for g, _ in total.most_common(2))
    shares: dict[str, Counter[str]] = {}
    for member, history in histories.items():
        if len(history) >= MIN_PLAYS:
            counts = Counter(genre for title in history for genre in genres_of.get(title) or [])
            shares[member] = Counter({genre: counts[genre] / len(history) for genre in pair})
    if len(shares) < 2:
        raise UserError(f"plays: fewer than two members with {MIN_PLAYS} plays, so none to show side by side.")
    first = max(shares, key=lambda m: (shares[m][pair[0]] - shares[m][pair[1]], m))
    second = max((m for m in shares if m != first), key=lambda m: (shares[m][pair[1]] - shares[m][pair[0]], m))
    return (pair[0], first), (pair[1], second)


def _titles_of_both(artworks: pa.Table, genre_a: str, genre_b: str) -> dict[str, dict[str, list[str]]]:
    """The first titles that have artworks of both moods: title -> artwork -> what it depicts."""
    if "depicts" not in artworks.column_names:
        artworks = artworks.append_column("depicts", pa.nulls(len(artworks), pa.list_(pa.string())))
    by_title: dict[str, dict[str, list[str]]] = {}
    ordered = artworks.take(pc.sort_indices(artworks, [("title_id", "ascending"), ("artwork_id", "ascending")]))
    for artwork, title, depicts in zip(
        *(ordered[c].to_pylist() for c in ("artwork_id", "title_id", "depicts")), strict=True
    ):
        by_title.setdefault(title, {})[artwork] = depicts or []
    moods = {title: {word for depicts in its.values() for word in depicts} for title, its in by_title.items()}
    both = [title for title in by_title if {genre_a, genre_b} <= moods[title]]
    both += [title for title in by_title if title not in both and len(by_title[title]) > 1]
    return {title: by_title[title] for title in both[:TITLES_SHOWN]}


def _watched(history: list[str], names: dict[str, str], genres_of: dict[str, list[str] | None]) -> str:
    last = [f"{names.get(title, title)} ({', '.join(genres_of.get(title) or [])})" for title in history[-5:]]
    return "\n".join([*last, f"and {len(history) - len(last)} before"])
