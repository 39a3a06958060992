"""Training speed: our decoder against transformers' LlamaForCausalLM of the same sizes, in the same process.

    python benchmarks/training_speed.py [--presets jie-s jie-m] [--threads 2]

A unit of work is a whole training step: forward, loss, backward, clipping, fused AdamW. Both sides get the same tokens,
optimizer, autocast and allocator. "packed" has several documents in a row, each attending to itself alone, as in
pre-training; "unpacked" has one document a row, which is all that transformers does here.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch
from table import machine, markdown_table
from timing import Work, interleaved, median_ratio, runtimes, speed_parser
from transformers import LlamaConfig, LlamaForCausalLM

from jielong import Batch, ModelConfig, Runtime, Transformer, train_step
from jielong.launch import relaunch_with_allocator
from jielong.model.hf import config_to_hf
from jielong.model.presets import preset_config
from jielong.plan.cost import flops_per_token, probe_flops
from jielong.runtime import environment
from jielong.train.objectives import next_token
from jielong.train.optim import OptimizerConfig, build_optimizer

CLIP = 1.0
THEIRS = "transformers, unpacked"


def make_batch(config: ModelConfig, num_rows: int, documents_per_row: int, runtime: Runtime) -> Batch:
    """Rows of random tokens, each cut into documents of equal length."""
    length = config.max_length
    tokens = torch.randint(config.vocab_size, (num_rows, length), generator=runtime.generator("tokens"))  # (B, T)
    segments = (1 + torch.arange(length) * documents_per_row // length).int().repeat(num_rows, 1)  # (B, T)
    mask = torch.zeros(num_rows, length, dtype=torch.bool)
    mask[:, 1:] = segments[:, 1:] == segments[:, :-1]
    return Batch(tokens, mask, segments, int(mask.sum())).to(runtime.device)


def our_step(config: ModelConfig, batch: Batch, runtime: Runtime) -> Work:
    model = Transformer(config)
    model.init_weights(runtime.generator("weights"))
    model.to(runtime.device).train()
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-3))

    def step() -> int:
        return train_step(model, optimizer, [batch], next_token, runtime, CLIP).num_tokens

    return step


def their_step(config: ModelConfig, batch: Batch, runtime: Runtime) -> Work:
    model: torch.nn.Module = LlamaForCausalLM(LlamaConfig.from_dict({**config_to_hf(config), "use_cache": False}))
    model.to(runtime.device).train()
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-3))

    def step() -> int:
        optimizer.zero_grad(set_to_none=True)
        with runtime.autocast():
            loss = model(input_ids=batch.tokens, labels=batch.tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        loss.item()
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)
        return batch.tokens.numel()

    return step


def measure(preset: str, runtime: Runtime, options: argparse.Namespace) -> list[list[str]]:
    """The rows of the table for one preset in one precision."""
    config = preset_config(preset, options.vocab_size, options.context_tokens)
    unpacked = make_batch(config, options.batch_rows, 1, runtime)
    packed = make_batch(config, options.batch_rows, options.documents_per_row, runtime)
    contenders = {
        "jielong, packed": our_step(config, packed, runtime),
        "jielong, unpacked": our_step(config, unpacked, runtime),
        THEIRS: their_step(config, unpacked, runtime),
    }
    peak = probe_flops(runtime)
    rates = interleaved(contenders, options.blocks, options.block_seconds)
    rows = []
    for name, found in rates.items():
        rate = statistics.median(found)
        mfu = rate * flops_per_token(config, config.max_length) / peak
        ratio = f"{median_ratio(rates, name, THEIRS):.2f}"
        spread = f"{min(found):,.0f} – {max(found):,.0f}"
        precision = str(runtime.dtype).removeprefix("torch.")
        rows.append([preset, precision, name, f"{rate:,.0f}", spread, f"{100 * mfu:.0f} %", ratio])
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = speed_parser(__doc__.splitlines()[0] if __doc__ else "", ["jie-s", "jie-m"], block_seconds=4.0)
    parser.add_argument("--batch-rows", type=int, default=32)
    parser.add_argument("--context-tokens", type=int, default=256)
    parser.add_argument("--documents-per-row", type=int, default=4, help="in packed rows")
    options = parser.parse_args(arguments)
    relaunch_with_allocator()
    measured = runtimes(options)
    rows = [row for preset in options.presets for runtime in measured for row in measure(preset, runtime, options)]
    header = ["preset", "precision", "model", "tokens/s", "min – max", "MFU", "× transformers"]
    print(markdown_table(header, rows))
    shape = f"{options.batch_rows} rows of {options.context_tokens} tokens, vocabulary {options.vocab_size}"
    print(f"\nMedians of {options.blocks} interleaved blocks; {shape}; MFU against this machine's fastest product.")
    print(machine(environment(measured[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
