"""Several processes that train one model, each a rank: on one machine started here, on several by torchrun.

Each rank reads its share of every batch; gradients are averaged over all (torch's DistributedDataParallel, Li et al.,
2020). Rank 0 decides and writes; what it decides before training is broadcast to the others.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy

from foundation.errors import UserError
from foundation.machine import available_cores
from train.signals import Signals

Result = TypeVar("Result")
TERMINATE_TIMEOUT_SECONDS = 5
"""Time that the other processes have to end by themselves after one of them failed."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a training and this one's rank."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> "World":
        """The world of torchrun's environment variables; one process where they are not set."""
        try:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
            rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
        except (KeyError, ValueError):
            return cls()
        return cls(rank=rank, size=size, local_rank=local_rank, local_size=local_size)

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.size // self.local_size

    @contextmanager
    def process_group(self) -> Iterator[None]:
        """Join the process group, where there are several processes, and leave it at the end."""
        if self.size == 1:
            yield
            return
        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        try:
            yield
        finally:
            dist.destroy_process_group()

    def broadcast(self, function: Callable[[], Result]) -> Result:
        """The function's result on rank 0, on every rank; where it fails, the other ranks end without a message."""
        if self.size == 1:
            return function()
        payload: list[Any] = [None, True]
        failed: Exception | None = None
        if self.rank == 0:
            try:
                payload = [function(), False]
            except Exception as error:  # raised below, once the other ranks were notified
                failed = error
        dist.broadcast_object_list(payload, src=0, device=torch.device("cpu"))
        if failed is not None:
            raise failed
        if payload[1]:
            sys.exit(1)
        return cast(Result, payload[0])

    def strategy(self) -> DDPStrategy | str:
        """Lightning's strategy for averaging gradients over the ranks; `auto` for one process."""
        if self.size == 1:
            return "auto"
        return DDPStrategy(
            cluster_environment=TorchElasticEnvironment(), broadcast_buffers=False, gradient_as_bucket_view=True
        )


def require_devices(devices: int, world: World) -> None:
    """Raise a UserError where the machine has fewer devices, or torchrun started a different number of processes."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available, kind = (gpus, "GPUs") if gpus else (available_cores(), "cores, and no GPU")
    required = devices if world.size == 1 else world.local_size
    if required > available:
        raise UserError(f"devices={required}: this machine has {available} {kind}. Give at most {available}.")
    if world.size > 1 and devices not in (1, world.local_size):
        raise UserError(
            f"devices={devices}: torchrun started {world.local_size} processes on this machine. Leave the option out."
        )


def run_on_ranks(size: int, function: Callable[..., object], *arguments: object) -> None:
    """Call the function in `size` new processes of this machine, as torchrun would, and wait for all of them.

    A UserError of one is raised here. SIGTERM and Ctrl-C are forwarded to rank 0, which saves and ends all of them.
    """
    context = get_context("forkserver")  # imports once for all of them, and no GPU was touched before
    context.set_forkserver_preload(["train.fit"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    receiver, sender = context.Pipe(duplex=False)
    ranks: list[BaseProcess] = [
        context.Process(target=_rank, args=(rank, size, port, sender, function, arguments), daemon=True)
        for rank in range(size)
    ]

    def forward_signal(number: int) -> None:
        pid = ranks[0].pid
        if pid is not None and ranks[0].is_alive():
            os.kill(pid, signal.SIGTERM)

    with Signals(forward_signal) as signals:
        signals.deferred = True
        for process in ranks:
            process.start()
        sender.close()
        try:
            failed = _wait(ranks)
        except BaseException:
            _terminate(ranks)
            raise
        signals.deferred = False
        if signals.received is not None and ranks[0].exitcode in (
            0,
            -signal.SIGTERM,
        ):  # before its handler was installed
            signals.raise_deferred()
        if failed:
            with suppress(EOFError):  # none of them sent an error
                raise UserError(receiver.recv())
            raise RuntimeError(f"a training process ended with {failed}; its own message above gives the reason")
        signals.raise_deferred()


def _wait(ranks: list[BaseProcess]) -> int:
    """Wait until all have ended; the exit status of the first that failed, 0 if none did."""
    running = list(ranks)
    while running:
        connection.wait([process.sentinel for process in running])
        for process in [process for process in running if not process.is_alive()]:
            running.remove(process)
            if process.exitcode:
                _terminate(running)
                return process.exitcode
    return 0


def _terminate(ranks: list[BaseProcess]) -> None:
    deadline = time.monotonic() + TERMINATE_TIMEOUT_SECONDS
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _rank(
    rank: int,
    size: int,
    port: int,
    sender: connection.Connection,
    function: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    """One process: torchrun's variables, then the function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all: the parent forwards it
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
    if "OMP_NUM_THREADS" not in os.environ:  # more threads than cores wait for each other by spinning
        torch.set_num_threads(max(1, available_cores() // size))
    try:
        function(*arguments)
    except UserError as error:
        sender.send(str(error))
        sys.exit(1)


def _exit_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
