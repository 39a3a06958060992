"""Time to the first token in a conversation, turn by turn, with the prefix cache and without it.

    python benchmarks/turn_speed.py [--preset jie-124m] [--weights bfloat16] [--turns 10]

Each turn sends the whole conversation again, as a client does: all that was said, and a new message. Both ways get the
same messages and must give the same replies. A figure is the median over the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from engine_speed import build_tokenizer
from table import machine, markdown_table

from jielong import Tokenizer, Transformer
from jielong.generate.batching import CACHE_BYTES, Batcher
from jielong.generate.packed import WEIGHTS
from jielong.generate.requests import Request
from jielong.generate.sampling import Sampling
from jielong.model.presets import preset_config
from jielong.runtime import detect, environment


def converse(batcher: Batcher, options: argparse.Namespace, seed: int) -> tuple[list[float], list[int]]:
    """Seconds to the first token of every turn, and all that was said."""
    generator = torch.Generator().manual_seed(seed)
    said: list[int] = []
    seconds = []
    for _ in range(options.turns):
        said += torch.randint(256, options.vocab_size - 7, (options.message_tokens,), generator=generator).tolist()
        started, first = time.perf_counter(), 0.0
        batcher.submit(Request(tuple(said), options.reply_tokens, Sampling(0.0), stop_ids=frozenset()))
        reply: list[int] = []
        while not batcher.is_idle:
            reply += [token for delta in batcher.step() for token in delta.tokens]
            first = first or (time.perf_counter() - started if reply else 0.0)
        seconds.append(first)
        said += reply
    return seconds, said


def build(options: argparse.Namespace) -> tuple[Transformer, Tokenizer]:
    """A model of random weights that has room for the conversation."""
    length = options.turns * (options.message_tokens + options.reply_tokens) + 1
    model = Transformer(preset_config(options.preset, options.vocab_size, length))
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval(), build_tokenizer(options.vocab_size)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", default="jie-124m")
    parser.add_argument("--weights", default="bfloat16", choices=WEIGHTS)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--message-tokens", type=int, default=32)
    parser.add_argument("--reply-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    runtime = detect("cpu", "float32", options.threads)
    model, tokenizer = build(options)
    ways = {
        name: Batcher(model, tokenizer, cache_bytes=num_bytes, weights=options.weights)
        for name, num_bytes in (("with", CACHE_BYTES), ("without", 0))
    }
    times: dict[str, list[list[float]]] = {name: [] for name in ways}
    equal = 0
    for repeat in range(options.repeats + 1):
        told = {}
        for name, batcher in ways.items():
            seconds, told[name] = converse(batcher, options, repeat)
            if repeat:  # the first is a warm-up
                times[name].append(seconds)
        equal += told["with"] == told["without"]
    medians = {name: [statistics.median(turn) for turn in zip(*found, strict=True)] for name, found in times.items()}
    rows = [[str(turn + 1), *(f"{1000 * medians[name][turn]:.1f}" for name in ways)] for turn in range(options.turns)]
    print(markdown_table(["turn", "ms to first token, with the cache", "without"], rows))
    ratios = {name: found[-1] / found[0] for name, found in medians.items()}
    print(f"\nturn {options.turns} / turn 1: {ratios['with']:.2f} with the cache, {ratios['without']:.2f} without.")
    print(f"conversations with equal text both ways: {equal} of {options.repeats + 1}")
    print(f"{options.preset}, {options.weights}, messages of {options.message_tokens} tokens, replies of")
    print(f"{options.reply_tokens}, vocabulary {options.vocab_size}. {machine(environment(runtime))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
