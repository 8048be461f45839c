"""What a request costs, and which requests wait for which.

Requests that arrive together are answered together, in one run of the graph. Work is bounded: a body has a limit of cost, a
batch holds requests of a limited cost, and bodies that cost much wait in a lane of their own, with a thread of its own, so that
a small request never waits for a large one. A lane refuses (503) what it could not answer before the deadline, and drops from
its queue what nobody waits for any longer.

Cost is in seconds of one core, estimated from a request's numbers of candidates, plays and draws (`serving.http.answers.cost`)
and corrected by what the lane's batches really took.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from serving.http.answers import Answer
from serving.http.fields import RequestError
from serving.http.requests import Request

IDLE_TURNS = 4
"""Iterations of the event loop without a new request: from a socket to the queue takes one or two."""
LIGHT_SECONDS, BATCH_SECONDS = 0.01, 0.02
"""Estimated cost of a body from which it waits in the lane of large ones, and of a batch, beyond which no request is added. Not
corrected: batches cut short where the machine is busy overlap with the reading of others for ever after (docs/experiments.md)."""
CORRECTION_WEIGHT = 0.1
"""Weight of the newest batch in the moving mean of real over estimated cost."""

AnswerMany = Callable[[Sequence[Request]], list[Answer]]
OnBatch = Callable[[int, float, float], None]
"""Called with the number of requests of a batch, the seconds that the first of them waited, and those that the batch took."""


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request in a queue."""

    request: Request
    answer: AnswerMany
    """The function of the bundle that the request was read for."""
    cost: float
    since: float
    """When it was queued, by the event loop's clock."""
    future: asyncio.Future[Answer]


@dataclass
class Lane:
    """A queue in front of one thread; the thread is a daemon, so that a batch never holds up the end of the process."""

    name: str
    max_batch: int
    gather_seconds: float
    waiting: int
    deadline: float
    on_batch: OnBatch
    queue: deque[_Waiting] = field(default_factory=deque)
    queued_cost: float = 0.0
    correction: float = 1.0
    """Real cost over estimated cost."""
    began: float | None = None
    """When the present batch was handed to the thread, by the event loop's clock."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.work: SimpleQueue[tuple[AnswerMany, list[Request], asyncio.Future[list[Answer]]]] = SimpleQueue()
        threading.Thread(target=self._answer_for_ever, name=f"answers-{self.name}", daemon=True).start()

    def add(self, requests: Sequence[Request], costs: Sequence[float], answer: AnswerMany) -> list[_Waiting]:
        """Queue the requests of one body; RequestError (503) where they could not be answered before the deadline."""
        if len(self.queue) + len(requests) > self.waiting:
            raise RequestError(503, f"rank: {len(self.queue):,} requests are waiting. Retry in a second.")
        wait = (self.queued_cost + sum(costs)) * self.correction
        if self.queue and wait > self.deadline:
            raise RequestError(
                503, f"rank: would be answered after {wait:.1f} s, later than {self.deadline:g} s. Retry in a second."
            )
        loop = asyncio.get_running_loop()
        added = [
            _Waiting(request, answer, cost, loop.time(), loop.create_future())
            for request, cost in zip(requests, costs, strict=True)
        ]
        self.queue += added
        self.queued_cost += sum(costs)
        self.arrived.set()
        return added

    async def run(self) -> None:
        """Answer until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self.arrived.wait()
            await self._gather(loop.time() + self.gather_seconds)
            batch = self._next_batch()
            if not batch:
                continue
            try:
                answers = await self._answered(batch)
            except Exception as error:  # a defect, or no memory: of one request of the batch, it may be
                if len(batch) == 1:
                    _fail(batch[0], error)
                else:
                    await self._each_alone(batch)
                continue
            for waiting, answer in zip(batch, answers, strict=True):
                _succeed(waiting, answer)

    async def _answered(self, batch: Sequence[_Waiting]) -> list[Answer]:
        """A batch's answers, by the thread."""
        loop = asyncio.get_running_loop()
        self.began = began = loop.time()
        answered: asyncio.Future[list[Answer]] = loop.create_future()
        self.work.put((batch[0].answer, [waiting.request for waiting in batch], answered))
        try:
            return await answered
        finally:
            self.began, seconds = None, loop.time() - began
            self.on_batch(len(batch), began - batch[0].since, seconds)
            ratio = min(max(seconds / sum(waiting.cost for waiting in batch), 0.1), 10.0)
            self.correction += CORRECTION_WEIGHT * (ratio - self.correction)

    async def _each_alone(self, batch: Sequence[_Waiting]) -> None:
        """A batch that failed, request by request: what one of them causes is that one's alone."""
        for waiting in batch:
            if waiting.future.done():
                continue
            try:
                (answer,) = await self._answered([waiting])
            except Exception as error:
                _fail(waiting, error)
            else:
                _succeed(waiting, answer)

    def _next_batch(self) -> list[_Waiting]:
        """The first requests of the queue that are still waited for, of one bundle and of a limited cost together."""
        batch: list[_Waiting] = []
        cost = 0.0
        while self.queue and len(batch) < self.max_batch:
            first = self.queue[0]
            if batch and (first.answer != batch[0].answer or cost + first.cost > BATCH_SECONDS):
                break
            self.queue.popleft()
            self.queued_cost -= first.cost
            if not first.future.done():
                batch.append(first)
                cost += first.cost
        if not self.queue:
            self.queued_cost = 0.0  # no rounding error stays
            self.arrived.clear()
        return batch

    async def _gather(self, end: float) -> None:
        """Wait until the batch is full, time is over, or no further request arrives: a single request does not wait."""
        turns = 0
        while turns < IDLE_TURNS and len(self.queue) < self.max_batch and asyncio.get_running_loop().time() < end:
            before = len(self.queue)
            await asyncio.sleep(0)
            turns = 0 if len(self.queue) > before else turns + 1

    def _answer_for_ever(self) -> None:
        while True:
            answer, requests, answered = self.work.get()
            try:
                result: Any = answer(requests)
            except Exception as error:
                result = error
            with suppress(RuntimeError):  # the loop was closed meanwhile
                answered.get_loop().call_soon_threadsafe(_settle, answered, result)
            del answer, requests, answered, result  # a bundle that was replaced is not kept until the next request


class Lanes:
    """The lanes of small and of large bodies."""

    def __init__(
        self,
        *,
        max_batch: int,
        gather_seconds: float,
        waiting: int,
        deadline: float,
        on_batch: OnBatch,
    ) -> None:
        """At most `max_batch` requests are answered together, after at most `gather_seconds`; beyond `waiting` requests in a
        lane, or where they would be answered later than `deadline` seconds from now, further ones are refused."""
        self.light, self.heavy = (
            Lane(name, max_batch, gather_seconds, waiting, deadline, on_batch) for name in ("light", "heavy")
        )

    @property
    def waiting(self) -> int:
        """Requests in the queues."""
        return len(self.light.queue) + len(self.heavy.queue)

    async def ask(self, requests: Sequence[Request], costs: Sequence[float], answer: AnswerMany) -> list[Answer]:
        """The answers by the function `answer`, in order; RequestError (503) where too many wait.

        A caller that stops waiting, as at its deadline, takes its requests out of the queue.
        """
        lane = self.light if sum(costs) <= LIGHT_SECONDS else self.heavy
        added = lane.add(requests, costs, answer)
        try:
            return [await waiting.future for waiting in added]
        finally:
            for waiting in added:  # nobody waits for what is left: it is dropped from the queue
                if waiting.future.done() and not waiting.future.cancelled():
                    waiting.future.exception()  # seen: asyncio need not warn of it
                waiting.future.cancel()

    async def run(self) -> None:
        """Answer until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.light.run())
            tasks.create_task(self.heavy.run())

    def stuck(self, seconds: float) -> bool:
        """Whether a batch has been with its thread for longer than some seconds."""
        now = time.monotonic()
        return any(lane.began is not None and now - lane.began > seconds for lane in (self.light, self.heavy))


def _succeed(waiting: _Waiting, answer: Answer) -> None:
    if not waiting.future.done():  # the client may have left
        waiting.future.set_result(answer)


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.future.done():
        waiting.future.set_exception(error)


def _settle(answered: asyncio.Future[list[Answer]], result: Any) -> None:
    if answered.done():
        return
    if isinstance(result, Exception):
        answered.set_exception(result)
    else:
        answered.set_result(result)
