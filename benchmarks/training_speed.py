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

from table import machine, markdown_table
from timing import interleaved, median_ratio, runtimes, speed_parser

from jielong import Runtime
from jielong.bench.training import OURS, THEIRS, UNPACKED, make_batch, our_step, their_step
from jielong.launch import relaunch_with_allocator
from jielong.model.presets import preset_config
from jielong.plan.cost import flops_per_token, probe_flops
from jielong.runtime import environment


def measure(preset: str, runtime: Runtime, options: argparse.Namespace) -> list[list[str]]:
    """The rows of the table for one preset in one precision."""
    config = preset_config(preset, options.vocab_size, options.context_tokens)
    unpacked = make_batch(config, options.batch_rows, 1, runtime)
    packed = make_batch(config, options.batch_rows, options.documents_per_row, runtime)
    contenders = {
        OURS: our_step(config, packed, runtime),
        UNPACKED: our_step(config, unpacked, runtime),
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
