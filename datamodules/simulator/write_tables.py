"""Writes a simulated service as a dataset of the contract, with `truth/` and `hidden/`.

In: the results of `population` and `events`. Out: Parquet files; plays and impressions in several parts, plays by a hash of the
member as a warehouse would cut them, impressions by time.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import Progress

from datamodules.simulator.click_law import DEVICES, SimulatedCatalogue, SimulatedMembers
from datamodules.simulator.events import SimulatedLog, SimulatedPlays
from datamodules.simulator.population import AGE_BANDS, COUNTRIES, GENRES

START = datetime(2024, 1, 1, tzinfo=UTC)
"""Midnight of day 0."""
PARTS = 4
"""Files per table that has several."""
MINUTES = 100.0
"""Length of every simulated title."""
_TIME = pa.timestamp("us", tz="UTC")


def write_tables(
    folder: Path,
    catalogue: SimulatedCatalogue,
    members: SimulatedMembers,
    log: SimulatedLog,
    plays: SimulatedPlays,
    progress: Progress,
) -> None:
    """Write every table."""
    task = progress.add_task("write tables", total=4 + 2 * PARTS)
    pq.write_table(_titles(catalogue), folder / "titles.parquet")
    pq.write_table(_artworks(catalogue), folder / "artworks.parquet")
    pq.write_table(_members(members), folder / "members.parquet")
    _write_hidden(folder / "hidden", catalogue, members)
    progress.advance(task, 4)
    artwork_ids, title_ids = _ids("a", 5, catalogue.title_A), _ids("t", 4, catalogue.title_names)
    member_ids = _ids("m", 6, members.joined_M)
    for name in ("plays", "impressions", "truth"):
        (folder / name).mkdir()
    for part in range(PARTS):
        rows = np.flatnonzero(plays.member_J * 2654435761 % 2**32 % PARTS == part)
        pq.write_table(_plays(plays, rows, member_ids, title_ids, artwork_ids), folder / "plays" / _file(part))
        progress.advance(task)
        rows = np.arange(len(log.time_N))[len(log.time_N) * part // PARTS : len(log.time_N) * (part + 1) // PARTS]
        candidates, mask_NK = _candidates(log, rows, artwork_ids)
        impressions = _impressions(log, rows, candidates, mask_NK, members, member_ids, title_ids, artwork_ids)
        minutes_N = (MINUTES * plays.watched_N[rows]).astype(np.float32)
        impressions = impressions.append_column("minutes", pa.array(minutes_N))
        pq.write_table(impressions, folder / "impressions" / _file(part))
        truth = {
            "impression_id": impressions["impression_id"],
            "candidates": candidates,
            "p_click": _lists(log.p_click_NK[rows], mask_NK),
            "p_engaged": _lists(log.p_engaged_NK[rows], mask_NK),
        }
        pq.write_table(pa.table(truth), folder / "truth" / _file(part))
        progress.advance(task)


def _file(part: int) -> str:
    return f"part-{part}.parquet"


def _ids(letter: str, digits: int, things: Sequence | np.ndarray) -> pa.Array:
    """One id per thing, like `t0042`."""
    return pa.array([f"{letter}{number:0{digits}}" for number in range(len(things))], pa.string())


def _words(words: Sequence[str], rows: np.ndarray) -> pa.Array:
    return pa.array(words, pa.string()).take(pa.array(rows))


def _titles(catalogue: SimulatedCatalogue) -> pa.Table:
    strings = pa.list_(pa.string())
    years = [(START + timedelta(days=float(day))).year for day in catalogue.released_I]
    return pa.table(
        {
            "title_id": _ids("t", 4, catalogue.title_names),
            "name": pa.array(catalogue.title_names, pa.string()),
            "genres": pa.array([[GENRES[g] for g in genres] for genres in catalogue.title_genres], strings),
            "release_year": pa.array(years, pa.int32()),
            "cast": pa.array([[catalogue.people[p] for p in cast] for cast in catalogue.title_cast], strings),
        }
    )


def _artworks(catalogue: SimulatedCatalogue) -> pa.Table:
    ids = _ids("a", 5, catalogue.title_A)
    depicts = [
        [*(catalogue.people[p] for p in shown), GENRES[mood]]
        for shown, mood in zip(catalogue.shows, catalogue.mood_A, strict=True)
    ]
    return pa.table(
        {
            "artwork_id": ids,
            "title_id": _ids("t", 4, catalogue.title_names).take(pa.array(catalogue.title_A)),
            "image": pa.array([f"images/{artwork}.jpg" for artwork in ids.to_pylist()], pa.string()),
            "depicts": pa.array(depicts, pa.list_(pa.string())),
        }
    )


def _members(members: SimulatedMembers) -> pa.Table:
    return pa.table(
        {
            "member_id": _ids("m", 6, members.joined_M),
            "age_band": _words(AGE_BANDS, members.age_M),
            "tenure": _words(("long-standing", "new"), (members.joined_M > 0).astype(np.int64)),
        }
    )


def _plays(
    plays: SimulatedPlays, rows: np.ndarray, member_ids: pa.Array, title_ids: pa.Array, artwork_ids: pa.Array
) -> pa.Table:
    artwork = plays.artwork_J[rows]
    columns = {
        "member_id": member_ids.take(pa.array(plays.member_J[rows])),
        "title_id": title_ids.take(pa.array(plays.title_J[rows])),
        "played_at": _times(plays.time_J[rows]),
        "watched": pa.array(plays.watched_J[rows].astype(np.float32)),
        "artwork_id": artwork_ids.take(pa.array(artwork, mask=artwork < 0)),
    }
    if plays.rating_J is not None:
        rating = plays.rating_J[rows]
        columns["rating"] = pa.array(rating, pa.float32(), mask=np.isnan(rating))
    return pa.table(columns)


def _times(microseconds: np.ndarray) -> pa.Array:
    return pa.array(microseconds + int(START.timestamp() * 1e6), pa.int64()).cast(_TIME)


def _candidates(log: SimulatedLog, rows: np.ndarray, artwork_ids: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Candidates as lists of ids, and their mask, bool (N, K)."""
    candidates_NK = log.shown.candidates_NK[rows]
    mask_NK = candidates_NK >= 0
    offsets = np.concatenate([[0], np.cumsum(mask_NK.sum(1))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, artwork_ids.take(pa.array(candidates_NK[mask_NK]))), mask_NK


def _lists(values_NK: np.ndarray, mask_NK: np.ndarray) -> pa.Array:
    """list<float32> of the values in the mask."""
    offsets = np.concatenate([[0], np.cumsum(mask_NK.sum(1))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values_NK[mask_NK], pa.float32()))


def _impressions(
    log: SimulatedLog,
    rows: np.ndarray,
    candidates: pa.Array,
    mask_NK: np.ndarray,
    members: SimulatedMembers,
    member_ids: pa.Array,
    title_ids: pa.Array,
    artwork_ids: pa.Array,
) -> pa.Table:
    shown = log.shown
    artwork = shown.candidates_NK[rows, log.chosen_N[rows]]
    return pa.table(
        {
            "impression_id": pa.array([f"i{row:08}" for row in rows], pa.string()),
            "member_id": member_ids.take(pa.array(shown.member_N[rows])),
            "title_id": title_ids.take(pa.array(shown.title_N[rows])),
            "artwork_id": artwork_ids.take(pa.array(artwork)),
            "shown_at": _times(log.time_N[rows]),
            "candidates": candidates,
            "propensities": _lists(log.propensities_NK[rows], mask_NK),
            "policy": _words(("production", "explore"), log.explore_N[rows].astype(np.int64)),
            "country": _words(COUNTRIES, members.country_M[shown.member_N[rows]]),
            "device": _words(DEVICES, shown.device_N[rows]),
            "row": pa.array(shown.row_N[rows], pa.int16()),
            "column": pa.array(shown.column_N[rows], pa.int16()),
            "clicked": pa.array(log.clicked_N[rows]),
            "engaged": pa.array(log.engaged_N[rows]),
        }
    )


def _write_hidden(folder: Path, catalogue: SimulatedCatalogue, members: SimulatedMembers) -> None:
    """Write the inputs of the law that no log has; rows in the order of the tables."""
    folder.mkdir()
    tastes = {"taste_MG": members.taste_MG, "fandom_MP": members.fandom_MP}
    if members.own_MV is not None:
        tastes["own_MV"] = members.own_MV
    np.savez(folder / "members.npz", **tastes)  # pyright: ignore[reportArgumentType]
    np.savez(
        folder / "artworks.npz",
        quality_A=catalogue.quality_A,
        close_A=catalogue.close_A,
        misleads_A=catalogue.misleads_A,
    )
    (folder / "people.txt").write_text("\n".join(catalogue.people), encoding="utf-8")
