"""What the engine's thread has made, on its way to the event loop: at once where it is awaited, and else in rounds.

A small model makes a step in a millisecond or two. To wake the loop for each, and a task for each sequence, would cost
more than the step, and the two threads share one interpreter. So the first and the last token of a sequence wake the
loop; what comes between them is fetched in rounds, PIECE_SECONDS apart, and all sequences are woken together. A step
that takes longer than a round is told at its end.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import ClassVar

from jielong.generate.requests import Delta
from jielong.serve.jobs import Job

Told = Sequence[tuple[Job, int, Delta]]


class Outbox:
    """tell: has the loop's thread call what it is given. Everything here but `put` runs on that thread."""

    PIECE_SECONDS: ClassVar[float] = 0.04  # smooth to the eye

    def __init__(self, tell: Callable[[Callable[[], object]], object]) -> None:
        self._tell = tell
        self._made: deque[tuple[float, Told]] = deque()  # of both threads; each of its operations is one
        self._will_look = False  # whether the loop is going to look here, without another word
        self._is_round_due = False
        self._held: set[Job] = set()  # jobs with something new, not woken yet

    def put(self, told: Told, is_awaited: bool) -> None:
        """What one step made; called by the engine's thread. is_awaited: the first or last of a sequence is in it."""
        self._made.append((time.monotonic(), told))
        # A round takes the sign away before it fetches. So what it does not find was put in after, and finds no sign.
        if is_awaited or not self._will_look:
            self._will_look = True
            self._tell(self._look)

    def fetch(self) -> None:
        """Give what is here to its jobs; wake those whose first or last token is in it."""
        while self._made:
            when, told = self._made.popleft()
            for job, index, delta in told:
                if job.push(index, delta, when):
                    job.wake()
                    self._held.discard(job)
                else:
                    self._held.add(job)

    def _look(self) -> None:
        self.fetch()
        if not self._is_round_due:
            self._finish_round()

    def _round(self) -> None:
        self._is_round_due = self._will_look = False
        self.fetch()
        if self._held:
            self._finish_round()

    def _finish_round(self) -> None:
        for job in self._held:
            job.wake()
        self._held.clear()
        self._is_round_due = self._will_look = True
        asyncio.get_running_loop().call_later(self.PIECE_SECONDS, self._round)
