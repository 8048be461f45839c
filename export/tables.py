"""The catalogue's tables inside the graphs: which initializer is which, so that rows can be added behind.

A tracer names constants as it likes, and two tables may hold the same. So each is filled with a number of its own while
graphs are traced; by that number it is found in a graph, named, and given back what it holds.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor

from export.ids import OF_ARTWORKS, OF_TITLES
from models.ranking import Ranking

FIRST_MARK = 3_000_000.0
"""Whole numbers from here on are exact in float32, and no weight is one."""


@contextmanager
def marked(ranking: Ranking) -> Iterator[dict[str, tuple[float, np.ndarray]]]:
    """Every table of the ranking, by name its mark and what it holds; marked inside the block, itself behind it."""
    tables = [(name, table) for name, table in ranking.named_buffers(recurse=False) if table.numel()]
    kept: dict[str, Tensor] = {name: table.clone() for name, table in tables}
    found: dict[str, tuple[float, np.ndarray]] = {}
    try:
        for place, (name, table) in enumerate(tables):
            assert name.startswith((*OF_TITLES, *OF_ARTWORKS)), name
            found[name] = FIRST_MARK + place, kept[name].numpy()
            with torch.no_grad():
                table.fill_(FIRST_MARK + place)
        yield found
    finally:
        with torch.no_grad():
            for name, table in tables:
                table.copy_(kept[name])


def name_tables(model: ModelProto, marks: dict[str, tuple[float, np.ndarray]]) -> None:
    """Name the marked tables of a graph, and fill them."""
    name_of = {mark: name for name, (mark, _) in marks.items()}
    renamed = {}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        mark = float(values.flat[0]) if values.dtype == np.float32 and values.size else 0.0
        if mark < FIRST_MARK:
            continue
        name = name_of[mark]
        table = marks[name][1]
        assert table.shape == values.shape, f"{name}: the tracer made {values.shape} of {table.shape}"
        renamed[tensor.name] = name
        tensor.CopyFrom(numpy_helper.from_array(table, name))
    assert len(set(renamed.values())) == len(renamed), "a table stands in the graph twice"
    for node in model.graph.node:
        _point(node, renamed)
    for value in model.graph.value_info:
        value.name = renamed.get(value.name, value.name)


def _point(node: NodeProto, renamed: dict[str, str]) -> None:
    for place, name in enumerate(node.input):
        node.input[place] = renamed.get(name, name)
