"""A graph over rows answers as its graph over ids does, in every bundle: exported, refreshed, or with withdrawn titles."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.openvino_peer import openvino
from export.export import random_requests
from foundation.errors import UserError
from serving.bundle.bundle import RANK_ROWS, Bundle
from serving.bundle.golden import rows_of
from serving.bundle.ids import MIN_EXTERNAL_BYTES, vocabulary_of
from tests.test_graphs import in_ids, run
from tests.test_withdraw import withdrawn  # noqa: F401, a fixture

ROWS = "_rows.onnx"
ONLY_OVER_ROWS = "explain_rows.onnx"
BOTH = ("rank", "member", "choose", "titles")
"""Graphs that are over ids and over rows."""


@pytest.fixture(params=["bundle", "refreshed", "withdrawn"])
def folder(request: pytest.FixtureRequest) -> Path:
    value = request.getfixturevalue(request.param)
    return value[0] if isinstance(value, tuple) else value


def test_graphs_over_rows_answer_as_those_over_ids(folder: Path) -> None:
    opened = Bundle.open(folder)
    over_rows = {name for name in opened.metadata["graphs"] if name.endswith(ROWS)}
    assert over_rows == {f"{name}{ROWS}" for name in BOTH} | {ONLY_OVER_ROWS}
    for seed, (n, plays, candidates) in enumerate(((1, 1, 1), (40, 12, 9))):
        rng = np.random.default_rng(seed)
        rows = random_requests(opened.vocabularies, opened.context, opened.history_length, n, plays, candidates, seed)
        rows |= {"played_before": rng.random(n) < 0.5, "top": np.array([len(opened.vocabularies["titles"]) + 2])}
        rows["played"] = rng.integers(0, len(opened.vocabularies["titles"]), (n, 5))
        rows |= run(folder, f"member{ROWS}", rows)
        ids = in_ids(opened, rows)
        for name in BOTH:
            expected, answers = run(folder, f"{name}.onnx", ids), run(folder, f"{name}{ROWS}", rows)
            assert list(answers) == list(expected)
            for output, values in answers.items():
                wanted = expected[output]
                if wanted.dtype == object:
                    vocabulary = vocabulary_of(output, opened.vocabularies)
                    assert vocabulary is not None
                    wanted = rows_of(wanted, vocabulary)
                assert values.size
                assert values.dtype == wanted.dtype
                np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=1e-6, err_msg=f"{name}: {output}")


@pytest.mark.slow
def test_openvino_answers_as_onnx_runtime(bundle: Path, tmp_path: Path) -> None:
    """Every graph over rows, with shapes of its own or fixed ones; by OpenVINO's defaults bfloat16 is allowed."""
    opened = Bundle.open(bundle)
    rows = random_requests(opened.vocabularies, opened.context, opened.history_length, 6, 12, 9, 0)
    rows |= {"played_before": np.zeros(6, bool), "top": np.array([7]), "played": np.ones((6, 2), np.int64)}
    rows |= run(bundle, f"member{ROWS}", rows)
    for graph in sorted(bundle.glob(f"*{ROWS}")):
        folder, expected = tmp_path / graph.stem, run(bundle, graph.name, rows)
        folder.mkdir()
        with openvino(graph, folder) as vino:
            requests = vino.write("requests", [rows])
            for way in ("tuned", "fixed"):
                answers = vino.answers(requests, way)
                assert list(answers) == list(expected)
                for output, values in answers.items():
                    np.testing.assert_allclose(
                        values, expected[output], rtol=1e-4, atol=1e-5, err_msg=f"{graph.name}, {way}: {output}"
                    )
                assert min(vino.turn(requests, way, 0.01)) > 0
            if graph.name == RANK_ROWS:
                with pytest.raises(UserError, match="OpenVINO: failed"):
                    vino.turn(tmp_path / "missing.npz", "tuned", 0)


def test_they_hold_no_ids_and_share_the_weights(bundle: Path) -> None:
    """No string, which no GPU has; no more bytes than the operators and small tensors take."""
    for path in bundle.glob(f"*{ROWS}"):
        model = onnx.load(str(path), load_external_data=False)
        assert not [opset for opset in model.opset_import if opset.domain], path
        for part in (*model.graph.input, *model.graph.output):
            assert part.type.tensor_type.elem_type != onnx.TensorProto.STRING, path
        inside = [tensor for tensor in model.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
        assert max(len(tensor.raw_data) for tensor in inside) < MIN_EXTERNAL_BYTES, path
