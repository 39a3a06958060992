"""Gradients of two processes summed after the way back, or while it runs: seconds a step, beside one without sums.

    python benchmarks/gradient_overlap.py [--presets jie-s] [--processes 2] [--threads 1]

Processes on this machine over gloo (on GPUs: NCCL, a card each). They take the same steps, the three ways in turns.
"Without sums" is what each process would need alone; what the others take beyond it is the cost of summing.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from unittest import mock

from table import machine, markdown_table

from jielong import Runtime, detect
from jielong.bench.timing import Work
from jielong.bench.training import make_batch, our_step
from jielong.launch import relaunch_with_allocator
from jielong.model.presets import preset_config
from jielong.runtime import environment
from jielong.train.gradient_sums import BUCKET_BYTES, GradientSums
from jielong.train.parallel import joined, wait_for_all

ALONE, AFTER, DURING = "without sums", "after the way back", "during the way back"


def contenders(preset: str, runtime: Runtime, options: argparse.Namespace) -> dict[str, Work]:
    """The three ways to take a step, each with a model of its own."""
    config = preset_config(preset, options.vocab_size, options.context_tokens)
    batch = make_batch(config, options.batch_rows, 1, runtime)
    after = our_step(config, batch, runtime)

    def without_overlap() -> int:
        with mock.patch.object(GradientSums, "as_they_come", lambda sums: nullcontext()):
            return after()

    return {
        ALONE: our_step(config, batch, replace(runtime, world_size=1)),
        AFTER: without_overlap,
        DURING: our_step(config, batch, runtime),
    }


def measure(preset: str, runtime: Runtime, options: argparse.Namespace) -> list[list[str]]:
    """The rows of the table for one preset."""
    steps = contenders(preset, runtime, options)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(options.blocks + 1):  # the first warms up
        for name in list(steps)[:: 1 if block % 2 == 0 else -1]:
            wait_for_all(runtime)
            started = time.perf_counter()
            for _ in range(options.steps if block else 1):
                steps[name]()
            wait_for_all(runtime)
            if block:
                seconds[name].append((time.perf_counter() - started) / options.steps)
    rows = []
    for name, found in seconds.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(found, seconds[AFTER], strict=True))
        spread = f"{min(found):.3f} – {max(found):.3f}"
        rows.append([preset, name, f"{statistics.median(found):.3f}", spread, f"{ratio:.2f}"])
    return rows


def work(options: argparse.Namespace) -> None:
    """One of the processes; the first prints."""
    with joined(detect(threads=options.threads, dtype=options.dtype)) as runtime:
        rows = [row for preset in options.presets for row in measure(preset, runtime, options)]
        if runtime.process == 0:
            header = ["preset", "gradients are summed", "seconds a step", "min – max", "× after"]
            print(markdown_table(header, rows))
            shape = f"{options.batch_rows} rows of {options.context_tokens} tokens a process"
            print(
                f"\nMedians of {options.blocks} blocks of {options.steps} steps in turns; {shape}, vocabulary ", end=""
            )
            print(f"{options.vocab_size}, {runtime.num_processes} processes, buckets of {BUCKET_BYTES >> 20} MiB.")
            print(machine(environment(runtime)))


def start(arguments: list[str], processes: int) -> int:
    """The processes, as torchrun starts them. Returns the first exit code that is not 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, *arguments], env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(processes)
    ]
    return next((code for code in [child.wait() for child in children] if code), 0)


def main(arguments: list[str] | None = None) -> int:
    description = __doc__.splitlines()[0] if __doc__ else ""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["jie-s"], metavar="PRESET", help="shapes to measure")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--batch-rows", type=int, default=4)
    parser.add_argument("--context-tokens", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=7, help="turns of each way; medians over them are told")
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    options = parser.parse_args(arguments)
    if "RANK" not in os.environ:
        relaunch_with_allocator()
        return start(sys.argv[1:] if arguments is None else arguments, options.processes)
    work(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
