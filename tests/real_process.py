"""Commands in processes of their own, so that they can be killed; started quickly, by forking one that has all imports."""

import os
import signal
import sys
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["real_process", "keyart", "configs.arguments", "train.fit", "torch.utils.tensorboard"])


def start(words: list[str], output: Path) -> BaseProcess:
    """`keyart WORDS` in a process of its own with one thread; what it says goes to the end of a file."""
    process = FORKS.Process(target=_command, args=(words, output))
    process.start()
    return process


def run(words: list[str], output: Path) -> int | None:
    """The same, to its end: its exit status."""
    process = start(words, output)
    process.join(120)
    return process.exitcode


def wait_for(path: Path, newer_than: int, process: BaseProcess | None = None) -> None:
    """Until a file is written anew, by a process that runs."""
    end = time.monotonic() + 60
    while not path.is_file() or path.stat().st_mtime_ns <= newer_than:
        assert time.monotonic() < end
        assert process is None or process.exitcode is None, "the command ended before it could be killed"
        time.sleep(0.002)


def signalled(words: list[str], output: Path, number: int, cpu_seconds: float) -> int | None:
    """The exit status of a command that gets a signal once it has used so much of the processor."""
    process = FORKS.Process(target=_command, args=(words, output, number, cpu_seconds))
    process.start()
    process.join(180)
    return process.exitcode


def _command(words: list[str], output: Path, number: int = 0, cpu_seconds: float = 0.0) -> None:
    import torch

    import keyart
    from configs.terminal import termination

    torch.set_num_threads(1)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(file, standard)
    if number:
        termination.install()
        signal.signal(signal.SIGPROF, lambda *_: os.kill(os.getpid(), number))
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    sys.exit(keyart.main(words))
