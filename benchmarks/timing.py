"""Timing that the machine's other work spoils least: contenders take turns, and medians are told."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from jielong import Runtime, detect
from jielong.runtime import DTYPES

Work = Callable[[], int]  # does its work to the end and says how many tokens that was


def interleaved(
    contenders: Mapping[str, Work],
    num_blocks: int,
    block_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Tokens a second, by the clock, of every contender in every block.

    Each has a warm-up that does not count. In a block each works for at least block_seconds; every other block
    goes through them backwards, so that none always follows the same neighbour.
    """
    for work in contenders.values():
        work()
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for block in range(num_blocks):
        for name in list(contenders)[:: 1 if block % 2 == 0 else -1]:
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


def speed_parser(description: str, presets: list[str], block_seconds: float) -> argparse.ArgumentParser:
    """The options that both speed benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=presets, metavar="PRESET", help="shapes to measure")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), help="both where bfloat16 runs in hardware")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--threads", type=int, help="threads of torch; as many as it takes by itself when left out")
    parser.add_argument("--blocks", type=int, default=5, help="turns of each contender; medians over them are told")
    parser.add_argument("--block-seconds", type=float, default=block_seconds, help="least length of a turn")
    return parser


def runtimes(options: argparse.Namespace) -> list[Runtime]:
    """One runtime for each precision to measure."""
    found = detect(threads=options.threads)
    names = options.dtypes or [name for name, dtype in DTYPES.items() if dtype in (DTYPES["float32"], found.dtype)]
    return [replace(found, dtype=DTYPES[name]) for name in names]
