"""The model repository for Triton is the graphs themselves: what it says of them, what it holds, and what that costs."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from serving.bundle.bundle import BUNDLE_FILE, Bundle
from serving.bundle.hard_links import disk_size, files_of, link
from serving.bundle.ids import WEIGHTS
from serving.bundle.triton import CONFIG, MAX_BATCH, MODELS, REPOSITORY
from tests.test_explain import request_of
from tests.test_graphs import in_ids, run

TYPE_OF = {
    "TYPE_STRING": "tensor(string)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_BOOL": "tensor(bool)",
}
PARSE = """
import json, sys
from pathlib import Path
from google.protobuf.text_format import Parse
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

def described(part):
    shape = list(part.reshape.shape) if part.HasField("reshape") else list(part.dims)
    assert part.dims and not (part.HasField("reshape") and (shape or list(part.dims) != [1]))
    return [part.name, DataType.Name(part.data_type), shape]

for path in sorted(Path(sys.argv[1]).glob("*/config.pbtxt")):
    config = Parse(path.read_text(), ModelConfig())
    batched = config.max_batch_size > 0
    assert config.name == path.parent.name and config.backend == "onnxruntime"
    assert batched == config.HasField("dynamic_batching")
    assert [(group.kind, group.count) for group in config.instance_group] == [(2, 1)]
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    sides = [[described(part) for part in side] for side in (config.input, config.output)]
    print(json.dumps({"name": config.name, "batched": batched, "sides": sides}))
"""
"""By Triton's own schema, in an environment that has it."""


def sides_of(text: str) -> list[list[tuple[str, str, list[int]]]]:
    """Inputs and outputs of a config.pbtxt: name, type and the shape that the model meets, without the requests."""
    sides = []
    for side in ("input", "output"):
        block = re.search(rf"^{side} \[\n(.*?)^\]", text, re.S | re.M)
        assert block is not None
        parts = re.findall(r'name: "(\w+)" data_type: (\w+) dims: \[ (.*?) \](.*?) \}', block[1])
        assert len(parts) == len(block[1].splitlines())
        shapes = [[] if "reshape" in rest else [int(d) for d in dims.split(",")] for _, _, dims, rest in parts]
        sides.append([(name, kind, shape) for (name, kind, _, _), shape in zip(parts, shapes, strict=True)])
    return sides


def as_session(bundle: Path, name: str) -> list[list[tuple[str, str, list[int]]]]:
    """Inputs and outputs by ONNX Runtime, without the axis of requests where all tensors begin with it: Triton's own rule."""
    session = ort.InferenceSession(bundle / REPOSITORY / name / "1" / "model.onnx")
    parts = [session.get_inputs(), session.get_outputs()]
    kind_of = {runtime: triton for triton, runtime in TYPE_OF.items()}
    shapes = [[[d if isinstance(d, int) else -1 for d in part.shape] for part in side] for side in parts]
    batched = all(shape[0] == -1 for side in shapes for shape in side)
    return [
        [(part.name, kind_of[part.type], shape[batched:]) for part, shape in zip(side, side_shapes, strict=True)]
        for side, side_shapes in zip(parts, shapes, strict=True)
    ]


def test_the_configurations_say_what_the_graphs_say(bundle: Path) -> None:
    for name in MODELS:
        text = (bundle / REPOSITORY / name / CONFIG).read_text("utf-8")
        assert f'name: "{name}"' in text
        assert sides_of(text) == as_session(bundle, name)
        batched = name != "titles"  # whose `top` is one number for all
        assert (f"max_batch_size: {MAX_BATCH}" in text, "dynamic_batching" in text) == (batched, batched)
        assert "max_batch_size: 0" in text or batched


@pytest.mark.slow
def test_tritons_own_schema_reads_them(bundle: Path) -> None:
    words = ["uv", "run", "--no-project", "--isolated", "--with", "tritonclient[grpc]", "python", "-c", PARSE]
    done = subprocess.run(
        [*words, str(bundle / REPOSITORY)], capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    row_of = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert set(row_of) == set(MODELS)
    for name, row in row_of.items():
        assert [[tuple(part) for part in side] for side in row["sides"]] == as_session(bundle, name)
        assert row["batched"] == (name != "titles")


def test_each_model_answers_as_the_bundles_own_by_itself(bundle: Path, tmp_path: Path) -> None:
    """From the repository alone, elsewhere."""
    repository = shutil.copytree(bundle / REPOSITORY, tmp_path / "models")
    opened = Bundle.open(bundle)
    request = in_ids(opened, request_of(opened, n=20))
    request |= run(bundle, "member.onnx", request)
    request |= {"played_before": np.zeros(20, bool), "played": np.full((20, 1), "", object), "top": np.array([3])}
    for name in MODELS:
        expected = run(bundle, f"{name}.onnx", request)
        outputs = run(repository / name / "1", "model.onnx", request)
        assert outputs.keys() == expected.keys()
        for output, values in outputs.items():
            np.testing.assert_array_equal(values, expected[output])


def test_its_files_are_sealed_and_hold_no_weight_that_is_not_read(bundle: Path) -> None:
    metadata = json.loads((bundle / BUNDLE_FILE).read_text(encoding="utf-8"))
    for name in MODELS:
        for file in (CONFIG, "1/model.onnx", f"1/{WEIGHTS}"):
            assert f"{REPOSITORY}/{name}/{file}" in metadata["sha256"]
        model = onnx.load(str(bundle / REPOSITORY / name / "1" / "model.onnx"))  # onnx's own reader takes it
        onnx.checker.check_model(model)
    rank, all_of_them = (bundle / REPOSITORY / "titles" / "1" / WEIGHTS), bundle / WEIGHTS
    assert rank.stat().st_size < all_of_them.stat().st_size / 2


def test_a_link_is_a_second_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("once", encoding="utf-8")
    assert link(tmp_path / "a", tmp_path / "deep" / "b") == 0
    assert disk_size(tmp_path) == 4
    assert files_of(tmp_path) == [tmp_path / "a", tmp_path / "deep" / "b"]
