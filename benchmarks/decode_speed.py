"""Decoding speed: our engines against transformers' generate with the same weights, in the same process.

    python benchmarks/decode_speed.py [--presets jie-s jie-m] [--batches 1 64]

Ours are Engine.generate with the model's own weights and, on a CPU, with packed ones, as `jielong chat` has it, and the
Batcher of the server. The model is saved with jielong.save and read back with AutoModelForCausalLM. All decode greedily
from the same random prompts and stop at nothing, so that all make the same number of tokens; "same tokens" is the share
of new tokens that are equal to those of transformers (in bfloat16 each rounds in other places, and one flipped choice
changes all that follows).
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
from jielong.generate.batching import Batcher
from jielong.generate.packed import decoding_runtime
from jielong.generate.requests import Request
from jielong.generate.sampling import Sampling
from jielong.launch import relaunch_with_allocator
from jielong.model.transformer import Transformer
from jielong.runtime import environment

PACKED, SERVED = "jielong, packed", "jielong, Batcher"


def packed_decoders(
    model: Transformer, tokenizer: Tokenizer, prompts: list[list[int]], num_new: int, runtime: Runtime
) -> dict[str, Decode]:
    """Both with weights packed once, of the kind that a Batcher takes when none is named."""
    kind = str(decoding_runtime(model, runtime).dtype).removeprefix("torch.")
    batcher = Batcher(model, tokenizer, runtime, max_rows=len(prompts), cache_bytes=0)

    def serve() -> list[list[int]]:
        requests = [Request(tuple(prompt), num_new, Sampling(0.0), stop_ids=frozenset()) for prompt in prompts]
        made: dict[int, list[int]] = {batcher.submit(request): [] for request in requests}
        while not batcher.is_idle:
            for delta in batcher.step():
                made[delta.request] += delta.tokens
        return list(made.values())

    return {PACKED: our_decode(model, tokenizer, prompts, num_new, runtime, kind), SERVED: serve}


def measure(
    preset: str, num_rows: int, runtime: Runtime, tokenizer: Tokenizer, options: argparse.Namespace
) -> list[list[str]]:
    """The rows of the table for one preset, batch and precision."""
    model = build(preset, tokenizer, options.prompt_tokens + options.new_tokens, runtime)
    shape = (num_rows, options.prompt_tokens)
    prompts = torch.randint(256, shape, generator=runtime.generator("prompts", num_rows)).tolist()
    asked = model, tokenizer, prompts, options.new_tokens, runtime
    decoders = {OURS: our_decode(*asked)}
    if runtime.device.type == "cpu":
        decoders |= packed_decoders(*asked)
    decoders[THEIRS] = their_decode(*asked)
    made = {name: decode() for name, decode in decoders.items()}

    def counting(decode: Decode) -> Callable[[], int]:
        return lambda: sum(len(row) for row in decode())

    contenders = {name: counting(decode) for name, decode in decoders.items()}
    rates = interleaved(contenders, options.blocks, options.block_seconds)
    precision = str(runtime.dtype).removeprefix("torch.")
    rows = []
    for name, found in rates.items():
        cells = [f"{statistics.median(found):,.0f}", f"{min(found):,.0f} – {max(found):,.0f}"]
        compared = [f"{median_ratio(rates, name, THEIRS):.2f}", f"{100 * agreement(made[name], made[THEIRS]):.1f} %"]
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
