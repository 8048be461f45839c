"""Graphs of fewer bytes answer as float32 does, row by row, and one that does not is left out and says why."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from rich.console import Console
from torch.nn.functional import binary_cross_entropy_with_logits

import keyart
from datamodules.feed.impression_feed import Feed
from datamodules.shards.shard import VALIDATION, Shards
from export import variants as shipping
from export.gates import measure, newest_validation
from export.variants import ship_variants
from foundation.errors import UserError
from models.types import piecewise_linear_calibration
from pipeline import shards_of
from serving.bundle import variants
from serving.bundle.bundle import BUNDLE_FILE, RANK_ROWS, Bundle, bundle_checksums
from serving.bundle.example import largest_golden_difference
from serving.bundle.ids import MIN_EXTERNAL_BYTES, WEIGHTS
from serving.bundle.precision import reduce_graph
from serving.bundle.precision_bounds import BOUNDS, PRECISIONS, Precision
from serving.bundle.refresh import refresh
from serving.bundle.seal import write_record
from serving.bundle.variants import SERVED_GRAPHS, precision_table
from serving.bundle.verify import verify
from tests.test_explain import request_of
from train.run import Run
from train.task import rank_batch

OFF: dict[Precision, float] = {"fp16": 1e-3, "int8": 2e-2}
"""Tolerance of a probability."""


def session_of(model: ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString())


def weights_of(model: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.fixture(scope="module")
def rank_rows(bundle: Path) -> ModelProto:
    return onnx.load(str(bundle / RANK_ROWS))


@pytest.fixture
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of thirty titles are half of their graphs: what they save is not what these tests are about."""
    loose = {kind: replace(bounds, size_share=1.0) for kind, bounds in BOUNDS.items()}
    for module in (variants, shipping):
        monkeypatch.setattr(module, "BOUNDS", loose)


def shipped(bundle: Path, folder: Path, validation: Shards | None, console: Console | None = None) -> Path:
    """A copy of a bundle with its graphs of fewer bytes."""
    shutil.copytree(bundle, folder)
    opened = Bundle.open(folder)
    metadata = opened.metadata
    arguments = (opened.vocabularies, opened.request_lengths, metadata["golden"]["largest_difference"], validation)
    metadata["precisions"] = ship_variants(folder, *arguments, console or Console(quiet=True))
    metadata["sha256"] = bundle_checksums(folder)
    write_record(folder, metadata)
    return folder


@pytest.mark.parametrize("kind", PRECISIONS)
def test_they_answer_as_float32(bundle: Path, rank_rows: ModelProto, kind: Precision) -> None:
    reduced = reduce_graph(rank_rows, kind)
    onnx.checker.check_model(reduced)
    assert list(reduced.opset_import) == list(rank_rows.opset_import)
    assert list(reduced.graph.input) == list(rank_rows.graph.input)
    assert list(reduced.graph.output) == list(rank_rows.graph.output)
    request = request_of(Bundle.open(bundle), n=200)
    read = {part.name: request[part.name] for part in rank_rows.graph.input}
    ours, theirs = (session_of(model).run(None, read)[:2] for model in (rank_rows, reduced))
    apart = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(ours, theirs, strict=True))
    assert 0 < apart < OFF[kind]
    wide = [name for name, values in weights_of(reduced).items() if values.ndim > 1 and values.dtype == np.float32]
    read_by_row = {node.input[0] for node in reduced.graph.node if node.op_type in ("Gather", "GatherND")}
    left = [name for name in read_by_row & set(wide) if weights_of(reduced)[name].nbytes >= MIN_EXTERNAL_BYTES]
    assert all(name.startswith("context_") for name in left if weights_of(reduced)[name].shape[-1] > 1)
    assert len(read_by_row - set(left)) > 10


def graph_over(table: np.ndarray) -> ModelProto:
    """A table read by two nodes, and by a third of the two ways torch has to read rows."""
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", table.shape[1]]) for name in "abc"]
    nodes = [helper.make_node("Gather", ["table", "ids"], [name], name) for name in "ab"]
    nodes += [
        helper.make_node("Unsqueeze", ["ids", "last"], ["ids_1"]),
        helper.make_node("GatherND", ["table", "ids_1"], ["c"], "c"),
    ]
    weights = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([-1]), "last")]
    graph = helper.make_graph(nodes, "g", [ids], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("kind", PRECISIONS)
def test_rows_know_nothing_of_each_other(kind: Precision) -> None:
    """A table that has grown by rows far larger keeps the bits of its old ones; one of zeros stays zeros."""
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(300, 24)) * rng.lognormal(sigma=3, size=(300, 1))).astype(np.float32)
    table[7] = 0
    grown = np.concatenate([table, 1000 * rng.normal(size=(50, 24)).astype(np.float32)])
    before, after = (weights_of(reduce_graph(graph_over(values), kind)) for values in (table, grown))
    assert set(before) == set(after) == {"last", *({"table_fp16"} if kind == "fp16" else {"table_int8", "table_scale"})}
    for name in set(before) - {"last"}:
        assert before[name].tobytes() == after[name][: len(table)].tobytes()
    onnx.checker.check_model(reduce_graph(graph_over(table), kind), full_check=True)
    outputs = session_of(reduce_graph(graph_over(table), kind)).run(None, {"ids": np.arange(300)})
    step = np.abs(table).max(1, keepdims=True) / (2**11 if kind == "fp16" else 2 * 127)
    for values in outputs:
        assert (np.abs(np.asarray(values) - table) <= 1.001 * step + 1e-7).all()
        assert not np.asarray(values)[7].any()


def test_what_would_be_no_number_stays_float32() -> None:
    table = np.ones((300, 24), np.float32)
    table[3, 3] = 1e5
    assert "table" in weights_of(reduce_graph(graph_over(table), "fp16")), "half precision ends at 65,504"
    assert "table_int8" in weights_of(reduce_graph(graph_over(table), "int8"))
    table[3, 3] = np.nan
    assert all("table" in weights_of(reduce_graph(graph_over(table), kind)) for kind in PRECISIONS)
    assert "table" in weights_of(reduce_graph(graph_over(np.ones((10, 24), np.float32)), "int8")), (
        "under MIN_EXTERNAL_BYTES"
    )


def test_float32_is_what_training_measured(bundle: Path, run: Path, shards: Path, rank_rows: ModelProto) -> None:
    """The log loss over requests as served equals that over members in torch."""
    opened, session = Shards.open(shards), session_of(rank_rows)
    lengths = Bundle.open(bundle).request_lengths
    measured = measure({"fp32": session}, opened, lengths)["fp32"]
    model, losses = Run.open(run).model, []
    for batch in Feed(opened.shards, VALIDATION, reach=model.config.history.reach, impressions=500, shuffle=False):
        with torch.no_grad():
            logit_N = rank_batch(model, batch).click_NK().gather(1, batch.shown[:, None])[:, 0]
            calibrated_N = piecewise_linear_calibration(logit_N.double(), model.calibration[0].double())
        losses.append(binary_cross_entropy_with_logits(calibrated_N, batch.clicked.double(), reduction="none"))
    assert measured["log_loss"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
    assert measured["impressions"] == sum((shard.split == VALIDATION).sum() for shard in opened.shards)
    assert measured["same_choice"] == measured["captured_lift"] == 1
    assert measure({"fp32": session}, opened, lengths, most=200)["fp32"]["impressions"] == 200
    times = np.concatenate([shard.shown_at[shard.split == VALIDATION] for shard in opened.shards])
    taken = zip(opened.shards, newest_validation(opened, 200), strict=True)
    assert np.sort(np.concatenate([shard.shown_at[rows] for shard, rows in taken])).tolist() == sorted(times)[-200:]


@pytest.mark.usefixtures("of_any_size")
def test_what_ships_is_verified(bundle: Path, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = shipped(bundle, tmp_path / "bundle", Shards.open(shards))
    metadata = Bundle.open(folder).metadata
    assert [(row["precision"], row["ships"], row["reasons"]) for row in metadata["precisions"]] == [
        (name, True, []) for name in ("fp32", *PRECISIONS)
    ]
    for kind in PRECISIONS:
        assert {path.name for path in (folder / kind).iterdir()} == {*SERVED_GRAPHS, WEIGHTS}
        assert {f"{kind}/{name}" for name in (*SERVED_GRAPHS, WEIGHTS)} <= set(metadata["sha256"])
    verified = verify(folder)
    assert verified.variant_differences == {kind: largest_golden_difference(folder, kind) for kind in PRECISIONS}
    assert (
        verified.difference
        < verified.variant_differences["fp16"]
        < verified.variant_differences["int8"]
        < BOUNDS["int8"].golden_difference
    )
    assert keyart.main(["verify", str(folder)]) == 0
    assert f", int8 {verified.variant_differences['int8']:.1e}" in capfd.readouterr().out

    strict = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
    strict["precisions"][1]["bounds"]["golden_difference"] = 1e-9
    write_record(folder, strict)
    with pytest.raises(UserError, match=r"fp16: its golden cases differ by .* here, more than 1e-09"):
        verify(folder)
    weights = bytearray((folder / "int8" / WEIGHTS).read_bytes())
    weights[len(weights) // 2] ^= 64
    (folder / "int8" / WEIGHTS).write_bytes(weights)
    with pytest.raises(UserError, match=r"int8/weights\.bin: is missing or is not the file that was exported"):
        verify(folder)


def broken(how: Callable[[np.ndarray], np.ndarray]) -> Callable[[ModelProto, Precision], ModelProto]:
    """`reduced`, but for int8 the scales of every table wrong."""

    def wrong(model: ModelProto, kind: Precision) -> ModelProto:
        graph = reduce_graph(model, kind)
        for tensor in graph.graph.initializer:
            if tensor.name.endswith("_scale"):
                tensor.CopyFrom(numpy_helper.from_array(how(numpy_helper.to_array(tensor)), tensor.name))
        return graph

    return wrong


@pytest.mark.usefixtures("of_any_size")
@pytest.mark.parametrize("how", [lambda scale: scale * np.float32(-3), lambda scale: scale * np.float32("nan")])
def test_a_broken_one_does_not_ship(
    bundle: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: Callable[[np.ndarray], np.ndarray],
) -> None:
    monkeypatch.setattr(variants, "reduce_graph", broken(how))
    folder = shipped(bundle, tmp_path / "bundle", Shards.open(shards), Console(width=1000))
    printed = capsys.readouterr().out
    _, fp16, int8 = Bundle.open(folder).metadata["precisions"]
    assert fp16["ships"]
    assert not int8["ships"]
    assert not (folder / "int8").exists()
    for name in ("largest_difference", "log_loss_change", "golden_difference", "same_choice", "captured_lift"):
        (reason,) = (reason for reason in int8["reasons"] if reason.startswith(name))
        assert f"than {getattr(BOUNDS['int8'], name):g}" in reason
        assert reason in printed
        assert reason in precision_table([int8])[-1]
    assert "fp16" in verify(folder).variant_differences


def test_the_card_tells_of_every_precision(bundle: Path) -> None:
    """Thirty titles save too little: neither ships, and the card and the record give that as the reason."""
    card, rows = (bundle / "CARD.md").read_text("utf-8"), Bundle.open(bundle).metadata["precisions"]
    assert "## Precisions" in card
    for precision, row in zip(PRECISIONS, rows[1:], strict=True):
        assert row["precision"] == precision
        bound = f"more than {BOUNDS[precision].size_share:g}"
        assert row["reasons"] == [f"size_share {row.get('size_share'):.4g}, {bound}"]
        assert f"- {row['precision']} does not ship: {row['reasons'][0]}" in card
        assert not (bundle / row["precision"]).exists()
    assert "| fp32 | yes | 0.0e+00 | " in card
    assert all(line in card.splitlines() for line in precision_table(rows))


def test_a_runs_shards_judge_where_they_are_still_its_own(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened, console = Run.open(run), Console(width=1000)
    opened_shards = shards_of(opened, console)
    assert opened_shards is not None
    assert opened_shards.folder == shards
    assert capsys.readouterr().out == ""
    gone = replace(opened, config=opened.config | {"shards": str(tmp_path)})
    assert shards_of(gone, console) is None
    assert "no fp16 and no int8 graphs" in capsys.readouterr().out
    assert shards_of(replace(opened, config=opened.config | {"shards_fingerprint": "another"}), console) is None
    assert "holds other shards than the run was trained on" in capsys.readouterr().out


def test_without_validation_nothing_ships(bundle: Path, shards: Path, tmp_path: Path) -> None:
    folder = shipped(bundle, tmp_path / "bundle", None)
    rows = Bundle.open(folder).metadata["precisions"]
    assert [row["ships"] for row in rows] == [True, False, False]
    assert rows[2]["reasons"] == ["not measured: no validation impressions were given"]
    assert "- int8 does not ship: not measured" in precision_table(rows)[-1]
    other = Shards.open(shards)
    titles = other.vocabularies["titles"]
    other.vocabularies["titles"] = titles.extended(["one more"])
    with pytest.raises(UserError, match="its titles are not those of the bundle"):
        shipped(bundle, tmp_path / "other", other)


def test_a_refresh_makes_them_anew(
    service: Path, bundle: Path, shards: Path, tmp_path: Path, of_any_size: None
) -> None:
    """An artwork more: old rows are the bytes they were, and the new id is known to each precision."""
    folder = shipped(bundle, tmp_path / "bundle", Shards.open(shards))
    dataset = tmp_path / "dataset"
    shutil.copytree(service / "images", dataset / "images")
    shutil.copy(service / "titles.parquet", dataset)
    artworks = pq.read_table(service / "artworks.parquet")
    row = artworks.slice(0, 1).to_pylist()[0] | {"artwork_id": "one more"}
    pq.write_table(
        pa.concat_tables([artworks, pa.Table.from_pylist([row], artworks.schema)]), dataset / "artworks.parquet"
    )
    before = {kind: weights_of(onnx.load(str(folder / kind / "rank.onnx"))) for kind in PRECISIONS}
    assert refresh(folder, dataset, Console(quiet=True)).artworks == 1
    assert set(verify(folder).variant_differences) == set(PRECISIONS)
    for kind in PRECISIONS:
        after, grew = weights_of(onnx.load(str(folder / kind / "rank.onnx"))), 0
        for name, values in before[kind].items():
            grew += len(after[name]) - len(values) if values.ndim else 0
            np.testing.assert_array_equal(after[name][: len(values)] if values.ndim else after[name], values)
        assert grew
