"""Does PPO hold more memory the longer it runs? Hundreds of iterations of a tiny model, resident memory now and then.

    python benchmarks/memory_growth.py --iterations 500

The first iterations fill the allocator's pools, so growth is told from a fifth of the run on.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from table import machine, markdown_table

from jielong.align.learner import build_learner
from jielong.align.ppo import optimise
from jielong.align.reward import RewardModel, scalar_from_policy
from jielong.align.settings import PPOConfig
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import detect, environment
from jielong.tokenizer import Tokenizer

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Growth:
    """Least-squares slope of memory over iterations, bytes an iteration, and the largest less the first value."""

    bytes_per_iteration: float
    span_bytes: float


def growth(iterations: list[int], resident_bytes: list[int]) -> Growth:
    """Raises ValueError with fewer than two points."""
    if len(iterations) < 2:
        raise ValueError("growth wants two points or more")
    x, y = torch.tensor(iterations).double(), torch.tensor(resident_bytes).double()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    return Growth(float(slope), float(y.max() - y[0]))


def resident() -> int:
    """Bytes of this process that are in memory now. Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    runtime = detect("cpu", dtype="float32", threads=options.threads)
    tokenizer = Tokenizer.train(["a"], 263)
    policy = Transformer(
        ModelConfig(
            vocab_size=263, max_length=64, width=64, decoder_layers=2, num_heads=2, num_kv_heads=1, head_size=32,
            ffn_width=128,
        )
    )  # fmt: skip
    policy.init_weights(torch.Generator().manual_seed(0))
    reward = RewardModel(scalar_from_policy(policy, torch.Generator().manual_seed(1)), gain=100.0)
    config = PPOConfig(
        num_iterations=options.iterations, rollout_rows=16, minibatch_rows=8, max_new_tokens=24, learning_rate=1e-4
    )
    learner = build_learner(policy, reward, tokenizer, config)
    prompts = [list(text.encode()) for text in ("one", "and two", "three of them")]
    shown: list[tuple[int, int]] = []
    for stats in optimise(learner, prompts, config, runtime):
        if stats.iteration == 1 or stats.iteration % max(1, options.iterations // 10) == 0:
            shown.append((stats.iteration, resident()))
    print(machine(environment(runtime)))
    print(markdown_table(("iteration", "resident, MB"), [(str(n), f"{used / 1e6:.1f}") for n, used in shown]))
    late = [(n, used) for n, used in shown if n >= options.iterations // 5]
    found = growth([n for n, _ in late], [used for _, used in late])
    slope, span = found.bytes_per_iteration / 1e3, found.span_bytes / 1e6
    print(f"from iteration {late[0][0]} on: {slope:+.2f} kB an iteration, {span:.1f} MB at most")


if __name__ == "__main__":
    main()
