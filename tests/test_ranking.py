"""The served module and its trace say what the trained towers say, in every output and at the edges of every table."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto

from export.export import random_requests
from export.graphs import traced
from export.parity import trained_answer
from foundation.context import MAX_POSITION, ContextFeature
from models.history import HistoryConfig, is_rewatch
from models.linear_title_models import LowRankEaseConfig
from models.ranking import OUTPUTS, Ranking
from models.serving import CHOOSE_OUTPUTS, Choose, Whole
from models.two_tower import TwoTower
from models.two_tower_config import TwoTowerConfig
from models.types import KNOTS, Content
from serving.bundle.precision import reduce_graph
from train.run import Run

Request = dict[str, np.ndarray]


def answered(graph: ModelProto, given: Request, names: tuple[str, ...]) -> list[np.ndarray]:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    asked = {part.name: given[part.name] for part in session.get_inputs()}
    return [np.asarray(value) for value in session.run(list(names), asked)]


@lru_cache(maxsize=4)
def served(folder: Path, kind: str) -> tuple[Run, Ranking, ModelProto]:
    """A run, the served module of a ranker like its own, and its trace over rows."""
    run = Run.open(folder)
    model = run.model.eval()
    if kind != "as trained":
        model = of_kind(run.model, kind)
    model.rewatch_gain.data.fill_(0.7)  # of a log where nobody sees a title again it is near 0
    model.coplay_gain.data.fill_(0.5)
    model.engagement.gain.data.fill_(0.3)
    ranking = Ranking(model).eval()
    example = random_requests(
        run.vocabularies, model.sizes.context, model.config.history.reach, 3, 7, 5, seed=0, full=True
    )
    parts = {name: torch.from_numpy(values) for name, values in example.items()}
    return run, ranking, traced(ranking, ranking.inputs, OUTPUTS, parts)


def of_kind(trained: TwoTower, kind: str) -> TwoTower:
    """A ranker whose calibration bends, or one of other parts and of random weights."""
    if kind == "bends":
        trained.calibration[:, 2 + KNOTS :] = torch.linspace(-0.5, 0.5, 2 * KNOTS).view(2, KNOTS)
        return trained
    if kind == "straight":
        trained.calibration[:, 2 + KNOTS :] = 0
        return trained
    history = HistoryConfig(encoder="attention", span=20, layers=2) if kind == "attention" else HistoryConfig(span=9)
    config = TwoTowerConfig(width=16, history=history, coplay=LowRankEaseConfig(rank=0 if kind == "no co-play" else 8))
    content = Content(*(trained.get_buffer(name) for name in Content._fields))
    sizes = trained.sizes
    if kind == "names of operators":
        hour, column = (next(f for f in sizes.context if f.name == name) for name in ("hour", "column"))
        number = ContextFeature(name="exp", kind="number", terms=("appeal", "presentation"), mean=3.0, std=2.0)
        sizes = sizes._replace(
            context=(replace(hour, name="add"), replace(column, name="scale"), number), categories={}
        )
    torch.manual_seed(0)
    model = TwoTower(config, sizes, content).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name or "prior" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def agree(folder: Path, request: Request, kind: str = "as trained") -> None:
    """Whole requests by the trained towers, the served module and its trace; then in two steps, by the served modules."""
    _, ranking, graph = served(folder, kind)
    expected = trained_answer(ranking.model, request)
    given = {name: torch.from_numpy(values) for name, values in request.items()}
    with torch.no_grad():
        ours = ranking(*(given[name] for name in ranking.inputs))
        whole = Whole(ranking)
        outputs = dict(zip(whole.outputs, whole(*(given[name] for name in whole.inputs)), strict=True))
        given["member"] = outputs["member"]
        history = given["history_title"], given["history_length"]
        given["played_before"] = is_rewatch(*history, given["title"], ranking.model.config.history.span)
        choose = Choose(ranking)
        in_steps = choose(*(given[name] for name in choose.inputs))
    for name, module, trace in zip(OUTPUTS, ours, answered(graph, request, OUTPUTS), strict=True):
        np.testing.assert_allclose(module.numpy(), expected[name], atol=2e-6, rtol=2e-6, err_msg=name)
        np.testing.assert_allclose(trace, expected[name], atol=2e-6, rtol=2e-6, err_msg=f"{name}, traced")
    for name, values in zip(CHOOSE_OUTPUTS, in_steps, strict=True):
        np.testing.assert_allclose(
            values.numpy(), expected[name], atol=2e-6, rtol=2e-6, err_msg=f"{name}, in two steps"
        )


SIZES = [(1, 1, 1), (40, 30, 7), (3, 0, 4), (6, 260, 2)]


@pytest.mark.parametrize(("n", "plays", "candidates"), SIZES)
def test_it_is_the_towers(run: Path, n: int, plays: int, candidates: int) -> None:
    """No play at all, and more than any history is read of, among them."""
    opened, ranking, _ = served(run, "as trained")
    assert plays < 260 or plays > ranking.model.config.history.span
    agree(run, random_requests(opened.vocabularies, ranking.features, plays, n, plays, candidates, seed=n))


@pytest.mark.parametrize("kind", ["bends", "straight", "attention", "no co-play", "names of operators"])
def test_of_every_kind(run: Path, kind: str) -> None:
    opened, ranking, _ = served(run, kind)
    reach = ranking.model.config.history.reach
    agree(run, random_requests(opened.vocabularies, ranking.features, reach, 40, 30, 5, seed=1), kind)


def test_at_the_edges(run: Path) -> None:
    """Places off the page, counts without end, titles seen again, and an unknown title that is no other unknown one."""
    opened, ranking, _ = served(run, "as trained")
    request = random_requests(opened.vocabularies, ranking.features, 12, 64, 12, 6, seed=2)
    request["history_length"] = np.arange(64) % 13
    request["row"] = np.arange(64) - 1
    request["column"] = np.arange(64)[::-1] * (MAX_POSITION // 8) - 1
    request["play_count"] = np.concatenate([np.arange(40), 2 ** np.arange(8, 32) - 1])
    request["title"][:40] = request["history_title"][:40, 5]
    request["title"][20:30] = request["history_title"][20:30, 3] = 0
    agree(run, request)


def test_an_hour_out_of_range_is_the_nearest_that_is(run: Path) -> None:
    opened, ranking, graph = served(run, "as trained")
    request = random_requests(opened.vocabularies, ranking.features, 2, 1, 2, 2, seed=3)
    for hour, nearest in ((24, 23), (-2, -1)):
        answers = [answered(graph, request | {"hour": np.array([value])}, OUTPUTS) for value in (hour, nearest)]
        for name, beyond, at_edge in zip(OUTPUTS, *answers, strict=True):
            np.testing.assert_array_equal(beyond, at_edge, err_msg=name)


@pytest.mark.parametrize("kind", ["as trained", "attention"])
def test_a_number_of_plays_that_a_request_does_not_have(run: Path, kind: str) -> None:
    """More than it gives, or fewer than none: clamped, alike in torch, in the trace and in its reduced precisions."""
    opened, ranking, graph = served(run, kind)
    reach = ranking.model.config.history.reach
    request = random_requests(opened.vocabularies, ranking.features, reach, 6, 8, 5, seed=3)
    request["history_length"] = np.array([9, 2**40, -1, -(2**62), 8, 0])
    request["title"][:2] = request["history_title"][:2, 0]
    clamped = request | {"history_length": np.array([8, 8, 0, 0, 8, 0])}
    agree(run, clamped, kind)
    for asked in (request, clamped):
        expected = trained_answer(ranking.model, asked)
        np.testing.assert_array_equal(expected["appeal"], trained_answer(ranking.model, clamped)["appeal"])
    with torch.no_grad():
        whole = Whole(ranking)
        answers = [whole(*(torch.from_numpy(asked[name]) for name in whole.inputs)) for asked in (request, clamped)]
    for one, other in zip(*answers, strict=True):
        assert torch.equal(one, other)
    for model in (graph, *(reduce_graph(graph, precision) for precision in ("fp16", "int8"))):
        for one, other in zip(*(answered(model, asked, OUTPUTS) for asked in (request, clamped)), strict=True):
            np.testing.assert_array_equal(one, other)
