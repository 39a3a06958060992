"""A step of Muon: matrices of one shape made orthogonal together, beside torch.optim.Muon, which takes one by one.

    python benchmarks/muon_speed.py [--presets jie-s jie-m] [--threads 2] [--steps 40]

Both begin with the same weights and get the same gradients, in turns; the last column says whether their weights are
equal at the end, to the bit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from table import machine, markdown_table
from torch import Tensor

from jielong import Transformer, detect
from jielong.launch import relaunch_with_allocator
from jielong.model.presets import preset_config
from jielong.runtime import environment
from jielong.train.optim import layer_matrices
from jielong.train.stacked_muon import StackedMuon

KINDS: dict[str, type[torch.optim.Muon]] = {"torch.optim.Muon": torch.optim.Muon, "together": StackedMuon}
HEADER = ("preset", "matrices", "Muon", "milliseconds a step", "min – max", "torch's over it", "same weights")


def measure(preset: str, num_steps: int) -> list[list[str]]:
    """The rows of the table for one preset."""
    model = Transformer(preset_config(preset, 2048, 256))
    model.init_weights(detect().generator("weights"))
    weights: dict[str, list[Tensor]] = {}
    optimizers = {}
    for name, kind in KINDS.items():
        weights[name] = [matrix.detach().clone().requires_grad_() for matrix in layer_matrices(model)]
        optimizers[name] = kind(weights[name], lr=0.02)
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    for step in range(num_steps + 1):
        for name in list(KINDS)[:: 1 if step % 2 == 0 else -1]:
            generator = torch.Generator().manual_seed(step)
            for matrix in weights[name]:
                matrix.grad = torch.randn(matrix.shape, generator=generator)
            started = time.perf_counter()
            optimizers[name].step()
            if step:  # the first one warms up
                seconds[name].append(time.perf_counter() - started)
    theirs, ours = weights.values()
    same = "yes" if all(torch.equal(one, other) for one, other in zip(theirs, ours, strict=True)) else "no"
    slow = statistics.median(seconds["torch.optim.Muon"])
    rows = []
    for name, found in seconds.items():
        median = statistics.median(found)
        spread = f"{1e3 * min(found):.1f} – {1e3 * max(found):.1f}"
        rows.append([preset, str(len(ours)), name, f"{1e3 * median:.1f}", spread, f"{slow / median:.2f}", same])
    return rows


def main(arguments: list[str] | None = None) -> int:
    description = __doc__.splitlines()[0] if __doc__ else ""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["jie-s", "jie-m"], metavar="PRESET", help="shapes to measure")
    parser.add_argument("--threads", type=int, help="torch decides when left out")
    parser.add_argument("--steps", type=int, default=40, help="of each; medians over them are told")
    options = parser.parse_args(arguments)
    relaunch_with_allocator()
    runtime = detect("cpu", threads=options.threads)
    rows = [row for preset in options.presets for row in measure(preset, options.steps)]
    print(markdown_table(HEADER, rows))
    print(f"\nMedians of {options.steps} steps in turns.")
    print(machine(environment(runtime)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
