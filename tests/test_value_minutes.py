"""Minutes played after a click as a reward of `keyart value`, beside clicked and engaged."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import keyart
from tests.made_service import best, scores, service
from tests.test_value import record_of


def with_minutes(minutes: Callable[[bool, bool | None], float | None]) -> Callable[[pa.Table], pa.Table]:
    """Give a log the minutes of each outcome (clicked, engaged)."""

    def change(table: pa.Table) -> pa.Table:
        outcomes = zip(table["clicked"].to_pylist(), table["engaged"].to_pylist(), strict=True)
        return table.append_column("minutes", pa.array([minutes(*outcome) for outcome in outcomes], pa.float32()))

    return change


def test_minutes_are_a_reward_like_engaged(tmp_path: Path) -> None:
    """Half an hour after each engaged click: every value by minutes is thirty times the one by engaged plays."""
    dataset = service(tmp_path / "service", with_minutes(lambda _, engaged: 30.0 * bool(engaged)), truth=False)
    record = record_of(dataset, scores(tmp_path / "scores.parquet", best), tmp_path / "out")
    rows = {(r["policy"], r["reward"], r["estimator"]): r for r in record["estimates"]}
    watched = [(policy, estimator) for policy, reward, estimator in rows if reward == "minutes"]
    assert len(watched) == len(rows) / 3
    for policy, estimator in watched:
        minutes, engaged = rows[policy, "minutes", estimator], rows[policy, "engaged", estimator]
        assert minutes["verdict"] == engaged["verdict"]
        for name in ("value", "low", "high"):
            expected = engaged[name]
            assert minutes[name] == (None if expected is None else pytest.approx(30 * expected, rel=1e-6, abs=1e-9))
    before = {row["reward"]: row["value"] for row in record["drift"] if row["part"] == "before"}
    assert before["minutes"] == pytest.approx(30 * before["engaged"])


@pytest.mark.parametrize("unknown", [None, float("nan")])
def test_minutes_that_are_not_known_after_a_click_are_no_reward(tmp_path: Path, unknown: float | None) -> None:
    def change(table: pa.Table) -> pa.Table:
        clicked = table["clicked"].to_pylist()
        last = max(n for n, one in enumerate(clicked) if one)
        minutes = [(unknown if n == last else 5.0) if one else None for n, one in enumerate(clicked)]
        return table.append_column("minutes", pa.array(minutes, pa.float32()))

    dataset = service(tmp_path / "service", change, truth=False)
    record = record_of(dataset, scores(tmp_path / "scores.parquet", best), tmp_path / "out")
    assert {row["reward"] for row in record["estimates"]} == {"clicked", "engaged"}


@pytest.mark.parametrize("wrong", [-1.0, float("inf")])
def test_wrong_minutes_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str], wrong: float) -> None:
    dataset = service(tmp_path / "service", with_minutes(lambda clicked, _: wrong if clicked else 0.0), truth=False)
    table = scores(tmp_path / "scores.parquet", best)
    assert keyart.main(["value", str(dataset), str(table), str(tmp_path / "out")]) == 1
    assert "rows whose minutes are below 0, infinite or without a click" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
