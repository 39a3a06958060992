"""The batches of the next step, made while the present one is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MicroT = TypeVar("MicroT")


def made_ahead(
    batches: Callable[[int], Sequence[MicroT]], first: int, last: int, ready: Callable[[MicroT], MicroT]
) -> Iterator[list[MicroT]]:
    """batches(step) for each step from first to last - 1, made by a thread while the caller works on the one before.

    batches: a pure function of the step. ready: what else the thread does with each, as to pin its memory. What
    either raises is raised when that step is taken; a caller that leaves waits for the one that is being made.
    """

    def make(step: int) -> list[MicroT]:
        return [ready(batch) for batch in batches(step)]

    with ThreadPoolExecutor(1, "jielong-batches") as thread:
        coming = thread.submit(make, first) if first < last else None
        for step in range(first, last):
            assert coming is not None
            made = coming.result()
            coming = thread.submit(make, step + 1) if step + 1 < last else None
            yield made
