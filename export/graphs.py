"""The bundle's graphs: parts of traces of `models.ranking.Ranking` and what is made of it, over ids for a serving team and over
rows for bulk work.

    rank.onnx     history, context, title, candidates -> probabilities and terms, in one go
    member.onnx   history -> the member's vectors, to be kept until the member plays again
    update.onnx   a member's vector and an impression's outcome -> the member's vector after it, where past impressions are read
    choose.onnx   a member's vector, context, title, candidates -> as rank.onnx
    choose_vectors.onnx   the same of candidates that are given as vectors
    artwork.onnx  an image of any size, a vector of the user's own, or both, and what it depicts -> an artwork's vectors
    title.onnx    genres, cast and year -> a title's vectors
    titles.onnx   a member's vector for titles -> the best titles
    explore.onnx  candidates and rank.onnx's outputs for them -> Thompson sampling's choice: see `export.explore_graph`
    rank_rows.onnx, member_rows.onnx, choose_rows.onnx, titles_rows.onnx   the same over rows of the vocabularies
    explain_rows.onnx   as rank_rows.onnx -> the terms that appeal is the sum of: see `models.serving.Whole`

No custom operator; requests, plays and candidates in any number; masks inside.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import Message
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.utils import Extractor
from torch import Tensor, nn

from datamodules.shards.vocabulary import Vocabularies
from foundation.errors import UserError
from models.content_towers import (
    ARTWORK_OUTPUTS,
    TITLE_INPUTS,
    TITLE_OUTPUTS,
    ArtworkVectors,
    TitleVectors,
)
from models.ranking import OUTPUTS, PAST, Ranking
from models.retrieval import title_vectors
from models.serving import CHOOSE_OUTPUTS, MEMBER_OUTPUTS, VECTORS, Choose, Update, Whole
from serving.bundle.bundle import (
    ARTWORK_GRAPH,
    CHOOSE_ROWS,
    CONTEXT_PREFIX,
    EXPLAIN_ROWS,
    MEMBER_ROWS,
    RANK_ROWS,
    TITLE_GRAPH,
    TITLES_ROWS,
)
from serving.bundle.ids import ARTWORK_TABLE_PREFIXES, TITLE_TABLE_PREFIXES, add_id_encoders

OPSET = 20
IR_VERSION = 10
"""ONNX Runtime 1.18 and newer read it; 1.19 is the oldest that all golden cases hold in."""
NOTES = {"metadata_props", "doc_string"}
"""Fields of ONNX's messages that nothing reads which runs a graph."""
BY_PLAY = ("history_title", "history_artwork", "history_watched")
ONE_NUMBER = VECTORS[2:]
"""Those of the vectors that are one number."""
BY_WORD = ("depicts_people", "depicts_genres", "genres", "cast")


def build_graphs(ranking: Ranking, vocabularies: Vocabularies, example: dict[str, np.ndarray]) -> dict[str, ModelProto]:
    """Every graph of the bundle but those of `build_tower_graphs`, by file name; `example`: requests over rows to trace with."""
    whole, choose = Whole(ranking), Choose(ranking)
    parts = {name: torch.from_numpy(values) for name, values in example.items()}
    with torch.no_grad():
        outputs = dict(zip(whole.outputs, whole(*(parts[name] for name in whole.inputs)), strict=True))
    parts |= {"member": outputs["member"], "played_before": torch.zeros(len(parts["title"]), dtype=torch.bool)}
    parts |= {"artwork": parts["title"], "clicked": torch.zeros(len(parts["title"]))}
    with marked(ranking) as marks:
        traces = [traced(whole, whole.inputs, whole.outputs, parts)]
        traces.append(traced(choose, choose.inputs, CHOOSE_OUTPUTS, parts))
        if ranking.reads_past:
            traces.append(traced(Update(ranking), Update.inputs, ("updated",), parts))
    for model in traces:
        name_tables(model, marks)
    _read_shapes_from(traces[0], ("history_length", "history_title", *PAST[:1]))
    extract = Extractor(traces[0]).extract_model
    rank, member = extract([*ranking.inputs], [*OUTPUTS]), extract([*ranking.history], [*MEMBER_OUTPUTS])
    explain = extract([*ranking.inputs], [*whole.terms, "appeal"])
    _any_people(explain)
    choose, titles = traces[1], _titles(ranking)
    graphs = {"rank.onnx": rank, "member.onnx": member, "choose.onnx": choose}
    graphs |= {"choose_vectors.onnx": _choose_vectors(choose), "titles.onnx": titles}
    if ranking.reads_past:
        graphs["update.onnx"] = traces[2]
    by_rows = {RANK_ROWS: rank, MEMBER_ROWS: member, CHOOSE_ROWS: choose, TITLES_ROWS: titles, EXPLAIN_ROWS: explain}
    return {name: add_id_encoders(graph, vocabularies) for name, graph in graphs.items()} | by_rows


def _read_shapes_from(model: ModelProto, names: Sequence[str]) -> None:
    """Let lengths of axes that nodes take from inputs be those of the values `names`, so that a part without these inputs has
    them; the tracer takes each from any input that has the axis."""
    shape_of = {part.name: part.type.tensor_type.shape.dim for part in (*model.graph.input, *model.graph.value_info)}
    axis_of = {
        dim.dim_param: (name, axis)
        for name in reversed(names)
        if name in shape_of
        for axis, dim in enumerate(shape_of[name])
    }
    inputs = {part.name for part in model.graph.input}
    for node in model.graph.node:
        if node.op_type == "Shape" and node.input[0] in inputs:
            span = {attribute.name: attribute.i for attribute in node.attribute}
            axis = span.get("start", 0)
            assert span.get("end") == axis + 1, f"{node.name}: takes more than one length of {node.input[0]}"
            name, axis = axis_of[shape_of[node.input[0]][axis].dim_param]
            node.CopyFrom(helper.make_node("Shape", [name], [*node.output], start=axis, end=axis + 1))


def _choose_vectors(choose: ModelProto) -> ModelProto:
    """The same graph, of candidates that are given as vectors where it looks artworks up in its tables: the inputs `VECTORS`, the
    parts of `ArtworkEncoding`, (N, K, ...)."""
    given = {node.output[0]: node.input[0] for node in choose.graph.node if node.input and node.input[0] in VECTORS}
    assert sorted(given.values()) == sorted(VECTORS), "each table of artworks is read once"
    without = ModelProto()
    without.CopyFrom(choose)
    _read_shapes_from(without, ("member", *given))
    # fatigue compares ids, 0 for an artwork that is not in the tables
    fatigues = any(part.name == PAST[0] for part in without.graph.input)
    inputs = [part.name for part in without.graph.input if fatigues or part.name != "artworks"]
    extracted = Extractor(without).extract_model([*inputs, *given], [*CHOOSE_OUTPUTS])
    graph, columns = extracted.graph, []
    for part in graph.input:
        if part.name in given:
            value, part.name = part.name, given[part.name]
            shape = part.type.tensor_type.shape
            if part.name in ONE_NUMBER:  # of one number a candidate, rows of length 1
                columns.append(helper.make_node("Unsqueeze", [part.name, "last_axis"], [value]))
                del shape.dim[2:]
            else:
                for node in graph.node:
                    _rename_inputs(node, {value: part.name})
    graph.initializer.append(numpy_helper.from_array(np.array([2]), "last_axis"))
    nodes = [*columns, *graph.node]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return extracted


def build_tower_graphs(artwork: ArtworkVectors, vocabularies: Vocabularies) -> dict[str, ModelProto]:
    """artwork.onnx and title.onnx, which encode new artworks and titles."""
    example = {
        "image": torch.randint(0, 256, (2, 50, 40, 3), dtype=torch.uint8),
        "embedding": torch.randn(2, artwork.vector_length),
        "release_year": torch.tensor([1999.0, torch.nan]),
        # separate tensors: of one tensor given twice a tracer makes one input
        **{name: torch.ones(2, 3, dtype=torch.int64) for name in BY_WORD},
    }
    backbone = "" if artwork.encoder is None else f"backbone={artwork.encoder.config.backbone}: "
    try:
        of_artwork = traced(artwork, artwork.inputs, ARTWORK_OUTPUTS, example)
    except torch.onnx.OnnxExporterError as error:  # a backbone may be the user's
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(
            f"{backbone}{ARTWORK_GRAPH} cannot be exported ({reason}). Change its forward, then export."
        ) from None
    if any(part.type.tensor_type.shape.dim[0].dim_value for part in of_artwork.graph.input):
        raise UserError(
            f"{backbone}{ARTWORK_GRAPH} would take {len(example['image'])} artworks at a time alone. In its forward, take the "
            "number of images from images.shape[0], not from len(images), then export."
        )
    if "image" in artwork.inputs:
        of_artwork = _any_channels(of_artwork)
    of_title = traced(TitleVectors(artwork.model, artwork.limit), TITLE_INPUTS, TITLE_OUTPUTS, example)
    return {
        ARTWORK_GRAPH: add_id_encoders(of_artwork, vocabularies),
        TITLE_GRAPH: add_id_encoders(of_title, vocabularies),
    }


def _any_people(model: ModelProto) -> None:
    """Let artworks show more people than any did in training, as those of a refresh may."""
    (output,) = (part for part in model.graph.output if part.name == "by_person")
    output.type.tensor_type.shape.dim[2].dim_param = "people"
    del model.graph.value_info[:]  # shapes of what lies between


def _any_channels(model: ModelProto) -> ModelProto:
    """The same graph, whose image may be grey, of one channel, or have an alpha channel, which composes it over black, as
    `datamodules.contract.image_decoding` does."""
    graph = model.graph
    constants = {
        name: np.array([value]) for name, value in (("first_channel", 0), ("channels", 3), ("end_of_alpha", 4))
    }
    constants |= {"last_axis": np.array([3]), "rgb_shape": np.array([1, 1, 1, 3])}
    constants["opaque_widths"] = np.array([0, 0, 0, 0, 0, 0, 0, 3])
    constants |= {"opaque": np.array(255, np.uint8), "largest": np.array(255, np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    for node in graph.node:
        node.input[:] = ["image_rgb" if name == "image" else name for name in node.input]
    node = helper.make_node
    nodes = [
        node("Slice", ["image", "first_channel", "channels", "last_axis"], ["image_cut"]),
        # behind one channel or three, what stands in the fourth is opaque
        node("Pad", ["image", "opaque_widths", "opaque"], ["image_padded"]),
        node("Slice", ["image_padded", "channels", "end_of_alpha", "last_axis"], ["alpha"]),
        node("Expand", ["image_cut", "rgb_shape"], ["image_wide"]),
        node("Cast", ["image_wide"], ["image_colours"], to=TensorProto.FLOAT),
        node("Cast", ["alpha"], ["alpha_255"], to=TensorProto.FLOAT),
        node("Div", ["alpha_255", "largest"], ["alpha_share"]),
        node("Mul", ["image_colours", "alpha_share"], ["image_composed"]),
        node("Round", ["image_composed"], ["image_rounded"]),
        node("Cast", ["image_rounded"], ["image_rgb"], to=TensorProto.UINT8),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input[0].type.tensor_type.shape.dim[3].dim_param = "channels"
    return model


def traced(
    module: nn.Module, inputs: Sequence[str], outputs: Sequence[str], example: dict[str, torch.Tensor]
) -> ModelProto:
    """One graph with dynamic requests, history length and candidates; or artworks, sizes of images and words."""
    n, t, k = torch.export.Dim("requests"), torch.export.Dim("plays", max=4096), torch.export.Dim("candidates")
    shapes: dict[str, Any] = {name: {0: n} for name in inputs}
    shapes |= {name: {0: n, 1: t} for name in BY_PLAY if name in inputs}
    j = torch.export.Dim("past")
    shapes |= {name: {0: n, 1: j} for name in PAST if name in inputs}
    shapes |= {name: {0: n, 1: k} for name in inputs if name == "artworks"}
    # of two lists each has a length of its own
    shapes |= {
        name: {0: n, 1: torch.export.Dim("words" if "depicts" in name else name)} for name in BY_WORD if name in inputs
    }
    if "image" in inputs:
        shapes["image"] = {0: n, 1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    variadic = [p.kind for p in signature(module.forward).parameters.values()] == [Parameter.VAR_POSITIONAL]
    # of the exporter and its optimiser, about their own internals
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript.optimizer", "torch.utils._sympy.interp")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            tuple(example[name] for name in inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=[f"input.{name}" for name in inputs],
            output_names=list(outputs),
            dynamic_shapes={"inputs": tuple(shapes[name] for name in inputs)} if variadic else shapes,
            verbose=False,
        )
    for log, level in zip(logs, levels, strict=True):
        log.setLevel(level)
    assert program is not None
    model = program.model_proto
    model.ir_version = IR_VERSION
    _name_inputs(model)
    strip_notes(model)
    return model


def strip_notes(message: Message) -> None:
    """Remove, at any depth, what a tracer notes of the source: paths and lines of the machine that exported, which make two
    exports of one run differ."""
    for name in NOTES.intersection(message.DESCRIPTOR.fields_by_name):
        message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            parts = [value] if isinstance(value, Message) else value
            for part in parts:
                strip_notes(part)


def _name_inputs(model: ModelProto) -> None:
    """Name the inputs of a trace, "input.NAME", as they are called; no value between them and the outputs has such a name.

    An input may be a context feature, whose name is a user's: the tracer calls its own values "add", "cat" or "scale".
    """
    graph = model.graph
    renamed = {part.name: part.name.removeprefix("input.") for part in graph.input}
    outputs = {part.name for part in graph.output}
    between = [name for node in graph.node for name in node.output] + [tensor.name for tensor in graph.initializer]
    renamed |= {name: f"value.{name}" for name in between if name and name not in outputs}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    for part in (*graph.input, *graph.initializer, *graph.value_info):
        part.name = renamed.get(part.name, part.name)


def _titles(ranking: Ranking) -> ModelProto:
    """title_query (N, W), played (N, P), padded, and top (1,) -> titles and scores (N, top), best first.

    A row 0 and a score of -inf, which is the id "", end a list that has no more titles.
    """
    model = ranking.model
    with torch.no_grad():
        vectors_WI = title_vectors(model, torch.arange(len(model.title_year_I))).T.contiguous().numpy()
    constants = {
        "title_vectors": vectors_WI,
        "nothing": np.array(-np.inf, np.float32),
        "zero": np.array(0, np.int64),
        "one": np.array([1], np.int64),
        "first": np.array([0], np.int64),
        "count": np.array([vectors_WI.shape[1]], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["title_query", "title_vectors"], ["all"]),
        # the unknown row, with which `played` is padded, is left out with the titles played
        helper.make_node("Shape", ["played"], ["shape"]),
        helper.make_node("Slice", ["shape", "first", "one"], ["requests"]),
        helper.make_node("Concat", ["requests", "one"], ["a_column"], axis=0),
        helper.make_node("Expand", ["zero", "a_column"], ["unknown"]),
        helper.make_node("Concat", ["played", "unknown"], ["left_out"], axis=1),
        helper.make_node("Shape", ["left_out"], ["left_out_shape"]),
        helper.make_node("Expand", ["nothing", "left_out_shape"], ["nothings"]),
        helper.make_node("ScatterElements", ["all", "left_out", "nothings"], ["rest"], axis=1),
        helper.make_node("Min", ["top", "count"], ["most"]),
        helper.make_node("TopK", ["rest", "most"], ["scores", "best"], axis=1),
        helper.make_node("IsInf", ["scores"], ["none_left"]),
        helper.make_node("Where", ["none_left", "zero", "best"], ["titles"]),
    ]
    graph = helper.make_graph(
        nodes,
        "titles",
        [
            helper.make_tensor_value_info("title_query", TensorProto.FLOAT, ["requests", vectors_WI.shape[0]]),
            helper.make_tensor_value_info("played", TensorProto.INT64, ["requests", "plays"]),
            helper.make_tensor_value_info("top", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("titles", TensorProto.INT64, ["requests", "listed"]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["requests", "listed"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    titles_model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(titles_model)
    return titles_model


FIRST_MARK = 3_000_000.0
"""Whole numbers from here on are exact in float32, and no weight is one."""


@contextmanager
def marked(ranking: Ranking) -> Iterator[dict[str, tuple[float, np.ndarray]]]:
    """Every table of the ranking, by name its mark and what it holds; marked inside the block, itself behind it."""
    tables = [(name, table) for name in ranking.tables if (table := ranking.get_buffer(name)).numel()]
    saved: dict[str, Tensor] = {name: table.clone() for name, table in tables}
    marks: dict[str, tuple[float, np.ndarray]] = {}
    try:
        for index, (name, table) in enumerate(tables):
            assert name.startswith((*TITLE_TABLE_PREFIXES, *ARTWORK_TABLE_PREFIXES, CONTEXT_PREFIX)), name
            marks[name] = FIRST_MARK + index, saved[name].numpy()
            with torch.no_grad():
                table.fill_(FIRST_MARK + index)
        yield marks
    finally:
        with torch.no_grad():
            for name, table in tables:
                table.copy_(saved[name])


def name_tables(model: ModelProto, marks: dict[str, tuple[float, np.ndarray]]) -> None:
    """Name the marked tables of a graph, and fill them."""
    name_of = {mark: name for name, (mark, _) in marks.items()}
    renamed = {}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        name = name_of.get(float(values.flat[0])) if values.dtype in (np.float32, np.int64) and values.size else None
        if name is None:
            continue
        table = marks[name][1]
        assert table.shape == values.shape, f"{name}: the tracer made {values.shape} of {table.shape}"
        renamed[tensor.name] = name
        tensor.CopyFrom(numpy_helper.from_array(table, name))
    assert len(set(renamed.values())) == len(renamed), "a table is in the graph twice"
    for node in model.graph.node:
        _rename_inputs(node, renamed)
    for value in model.graph.value_info:
        value.name = renamed.get(value.name, value.name)


def _rename_inputs(node: NodeProto, renamed: dict[str, str]) -> None:
    for index, name in enumerate(node.input):
        node.input[index] = renamed.get(name, name)
