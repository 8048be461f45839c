"""The graphs put together by hand say what the torch module says, in every output and at the edges of every table."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto

from export.export import random_requests
from export.graphs import IR_VERSION, OPSET
from export.rank_graph import can_assemble, choose_graph, rank_graph
from foundation.context import MAX_POSITION
from models.ranking import HISTORY, OUTPUTS, Ranking
from models.serving import CHOOSE_OUTPUTS, Choose, Member
from models.types import KNOTS
from train.run import Run

Request = dict[str, np.ndarray]


def answered(graph: ModelProto, given: Request, names: tuple[str, ...]) -> list[np.ndarray]:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {part.name: given[part.name] for part in session.get_inputs()}
    return [np.asarray(value) for value in session.run(list(names), inputs)]


def agree(run: Run, request: Request, bends: bool = False) -> None:
    """Both graphs beside both modules."""
    model = deepcopy(run.model).eval()
    if bends:
        model.calibration[:, 2 + KNOTS :] = torch.linspace(-0.5, 0.5, 2 * KNOTS).view(2, KNOTS)
    model.rewatch_gain.data.fill_(0.7)  # near 0 after training on a log in which no title is seen twice
    model.coplay_gain.data.fill_(0.5)
    model.engagement.gain.data.fill_(0.3)
    ranking = Ranking(model).eval()
    given = {name: torch.from_numpy(values) for name, values in request.items()}
    with torch.no_grad():
        expected = ranking(*(given[name] for name in ranking.inputs))
        for name, ours, theirs in zip(
            OUTPUTS, expected, answered(rank_graph(ranking, OPSET, IR_VERSION), request, OUTPUTS), strict=True
        ):
            np.testing.assert_allclose(theirs, ours.numpy(), atol=2e-6, rtol=2e-6, err_msg=name)
        given["member"] = Member(ranking)(*(given[name] for name in HISTORY))[0]
        before = (request["history_title"] == request["title"][:, None]).any(1)
        given["played_before"] = torch.from_numpy(before)
        choose = Choose(ranking)
        expected = choose(*(given[name] for name in choose.inputs))
    inputs = request | {"member": given["member"].numpy(), "played_before": before}
    outputs = answered(choose_graph(ranking, OPSET, IR_VERSION), inputs, CHOOSE_OUTPUTS)
    for name, ours, theirs in zip(CHOOSE_OUTPUTS, expected, outputs, strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), atol=2e-6, rtol=2e-6, err_msg=name)


@pytest.mark.parametrize(("n", "plays", "candidates"), [(1, 1, 1), (40, 30, 7), (3, 0, 4), (6, 260, 2)])
def test_it_is_the_module(run: Path, n: int, plays: int, candidates: int) -> None:
    """No play at all, and more than any history is read of, among them."""
    opened = Run.open(run)
    assert can_assemble(opened.model)
    assert plays < 260 or plays > opened.model.config.history.span
    agree(opened, random_requests(opened.vocabularies, opened.model.sizes.context, plays, n, plays, candidates, seed=n))


def test_bends_count(run: Path) -> None:
    opened = Run.open(run)
    agree(opened, random_requests(opened.vocabularies, opened.model.sizes.context, 9, 20, 9, 5, seed=1), bends=True)


def test_at_the_edges(run: Path) -> None:
    """Positions off the page, large counts, titles seen again, and unknown titles, which do not equal each other."""
    opened = Run.open(run)
    request = random_requests(opened.vocabularies, opened.model.sizes.context, 12, 64, 12, 6, seed=2)
    request["history_length"] = np.arange(64) % 13
    request["row"] = np.arange(64) - 1
    request["column"] = np.arange(64)[::-1] * (MAX_POSITION // 8) - 1
    request["play_count"] = np.concatenate([np.arange(40), 2 ** np.arange(8, 32) - 1])
    request["title"][:40] = request["history_title"][:40, 5]
    request["title"][20:30] = request["history_title"][20:30, 3] = 0
    agree(opened, request)


def test_an_hour_out_of_range_is_refused(run: Path) -> None:
    opened = Run.open(run)
    request = random_requests(opened.vocabularies, opened.model.sizes.context, 2, 1, 2, 2, seed=3) | {
        "hour": np.array([24])
    }
    with pytest.raises(Exception, match="out of data bounds"):
        answered(rank_graph(Ranking(opened.model.eval()), OPSET, IR_VERSION), request, OUTPUTS)
