"""Graphs that take ids: the vocabularies go into the graph, and large weights into one file that all graphs share.

A graph over rows gets a LabelEncoder (of ONNX's own ai.onnx.ml operators) before each input that holds ids, and behind each
output that does: strings the vocabulary lacks become the unknown row, and lists are padded with "".
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from datamodules.shards.vocabulary import VOCABULARY_NAMES, Vocabularies, Vocabulary

WEIGHTS, TOWER_WEIGHTS = "weights.bin", "artwork.bin"
"""Files with the large weights of the ranking graphs, and of those that encode new titles and artworks."""
VOCABULARY_OF = {
    "history_title": "titles",
    "history_artwork": "artworks",
    "past_artwork": "artworks",
    "artwork": "artworks",
    "title": "titles",
    "artworks": "artworks",
    "played": "titles",
    "titles": "titles",
    "genres": "genres",
    "cast": "people",
    "depicts_people": "people",
    "depicts_genres": "genres",
}
"""The vocabulary of every input and output that holds ids; context features that are categories have one of their own."""
MERGED_INPUTS = {"depicts_people": "depicts", "depicts_genres": "depicts"}
"""Inputs over rows that are the same words, looked up in different vocabularies."""
TITLE_TABLE_PREFIXES, ARTWORK_TABLE_PREFIXES = ("play_", "title_", "mean_", "retrieval_vector"), ("artwork_",)
"""Prefixes of the names of tables by title row and by artwork row."""
OF_ROWS = ".row"
"""Suffix of the names of values that hold the rows of ids; the name of a context feature has no dot."""
ML_OPSET = 4
MIN_EXTERNAL_BYTES = 4096
"""Smaller tensors stay in their graph."""


def vocabulary_of(name: str, vocabularies: Vocabularies) -> Vocabulary | None:
    """The vocabulary of an input or output of a graph over ids; None if it holds no ids."""
    if name in VOCABULARY_OF:
        return vocabularies[VOCABULARY_OF[name]]
    return None if name in VOCABULARY_NAMES else vocabularies.get(name)


def add_id_encoders(model: ModelProto, vocabularies: Vocabularies) -> ModelProto:
    """A copy of a graph over rows that takes and gives ids instead."""
    encoded = ModelProto()
    encoded.CopyFrom(model)
    graph = encoded.graph
    input_encoders, output_encoders, inputs = [], [], {}
    for part in graph.input:
        name = MERGED_INPUTS.get(part.name, part.name)
        vocabulary = vocabulary_of(part.name, vocabularies)
        if vocabulary is not None:
            input_encoders.append(_encoder(name, f"{part.name}{OF_ROWS}", vocabulary.values, to_rows=True))
            _rename(graph.node, part.name, f"{part.name}{OF_ROWS}")
            part.type.tensor_type.elem_type = TensorProto.STRING
        part.name = name
        inputs[name] = part
    inputs = list(inputs.values())
    del graph.input[:]
    graph.input.extend(inputs)
    for part in graph.output:
        vocabulary = vocabulary_of(part.name, vocabularies)
        if vocabulary is not None:
            output_encoders.append(_encoder(f"{part.name}{OF_ROWS}", part.name, vocabulary.values, to_rows=False))
            _rename(graph.node, part.name, f"{part.name}{OF_ROWS}")
            part.type.tensor_type.elem_type = TensorProto.STRING
    nodes = [*input_encoders, *graph.node, *output_encoders]
    del graph.node[:]
    graph.node.extend(nodes)
    encoded.opset_import.append(helper.make_opsetid("ai.onnx.ml", ML_OPSET))
    return encoded


def update_id_encoders(model: ModelProto, vocabularies: Vocabularies) -> None:
    """Put extended vocabularies into a graph that takes or gives ids."""
    inputs = {part.name for part in model.graph.input}
    for node in model.graph.node:
        if node.op_type == "LabelEncoder":
            source, target = node.input[0], node.output[0]
            to_rows = source in inputs
            vocabulary = vocabulary_of((target if to_rows else source)[: -len(OF_ROWS)], vocabularies)
            assert vocabulary is not None, f"{node.name}: an encoder without a vocabulary"
            node.CopyFrom(_encoder(source, target, vocabulary.values, to_rows=to_rows))


def _encoder(source: str, target: str, values: Sequence[str], *, to_rows: bool) -> onnx.NodeProto:
    """Ids to rows, or rows to ids."""
    ids: Any = numpy_helper.from_array(np.array(values, object), "ids")
    rows: Any = numpy_helper.from_array(np.arange(1, len(values) + 1), "rows")
    unknown: Any = numpy_helper.from_array(np.array([0]), "unknown")
    attributes = {"keys_tensor": ids, "values_tensor": rows, "default_tensor": unknown}
    if not to_rows:
        unknown = numpy_helper.from_array(np.array([""], object), "unknown")
        attributes = {"keys_tensor": rows, "values_tensor": ids, "default_tensor": unknown}
    return helper.make_node(
        "LabelEncoder", [source], [target], f"{source} to {target}", domain="ai.onnx.ml", **attributes
    )


def _rename(nodes: Sequence[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new


def write_graphs(models: dict[str, ModelProto], folder: Path, weights_file: str = WEIGHTS) -> None:
    """Write graphs by file name, their large tensors once each into a file beside them."""
    offset_of: dict[str, int] = {}
    with (folder / weights_file).open("wb") as weights:
        for name, model in models.items():
            for tensor in model.graph.initializer:
                raw = numpy_helper.to_array(tensor).tobytes()
                if tensor.data_type == TensorProto.STRING or len(raw) < MIN_EXTERNAL_BYTES:
                    continue
                digest = hashlib.sha256(raw).hexdigest()
                if digest not in offset_of:
                    weights.write(b"\0" * (-weights.tell() % 64))
                    offset_of[digest] = weights.tell()
                    weights.write(raw)
                for field in ("raw_data", "float_data", "int64_data", "int32_data"):
                    tensor.ClearField(field)
                tensor.raw_data = raw  # required by `set_external_data`, then dropped
                set_external_data(tensor, weights_file, offset=offset_of[digest], length=len(raw))
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
            onnx.save_model(model, str(folder / name))


def read_graph(path: Path) -> ModelProto:
    """A graph with its weights inside, as `write_graphs` was given it.

    Not by onnx's own reader, which refuses weights that have a second name, as in a bundle copied by hard links.
    """
    model = onnx.load(str(path), load_external_data=False)
    files: dict[str, np.ndarray] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entry = {part.key: part.value for part in tensor.external_data}
        name, begin, length = entry["location"], int(entry["offset"]), int(entry["length"])
        if name not in files:
            files[name] = np.memmap(path.with_name(name), np.uint8, "r")
        tensor.raw_data = files[name][begin : begin + length].tobytes()
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT
    return model
