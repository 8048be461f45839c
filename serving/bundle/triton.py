"""Model repositories for Triton (and other servers of the Open Inference protocol) in the bundle: `BUNDLE/triton`, of graphs over
ids, on CPUs, and `BUNDLE/triton_gpu`, of graphs over rows, on GPUs, where strings do not exist.

    triton/rank/config.pbtxt        inputs and outputs, read from the graph itself
    triton/rank/1/model.onnx        rank.onnx
    triton/rank/1/weights.bin       what it reads of the weights

and the same for the other models. They are two, because Triton does not start on a machine without a GPU where a model wants one.

A graph whose inputs and outputs all begin with the requests is batched: Triton adds that dimension itself, and refuses tensors
that have no other, so that a graph's (N,) is (N, 1) to its clients. ONNX Runtime refuses weights outside the folder of their
graph, and onnx refuses weights that are links, so that each model has its own.
"""

from collections.abc import Sequence
from pathlib import Path

from onnx import GraphProto, TensorProto, ValueInfoProto

from serving.bundle.bundle import VOCABULARIES
from serving.bundle.ids import read_graph, write_graphs
from serving.bundle.metadata import OLDEST_ONNXRUNTIME

REPOSITORY, GPU_REPOSITORY, CONFIG = "triton", "triton_gpu", "config.pbtxt"
MODELS = ("rank", "member", "choose", "titles")
GPU_MODELS = tuple(f"{name}_rows" for name in MODELS)
REPOSITORIES = {REPOSITORY: MODELS, GPU_REPOSITORY: GPU_MODELS}
"""The models of each repository."""
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
each for {", ".join(MODELS)}, over ids, on CPUs: `tritonserver --model-repository=BUNDLE/{REPOSITORY}`. `{GPU_REPOSITORY}/` is one
of {", ".join(GPU_MODELS)}, over rows of the vocabularies, on GPUs; a second `--model-repository` serves it beside
the first, or it is served by itself. Their configurations were checked against Triton's own schema and against the graphs; no
server and no GPU was run. They need nothing beside them: each model has what it reads of the weights.

- Clients of models over rows look ids up in `{VOCABULARIES}` themselves: an id's row is its index there plus 1; 0 stands for
  all other ids, and for padding.
- In models that are batched (all but titles and titles_rows), what is (N,) above is (N, 1) to Triton's clients: `dims: [ 1 ]`.
- Triton runs requests together whose shapes are the same: pad histories (`history_length` counts) and candidates to fixed
  widths. A history is at least 1 wide, of padding where it is empty.
- One instance, one thread; each instance holds the weights again. To use more cores, raise `count` in `instance_group`."""


def write_triton(folder: Path) -> None:
    """Write the repositories beside the graphs in `folder`."""
    for repository, names in REPOSITORIES.items():
        for name in names:
            model = folder / repository / name
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
    kind = "KIND_GPU" if name in GPU_MODELS else "KIND_CPU"
    lines.append(f"instance_group [ {{ kind: {kind} count: 1 }} ]")
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
