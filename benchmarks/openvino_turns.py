"""OpenVINO runs a graph of a bundle, in turns; runs in an environment with openvino and numpy, and does not import keyart.

`python openvino_turns.py GRAPH` reads a JSON line a turn: `requests`, an .npz file of requests' inputs, each named NUMBER.INPUT,
which take turns; `way`, one of those below; `seconds`, the duration of the turn; and, where it is given, `answers`, a file for the
first request's outputs. It answers each with a JSON line, the seconds of every call. An empty object asks whether it runs.

    tuned     one thread, float32, the hint for latency; the graph's own shapes; one request object, reused
    fixed     the same of a graph whose shapes are fixed to those of the first request
    defaults  no option at all, called by a dictionary
"""

import json
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import openvino as ov  # pyright: ignore

TUNED = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
WARMUP_CALLS = 20


def read_requests(path: Path) -> list[dict[str, np.ndarray]]:
    """Requests by number."""
    requests: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path) as file:
        for key in file.files:
            number, _, name = key.partition(".")
            requests.setdefault(int(number), {})[name] = file[key]
    return [requests[number] for number in sorted(requests)]


def compiled(graph: Path, way: str, requests: list[dict[str, np.ndarray]]) -> Callable[[], dict[str, np.ndarray]]:
    """A call that answers the next request, and returns copies of the outputs by name."""
    core = ov.Core()
    model = core.read_model(graph)
    inputs = [port.get_any_name() for port in model.inputs]
    outputs = [port.get_any_name() for port in model.outputs]
    if way == "fixed":
        model.reshape({name: list(requests[0][name].shape) for name in inputs})
    executable = core.compile_model(model, "CPU", {} if way == "defaults" else TUNED)
    if way == "defaults":
        by_name = cycle([{name: request[name] for name in inputs} for request in requests])
        return lambda: dict(zip(outputs, executable(next(by_name)).values(), strict=True))
    request, given = executable.create_infer_request(), cycle([[r[name] for name in inputs] for r in requests])

    def call() -> dict[str, np.ndarray]:
        for index, values in enumerate(next(given)):
            request.set_input_tensor(index, ov.Tensor(values))
        request.infer()
        return {name: request.get_output_tensor(index).data.copy() for index, name in enumerate(outputs)}

    return call


def main(graph: Path) -> None:
    """Take turns until the input ends."""
    calls: dict[tuple[str, str], Callable[[], dict[str, np.ndarray]]] = {}
    for line in sys.stdin:
        turn = json.loads(line)
        if not turn:  # only whether it runs
            print("[]", flush=True)
            continue
        key = turn["requests"], turn["way"]
        if key not in calls:
            calls[key] = compiled(graph, turn["way"], read_requests(Path(turn["requests"])))
            first = calls[key]()
            if "answers" in turn:
                np.savez(turn["answers"], **first)  # pyright: ignore[reportArgumentType], its first option is no array
            for _ in range(WARMUP_CALLS):
                calls[key]()
        call, seconds, deadline = calls[key], [], time.perf_counter() + turn["seconds"]
        while (start := time.perf_counter()) < deadline:
            call()
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
