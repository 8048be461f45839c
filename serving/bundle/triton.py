"""A model repository for Triton (and other servers of the Open Inference protocol) in the bundle: `BUNDLE/triton`.

    triton/rank/config.pbtxt        inputs and outputs, read from the graph itself
    triton/rank/1/model.onnx        rank.onnx
    triton/rank/1/weights.bin       what it reads of the weights

and the same for member, choose and titles. A graph whose inputs and outputs all begin with the requests is batched: Triton
adds that dimension itself, and refuses tensors that have no other, so that a graph's (N,) is (N, 1) to its clients. ONNX
Runtime refuses weights outside the folder of their graph, and onnx refuses weights that are links, so that each model has its
own.
"""

from collections.abc import Sequence
from pathlib import Path

from onnx import GraphProto, TensorProto, ValueInfoProto

from serving.bundle.ids import read_graph, write_graphs
from serving.bundle.metadata import OLDEST_ONNXRUNTIME

REPOSITORY, CONFIG = "triton", "config.pbtxt"
MODELS = ("rank", "member", "choose", "titles")
MAX_BATCH = 256
"""Requests that Triton may put into one run."""
TYPES: dict[int, str] = {
    TensorProto.STRING: "TYPE_STRING",
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.BOOL: "TYPE_BOOL",
}
TRITON_NOTES = f"""\
`{REPOSITORY}/` is a model repository for NVIDIA Triton's ONNX Runtime backend (ONNX Runtime {OLDEST_ONNXRUNTIME} or newer), a model
each for {", ".join(MODELS)}: `tritonserver --model-repository=BUNDLE/{REPOSITORY}`. Its configurations were checked against
Triton's own schema and against the graphs; no server was run. It needs nothing beside it: each model has what it reads of the
weights.

- In models that are batched (rank, member, choose), what is (N,) above is (N, 1) to Triton's clients: `dims: [ 1 ]`.
- Triton runs requests together whose shapes are the same: pad histories (`history_length` counts) and candidates to fixed
  widths. A history is at least 1 wide, of padding where it is empty.
- One instance, one thread; each instance holds the weights again. To use more cores, raise `count` in `instance_group`."""


def write_triton(folder: Path) -> None:
    """Write the repository beside the graphs in `folder`."""
    for name in MODELS:
        model = folder / REPOSITORY / name
        (model / "1").mkdir(parents=True)
        graph = read_graph(folder / f"{name}.onnx")
        (model / CONFIG).write_text(model_config(name, graph.graph), encoding="utf-8")
        write_graphs({"model.onnx": graph}, model / "1")


def model_config(name: str, graph: GraphProto) -> str:
    """The model's config.pbtxt: protobuf text of Triton's ModelConfig."""
    batched = all(inherited_model_config(part)[0] == -1 for part in (*graph.input, *graph.output))
    lines = [f'name: "{name}"', 'backend: "onnxruntime"']
    if batched:
        lines += [f"max_batch_size: {MAX_BATCH}", "dynamic_batching { }"]
    else:  # an input or output that does not grow with the requests
        lines.append("max_batch_size: 0")
    for side, parts in (("input", graph.input), ("output", graph.output)):
        lines += [f"{side} [", ",\n".join(_tensor(part, batched) for part in parts), "]"]
    lines.append("instance_group [ { kind: KIND_CPU count: 1 } ]")
    lines.append('parameters { key: "intra_op_thread_count" value: { string_value: "1" } }')
    return "\n".join([*lines, ""])


def inherited_model_config(part: ValueInfoProto) -> list[int]:
    """The shape of an input or output; -1 for axes that may differ."""
    return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in part.type.tensor_type.shape.dim]


def _tensor(part: ValueInfoProto, batched: bool) -> str:
    shape = inherited_model_config(part)[1:] if batched else inherited_model_config(part)
    dims = f"dims: {_listed(shape)}" if shape else "dims: [ 1 ] reshape: { shape: [ ] }"
    return f'  {{ name: "{part.name}" data_type: {TYPES[part.type.tensor_type.elem_type]} {dims} }}'


def _listed(shape: Sequence[int]) -> str:
    return f"[ {', '.join(map(str, shape))} ]"
