"""The bundle's graphs: traced from torch or put together here, over ids for a serving team and over rows for bulk work.

    rank.onnx     history, context, title, candidates -> probabilities and terms, in one go
    member.onnx   history -> the member's vectors, to be kept until the member plays again
    choose.onnx   a member's vector, context, title, candidates -> as rank.onnx
    titles.onnx   a member's vector for titles -> the best titles
    explore.onnx  candidates and what rank.onnx told of them -> Thompson sampling's choice: see `export.explore_graph`
    rank_rows.onnx, member_rows.onnx   the first two over rows of the vocabularies

No custom operator; requests, plays and candidates in any number; masks inside.
"""

import logging
import warnings
from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from datamodules.vocabulary import Vocabularies
from export.bundle import MEMBER_ROWS, RANK_ROWS
from export.ids import with_ids
from export.rank_graph import choose_graph, fits, rank_graph
from models.ranking import HISTORY, INPUTS, OUTPUTS, Ranking
from models.serving import CHOOSE_INPUTS, CHOOSE_OUTPUTS, MEMBER_OUTPUTS, Choose, Member

OPSET = 20
IR_VERSION = 10
"""ONNX Runtime 1.18 and newer read it."""
BY_PLAY = ("history_title", "history_artwork", "history_watched", "history_time")


def graphs_of(ranking: Ranking, vocabularies: Vocabularies, example: dict[str, np.ndarray]) -> dict[str, ModelProto]:
    """Every graph of the bundle by file name; `example`: requests over rows to trace with."""
    parts = {name: torch.from_numpy(values) for name, values in example.items()}
    with torch.no_grad():
        parts["member"] = Member(ranking)(*(parts[name] for name in HISTORY))[0]
    parts["played_before"] = torch.zeros(len(parts["title"]), dtype=torch.bool)
    put_together = fits(ranking.model)
    rank = rank_graph(ranking, OPSET, IR_VERSION) if put_together else _traced(ranking, INPUTS, OUTPUTS, parts)
    member = _traced(Member(ranking), HISTORY, MEMBER_OUTPUTS, parts)
    if put_together:
        choose = choose_graph(ranking, OPSET, IR_VERSION)
    else:
        choose = _traced(Choose(ranking), CHOOSE_INPUTS, CHOOSE_OUTPUTS, parts)
    over_ids = {"rank.onnx": rank, "member.onnx": member, "choose.onnx": choose, "titles.onnx": _titles(ranking)}
    found = {name: with_ids(model, vocabularies) for name, model in over_ids.items()}
    return found | {RANK_ROWS: rank, MEMBER_ROWS: member}


def _traced(
    module: nn.Module, inputs: Sequence[str], outputs: Sequence[str], example: dict[str, torch.Tensor]
) -> ModelProto:
    """One graph with dynamic requests, history length and candidates."""
    n, t, k = torch.export.Dim("requests"), torch.export.Dim("plays", max=4096), torch.export.Dim("candidates")
    shapes = {name: {0: n} for name in inputs}
    shapes |= {name: {0: n, 1: t} for name in BY_PLAY if name in inputs}
    shapes |= {"artworks": {0: n, 1: k}} if "artworks" in inputs else {}
    # of the exporter and its optimiser, about their own internals
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript.optimizer")]
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
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            verbose=False,
        )
    for log, level in zip(logs, levels, strict=True):
        log.setLevel(level)
    assert program is not None
    found = program.model_proto
    found.ir_version = IR_VERSION
    return found


def _titles(ranking: Ranking) -> ModelProto:
    """titles_member (N, W), played (N, P), padded, and top (1,) -> titles and scores (N, top), best first.

    A row 0 and a score of -inf, which is the id "", end a list that has no more titles.
    """
    model = ranking.model
    with torch.no_grad():
        vectors_WI = model.title_vectors(torch.arange(len(model.title_year_I))).T.contiguous().numpy()
    constants = {
        "title_vectors": vectors_WI,
        "nothing": np.array(-np.inf, np.float32),
        "zero": np.array(0, np.int64),
        "one": np.array([1], np.int64),
        "first": np.array([0], np.int64),
        "count": np.array([vectors_WI.shape[1]], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["titles_member", "title_vectors"], ["all"]),
        # the unknown row is left out with those played: it is what `played` is padded with
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
            helper.make_tensor_value_info("titles_member", TensorProto.FLOAT, ["requests", vectors_WI.shape[0]]),
            helper.make_tensor_value_info("played", TensorProto.INT64, ["requests", "plays"]),
            helper.make_tensor_value_info("top", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("titles", TensorProto.INT64, ["requests", "listed"]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["requests", "listed"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(found)
    return found
