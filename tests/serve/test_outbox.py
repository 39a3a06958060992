"""From the engine's thread to who waits: nothing lost, nothing out of order, few are woken, and none too late."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable

import pytest

from jielong.generate.requests import Delta, Request
from jielong.generate.sampling import Sampling
from jielong.serve.jobs import Job
from jielong.serve.metrics import ModelMetrics
from jielong.serve.outbox import Outbox

pytestmark = pytest.mark.anyio
REQUEST = Request((1,), 100, Sampling())


class Owner:
    """Stands for the engine's thread."""

    def __init__(self) -> None:
        self.metrics = ModelMetrics("tiny")

    def cancel(self, job: Job, index: int | None) -> None:
        raise AssertionError("nobody leaves here")

    def closed(self, job: Job, reason: str) -> None:
        pass


def delta(token: int, finish_reason: str | None = None) -> Delta:
    return Delta(0, (token,), f"{token} ", (), None, finish_reason, 1, 0)


async def heard(job: Job) -> tuple[list[list[int]], list[int]]:
    """The tokens of each sequence in the order of their coming; how many came at each waking."""
    tokens: list[list[int]] = [[] for _ in job.requests]
    sizes = []
    while told := await job.next():
        sizes.append(len(told))
        for index, one in told:
            tokens[index] += one.tokens
    return tokens, sizes


@pytest.mark.parametrize("seconds", [0.0, 0.0005])
async def test_nothing_is_lost_and_few_are_woken(seconds: float) -> None:
    """Three jobs, one of two sequences, fed by a thread at a small model's pace, or as fast as it can."""
    loop, source, num = asyncio.get_running_loop(), random.Random(0), 300
    num_told = 0

    def tell(what: Callable[[], object]) -> None:
        nonlocal num_told
        num_told += 1
        loop.call_soon_threadsafe(what)

    outbox, owner = Outbox(tell), Owner()
    jobs = [Job(owner, [REQUEST] * size) for size in (1, 2, 1)]
    sequences = [(job, index) for job in jobs for index in range(len(job.requests))]

    def work() -> None:
        for token in range(num):
            made = [(*one, delta(token, "length" if token == num - 1 else None)) for one in sequences]
            source.shuffle(made)
            outbox.put(made, is_awaited=token in (0, num - 1))
            time.sleep(seconds)

    thread = threading.Thread(target=work)
    began = time.monotonic()
    thread.start()
    found = await asyncio.gather(*(heard(job) for job in jobs))
    rounds = (time.monotonic() - began) / Outbox.PIECE_SECONDS
    thread.join()
    assert [tokens for job, _ in found for tokens in job] == [list(range(num))] * len(sequences)
    for _, sizes in found:
        assert len(sizes) <= rounds + 4
    assert num_told <= 8 and sum(owner.metrics.between_tokens.counts) == 4 * (num - 1)
    assert owner.metrics.tokens.values[("made",)] == 4 * num


async def test_a_slow_step_is_told_at_its_end_and_the_first_token_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With rounds of an hour: what is awaited comes all the same, and what is told while none is due."""
    monkeypatch.setattr(Outbox, "PIECE_SECONDS", 3600.0)
    told: list[Callable[[], object]] = []
    outbox, owner = Outbox(told.append), Owner()
    one, other = Job(owner, [REQUEST]), Job(owner, [REQUEST])
    outbox.put([(one, 0, delta(0))], is_awaited=True)
    told.pop()()
    assert await asyncio.wait_for(one.next(), 5) == [(0, delta(0))]
    outbox.put([(one, 0, delta(1))], is_awaited=False)  # a round is due: nobody is told
    assert not told
    outbox.put([(one, 0, delta(2)), (other, 0, delta(7))], is_awaited=True)
    told.pop()()
    assert await asyncio.wait_for(other.next(), 5) == [(0, delta(7))]
    waiting = asyncio.ensure_future(one.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.put([(one, 0, delta(3, "stop"))], is_awaited=True)
    told.pop()()
    assert await asyncio.wait_for(waiting, 5) == [(0, delta(token)) for token in (1, 2)] + [(0, delta(3, "stop"))]
    assert await one.next() == []


async def test_after_a_silent_round_the_next_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outbox, "PIECE_SECONDS", 0.001)
    told: list[Callable[[], object]] = []
    outbox, job = Outbox(told.append), Job(Owner(), [REQUEST])
    for token in range(3):
        outbox.put([(job, 0, delta(token))], is_awaited=False)
        told.pop()()
        assert await asyncio.wait_for(job.next(), 5) == [(0, delta(token))]
        await asyncio.sleep(0.02)  # the round is over, and found nothing
