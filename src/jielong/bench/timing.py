"""Timing that the machine's other work spoils least: contenders take turns, and medians are told."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from jielong.runtime import Runtime

Work = Callable[[], int]  # does its work to the end and says how many tokens that was


def interleaved(
    contenders: Mapping[str, Work],
    num_blocks: int,
    block_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    rest_seconds: float = 0.0,
) -> dict[str, list[float]]:
    """Tokens a second, by the clock, of every contender in every block.

    Each has a warm-up that does not count. In a block each works for at least block_seconds; every other block
    goes through them backwards, so that none always follows the same neighbour. rest_seconds: before each turn, where
    a neighbour's threads go on spinning for a while when its work is done.
    """
    for work in contenders.values():
        work()
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for block in range(num_blocks):
        for name in list(contenders)[:: 1 if block % 2 == 0 else -1]:
            time.sleep(rest_seconds)
            rates[name].append(_rate(contenders[name], block_seconds, clock))
    return rates


def _rate(work: Work, seconds: float, clock: Callable[[], float]) -> float:
    num_tokens, started, spent = 0, clock(), 0.0
    while num_tokens == 0 or spent < seconds:
        num_tokens += work()
        spent = clock() - started
    return num_tokens / spent


def median_ratio(rates: Mapping[str, list[float]], name: str, other: str) -> float:
    """Median over the blocks of name's rate to the other's: what slows a whole block slows both."""
    return statistics.median(mine / theirs for mine, theirs in zip(rates[name], rates[other], strict=True))


def clock_for(runtime: Runtime) -> Callable[[], float]:
    """Processor time where one thread of a CPU works, which a busy machine spoils less; wall time otherwise."""
    alone = runtime.device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter
