"""OpenVINO as a peer of ONNX Runtime: the same graph over rows, in a process and an environment of its own, in turns with ours."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foundation.errors import UserError

NAME, VERSION = "OpenVINO", "openvino==2026.4.1"


@dataclass(frozen=True)
class OpenVino:
    """A running process of `benchmarks.openvino_turns` for one graph."""

    process: subprocess.Popen[str]
    folder: Path
    """For files that both read."""

    def start(self) -> None:
        """Wait until its environment is made. UserError where that fails."""
        self._ask({})

    def write(self, name: str, requests: Sequence[Mapping[str, np.ndarray]]) -> Path:
        """Write requests that take turns, to be named in `turn`."""
        path = self.folder / f"{name}.npz"
        arrays = {f"{number}.{key}": values for number, one in enumerate(requests) for key, values in one.items()}
        np.savez(path, **arrays)  # pyright: ignore[reportArgumentType], its first option is no array
        return path

    def turn(self, requests: Path, way: str, seconds: float) -> list[float]:
        """Seconds of every call in a turn; the first turn compiles, and calls a few times to warm up. UserError where it fails."""
        return self._ask({"requests": str(requests), "way": way, "seconds": seconds})

    def answers(self, requests: Path, way: str) -> dict[str, np.ndarray]:
        """The outputs of the first request, by name; before any turn of the same."""
        path = self.folder / f"{requests.stem}-{way}-answers.npz"
        self._ask({"requests": str(requests), "way": way, "seconds": 0, "answers": str(path)})
        with np.load(path) as file:
            return {name: file[name] for name in file.files}

    def _ask(self, turn: dict[str, object]) -> list[float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(turn) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            lines = (self.folder / "stderr").read_text("utf-8", "replace").strip().splitlines() or ["it wrote nothing"]
            raise UserError(f"{NAME}: failed (exit {self.process.returncode}): {lines[-1][:300]}")
        return json.loads(line)


@contextmanager
def openvino(graph: Path, folder: Path) -> Iterator[OpenVino]:
    """Start it for a graph; it ends with the block. UserError where uv, which makes its environment, is not installed.

    `folder`: an existing folder for its files.
    """
    uv = shutil.which("uv")
    if uv is None:
        raise UserError(f"{NAME}: uv, which makes its environment, is not installed.")
    words = [uv, "run", "--quiet", "--isolated", "--no-project", "--with", VERSION, "--with", "numpy"]
    words += ["python", "-P", str(Path(__file__).with_name("openvino_turns.py")), str(graph)]
    pipe = subprocess.PIPE
    with (
        (folder / "stderr").open("w", encoding="utf-8") as errors,
        subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=errors, text=True, encoding="utf-8") as process,
    ):
        yield OpenVino(process, folder)
