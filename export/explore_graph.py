"""explore.onnx: Thompson sampling behind rank.onnx, without a custom operator: which artwork to show, and how likely that was.

The draws and appeals are those of `serving.scoring.thompson`: the artwork's share of the draws, mixed with the uniform policy by
the floor, is its propensity, exactly. `seed`, one per request, selects the draw that decides, and whether the artwork is drawn
uniformly instead, so that the same request with the same seed gets the same artwork.

Legend: N requests, K candidates, D width of an artwork's vector, C content, F = D + 3 features, S draws.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from serving.scoring.thompson import GOLDEN_RATIO, MIX_STEPS, Thompson

INPUTS, OUTPUTS = (
    ("artworks", "candidates", "appeal", "artwork_query", "content_query", "seed"),
    ("choice", "propensity", "policy"),
)

LOW_BITS = np.array(2**32 - 1, np.uint64)


class GraphBuilder:
    """A graph, node by node; strings are names of inputs and outputs of nodes, arrays become constants."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}

    def constant(self, value: NDArray, name: str = "") -> str:
        """The name of a new constant."""
        name = name or f"constant_{len(self.constants)}"
        assert name not in self.constants, f"{name}: made twice"
        self.constants[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def __call__(self, operator: str, *inputs: str | NDArray, name: str = "", **attributes: object) -> str:
        """The name of a new node's output."""
        output = name or f"{operator}_{len(self.nodes)}"
        input_names = [part if isinstance(part, str) else self.constant(part) for part in inputs]
        self.nodes.append(helper.make_node(operator, input_names, [output], **attributes))  # pyright: ignore[reportArgumentType]
        return output

    def modulo(self, operator: str, x: str, by: NDArray) -> str:
        """Mul or Add of 64 bits, modulo 2^64, of uint64 and a constant of uint64.

        On int64, whose bits are the same: ONNX Runtime computes these two on uint64 from 1.21 on only.
        """
        signed = self("Cast", x, to=TensorProto.INT64)
        return self("Cast", self(operator, signed, by.view(np.int64)), to=TensorProto.UINT64)

    def unsqueeze(self, x: str, *axes: int) -> str:
        """With new axes of length 1."""
        return self("Unsqueeze", x, np.array(axes))

    def model(
        self,
        name: str,
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[ValueInfoProto],
        opset: int,
        ir_version: int,
    ) -> ModelProto:
        """The graph, checked."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, list(self.constants.values()))
        model_proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
        onnx.checker.check_model(model_proto)
        return model_proto


def explore_graph(thompson: Thompson, opset: int, ir_version: int) -> ModelProto:
    """The graph over artwork rows, its draws and tables inside."""
    g, s = GraphBuilder(), thompson.draws
    d, c = thompson.vector.shape[1], thompson.content.shape[1]
    vector_NKD = g("Gather", g.constant(thompson.vector, "artwork_vector"), "artworks")
    content_NKC = g("Gather", g.constant(thompson.content, "artwork_content"), "artworks")
    part_of_C3 = np.zeros((c, 3), np.float32)
    width = thompson.part_width
    for part, (begin, end) in enumerate(((0, width), (width, 2 * width), (2 * width, c))):
        part_of_C3[begin:end, part] = 1
    learned_NKD = g("Mul", vector_NKD, g.unsqueeze("artwork_query", 1))
    likeness_NK3 = g("MatMul", g("Mul", content_NKC, g.unsqueeze("content_query", 1)), part_of_C3)
    features_NKF = g("Concat", learned_NKD, likeness_NK3, axis=2)
    drawn_NKS = g("MatMul", features_NKF, thompson.weight_FS.astype(np.float32))
    own_NK1 = g.unsqueeze(g("Gather", g.constant(thompson.own.astype(np.float32), "artwork_own"), "artworks"), 2)
    drawn_NKS = g("Add", drawn_NKS, g("Mul", own_NK1, _normals(g, "artworks", s, thompson.seed)))
    drawn_NKS = g("Add", drawn_NKS, g.unsqueeze("appeal", 2))

    count = g("Gather", g("Shape", "artworks"), np.array(1))
    index_K = g("Range", np.array(0), count, np.array(1))
    mask_NK = g("Less", index_K, g.unsqueeze("candidates", 1))
    drawn_NKS = g("Where", g.unsqueeze(mask_NK, 2), drawn_NKS, np.array(-np.inf, np.float32))
    best_NS = g("ArgMax", drawn_NKS, axis=1, keepdims=0)
    won_NKS = g("Cast", g("Equal", g.unsqueeze(best_NS, 1), g.unsqueeze(index_K, 1)), to=TensorProto.FLOAT)
    share_NK = g("ReduceMean", won_NKS, np.array([2]), keepdims=0)
    # by the floor, some requests are drawn uniformly
    count_N1 = g("Max", g.unsqueeze("candidates", 1), np.array(1))
    uniform_NK = g("Div", g("Cast", mask_NK, to=TensorProto.FLOAT), g("Cast", count_N1, to=TensorProto.FLOAT))
    floor = np.array(thompson.floor, np.float32)
    g("Add", g("Mul", share_NK, 1 - floor), g("Mul", uniform_NK, floor), name="policy")
    bits_N1 = _mixed(g, g("Cast", g.unsqueeze("seed", 1), to=TensorProto.UINT64))
    draw_N1 = g("Cast", g("Mod", bits_N1, np.array(s, np.uint64)), to=TensorProto.INT64)
    best_N1 = g("GatherElements", best_NS, draw_N1, axis=1)
    more_N1 = _mixed(g, g.modulo("Add", bits_N1, np.array(GOLDEN_RATIO, np.uint64)))
    any_N1 = g("Mod", g("BitwiseAnd", more_N1, LOW_BITS), g("Cast", count_N1, to=TensorProto.UINT64))
    explored_N1 = g("Less", _uniform(g, more_N1), floor)
    choice_N1 = g("Where", explored_N1, g("Cast", any_N1, to=TensorProto.INT64), best_N1)
    g("Squeeze", choice_N1, np.array([1]), name="choice")
    g("Squeeze", g("GatherElements", "policy", choice_N1, axis=1), np.array([1]), name="propensity")

    def value(name: str, kind: int, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    whole, real = TensorProto.INT64, TensorProto.FLOAT
    n_k: Sequence[str] = ("requests", "shown")
    inputs = [value("artworks", whole, *n_k), value("candidates", whole, "requests"), value("appeal", real, *n_k)]
    inputs += [
        value("artwork_query", real, "requests", d),
        value("content_query", real, "requests", c),
        value("seed", whole, "requests"),
    ]
    outputs = [value("choice", whole, "requests"), value("propensity", real, "requests"), value("policy", real, *n_k)]
    return g.model("explore", inputs, outputs, opset, ir_version)


def _mixed(g: GraphBuilder, x: str) -> str:
    """`serving.scoring.thompson.mixed`, on uint64."""
    for shift, factor in MIX_STEPS:
        shifted = g("BitShift", x, np.array(shift, np.uint64), direction="RIGHT")
        x = g("BitwiseXor", x, shifted)
        x = g.modulo("Mul", x, np.array(factor, np.uint64)) if factor else x
    return x


def _normals(g: GraphBuilder, rows: str, draws: int, seed: int) -> str:
    """`serving.scoring.thompson.normals` of the rows, (N, K, S)."""
    counter = g("Add", g("Mul", g.unsqueeze(rows, 2), np.array(2 * draws)), 2 * np.arange(draws))
    begin = np.array((1 + seed * GOLDEN_RATIO) % 2**64, np.uint64)
    first = _mixed(g, g.modulo("Add", g("Cast", counter, to=TensorProto.UINT64), begin))
    second = _mixed(g, g.modulo("Add", first, np.array(GOLDEN_RATIO, np.uint64)))

    u = g("Add", _uniform(g, first), np.array(2**-25, np.float32))
    long = g("Sqrt", g("Mul", g("Log", u), np.array(-2, np.float32)))
    return g("Mul", long, g("Cos", g("Mul", _uniform(g, second), np.array(2 * np.pi, np.float32))))


def _uniform(g: GraphBuilder, bits: str) -> str:
    """The highest 24 of 64 random bits as a number in 0 .. 1, float32."""
    high = g("BitShift", bits, np.array(40, np.uint64), direction="RIGHT")
    return g("Mul", g("Cast", high, to=TensorProto.FLOAT), np.array(2**-24, np.float32))
