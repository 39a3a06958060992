"""Decoding speed: Engine.generate against transformers' generate with the same weights, in the same process.

    python benchmarks/decode_speed.py [--presets jie-s jie-m] [--batches 1 64]

The model is saved with jielong.save and read back with AutoModelForCausalLM. Both decode greedily from the same random
prompts and stop at nothing, so that both make the same number of tokens; "same tokens" is the share of new tokens that
are equal (in bfloat16 the two round in different places, and one flipped choice changes all that follows).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from table import machine, markdown_table
from timing import interleaved, median_ratio, runtimes, speed_parser
from transformers.utils.logging import disable_progress_bar

from jielong import Runtime, Tokenizer, World
from jielong.bench.decoding import OURS, THEIRS, Decode, agreement, build, our_decode, their_decode
from jielong.launch import relaunch_with_allocator
from jielong.runtime import environment


def measure(
    preset: str, num_rows: int, runtime: Runtime, tokenizer: Tokenizer, options: argparse.Namespace
) -> list[list[str]]:
    """The rows of the table for one preset, batch and precision."""
    model = build(preset, tokenizer, options.prompt_tokens + options.new_tokens, runtime)
    shape = (num_rows, options.prompt_tokens)
    prompts = torch.randint(256, shape, generator=runtime.generator("prompts", num_rows)).tolist()
    decoders = {
        OURS: our_decode(model, tokenizer, prompts, options.new_tokens, runtime),
        THEIRS: their_decode(model, tokenizer, prompts, options.new_tokens, runtime),
    }
    same = agreement(decoders[OURS](), decoders[THEIRS]())

    def counting(decode: Decode) -> Callable[[], int]:
        return lambda: sum(len(row) for row in decode())

    contenders = {name: counting(decode) for name, decode in decoders.items()}
    rates = interleaved(contenders, options.blocks, options.block_seconds)
    precision = str(runtime.dtype).removeprefix("torch.")
    rows = []
    for name, found in rates.items():
        cells = [f"{statistics.median(found):,.0f}", f"{min(found):,.0f} – {max(found):,.0f}"]
        compared = [f"{median_ratio(rates, name, THEIRS):.2f}", f"{100 * same:.1f} %"]
        rows.append([preset, str(num_rows), precision, name, *cells, *compared])
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = speed_parser(__doc__.splitlines()[0] if __doc__ else "", ["jie-s", "jie-m"], block_seconds=2.0)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64], metavar="ROWS")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=112)
    options = parser.parse_args(arguments)
    relaunch_with_allocator()
    disable_progress_bar()
    measured = runtimes(options)
    texts = [document.text for document in World(1).documents(400_000, junk=False)]
    tokenizer = Tokenizer.train(texts, options.vocab_size)
    rows = [
        row
        for preset in options.presets
        for num_rows in options.batches
        for runtime in measured
        for row in measure(preset, num_rows, runtime, tokenizer, options)
    ]
    header = ["preset", "batch", "asked precision", "engine", "tokens/s", "min – max", "× transformers", "same tokens"]
    print(markdown_table(header, rows))
    shape = f"{options.prompt_tokens} prompt and {options.new_tokens} new tokens a row"
    print(f"\nMedians of {options.blocks} interleaved blocks; {shape}, vocabulary {tokenizer.vocab_size}, greedy.")
    print("On a CPU, Engine decodes a small model (below 2 million parameters) in float32 whatever is asked.")
    print(machine(environment(measured[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
