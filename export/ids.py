"""Graphs that take ids: the vocabularies go into the graph, and large weights into one file that all graphs share.

A graph over rows gets a LabelEncoder (of ONNX's own ai.onnx.ml operators) before each input that holds ids, and behind each
output that does: strings the vocabulary lacks meet the unknown row, "" is what lists are padded with.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from datamodules.vocabulary import Vocabularies

WEIGHTS = "weights.bin"
KIND_OF = {
    "history_title": "titles",
    "history_artwork": "artworks",
    "country": "countries",
    "device": "devices",
    "title": "titles",
    "artworks": "artworks",
    "played": "titles",
    "titles": "titles",
}
"""The vocabulary of every input and output that holds ids."""
ML_OPSET = 4
LEAST_BYTES = 4096
"""Smaller tensors stay in their graph."""


def with_ids(model: ModelProto, vocabularies: Vocabularies) -> ModelProto:
    """A copy of a graph over rows that takes and gives ids instead."""
    found = ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    before, behind = [], []
    for part in graph.input:
        if part.name in KIND_OF:
            before.append(_encoder(part.name, vocabularies[KIND_OF[part.name]].values, to_rows=True))
            _rename(graph.node, part.name, f"{part.name}_row")
            part.type.tensor_type.elem_type = TensorProto.STRING
    for part in graph.output:
        if part.name in KIND_OF:
            behind.append(_encoder(part.name, vocabularies[KIND_OF[part.name]].values, to_rows=False))
            _rename(graph.node, part.name, f"{part.name}_row")
            part.type.tensor_type.elem_type = TensorProto.STRING
    nodes = [*before, *graph.node, *behind]
    del graph.node[:]
    graph.node.extend(nodes)
    found.opset_import.append(helper.make_opsetid("ai.onnx.ml", ML_OPSET))
    return found


def _encoder(name: str, values: Sequence[str], *, to_rows: bool) -> onnx.NodeProto:
    ids: Any = numpy_helper.from_array(np.array(values, object), "ids")
    places: Any = numpy_helper.from_array(np.arange(1, len(values) + 1), "rows")
    unknown: Any = numpy_helper.from_array(np.array([0]), "unknown")
    words = {"keys_tensor": ids, "values_tensor": places, "default_tensor": unknown}
    given, made = name, f"{name}_row"
    if not to_rows:
        unknown = numpy_helper.from_array(np.array([""], object), "unknown")
        words = {"keys_tensor": places, "values_tensor": ids, "default_tensor": unknown}
        given, made = made, name
    return helper.make_node("LabelEncoder", [given], [made], f"{given} to {made}", domain="ai.onnx.ml", **words)


def _rename(nodes: Sequence[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new


def write_graphs(models: dict[str, ModelProto], folder: Path) -> None:
    """Write graphs by file name, their large tensors once each into WEIGHTS."""
    place_of: dict[str, int] = {}
    with (folder / WEIGHTS).open("wb") as weights:
        for name, model in models.items():
            for tensor in model.graph.initializer:
                raw = numpy_helper.to_array(tensor).tobytes()
                if tensor.data_type == TensorProto.STRING or len(raw) < LEAST_BYTES:
                    continue
                digest = hashlib.sha256(raw).hexdigest()
                if digest not in place_of:
                    weights.write(b"\0" * (-weights.tell() % 64))
                    place_of[digest] = weights.tell()
                    weights.write(raw)
                for field in ("raw_data", "float_data", "int64_data", "int32_data"):
                    tensor.ClearField(field)
                tensor.raw_data = raw  # what `set_external_data` asks for, then dropped
                set_external_data(tensor, WEIGHTS, offset=place_of[digest], length=len(raw))
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
            onnx.save_model(model, str(folder / name))
