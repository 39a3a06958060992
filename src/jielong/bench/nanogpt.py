"""Our training step beside nanoGPT's: the same model, weights, batches and precision, in processes that take turns."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from jielong.bench.contender import Job, load_nanogpt
from jielong.bench.table import Section
from jielong.bench.timing import clock_for, interleaved, median_ratio
from jielong.errors import JielongError
from jielong.launch import child_variables
from jielong.plan.cost import flops_per_token, probe_flops
from jielong.runtime import Runtime

SHAPES = ((12, 65), (64, 65), (12, 4096), (64, 4096))  # rows, vocabulary: its own batch and characters, and larger ones
AGREE_NATS = 0.02  # how far the losses of the first steps may lie apart: bfloat16 rounds in different places
OURS = "jielong"
# label -> (what differs from the plain job, whether the allocator gets our launcher's settings)
RIVALS: dict[str, tuple[dict[str, Any], bool]] = {
    "nanoGPT": ({}, False),
    "nanoGPT, with our launcher and fused AdamW": ({"fused": True}, True),
    "nanoGPT, torch.compile": ({"compiled": True}, False),
}


class Contender:
    """A running `jielong.bench.contender`. cpu_seconds: of all steps so far. losses: of its first steps."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process, self._name = process, name
        self.cpu_seconds = 0.0
        self.losses: list[float] = self._read()["losses"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise JielongError(f"{self._name}: its process ended (exit code {self._process.wait()}); see above")
        told: dict[str, Any] = json.loads(line)
        return told

    def step(self) -> int:
        """One step; the tokens that it read."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        told = self._read()
        self.cpu_seconds += told["cpu_seconds"]
        return int(told["tokens"])

    def finish(self) -> dict[str, Any]:
        """End the process; {"peak_memory_bytes", "before_bytes"}, the latter before the model was built."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        told = self._read()
        self._process.wait()
        return told


@contextmanager
def started(job: Job, tuned: bool, name: str) -> Iterator[Contender]:
    """A contender in a process of its own. tuned: with the launcher's settings of the allocator."""
    variables = {**child_variables(tuned), "OMP_NUM_THREADS": str(job.threads), "NANOCHAT_DTYPE": job.dtype}
    command = [sys.executable, "-m", "jielong.bench.contender", json.dumps(asdict(job))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=variables) as process:
        try:
            yield Contender(process, name)
        finally:
            process.kill()


def nanogpt_section(
    folder: Path,
    runtime: Runtime,
    blocks: int,
    block_seconds: float,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rivals: Sequence[str] = tuple(RIVALS)[:2],
) -> Section:
    """Tokens a second of a training step of the baby GPT, and ours over each rival's.

    The clock is the processors' where there is one thread, so that a busy machine spoils less, and wall time otherwise.
    Raises UsageError when the folder holds no nanoGPT.
    """
    load_nanogpt(folder)
    threads = torch.get_num_threads()
    peak = probe_flops(runtime, clock=clock_for(runtime))
    rows, figures, holds = [], [], True
    for num_rows, vocab_size in shapes:
        job = Job(OURS, num_rows, vocab_size, threads, str(folder.resolve()), str(runtime.dtype).removeprefix("torch."))
        jobs = {OURS: (job, True)} | {
            name: (replace(job, side="nanogpt", **RIVALS[name][0]), RIVALS[name][1]) for name in rivals
        }
        rates, losses = turns(jobs, threads, blocks, block_seconds)
        pairs = [pair for told in losses.values() for pair in zip(losses[OURS], told, strict=True)]
        holds = holds and all(abs(mine - other) <= AGREE_NATS for mine, other in pairs)  # NaN does not
        for name, found in rates.items():
            rate, ratio = statistics.median(found), median_ratio(rates, OURS, name)
            share = rate * flops_per_token(job.config(), job.context_tokens) / peak
            spread = f"{min(found):,.0f} – {max(found):,.0f}"
            cells = [f"{rate:,.0f}", spread, f"{100 * share:.0f} %", f"{ratio:.2f}", f"{losses[name][-1]:.4f}"]
            rows.append([str(num_rows), str(vocab_size), name, *cells])
            figures.append(
                {"rows": num_rows, "vocab_size": vocab_size, "contender": name, "tokens_per_second": rate,
                 "share_of_peak": share, "ours_over_it": ratio, "losses_nats": losses[name]}
            )  # fmt: skip
    header = ("rows", "vocabulary", "contender", "tokens/s", "min – max", "of the peak", "jielong over it", "loss then")
    return Section("Beside nanoGPT", header, rows, figures, _note(job, peak, blocks, threads, holds), holds)


def turns(
    jobs: dict[str, tuple[Job, bool]], threads: int, blocks: int, block_seconds: float
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """(tokens a second by contender and block, losses of the first steps by contender)."""
    with ExitStack() as stack:
        running = {name: stack.enter_context(started(job, tuned, name)) for name, (job, tuned) in jobs.items()}
        work = {name: one.step for name, one in running.items()}
        if threads == 1:
            rates = interleaved(work, blocks, block_seconds, lambda: sum(one.cpu_seconds for one in running.values()))
        else:
            rates = interleaved(work, blocks, block_seconds)
        return rates, {name: one.losses for name, one in running.items()}


def _note(job: Job, peak: float, blocks: int, threads: int, holds: bool) -> str:
    shape = f"{job.layers} layers, {job.heads} heads, {job.width} wide, rows of {job.context_tokens}, no dropout"
    clock = "processor time" if threads == 1 else "wall time"
    agreed = f"losses of the first steps agree within {AGREE_NATS} nats" if holds else "THE LOSSES DO NOT AGREE"
    return (
        f"{shape}, {job.dtype}; same weights, batches and learning rate, {agreed}. Medians of {blocks} interleaved "
        f"blocks, {clock}, {threads} threads. The peak is the fastest matrix product here, {peak / 1e9:.0f} GFLOP/s."
    )
