"""The law of the simulated service once more, one candidate at a time, from the tables and the hidden tastes."""

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from datamodules.simulator.draw_artworks import MOODS

BILLING = (1.0, 0.7, 0.45, 0.12)


def rows_of(frame: pd.DataFrame) -> list[SimpleNamespace]:
    """Rows with columns as attributes."""
    return [SimpleNamespace(**row) for row in frame.to_dict("records")]


def fit(dataset: Path, member: int, title: pd.Series) -> float:
    """How well a title fits a member by the hidden tastes: taste . genres + fandom . cast."""
    hidden = np.load(dataset / "hidden" / "members.npz")
    people = (dataset / "hidden" / "people.txt").read_text(encoding="utf-8").split("\n")
    taste, fandom = (
        dict(zip(names, hidden[key][member], strict=True))
        for names, key in ((MOODS, "taste_MG"), (people, "fandom_MP"))
    )
    by_genre = sum(taste[genre] for genre in title.genres) / len(title.genres)
    return by_genre + sum(weight * fandom[person] for weight, person in zip(BILLING, title.cast, strict=False))


def ignored(impressions: Any, row: SimpleNamespace, law: dict) -> Counter[str]:
    """By artwork: the member's impressions of the title without a click, in the days that count."""
    past = impressions[(impressions.member_id == row.member_id) & (impressions.title_id == row.title_id)]
    past = past[~past.clicked & (past.shown_at >= row.shown_at - pd.Timedelta(days=law["tired_days"]))]
    return Counter(past.artwork_id[past.shown_at <= row.shown_at - pd.Timedelta(hours=law["known_hours"])])


def assert_truth_follows_the_law(dataset: Path, impressions: int) -> None:
    """The formula of the module for some impressions, each candidate's p_click and p_engaged."""
    record = json.loads((dataset / "simulation.json").read_text(encoding="utf-8"))
    s, law = record["config"]["strengths"], record["law"]
    hidden = {**np.load(dataset / "hidden" / "members.npz"), **np.load(dataset / "hidden" / "artworks.npz")}
    people = (dataset / "hidden" / "people.txt").read_text(encoding="utf-8").split("\n")
    artworks = pq.read_table(dataset / "artworks.parquet").to_pandas().reset_index().set_index("artwork_id")
    titles = pq.read_table(dataset / "titles.parquet").to_pandas().set_index("title_id")
    truth = pq.read_table(dataset / "truth").to_pandas().set_index("impression_id")
    log = pq.read_table(dataset / "impressions").to_pandas()
    # the last ones have the most before them
    for row in rows_of(log.tail(len(log) // 2).sample(impressions, random_state=1)):
        member, title = int(row.member_id[1:]), titles.loc[row.title_id]
        taste = dict(zip(MOODS, hidden["taste_MG"][member], strict=True))
        fandom = dict(zip(people, hidden["fandom_MP"][member], strict=True))
        match = fit(dataset, member, title)
        hour = row.shown_at.hour
        presentation = law["row"] * math.log(1 + row.row) + law["column"] * math.log(1 + row.column)
        presentation += law["place"][row.device] + law["evening"] * math.cos(2 * math.pi * (hour - 21) / 24)
        seen = ignored(log, row, law) if "fatigue" in s else Counter()
        for artwork, p_click, p_engaged in zip(
            row.candidates, *truth.loc[row.impression_id, ["p_click", "p_engaged"]], strict=True
        ):
            index, depicts = artworks.loc[artwork, "index"], list(artworks.loc[artwork, "depicts"])
            shown, mood = depicts[:-1], depicts[-1]
            close, quality = hidden["close_A"][index], hidden["quality_A"][index]
            appeal = s["mood"] * taste[mood] + s["person"] * sum(fandom[p] for p in shown) / len(shown)
            appeal += s["quality"] * quality
            appeal += s["framing"] * close * law["side"][row.device]
            if "own" in s:
                own = dict(zip((*MOODS, *people, "close", "quality"), hidden["own_MV"][member], strict=True))
                visible = (
                    own[mood]
                    + sum(own[p] for p in shown) / len(shown)
                    + own["close"] * close
                    + own["quality"] * quality
                )
                appeal += s["own"] * visible
            tired = s.get("fatigue", 0) * (math.log(1 + seen[artwork]) + math.log(1 + seen.total()) / 2)
            logit = law["base"] + s["affinity"] * match + appeal + s["presentation"] * presentation - tired
            tiny = len(shown) == 1 and shown[0] in list(title.cast)[3:]
            misleads = mood not in title.genres or tiny
            after = s["engaged"] + s["match"] * match - s["misled"] * misleads
            expected = 1 / (1 + math.exp(-logit))
            assert p_click == pytest.approx(expected, rel=1e-5)
            assert p_engaged == pytest.approx(expected / (1 + math.exp(-after)), rel=1e-5)
