"""Small random logs by the contract, for property tests: members who share times, ties, empty histories, odd ids."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

START = datetime(2026, 1, 1, tzinfo=UTC)
TITLES = ["t0", "t1", "t2 \N{FILM FRAMES}"]
ARTWORKS = {title: [f"{title}/{k}" for k in range(2 + i)] for i, title in enumerate(TITLES)}


@dataclass
class RandomLog:
    """Plays as (member, title, minute) and impressions as (member, title, shown, minute, clicked)."""

    plays: list[tuple[str, int, int]]
    impressions: list[tuple[str, int, int, int, bool]]
    ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """Give every impression an id."""
        self.ids = [f"i{n}" for n in range(len(self.impressions))]

    def write(self, dataset: Path) -> None:
        """Write the four tables (no image files: preparing does not read them)."""
        for folder in ("plays", "impressions"):
            (dataset / folder).mkdir(parents=True)
        utc = pa.timestamp("us", tz="UTC")
        titles = {"title_id": TITLES, "name": TITLES, "genres": [["Drama"], ["Comedy", "Drama"], None]}
        pq.write_table(pa.table(titles), dataset / "titles.parquet")
        owned = [(artwork, title) for title, artworks in ARTWORKS.items() for artwork in artworks]
        artworks = {
            "artwork_id": [a for a, _ in owned],
            "title_id": [t for _, t in owned],
            "image": ["x.jpg"] * len(owned),
        }
        pq.write_table(pa.table(artworks), dataset / "artworks.parquet")
        plays = {
            "member_id": pa.array([m for m, _, _ in self.plays], pa.string()),
            "title_id": pa.array([TITLES[t] for _, t, _ in self.plays], pa.string()),
            "played_at": pa.array([START + timedelta(minutes=at) for _, _, at in self.plays], utc),
        }
        pq.write_table(pa.table(plays), dataset / "plays" / "part-0.parquet")
        shown = [ARTWORKS[TITLES[t]] for _, t, _, _, _ in self.impressions]
        impressions = {
            "impression_id": self.ids,
            "member_id": [m for m, *_ in self.impressions],
            "title_id": [TITLES[t] for _, t, _, _, _ in self.impressions],
            "artwork_id": [c[s % len(c)] for c, (_, _, s, _, _) in zip(shown, self.impressions, strict=True)],
            "shown_at": pa.array([START + timedelta(minutes=at) for _, _, _, at, _ in self.impressions], utc),
            "candidates": shown,
            "propensities": pa.array([[1 / len(c)] * len(c) for c in shown], pa.list_(pa.float32())),
            "policy": ["explore"] * len(shown),
            "country": ["NL"] * len(shown),
            "device": ["tv"] * len(shown),
            "row": pa.array([0] * len(shown), pa.int16()),
            "column": pa.array([n % 5 for n in range(len(shown))], pa.int16()),
            "clicked": [c for *_, c in self.impressions],
        }
        pq.write_table(pa.table(impressions), dataset / "impressions" / "part-0.parquet")
