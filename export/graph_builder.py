"""Building of ONNX graphs node by node."""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper


class GraphBuilder:
    """Collects nodes and constants; string arguments are names of existing values, arrays become constants."""

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
        self._add(operator, inputs, [output], attributes)
        return output

    def split(self, x: str, sizes: Sequence[int]) -> list[str]:
        """The names of the parts of `x` along the last axis, of some lengths."""
        outputs = [f"Split_{len(self.nodes)}_{index}" for index in range(len(sizes))]
        self._add("Split", [x, np.array(sizes)], outputs, {"axis": -1})
        return outputs

    def unsqueeze(self, x: str, *axes: int) -> str:
        """The name of `x` with new axes of length 1."""
        return self("Unsqueeze", x, np.array(axes))

    def model(
        self,
        name: str,
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[ValueInfoProto],
        opset: int,
        ir_version: int,
    ) -> ModelProto:
        """The model of all nodes so far, checked."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, list(self.constants.values()))
        model_proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
        onnx.checker.check_model(model_proto)
        return model_proto

    def _add(
        self, operator: str, inputs: Sequence[str | NDArray], outputs: Sequence[str], attributes: dict[str, object]
    ) -> None:
        input_names = [part if isinstance(part, str) else self.constant(part) for part in inputs]
        self.nodes.append(helper.make_node(operator, input_names, outputs, **attributes))  # pyright: ignore[reportArgumentType]
