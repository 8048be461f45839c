"""The model repositories for Triton are the graphs themselves: what they say of them, what they hold, and what that costs."""

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
from serving.bundle.triton import CONFIG, GPU_REPOSITORY, MAX_BATCH, MODELS, REPOSITORIES, REPOSITORY
from tests.test_explain import request_of
from tests.test_graphs import in_ids, run

MODEL_PATHS = [Path(repository, name) for repository, names in REPOSITORIES.items() for name in names]
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

for path in sorted(path for folder in sys.argv[1:] for path in Path(folder).glob("*/config.pbtxt")):
    config = Parse(path.read_text(), ModelConfig())
    batched = config.max_batch_size > 0
    assert config.name == path.parent.name and config.backend == "onnxruntime"
    assert batched == config.HasField("dynamic_batching")
    ((kind, count),) = [(config.instance_group[0].Kind.Name(group.kind), group.count) for group in config.instance_group]
    assert count == 1
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    sides = [[described(part) for part in side] for side in (config.input, config.output)]
    print(json.dumps({"name": config.name, "batched": batched, "sides": sides, "kind": kind}))
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


def as_session(model: Path) -> list[list[tuple[str, str, list[int]]]]:
    """Inputs and outputs by ONNX Runtime, without the axis of requests where all tensors begin with it: Triton's own rule."""
    session = ort.InferenceSession(model / "1" / "model.onnx")
    parts = [session.get_inputs(), session.get_outputs()]
    kind_of = {runtime: triton for triton, runtime in TYPE_OF.items()}
    shapes = [[[d if isinstance(d, int) else -1 for d in part.shape] for part in side] for side in parts]
    batched = all(shape[0] == -1 for side in shapes for shape in side)
    return [
        [(part.name, kind_of[part.type], shape[batched:]) for part, shape in zip(side, side_shapes, strict=True)]
        for side, side_shapes in zip(parts, shapes, strict=True)
    ]


def test_the_configurations_say_what_the_graphs_say(bundle: Path) -> None:
    assert sorted(path.parent for path in bundle.glob(f"triton*/*/{CONFIG}")) == sorted(bundle / p for p in MODEL_PATHS)
    for path in MODEL_PATHS:
        text = (bundle / path / CONFIG).read_text("utf-8")
        assert f'name: "{path.name}"' in text
        assert sides_of(text) == as_session(bundle / path)
        batched = "titles" not in path.name  # whose `top` is one number for all
        assert (f"max_batch_size: {MAX_BATCH}" in text, "dynamic_batching" in text) == (batched, batched)
        assert "max_batch_size: 0" in text or batched
        # strings exist on CPUs alone
        assert re.findall(r"KIND_\w+", text) == ["KIND_CPU" if path.parent.name == REPOSITORY else "KIND_GPU"]
        assert ("TYPE_STRING" in text) == ("KIND_CPU" in text)


@pytest.mark.slow
def test_tritons_own_schema_reads_them(bundle: Path) -> None:
    words = ["uv", "run", "--no-project", "--isolated", "--with", "tritonclient[grpc]", "python", "-c", PARSE]
    words += [str(bundle / repository) for repository in REPOSITORIES]
    done = subprocess.run(words, capture_output=True, text=True, check=False, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    row_of = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert set(row_of) == {path.name for path in MODEL_PATHS}
    for path in MODEL_PATHS:
        row = row_of[path.name]
        assert [[tuple(part) for part in side] for side in row["sides"]] == as_session(bundle / path)
        assert row["batched"] == ("titles" not in path.name)
        assert row["kind"] == ("KIND_GPU" if path.parent.name == GPU_REPOSITORY else "KIND_CPU")


def test_each_model_answers_as_the_bundles_own_by_itself(bundle: Path, tmp_path: Path) -> None:
    """From the repository alone, elsewhere."""
    opened = Bundle.open(bundle)
    rows = request_of(opened, n=20)
    rows |= run(bundle, "member_rows.onnx", rows)
    rows |= {"played_before": np.zeros(20, bool), "played": np.zeros((20, 1), np.int64), "top": np.array([3])}
    ids = in_ids(opened, rows)
    for repository, names in REPOSITORIES.items():
        copied = shutil.copytree(bundle / repository, tmp_path / repository)
        for name in names:
            request = ids if names == MODELS else rows
            expected, outputs = run(bundle, f"{name}.onnx", request), run(copied / name / "1", "model.onnx", request)
            assert outputs.keys() == expected.keys()
            for output, values in outputs.items():
                np.testing.assert_array_equal(values, expected[output])


def test_its_files_are_sealed_and_hold_no_weight_that_is_not_read(bundle: Path) -> None:
    metadata = json.loads((bundle / BUNDLE_FILE).read_text(encoding="utf-8"))
    for path in MODEL_PATHS:
        for file in (CONFIG, "1/model.onnx", f"1/{WEIGHTS}"):
            assert f"{path.as_posix()}/{file}" in metadata["sha256"]
        model = onnx.load(str(bundle / path / "1" / "model.onnx"))  # onnx's own reader takes it
        onnx.checker.check_model(model)
    titles, all_of_them = (bundle / REPOSITORY / "titles" / "1" / WEIGHTS), bundle / WEIGHTS
    assert titles.stat().st_size < all_of_them.stat().st_size / 2


def test_a_link_is_a_second_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("once", encoding="utf-8")
    assert link(tmp_path / "a", tmp_path / "deep" / "b") == 0
    assert disk_size(tmp_path) == 4
    assert files_of(tmp_path) == [tmp_path / "a", tmp_path / "deep" / "b"]
