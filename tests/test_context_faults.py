"""Context features that cannot be, or are likely a mistake: named with what to do, never a wrong number in silence."""

import json
import math
import re
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from rich.console import Console

import keyart
from configs.arguments import parse
from datamodules.contract.check import check
from datamodules.contract.engines import EngineConfig
from datamodules.contract.tables import tables_with
from datamodules.prepare.prepare import PrepareConfig, check_and_prepare, prepare
from datamodules.shards.shard import Shards
from datamodules.shards.vocabulary import Vocabulary
from evaluation.logs.log_slices import build_slices, read_impression_attributes
from evaluation.logs.scored_log import read_scored_log
from foundation.context import (
    CONTEXT_FILE,
    ContextFeature,
    ContextKind,
    context_features,
    features_from_json,
    features_to_json,
    load_context,
    save_context,
)
from foundation.errors import UserError
from serving.bundle.ids import add_id_encoders, update_id_encoders
from serving.bundle.requests import reference_context
from tests import small_dataset
from tests.dataset_edits import PART_0, PART_1, add, cast_column
from tests.test_prepare import arrays

ROWS = 4
"""Impressions of each of the two files."""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """The smallest dataset with every table."""
    return small_dataset.write(tmp_path)


def give(dataset: Path, column: str, values: Any, type_: pa.DataType | None = None) -> None:
    """Write one more column of impressions, the same four values into both files."""
    for part in (PART_0, PART_1):
        add(dataset / part, column, pa.array(values, type_))


def feature(name: str = "x", kind: Any = "number", **options: Any) -> ContextFeature:
    return ContextFeature(name=name, kind=kind, **options)


def prepared(dataset: Path, *features: ContextFeature, **options: Any) -> Shards:
    """The dataset's shards with such context features, checked before."""
    out, console = dataset.parent / "shards", Console(quiet=True)
    config = PrepareConfig(context=list(features), validation=0.25, test=0.25, **options)
    check_and_prepare(dataset, out, config, EngineConfig(), like=None, since=None, console=console)
    return Shards.open(out)


def stored(shards: Shards, name: str = "x") -> dict[str, Any]:
    """A feature's values by impression."""
    return {impression: row[name] for impression, row in arrays(shards).items()}


def test_a_column_may_have_any_name(dataset: Path) -> None:
    """Those that keyart computes have names of their own: `shown` was once overwritten by the place of the shown artwork."""
    columns = ["shown", "shard", "hour", "rows", "value", "candidate", "time", "title_id_right", "copies", "reason"]
    for column in columns:
        give(dataset, column, [7.0, 5.0, 7.0, 7.0])
    rows = arrays(prepared(dataset, *(feature(f"x_{column}", column=column) for column in columns), drop_invalid=True))
    for i in range(2 * ROWS):
        expected = 5.0 if i % ROWS == 1 else 7.0
        assert {column: rows[f"i{i}"][f"x_{column}"] for column in columns} == dict.fromkeys(columns, expected)


@pytest.mark.parametrize("name", ["self", "cls", "class", "null", "select", "order", "count", "index", "position", "n"])
def test_words_of_languages_are_names_like_others(dataset: Path, name: str) -> None:
    """`self` was once taken for Python's own by a call with keyword arguments."""
    give(dataset, name, [1.5, 2.5, math.nan, None])
    values = stored(prepared(dataset, feature(name), drop_invalid=True), name)
    np.testing.assert_array_equal([values[f"i{i}"] for i in range(4)], [1.5, 2.5, math.nan, math.nan])


def test_columns_of_keyarts_own_are_refused() -> None:
    for column in ("keyart_file", "Keyart_shown"):
        with pytest.raises(UserError, match=rf"column={column}: columns that begin with keyart_ are keyart's own"):
            feature(column=column)


@pytest.fixture
def scores(dataset: Path) -> Path:
    """A scores table of the dataset that shows every artwork alike."""
    logged = pa.concat_tables([pq.read_table(dataset / part) for part in (PART_0, PART_1)])
    uniform = pa.array([[1 / len(candidates)] * len(candidates) for candidates in logged["candidates"].to_pylist()])
    path = dataset.parent / "scores.parquet"
    pq.write_table(
        logged.select(["impression_id", "candidates"])
        .append_column("click_probability", uniform)
        .append_column("policy", uniform),
        path,
    )
    return path


def slices_of(dataset: Path, scores: Path, *features: ContextFeature) -> dict[str, set[str]]:
    """By feature: the levels that evaluation tells impressions apart by."""
    log = read_scored_log(dataset, scores, None)
    attributes = read_impression_attributes(dataset, log, features=context_features(features))
    slices, _ = build_slices(dataset, log, attributes, None)
    return {f.name: {s.level for s in slices if s.name == f.name} for f in features}


KINDS: tuple[ContextKind, ...] = ("number", "hour", "position", "category")


def test_all_null_columns_are_evaluated(dataset: Path, scores: Path) -> None:
    """Columns of Arrow's null type, which pandas writes for nothing but nulls."""
    features = [feature(f"{kind}_x", kind) for kind in KINDS]
    for f in features:
        give(dataset, f.source, [None] * ROWS, pa.null())
    assert slices_of(dataset, scores, *features) == {f.name: {"not logged"} for f in features}


@pytest.mark.parametrize("type_", [pa.int64(), pa.uint64(), pa.decimal128(38, 10)])
def test_whole_numbers_beyond_the_floats_are_evaluated(dataset: Path, scores: Path, type_: pa.DataType) -> None:
    give(dataset, "x", [2**60 + 1, 2**60 + 1, 2**60 + 1, None], type_)
    assert slices_of(dataset, scores, feature()) == {"x": {"1.153e+18 or more", "not logged"}}


def test_one_column_is_one_feature(dataset: Path) -> None:
    """A column is read in one type: the second feature's once was the first's too, or the other way round."""
    for column in ("age", "Age"):
        with pytest.raises(UserError, match=rf"'age_group': column {column} is read by 'age' already"):
            PrepareConfig(context=[feature("age"), feature("age_group", "category", column=column)])


def test_hours_beyond_the_day_are_a_row_rule(dataset: Path) -> None:
    give(dataset, "local_hour", [24, 3, 23, None])
    with pytest.raises(UserError, match=r"2 rows whose local_hour is not 0 to 23 \(first: i0, local_hour 24; i4"):
        prepared(dataset, feature("local_hour", "hour"))
    shards = prepared(dataset, feature("local_hour", "hour"), drop_invalid=True)
    assert stored(shards, "local_hour") == {"i1": 3, "i2": 23, "i3": -1, "i5": 3, "i6": 23, "i7": -1}
    assert shards.manifest["rows"]["impressions"]["dropped"] == {"local_hour-range": 2}


def test_wide_decimals_are_refused(dataset: Path) -> None:
    """DuckDB reads decimals of 256 bits as other numbers; those of 38 digits are read as they are."""
    give(dataset, "x", [Decimal("1.25"), Decimal(2), None, Decimal(-3)], pa.decimal256(50, 2))
    (violation,) = check(dataset, images=False, tables=tables_with([feature()])).violations
    assert violation.line().endswith(
        "Write x as a float, an integer, a decimal of at most 38 digits or bool, or leave the column out."
    )
    for width in (pa.decimal128(38, 20), pa.decimal256(38, 2)):
        for part in (PART_0, PART_1):
            cast_column(dataset / part, "x", width)
        values = stored(prepared(dataset, feature()))
        assert [values[f"i{i}"] for i in (0, 1, 3)] == [1.25, 2.0, -3.0]
        assert math.isnan(values["i2"])


def test_all_violations_are_printed(dataset: Path) -> None:
    """`keyart check` knows nothing of the features that a preparation declares."""
    give(dataset, "x", [math.inf, 1.0, 2.0, 3.0])
    give(dataset, "y", [99, 1, 2, 3])
    console = Console(file=StringIO(), record=True, width=60)
    config = PrepareConfig(context=[feature(), feature("y", "hour"), feature("z", "hour", column="x")][:2])
    with pytest.raises(UserError, match=r"whose x is infinite .* And 1 more, printed above\.$"):
        check_and_prepare(
            dataset, dataset.parent / "out", config, EngineConfig(), like=None, since=None, console=console
        )
    printed = [line for line in console.export_text().splitlines() if line.startswith("violation ")]
    assert [re.search("whose (.) is", line)[1] for line in printed] == ["x", "y"]  # pyright: ignore[reportOptionalSubscript]


def test_check_judges_the_columns_of_a_bundle(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    give(dataset, "x", [math.inf, 1.0, 2.0, 3.0])
    save_context(context_features([feature()]), dataset.parent)
    assert keyart.main(["check", str(dataset)]) == 0
    assert keyart.main(["check", str(dataset), "--like", str(dataset.parent)]) == 1
    assert "whose x is infinite" in capsys.readouterr().out
    assert keyart.main(["check", str(dataset), "--like", str(dataset)]) == 1
    assert "context.json: is missing" in capsys.readouterr().err


def test_other_declarations_than_those_to_be_like_are_refused(dataset: Path) -> None:
    give(dataset, "x", [1, 2, 3, None])
    own = feature(reference=2, terms=("appeal",))
    shards = prepared(dataset, own).folder
    for other, named in (
        (feature(kind="category", terms=("appeal",)), "kind='category', and in .* it is 'number'"),
        (feature(column="y", terms=("appeal",)), "column='y', and in .* it is 'x'"),
        (feature(), r"terms=\('appeal', 'presentation'\), and in"),
        (feature(terms=("appeal",), mean=7.0), "mean=7.0, and in"),
        (feature(terms=("appeal",), std=7.0), "std=7.0, and in"),
        (feature(terms=("appeal",), reference=3), "reference=3, and in"),
        (feature(terms=("appeal",), prior="appeal"), "prior='appeal', and in"),
        (feature(kind="position", terms=("appeal",), crossed_with="device"), "kind='position', and in"),
    ):
        with pytest.raises(UserError, match=f"^context feature 'x': {named}.*Leave --context out"):
            prepare(dataset, dataset.parent / "day", PrepareConfig(context=[other]), like=shards)
    prepare(dataset, dataset.parent / "day", PrepareConfig(context=[feature(terms=("appeal",))]), like=shards)


def test_numbers_that_32_bits_round_away_are_warned_of(dataset: Path) -> None:
    """Seconds since 1970 vary by minutes."""
    console = Console(file=StringIO(), record=True, width=60)
    for name, offset in (("seconds", 1_732_000_000.0), ("age", 40.0), ("constant", 0.1)):
        give(dataset, name, [offset + (0 if name == "constant" else 60 * i) for i in range(ROWS)])
    features = [feature(name) for name in ("seconds", "age", "constant")]
    prepare(dataset, dataset.parent / "out", PrepareConfig(context=features), console=console)
    warnings = [line for line in console.export_text().splitlines() if "32 bits" in line]
    assert len(warnings) == 1
    assert "feature seconds is 1.732e+09 on average" in warnings[0]
    assert "Subtract an offset" in warnings[0]
    assert Shards.open(dataset.parent / "out").context[-1].std == 1.0, "rounding is no deviation"


def test_one_letter_case_in_all_files(dataset: Path) -> None:
    """One engine reads both columns as one, the other reads nulls where the case is another."""
    for first, second in ((PART_0, PART_1), (PART_1, PART_0)):
        add(dataset / first, f"language{first[-9]}", pa.array(["en"] * ROWS))
        add(dataset / second, f"Language{first[-9]}", pa.array(["en"] * ROWS))
        context = [feature("language", "category", column=f"language{first[-9]}")]
        with pytest.raises(UserError, match=rf"{second}: column Language.: rename it to language"):
            prepare(dataset, dataset.parent / "out", PrepareConfig(context=context))


@pytest.mark.parametrize(
    ("kind", "value", "row"),
    [
        ("category", "en", 1),
        ("category", True, 3),
        ("category", 2, 2),
        ("category", None, 0),
        ("category", "xx", 0),
        ("hour", 0, 0),
        ("hour", 23, 23),
        ("hour", None, -1),
        ("position", 32_767, 32_767),
        ("number", 2, 2.0),
        ("number", 2.5, 2.5),
        ("number", True, 1.0),
    ],
)
def test_references_meet_the_rows_of_their_values(kind: ContextKind, value: Any, row: float) -> None:
    """Declared in YAML, kept in JSON, and looked up as the log's engine writes them."""
    text = json.dumps([{"name": "x", "kind": kind, "reference": value}])
    parsed = parse("prepare", keyart.prepare, "prepare", ["a", "b", "--context", text], None)["settings"].context
    assert type(parsed[0].reference) is type(value)
    declared = features_from_json(json.loads(json.dumps(features_to_json(parsed))))
    row_of = {"x": {"en": 1, "2": 2, "true": 3, "None": 4, "1": 5}}
    assert reference_context(declared, row_of, 2)["x"].tolist() == [row, row]


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        ("category", {"reference": 1.5}, "a text, a whole number, true or false"),
        ("hour", {"reference": 24}, "a whole number, 0 to 23"),
        ("hour", {"reference": -1}, "a whole number, 0 to 23"),
        ("hour", {"reference": 3.7}, "a whole number, 0 to 23"),
        ("hour", {"reference": True}, "a whole number, 0 to 23"),
        ("position", {"reference": 40_000}, "a whole number, 0 to 32,767"),
        ("number", {"reference": "abc"}, "a number of 32 bits"),
        ("number", {"reference": math.nan}, "a number of 32 bits"),
        ("number", {"reference": 1e300}, "a number of 32 bits"),
        ("number", {"mean": math.nan}, "mean=nan: must be a number of 32 bits"),
        ("number", {"mean": math.inf}, "mean=inf: must be a number of 32 bits"),
        ("number", {"std": 1e-300}, "std=1e-300: must be above 0 and a number of 32 bits"),
        ("number", {"std": math.nan}, "std=nan: must be above 0"),
    ],
)
def test_references_and_statistics_that_cannot_be(kind: ContextKind, change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        feature(kind=kind, **change)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{}", "not a list of features"),
        ('"x"', "not a list of features"),
        ("{", "Expecting property name"),
        ('[{"name": "title", "kind": "category"}]', "context feature 'title': the name is taken"),
        ('[{"name": "x", "kind": "number"}, {"name": "x", "kind": "number"}]', "is declared more than once"),
        ('[{"name": "x", "kind": "position", "crossed_with": "y"}]', "'y' is not a category"),
        ('[{"name": "x"}]', "kind"),
        ('[{"name": 5, "kind": "number"}]', "expected string"),
        ('["x"]', "mapping"),
    ],
)
def test_a_damaged_record_of_features_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / CONTEXT_FILE).write_text(text, encoding="utf-8")
    message = rf"{re.escape(str(tmp_path / CONTEXT_FILE))}: cannot be read \(.*{re.escape(named)}.*\)\. Export again\."
    with pytest.raises(UserError, match=message):
        load_context(tmp_path, "Export again.")


def test_a_record_of_no_features_is_none() -> None:
    """A ranker may read no context at all."""
    assert features_from_json([]) == ()


def test_ids_meet_their_rows_whatever_a_feature_is_called() -> None:
    """The rows of the category `language` once had the name of the number `language_row`; and again in a refresh."""
    of_rows = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n"]) for name in ("language", "language_row")]
    total = helper.make_tensor_value_info("total", TensorProto.INT64, ["n"])
    graph = helper.make_graph([helper.make_node("Add", ["language", "language_row"], ["total"])], "g", of_rows, [total])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    encoded = add_id_encoders(model, {"language": Vocabulary(["de"], 1)})
    request = {"language": np.array(["de", "en"], object), "language_row": np.array([10, 20])}
    for rows in ([11, 20], [11, 22]):
        session = ort.InferenceSession(encoded.SerializeToString())
        np.testing.assert_array_equal(np.asarray(session.run(["total"], request)[0]), rows)
        update_id_encoders(encoded, {"language": Vocabulary(["de", "en"], 1)})


def test_declarations_that_cannot_be() -> None:
    for name in ("title", "shown_at", "history_language", "Language", "9lives", "a" * 65, "clicked", "titles"):
        with pytest.raises(UserError, match=re.escape(repr(name))):
            ContextFeature(name=name, kind="category")
    for change, message in (
        ({"kind": "text"}, "kind='text' is unknown"),
        ({"terms": ("affinity",)}, "unknown. Give appeal"),
        ({"kind": "number", "std": 0.0}, "std=0.0"),
        ({"mean": 1.0}, "mean and std are for kind=number"),
        ({"crossed_with": "device"}, "crossed_with is for kind=position"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            ContextFeature(**({"name": "mood", "kind": "category"} | change))  # pyright: ignore[reportArgumentType]
    for declared, message in (
        ([ContextFeature(name="device", kind="number")], r"'device' \(built in\): is declared more than once"),
        ([ContextFeature(name="shelf", kind="position", crossed_with="hour")], "'hour' is not a category"),
    ):
        with pytest.raises(UserError, match=message):
            context_features(declared)
    with pytest.raises(UserError, match="column policy is the contract's own"):
        tables_with(context_features([ContextFeature(name="logger", kind="category", column="policy")]))
    with pytest.raises(UserError, match="column Device is the contract's own"):
        tables_with(context_features([ContextFeature(name="box", kind="category", column="Device")]))


def test_features_are_written_and_read() -> None:
    features = context_features([ContextFeature(name="age", kind="number", mean=3.0, std=2.0)])
    assert features_from_json(json.loads(json.dumps(features_to_json(features)))) == features
