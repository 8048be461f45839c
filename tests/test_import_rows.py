"""Logs whose rows are no impressions: one row per candidate, and events with objects inside. The same tables come out."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.exported_files import assert_same_impressions, frame, long_rows, rows_of, run


def as_rows_of_candidates(rows: pd.DataFrame, folder: Path) -> Path:
    rows.to_csv(folder / "log.csv", index=False)
    return folder / "log.csv"


def as_rows_beside_the_shown_artwork(rows: pd.DataFrame, folder: Path) -> Path:
    """As a join of impressions and candidates has it: what is known of an impression is in each of its rows."""
    shown = rows[rows["shown"] == 1].set_index("impression_id")
    rows["candidate"] = rows["artwork_id"]
    for name in ("artwork_id", "clicked", "engaged"):
        rows[name] = shown[name].loc[rows["impression_id"]].to_numpy()
    rows.drop(columns="shown").to_csv(folder / "log.csv", index=False)
    return folder / "log.csv"


def as_parts_of_rows_by_day(rows: pd.DataFrame, folder: Path) -> Path:
    """The rows of an impression in two files."""
    for part in (0, 1):
        path = folder / "log" / f"day={part}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        half = rows[(rows.groupby("impression_id").cumcount() > 0) == bool(part)]
        pq.write_table(pa.Table.from_pandas(half, preserve_index=False), path)
    return folder / "log"


@pytest.mark.parametrize("export", [as_rows_of_candidates, as_rows_beside_the_shown_artwork, as_parts_of_rows_by_day])
def test_a_row_for_each_candidate_gives_the_same_impressions(
    service: Path, tmp_path: Path, export: Callable[[pd.DataFrame, Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = long_rows(service)
    assert run(export(rows, tmp_path), tmp_path / "d") == 0
    assert f"whose {len(rows):,} rows are candidates" in " ".join(capsys.readouterr().out.split())
    assert_same_impressions(service, tmp_path / "d")


def test_propensities_of_shown_candidates_alone(
    service: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = long_rows(service)
    some = sorted(set(rows["impression_id"]))[:7]
    rows.loc[rows["impression_id"].isin(some) & (rows["shown"] == 0), "propensity"] = None
    lacking = set(rows.loc[rows["propensity"].isna(), "impression_id"])
    rows.to_csv(tmp_path / "log.csv", index=False)
    assert run(tmp_path / "log.csv", tmp_path / "d") == 0
    assert f"{len(lacking)} of {rows['impression_id'].nunique():,} impressions lack the propensity" in (
        " ".join(capsys.readouterr().out.split())
    )
    expected = {row["impression_id"]: row for row in rows_of(service, "impressions", "impression_id")}
    for row in rows_of(tmp_path / "d", "impressions", "impression_id"):
        same = expected[row["impression_id"]]
        shown = same["propensities"][same["candidates"].index(row["artwork_id"])]
        assert row["propensity"] == pytest.approx(shown, abs=1e-6)
        assert (row["propensities"] is None) == (row["impression_id"] in lacking)


def nested(service: Path) -> list[dict]:
    """Impressions as events: what belongs together in objects, candidates as a list of objects."""
    rows = frame(service, "impressions")
    return [
        {
            "event": {"id": row["impression_id"], "at": row["shown_at"].isoformat()},
            "member_id": row["member_id"],
            "title_id": row["title_id"],
            "slate": [
                {"artwork": artwork, "p": float(p)}
                for artwork, p in zip(row["candidates"], row["propensities"], strict=True)
            ],
            "artwork_id": row["artwork_id"],
            "context": {"page": {"row": row["row"], "column": row["column"]}, "device": row["device"]},
            "country": row["country"],
            "policy": row["policy"],
            "clicked": row["clicked"],
            "engaged": row["engaged"],
            "minutes": float(row["minutes"]),
        }
        for row in rows.to_dict("records")
    ]


FIELDS = "impression_id=event.id,shown_at=event.at,candidates=slate.artwork,propensities=slate.p,device=context.device"
PLACES = "impressions.row=context.page.row,impressions.column=context.page.column"


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_fields_of_objects_and_of_lists_of_objects(service: Path, tmp_path: Path, kind: str) -> None:
    events, path = nested(service), tmp_path / f"events.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, events)), encoding="utf-8")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(events), path)
    else:
        cells = [
            {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in event.items()}
            for event in events
        ]
        pd.DataFrame(cells).to_csv(path, index=False)
    assert run(path, tmp_path / "d", "--map", f"{FIELDS},{PLACES}") == 0
    assert_same_impressions(service, tmp_path / "d")


def test_rows_keep_the_order_of_the_file(tmp_path: Path) -> None:
    """More rows than one group of Parquet holds, read by several threads: the same command writes the same file."""
    number = 300_000
    ids = [f"m{index}" for index in range(number)]
    plays = {"member_id": ids, "title_id": "t", "played_at": "2026-01-02T03:04:05Z", "watched": "0.5"}
    pd.DataFrame(plays).to_csv(tmp_path / "plays.csv", index=False)
    assert run(tmp_path / "plays.csv", tmp_path / "d") == 0
    assert pq.read_table(tmp_path / "d" / "plays")["member_id"].to_pylist() == ids
