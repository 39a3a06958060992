"""One HTTP request's sequences, seen from the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from jielong.generate.requests import Delta, Request
from jielong.serve.errors import ApiError
from jielong.serve.metrics import Metrics


class Owner(Protocol):
    """What a job needs of the engine's thread."""

    metrics: Metrics

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
