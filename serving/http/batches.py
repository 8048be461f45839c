"""Requests that arrive together are answered together.

The first request waits while others keep coming, two milliseconds at most; then all are handed to one worker thread, and
while it works the next ones gather. One run of the graph over many costs little more than over one.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from serving.http.answers import Answer
from serving.http.requests import Request, RequestError

IDLE_TURNS = 4
"""Iterations of the event loop without a new request: from a socket to the queue takes one or two."""
_Waiting = tuple[Request, asyncio.Future[Answer]]


class RequestBatcher:
    """A queue in front of a function that answers many requests at once."""

    def __init__(
        self,
        answer: Callable[[Sequence[Request]], list[Answer]],
        *,
        max_batch: int,
        seconds: float,
        waiting: int,
        on_batch: Callable[[int], None],
    ) -> None:
        """At most `max_batch` requests are answered together, after at most `seconds`; `on_batch` is called with their number.

        Beyond `waiting` requests in the queue, further ones are refused: at a thousand requests a second the last of 4,096
        would wait for four seconds, longer than a client waits for an artwork.
        """
        self.answer, self.max_batch, self.seconds, self.waiting, self.on_batch = (
            answer,
            max_batch,
            seconds,
            waiting,
            on_batch,
        )
        self.queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self.thread = ThreadPoolExecutor(1, "answers")

    async def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers, in order; RequestError (503) where too many wait already."""
        if self.queue.qsize() + len(requests) > self.waiting:
            raise RequestError(503, f"rank: {self.queue.qsize():,} requests are waiting. Retry in a second.")
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in requests]
        for pair in zip(requests, futures, strict=True):
            self.queue.put_nowait(pair)
        return [await future for future in futures]

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.queue.get()]
            await self._gather(loop.time() + self.seconds)
            while len(batch) < self.max_batch and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            self.on_batch(len(batch))
            try:
                answers = await loop.run_in_executor(self.thread, self.answer, [request for request, _ in batch])
            except Exception as error:  # a defect: raised in the waiting requests, and the service continues
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():  # the client may have left
                    future.set_result(answer)

    async def _gather(self, end: float) -> None:
        """Wait until the batch is full, time is over, or no further request arrives: a single request does not wait."""
        turns = 0
        while (
            turns < IDLE_TURNS and self.queue.qsize() < self.max_batch - 1 and asyncio.get_running_loop().time() < end
        ):
            before = self.queue.qsize()
            await asyncio.sleep(0)
            turns = 0 if self.queue.qsize() > before else turns + 1
