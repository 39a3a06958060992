"""What the speed benchmarks share: contenders that take turns (as in `jielong bench`), options, precisions."""

from __future__ import annotations

import argparse
from dataclasses import replace

from jielong import Runtime, detect
from jielong.bench.timing import Work, interleaved, median_ratio
from jielong.runtime import DTYPES

__all__ = ["Work", "interleaved", "median_ratio", "runtimes", "speed_parser"]


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
