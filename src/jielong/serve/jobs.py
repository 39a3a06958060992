"""One HTTP request's sequences, seen from the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from jielong.generate.requests import Delta, Request
from jielong.serve.errors import ApiError
from jielong.serve.metrics import ModelMetrics


class Owner(Protocol):
    """What a job needs of the engine's thread."""

    metrics: ModelMetrics

    def cancel(self, job: Job, index: int | None) -> None: ...

    def closed(self, job: Job, reason: str) -> None: ...


class Job:
    """The sequences of one HTTP request. `next` gives what has been made since the last time.

    Who waits is woken by the first token of a sequence and by the last, and between them in the rounds of the `Outbox`.
    """

    def __init__(self, owner: Owner, requests: Sequence[Request]) -> None:
        self.requests = tuple(requests)
        self.began = time.monotonic()
        self.num_open = len(self.requests)
        self.ids: dict[int, int] = {}  # index -> the batcher's number; for the engine's thread only
        self._owner = owner
        self._told: list[tuple[int, Delta]] = []
        self._error: ApiError | None = None
        self._news = asyncio.Event()
        self._last: dict[int, float] = {}  # index -> when its last token was made

    async def next(self) -> list[tuple[int, Delta]]:
        """(index of the request, what was made), all that is new, at least one; [] when all have ended.

        Raises ApiError when the engine has failed.
        """
        while True:
            if self.num_open and self._error is None:
                await self._news.wait()
                self._news.clear()
            if self._told:
                told, self._told = self._told, []
                return told
            if self._error is not None:
                raise self._error
            if self.num_open == 0:
                return []

    def cancel(self, index: int | None = None) -> None:
        """End one sequence, or all, before the next step. Nothing more is told of them. Harmless when it has ended."""
        if self.num_open:
            self._owner.cancel(self, index)

    # What the engine's thread has to tell; called on the loop.

    def push(self, index: int, delta: Delta, when: float) -> bool:
        """One sequence has come further. when: it was made. Whether who waits should know at once."""
        if self._error is not None:  # made by an engine that was halted in the middle of a step; nobody waits any more
            return False
        is_first = index not in self._last
        self._count(index, delta, when)
        self._told.append((index, delta))
        if delta.finish_reason is not None:
            self.close(delta.finish_reason)
            return True
        return is_first

    def wake(self) -> None:
        """Let who waits have what is new."""
        self._news.set()

    def close(self, reason: str) -> None:
        """One sequence has ended."""
        self.num_open -= 1
        self._owner.closed(self, reason)
        self._news.set()

    def fail(self, error: ApiError) -> None:
        """Nothing more will come."""
        self._error = error
        self._news.set()

    def _count(self, index: int, delta: Delta, when: float) -> None:
        metrics = self._owner.metrics
        if index in self._last:
            metrics.between_tokens.observe(when - self._last[index])
        else:
            metrics.first_token.observe(when - self.began)
            metrics.tokens.add(delta.num_prompt_tokens, "prompt")
            metrics.tokens.add(delta.num_cached_tokens, "cached")
        self._last[index] = when
        metrics.tokens.add(len(delta.tokens), "made")


class Joined:
    """Jobs of one sequence each, perhaps of several engines, told of as one job: sequence k is that of the k-th."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.requests = tuple(job.requests[0] for job in jobs)
        self._jobs = tuple(jobs)
        self._running = set(range(len(jobs)))
        self._asked: dict[asyncio.Task[list[tuple[int, Delta]]], int] = {}

    async def next(self) -> list[tuple[int, Delta]]:
        """As `Job.next`, of whichever job has come further. Raises ApiError when any engine has failed."""
        while self._running:
            for number in self._running - set(self._asked.values()):
                task = asyncio.ensure_future(self._jobs[number].next())
                task.add_done_callback(_fetched)
                self._asked[task] = number
            done, _ = await asyncio.wait(self._asked, return_when=asyncio.FIRST_COMPLETED)
            told: list[tuple[int, Delta]] = []
            for task in done:
                number = self._asked.pop(task)
                made = task.result()
                told += [(number, delta) for _, delta in made]
                if not made:
                    self._running.discard(number)
            if told:
                return told
        return []

    def cancel(self, index: int | None = None) -> None:
        """As `Job.cancel`."""
        for number, job in enumerate(self._jobs):
            if index is None or number == index:
                job.cancel()
        if index is None:  # nobody asks any more
            for task in self._asked:
                task.cancel()
            self._running.clear()


def _fetched(task: asyncio.Task[list[tuple[int, Delta]]]) -> None:
    """What a job failed with is looked at, so that nobody is warned where two fail and one is told of."""
    if not task.cancelled():
        task.exception()
