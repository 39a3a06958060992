"""Our training step beside nanochat's on a CPU: two nets of one size, each as its own scripts train it there."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import torch

from jielong.bench.contender import Job, require_nanochat
from jielong.bench.nanogpt import OURS, turns
from jielong.bench.table import Section
from jielong.bench.timing import median_ratio
from jielong.runtime import Runtime

SHAPES = ((12, 65), (12, 4096))  # rows, vocabulary
AS_IT_COMES = "float32"  # what nanochat computes in where it finds no GPU
WITH_ADAMW = "jielong, AdamW"


def nanochat_section(
    folder: Path,
    runtime: Runtime,
    blocks: int,
    block_seconds: float,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    compiled: bool = True,
) -> Section:
    """Tokens a second of a training step of 6 layers, 384 wide, and ours over nanochat's.

    nanochat runs as its script for CPUs has it: in float32, compiled (compiled=False: not); and in our dtype, too,
    where that is another. Losses are told, and need not agree: the nets differ.
    Raises UsageError when the folder holds no nanochat.
    """
    require_nanochat(folder)
    threads, dtype = torch.get_num_threads(), str(runtime.dtype).removeprefix("torch.")
    rows, figures = [], []
    for num_rows, vocab_size in shapes:
        ours = Job(OURS, num_rows, vocab_size, threads, dtype=dtype, llama=True, muon=True)
        theirs = replace(ours, side="nanochat", folder=str(folder.resolve()), compiled=compiled)
        jobs = {OURS: (ours, True), WITH_ADAMW: (replace(ours, muon=False), True)} | {
            f"nanochat, {name}": (replace(theirs, dtype=name), False) for name in dict.fromkeys((AS_IT_COMES, dtype))
        }
        rates, losses = turns(jobs, threads, blocks, block_seconds)
        for name, found in rates.items():
            rate, ratio = statistics.median(found), median_ratio(rates, OURS, name)
            spread = f"{min(found):,.0f} – {max(found):,.0f}"
            fell = f"{losses[name][0]:.2f}, {losses[name][-1]:.2f}"
            rows.append([str(num_rows), str(vocab_size), name, f"{rate:,.0f}", spread, f"{ratio:.2f}", fell])
            figures.append(
                {"rows": num_rows, "vocab_size": vocab_size, "contender": name, "tokens_per_second": rate,
                 "ours_over_it": ratio, "losses_nats": losses[name]}
            )  # fmt: skip
    header = ("rows", "vocabulary", "contender", "tokens/s", "min – max", "jielong over it", "first losses")
    clock = "processor time" if threads == 1 else "wall time"
    note = (
        f"{ours.layers} layers, {ours.heads} heads, {ours.width} wide, rows of {ours.context_tokens}; Muon trains the "
        f"matrices where nothing else is said. Ours is Llama-shaped, in {dtype}. Medians of {blocks} interleaved "
        f"blocks, {clock}, {threads} threads."
    )
    return Section("Beside nanochat", header, rows, figures, note)
