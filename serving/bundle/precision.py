"""Reduced-precision graphs of the bundle: tables stored as fp16 or int8, arithmetic in float32.

In: a graph with its weights inside. Out: the same inputs, outputs and opset. Tables that are read by row are 99 % of a
graph's weights; only the rows a request reads become float32 again:

    fp16   the table rounded to half precision; gather, cast
    int8   each row divided by its largest magnitude / 127 and rounded, with that float32 scale beside it; gather both, cast,
           multiply: an entry is off by half a step of its own row at most

Rows are independent, so that a table that has grown keeps the bits of its old rows. Weights that a MatMul or Gemm reads whole
stay float32: they are under 1 % of the bytes, and a cast of them would be folded back into float32 when the graph is loaded.
"""

from collections.abc import Iterable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from serving.bundle.bundle import CONTEXT_PREFIX
from serving.bundle.ids import MIN_EXTERNAL_BYTES
from serving.bundle.precision_bounds import Precision

INT8_STEPS = 127
"""Steps of an int8 row between 0 and its largest magnitude."""


def reduce_graph(model: ModelProto, precision: Precision) -> ModelProto:
    """A copy of a graph whose large float32 tables that are only read by row are stored in `precision`.

    Each is stored once, however many nodes read it. A table with a value that is not finite, or too large for fp16, stays
    float32, so that rounding never makes an infinity or NaN.
    """
    reduced_model = ModelProto()
    reduced_model.CopyFrom(model)
    graph = reduced_model.graph
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        assert not any(attribute.HasField("g") for attribute in node.attribute), "a table may be read inside a subgraph"
        for name in node.input:
            readers.setdefault(name, []).append(node)
    by_row = {node.output[0] for node in graph.node if _has_last_axis_of_one(node, graph.initializer)}
    stored: dict[str, list[TensorProto]] = {}
    for tensor in graph.initializer:
        nodes = readers.get(tensor.name, [])
        if nodes and all(_reads_rows(node, tensor.name, by_row) for node in nodes) and _is_table(tensor):
            parts = _stored(numpy_helper.to_array(tensor), tensor.name, precision)
            stored |= {tensor.name: parts} if parts else {}
    initializers = [tensor for tensor in graph.initializer if tensor.name not in stored]
    initializers += [part for parts in stored.values() for part in parts]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    nodes = [
        output for node in graph.node for output in _widened(node, stored.get(node.input[0] if node.input else "", []))
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    return reduced_model


def _is_table(tensor: TensorProto) -> bool:
    """Whether a tensor is a table of vectors, not of single numbers, for which a scale each would only add bytes, nor of a context
    feature: it has few rows, which every request reads, and decides between candidates."""
    size = int(np.prod(tensor.dims)) * np.dtype(np.float32).itemsize
    of_vectors = tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2 and tensor.dims[-1] > 1
    return of_vectors and size >= MIN_EXTERNAL_BYTES and not tensor.name.startswith(CONTEXT_PREFIX)


def _has_last_axis_of_one(node: NodeProto, initializers: Iterable[TensorProto]) -> bool:
    """Whether a node gives indices of shape (..., 1): how torch writes rows of the first axis for GatherND."""
    if node.op_type != "Unsqueeze":
        return False
    axes = [numpy_helper.to_array(tensor) for tensor in initializers if tensor.name == node.input[1]]
    return len(axes) == 1 and axes[0].tolist() == [-1]


def _reads_rows(node: NodeProto, table: str, by_row: set[str]) -> bool:
    if node.input[0] != table or table in node.input[1:]:
        return False
    whole_numbers = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Gather":
        return whole_numbers.get("axis", 0) == 0
    return node.op_type == "GatherND" and whole_numbers.get("batch_dims", 0) == 0 and node.input[1] in by_row


def _stored(table: np.ndarray, name: str, precision: Precision) -> list[TensorProto]:
    """The stored tensors of a table: its rows, and for int8 their scales, (R, 1, ...); empty where it has to stay float32."""
    if precision == "fp16":
        with np.errstate(over="ignore"):
            rows = table.astype(np.float16)
        return [numpy_helper.from_array(rows, f"{name}_fp16")] if np.isfinite(rows).all() else []
    if not np.isfinite(table).all():
        return []
    largest = np.abs(table).max(axis=tuple(range(1, table.ndim)), keepdims=True)
    scale = largest / np.float32(INT8_STEPS)
    scale[scale == 0] = 1  # a row of zeros
    rows = np.rint(table / scale).clip(-INT8_STEPS, INT8_STEPS).astype(np.int8)
    return [numpy_helper.from_array(rows, f"{name}_int8"), numpy_helper.from_array(scale, f"{name}_scale")]


def _widened(node: NodeProto, parts: list[TensorProto]) -> list[NodeProto]:
    """The nodes that read rows of a stored table instead of `node`; any other node unchanged."""
    if not parts:
        return [node]
    output = node.output[0]
    gathers: list[NodeProto] = []
    for part in parts:
        gather = NodeProto()
        gather.CopyFrom(node)
        gather.input[0], gather.output[0] = part.name, f"{output}_{part.name}"
        gather.name = f"{node.name}_{part.name}"
        gathers.append(gather)
    gathered = [gather.output[0] for gather in gathers]
    if len(parts) == 1:
        return [*gathers, helper.make_node("Cast", gathered, [output], f"{output}_cast", to=TensorProto.FLOAT)]
    cast = helper.make_node("Cast", gathered[:1], [f"{output}_cast"], f"{output}_cast", to=TensorProto.FLOAT)
    return [*gathers, cast, helper.make_node("Mul", [f"{output}_cast", gathered[1]], [output], f"{output}_scaled")]
