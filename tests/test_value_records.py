"""What `keyart value` takes its period from, which records are read, and that each of their intervals has a verdict."""

import json
import re
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import keyart
from datamodules.prepare.prepare import PrepareConfig, prepare
from evaluation.audits.audit import AuditInputs
from evaluation.period import newest_shares, split_times
from evaluation.record.records import REPORT_VERSION, VALUE_FILE, VALUE_VERSION, read_report, read_value
from foundation.errors import UserError
from tests.test_value import code_and_error


def test_the_period_is_that_of_the_shards_or_of_the_scores_own_record(
    service: Path, shards: Path, scores: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Shards split by dates of their own; the shares of this log are other impressions."""
    newest = newest_shares(service)
    assert newest.validation_from is not None
    later = newest.test_from + timedelta(days=3)
    dates = PrepareConfig(validation_from=newest.test_from.isoformat(), test_from=later.isoformat())
    prepare(service, tmp_path / "dated", dates)
    own = tmp_path / "scores"
    shutil.copytree(scores, own)

    def since_of(out: str, *words: str | Path, named: str = "") -> str:
        code, error = code_and_error(capfd, service, own, tmp_path / out, *words)
        assert (code, named in error) == (0, True), error
        return json.loads((tmp_path / out / "value.json").read_text(encoding="utf-8"))["since"]

    manifest = json.loads((shards / "manifest.json").read_text(encoding="utf-8"))
    assert since_of("recorded") == manifest["test_from"]
    assert since_of("like", "--like", tmp_path / "dated") == later.isoformat()
    record = json.loads((own / "_scores.json").read_text(encoding="utf-8"))
    (own / "_scores.json").write_text(
        json.dumps(record | {"test_from": later.isoformat(), "validation_from": None}), encoding="utf-8"
    )
    named = f"from {later:%Y-%m-%d %H:%M:%S} UTC, by {own / '_scores.json'}"
    assert since_of("own", named=named) == later.isoformat()
    over = since_of("over", "--like", shards, named=f"by the shards {shards}")
    assert over == manifest["test_from"], "what the user names comes first"
    code, error = code_and_error(capfd, service, own, tmp_path / "no", "--period", "validation")
    assert (code, "does not say when validation began" in error, "--like SHARDS" in error) == (1, True, True), error
    (own / "_scores.json").unlink()
    code, error = code_and_error(capfd, service, own, tmp_path / "shares")
    assert (code, "by shares of this log, of which the newest 15% are test" in error) == (0, True), error
    for broken in ("{", json.dumps({"test_from": "soon"}), json.dumps([1]), json.dumps({"test_from": "2026-01-01"})):
        (own / "_scores.json").write_text(broken, encoding="utf-8")
        code, error = code_and_error(capfd, service, own, tmp_path / "broken")
        assert (code, str(own / "_scores.json") in error, error.count("\n")) == (1, True, 1), error
    code, error = code_and_error(capfd, service, own, tmp_path / "broken", "--like", service)
    assert (code, "so it does not hold shards" in error) == (1, True), error
    validation_from = datetime.fromisoformat(manifest["validation_from"])
    (file,) = scores.glob("*.parquet")
    for table in (scores, file):
        assert split_times(service, table).validation_from == validation_from
        inputs = AuditInputs.read(service, table, newest.test_from)
        assert len(inputs.reasons) == len(json.loads((scores / "_reasons.json").read_text(encoding="utf-8")))
    code, error = code_and_error(capfd, service, scores, tmp_path / "all", "--period", "all", "--like", shards)
    assert (code, f"like={shards}: period=all has no split times. Leave --like out" in error) == (1, True), error


@pytest.mark.parametrize("record", [{"schema_version": 0}, {}, [], None])
def test_records_of_another_version_are_refused_by_name(tmp_path: Path, record: dict | list | None) -> None:
    for name, read, version, remedy in (
        ("value.json", read_value, VALUE_VERSION, "Run keyart value again."),
        ("report.json", read_report, REPORT_VERSION, "Run keyart evaluate again."),
    ):
        with pytest.raises(UserError, match=re.escape(f"{tmp_path / name}: does not exist. {remedy}")):
            read(tmp_path)
        (tmp_path / name).write_text("{" if record is None else json.dumps(record), encoding="utf-8")
        with pytest.raises(UserError) as error:
            read(tmp_path)
        text = str(error.value)
        assert text.startswith(f"{tmp_path / name}: ")
        assert text.endswith(remedy)
        assert ("cannot be read" if record is None else f"this keyart reads version {version}") in text
        assert "\n" not in text
        (tmp_path / name).write_text(json.dumps({"schema_version": version, "impressions": 3}), encoding="utf-8")
        assert read(tmp_path)["impressions"] == 3


def test_every_interval_has_a_verdict(service: Path, scores: Path, tmp_path: Path) -> None:
    """A row with the ends of an interval has a verdict of its own sample, or shares one with an estimate of `verdicts`."""
    assert keyart.main(["value", str(service), str(scores), str(tmp_path / "value")]) == 0
    record = json.loads((tmp_path / "value" / VALUE_FILE).read_text(encoding="utf-8"))
    named = {(row["policy"], row["reward"], row["estimator"]) for row in record["verdicts"]}
    bare = set()

    def visit(value: Any, name: str) -> None:
        if isinstance(value, list):
            for item in value:
                visit(item, name)
        elif isinstance(value, dict):
            ends = any(key == "low" or key.endswith("_low") for key in value)
            key = tuple(value.get(part) for part in ("policy", "reward", "estimator"))
            if ends and not any(field.endswith("verdict") for field in value) and key not in named:
                bare.add(name)
            for field, item in value.items():
                visit(item, field)

    visit(record, "record")
    assert bare == {"weight_histogram", "overlap"}, "bounds of a bin, and what verdicts are made of"
