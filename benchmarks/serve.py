"""`keyart bench serve`: the time of a request on one core, beside torch eager, torch.compile and torch-rechub's own export.

A request is a history, a context, a title and its candidates; every subject answers the same random requests with one thread,
in turn. `keyart` takes ids, as in serving (rank.onnx, or member.onnx and choose.onnx; `kept` is choose.onnx only, for a member
whose vector is stored); `keyart, rows` is the same graph over rows, and so are torch eager and torch.compile of the same
module. torch-rechub is its DSSM of equal width, exported by its own exporter, over rows: the member's tower, the item's tower
for each candidate (it depends on the item only, so that with stored vectors only the member's tower is left), and their dot
products. It reads the history's titles only, no time, position or engagement. `keyart, fp16` and `keyart, int8` are the
reduced-precision graphs (`serving.bundle.precision`), over ids, measured whether or not a bundle of this run would ship them.
OpenVINO runs rank_rows.onnx, in a process of its own, in the ways that `benchmarks.openvino_turns` names; by its defaults on all
cores. `shapes vary`: calls of other numbers of plays and candidates in turn, as requests have them.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from rich.console import Console

from benchmarks.openvino_peer import NAME as OPENVINO
from benchmarks.openvino_peer import OpenVino, openvino
from benchmarks.ranges import require_at_least
from benchmarks.side_by_side import PEER, PEER_VERSION
from benchmarks.subprocess_usage import measure
from benchmarks.table import OURS, Row
from datamodules.prepare.prepare import prepare
from datamodules.simulator.simulate import SimulateConfig, simulate
from export.export import export, random_requests
from foundation.errors import UserError
from models.ranking import Ranking
from serving.bundle.bundle import RANK_ROWS
from serving.bundle.golden import UNKNOWN_ID
from serving.bundle.ids import vocabulary_of
from serving.bundle.precision_bounds import PRECISIONS
from serving.bundle.variants import write_variant
from train.config import FitConfig
from train.embed import EmbedConfig, embed
from train.fit import fit
from train.run import Run

NAME = "serve"
TOTAL_REQUESTS = 20_000_000
"""Requests a second of the whole service."""
WARMUP_CALLS = 20
SHAPES = 64
"""Requests of other shapes that take turns."""
CUDA = "CUDA"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the benchmark."""

    run: str = ""
    """A run's folder; default: a simulated service, trained for one epoch."""
    plays: int = 50
    """Plays of every history."""
    candidates: int = 20
    """Candidates of every request."""
    batches: tuple[int, ...] = (1, 16, 64, 256)
    """Requests per call."""
    rounds: int = 5
    """Turns of every subject, at every number of requests."""
    seconds: float = 0.3
    """Duration of a turn."""
    compile: bool = True
    """Whether torch.compile is measured: a minute or two, needs a C++ compiler."""
    peer: bool = True
    """Whether torch-rechub and OpenVINO are measured, each in an environment of its own."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_at_least(self, plays=1, candidates=1, rounds=1)
        if not self.batches or min(self.batches) < 1 or not self.seconds > 0:
            raise UserError(f"batches={self.batches}, seconds={self.seconds}: must be above 0.")


Call = Callable[[], object]
Turn = Callable[[float], list[float]]
"""A turn of so many seconds -> the seconds of every call in it."""


def bench(config: Config, console: Console) -> list[Row]:
    """Measure every subject in turn; subjects that are left out are reported on the console, with the reason."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="keyart-bench-") as folder, ExitStack() as stack:
            work = Path(folder)
            run = Run.open(Path(config.run) if config.run else trained(work, console))
            bundle = export(run.model, run.vocabularies, work / "bundle", origin={}, console=Console(quiet=True))
            for kind in PRECISIONS:
                write_variant(bundle.folder, kind)
            ranking = Ranking(run.model.eval()).eval()
            towers = _peer(run, work, config, console)
            vino = _openvino(bundle.folder / RANK_ROWS, work, stack, config, console)
            if not _has_cuda():
                console.print(f"bench {NAME}: {CUDA} left out: this ONNX Runtime has no such provider")
            rows: list[Row] = []
            for n in config.batches:
                shape = (config.plays, n, config.plays, config.candidates)
                requests = random_requests(run.vocabularies, run.model.sizes.context, *shape, seed=n, full=True)
                varied = _varied(run, n, config)
                calls = _ours(bundle.folder, requests, varied, run) | _torch(ranking, requests, config, console)
                if towers is not None:
                    calls[PEER, "whole"] = _towers(*towers, requests, run)
                subjects = {key: turn_of(call) for key, call in calls.items()}
                if vino is not None:
                    expected = _outputs(_session(bundle.folder / RANK_ROWS), requests)
                    of_vino, differences = _of_openvino(vino, requests, varied, expected, n)
                    subjects |= of_vino
                    rows += differences
                rows += _timed(subjects, n, config)
            return rows + _cores(rows)
    finally:
        torch.set_num_threads(threads)


def trained(work: Path, console: Console) -> Path:
    """Simulate a service, train a ranker on it and return the run's folder."""
    console.print(f"bench {NAME}: simulates a service and trains a ranker for one epoch")
    quiet = Console(quiet=True)
    simulate(work / "service", SimulateConfig(members=1000, titles=400, people=100))
    prepare(work / "service", work / "shards", console=quiet)
    embed(work / "service", work / "shards", EmbedConfig(views=640), console=quiet)
    fit(work / "shards", work / "run", FitConfig(epochs=1, validations_per_epoch=1), console=quiet)
    return work / "run"


def _has_cuda() -> bool:
    return f"{CUDA}ExecutionProvider" in ort.get_available_providers()


def _session(path: Path, provider: str = "CPU") -> ort.InferenceSession:
    """A session of one thread, on the CPU or the given provider."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=[f"{provider}ExecutionProvider"])


def _call(session: ort.InferenceSession, *requests: Mapping[str, np.ndarray]) -> Call:
    """A call that answers the next of the requests, which take turns."""
    names = [part.name for part in session.get_inputs()]
    inputs = cycle([{name: request[name] for name in names} for request in requests])
    return lambda: session.run(None, next(inputs))


def _outputs(session: ort.InferenceSession, request: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [part.name for part in session.get_outputs()]
    return dict(zip(names, _call(session, request)(), strict=True))  # pyright: ignore[reportArgumentType, reportCallIssue]


def _varied(run: Run, n: int, config: Config) -> list[dict[str, np.ndarray]]:
    """Requests of random numbers of plays and candidates, up to the configured ones."""
    rng, context = np.random.default_rng(n), run.model.sizes.context
    shapes = zip(rng.integers(1, config.plays + 1, SHAPES), rng.integers(1, config.candidates + 1, SHAPES), strict=True)
    return [
        random_requests(run.vocabularies, context, config.plays, n, int(plays), int(k), seed=seed, full=True)
        for seed, (plays, k) in enumerate(shapes)
    ]


def _ours(
    bundle: Path, rows: dict[str, np.ndarray], varied: list[dict[str, np.ndarray]], run: Run
) -> dict[tuple[str, str], Call]:
    """Calls of keyart's graphs: whole requests over ids and over rows, in two steps, and in reduced precision."""
    ids = dict(rows)
    for name in rows:
        if (vocabulary := vocabulary_of(name, run.vocabularies)) is not None:
            ids[name] = np.array([UNKNOWN_ID, *vocabulary.values], object)[rows[name]]
    member, choose = _session(bundle / "member.onnx"), _session(bundle / "choose.onnx")
    ids |= _outputs(member, ids)
    ids["played_before"] = np.zeros(len(rows["title"]), bool)
    run_member, run_choose = _call(member, ids), _call(choose, ids)
    variants: dict[tuple[str, str], Call] = {}
    for kind in PRECISIONS:
        for what, graph in (("whole", "rank.onnx"), ("kept", "choose.onnx")):
            variants[f"{OURS}, {kind}", what] = _call(_session(bundle / kind / graph), ids)
    return (
        variants
        | {
            (OURS, "whole"): _call(_session(bundle / "rank.onnx"), ids),
            (OURS, "member, then choose"): lambda: (run_member(), run_choose()),
            (OURS, "kept"): run_choose,
            (f"{OURS}, rows", "whole"): _call(_session(bundle / RANK_ROWS), rows),
            (f"{OURS}, rows", "shapes vary"): _call(_session(bundle / RANK_ROWS), *varied),
        }
        | ({(f"{OURS}, {CUDA}", "whole"): _call(_session(bundle / RANK_ROWS, CUDA), rows)} if _has_cuda() else {})
    )


def _torch(
    ranking: Ranking, rows: dict[str, np.ndarray], config: Config, console: Console
) -> dict[tuple[str, str], Call]:
    inputs = tuple(torch.from_numpy(rows[name]) for name in ranking.inputs)

    def eager() -> object:
        with torch.inference_mode():
            return ranking(*inputs)

    results: dict[tuple[str, str], Call] = {("torch eager", "whole"): eager}
    if config.compile:
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            console.print(f"bench {NAME}: torch.compile left out: no C++ compiler is installed")
            return results
        torch.compiler.reset()
        compiled = torch.compile(ranking, dynamic=False)

        def compiled_call() -> object:
            with torch.inference_mode():
                return compiled(*inputs)

        results["torch.compile", "whole"] = compiled_call
    return results


def _peer(
    run: Run, work: Path, config: Config, console: Console
) -> tuple[ort.InferenceSession, ort.InferenceSession, np.ndarray] | None:
    """torch-rechub's two exported towers, and the image embeddings they read; None where it is left out."""
    uv = shutil.which("uv")
    if not config.peer or uv is None:
        why = "uv, which makes its environment, is not installed" if config.peer else "peer=false"
        console.print(f"bench {NAME}: {PEER} left out: {why}")
        return None
    folder = work / "rechub"
    folder.mkdir()
    model, image = run.model, run.model.artwork_image_AE.numpy()
    sizes = [model.config.width, config.plays, len(model.title_year_I), *image.shape]
    arguments = [uv, "run", "--quiet", "--isolated", "--no-project", "--with", PEER_VERSION, "--with", "onnx"]
    arguments += [
        "--with",
        "onnxscript",
        "python",
        "-P",
        str(Path(__file__).with_name("rechub_export.py")),
        str(folder),
    ]
    try:
        measure([*arguments, *map(str, sizes)])
    except UserError as error:
        console.print(f"bench {NAME}: {PEER} left out: {error}")
        return None
    return _session(folder / "user.onnx"), _session(folder / "item.onnx"), image


def _towers(
    user: ort.InferenceSession, item: ort.InferenceSession, image: np.ndarray, rows: dict[str, np.ndarray], run: Run
) -> Call:
    history = rows["history_title"]
    country, device = rows["country"].clip(max=7), rows["device"].clip(max=7)
    user_inputs = {"user_history": history, "user_country": country, "user_device": device}
    artworks = rows["artworks"]
    item_inputs = {
        "item_title": np.repeat(rows["title"], artworks.shape[1]),
        "item_artwork": artworks.ravel(),
        "item_image": image[artworks.ravel()],
    }
    run_user, run_item = _call(user, user_inputs), _call(item, item_inputs)

    def call() -> object:
        member_ND = np.asarray(run_user()[0])  # pyright: ignore[reportIndexIssue]
        item_NKD = np.asarray(run_item()[0])  # pyright: ignore[reportIndexIssue]
        return np.einsum("nd,nkd->nk", member_ND, item_NKD.reshape(*artworks.shape, -1))

    return call


def _openvino(graph: Path, work: Path, stack: ExitStack, config: Config, console: Console) -> OpenVino | None:
    """OpenVINO with a graph, until the stack ends; None where it is left out."""
    folder = work / "openvino"
    folder.mkdir()
    try:
        if not config.peer:
            raise UserError("peer=false")
        vino = stack.enter_context(openvino(graph, folder))
        vino.start()
    except UserError as error:
        console.print(f"bench {NAME}: {OPENVINO} left out: {error}")
        return None
    return vino


def _of_openvino(
    vino: OpenVino,
    requests: dict[str, np.ndarray],
    varied: list[dict[str, np.ndarray]],
    expected: dict[str, np.ndarray],
    n: int,
) -> tuple[dict[tuple[str, str], Turn], list[Row]]:
    """Its turns, and how far its click probabilities are from ONNX Runtime's."""
    same, other = vino.write(f"same-{n}", [requests]), vino.write(f"other-{n}", varied)
    turns: dict[tuple[str, str], Turn] = {}
    rows: list[Row] = []
    for subject, way in (
        (OPENVINO, "tuned"),
        (f"{OPENVINO}, fixed shapes", "fixed"),
        (f"{OPENVINO}, defaults", "defaults"),
    ):
        probability = vino.answers(same, way)["click_probability"]
        difference = float(np.abs(probability - expected["click_probability"]).max())
        figure = f"click probability, {n} at once, from ONNX Runtime's"
        rows.append(Row(benchmark=NAME, subject=subject, figure=figure, unit="largest difference", value=difference))
        turns[subject, "whole"] = partial(vino.turn, same, way)
    for subject, way in ((OPENVINO, "tuned"), (f"{OPENVINO}, defaults", "defaults")):
        vino.turn(other, way, 0)  # to warm up
        turns[subject, "shapes vary"] = partial(vino.turn, other, way)
    return turns, rows


def turn_of(call: Call) -> Turn:
    """A turn of calls, which are warm."""
    for _ in range(WARMUP_CALLS):
        call()

    def turn(duration: float) -> list[float]:
        seconds, deadline = [], time.perf_counter() + duration
        while (start := time.perf_counter()) < deadline:
            call()
            seconds.append(time.perf_counter() - start)
        return seconds

    return turn


def _timed(subjects: dict[tuple[str, str], Turn], n: int, config: Config) -> list[Row]:
    """Rows of microseconds per request at the median and the 99th percentile of calls, and requests per second."""
    calls: dict[tuple[str, str], list[float]] = {key: [] for key in subjects}
    for _ in range(config.rounds):
        for key, turn in subjects.items():
            calls[key] += turn(config.seconds)
    rows = []
    for (subject, what), seconds in calls.items():
        microseconds = np.array(seconds) / n * 1e6
        for figure, unit, value in (
            ("p50", "us a request", np.median(microseconds)),
            ("p99", "us a request", np.quantile(microseconds, 0.99)),
            ("requests", "1/s a core", 1e6 / microseconds.mean()),
        ):
            name = f"{what}, {n} at once, {figure}"
            rows.append(Row(benchmark=NAME, subject=subject, figure=name, unit=unit, value=float(value)))
    return rows


def _cores(rows: list[Row]) -> list[Row]:
    """Cores for the whole service, from the most efficient number of requests per call."""
    results: dict[tuple[str, str], float] = {}
    for row in rows:
        if row.unit == "1/s a core":
            key = row.subject, row.figure.rsplit(", ", 2)[0]
            results[key] = max(results.get(key, 0.0), row.value)
    return [
        Row(
            benchmark=NAME,
            subject=s,
            figure=f"{what}: cores for {TOTAL_REQUESTS:,} requests a second",
            unit="cores",
            value=TOTAL_REQUESTS / v,
        )
        for (s, what), v in results.items()
    ]
