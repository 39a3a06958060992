"""What the start and the optimizer are worth: one model, one corpus, the same batches, four ways to begin.

    python benchmarks/first_steps.py [--steps 600] [--preset jie-s] [--seed 1]

The corpus is the built-in world's, as the quickstart has it. For each way the table tells held-out bits per byte, and
how well words are repeated that were invented for the question: nats a token of the second saying.
AdamW alone gets 3e-3, which suits it here; beside Muon, which trains the matrices, it bears 1e-2 (--adamw-rate).
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterable

from table import machine, markdown_table

from jielong import Runtime, Tokenizer, Transformer, World, detect, fit
from jielong.data.loader import RowLoader
from jielong.data.pack import Rows, pack_examples, pack_stream
from jielong.evaluate.likelihood import bits_per_byte, heldout_nats, scored_bytes
from jielong.launch import relaunch_with_allocator
from jielong.model.induction import plant_induction
from jielong.model.presets import preset_config
from jielong.runtime import environment
from jielong.train.loop import FitConfig
from jielong.train.objectives import next_token
from jielong.train.optim import OptimizerConfig, build_optimizer
from jielong.train.schedule import multiplier

CONTEXT, BATCH_ROWS, VOCAB_SIZE = 256, 16, 2048
WAYS = {  # start, optimizer -> AdamW's rate (alone: --adamw-rate), Muon's
    ("random", "adamw"): (0.0, None),
    ("random", "muon"): (1e-2, 0.02),
    ("induction", "adamw"): (0.0, None),
    ("induction", "muon"): (1e-2, 0.02),
}


def encode(tokenizer: Tokenizer, texts: Iterable[str]) -> Rows:
    assert tokenizer.bos_id is not None and tokenizer.eos_id is not None
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    return pack_stream(([bos, *ids, eos] for ids in tokenizer.encode_batch(list(texts))), CONTEXT)


def repetitions(tokenizer: Tokenizer, num: int = 200) -> Rows:
    """Four invented words, said by the teacher and then by the class; the second saying alone is scored."""
    rng = random.Random(5)

    def invented() -> str:
        return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))

    examples = []
    for _ in range(num):
        line = " ".join(invented() for _ in range(4))
        before = tokenizer.encode(f"The teacher says: {line}\nThe class says:")
        after = tokenizer.encode(f" {line}\n")
        bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        examples.append((bos + before + after, [False] * len(bos + before) + [True] * len(after)))
    return pack_examples(examples, CONTEXT, packed=False)


def train(
    way: tuple[str, str], rows: Rows, vocab_size: int, options: argparse.Namespace, runtime: Runtime
) -> tuple[Transformer, float]:
    """The trained model, and the seconds of its training."""
    start, _ = way
    rate, matrix_rate = WAYS[way]
    if matrix_rate is None:
        rate = options.adamw_rate
    model = Transformer(preset_config(options.preset, vocab_size, CONTEXT))
    generator = runtime.generator("weights")
    model.init_weights(generator)
    if start == "induction":
        plant_induction(model, generator)
    optimizer = build_optimizer(model, OptimizerConfig(rate, matrix_learning_rate=matrix_rate))
    loader = RowLoader(rows, BATCH_ROWS, runtime.seed)

    def schedule(step: int) -> float:
        warmup = min(100, options.steps // 4)
        return multiplier(step, kind="cosine", warmup_steps=warmup, num_steps=options.steps, final_fraction=0.05)

    started = time.perf_counter()
    config = FitConfig(num_steps=options.steps)
    for stats in fit(model, optimizer, loader.batches, next_token, schedule, runtime, config):
        if stats.step % 100 == 0:
            print(f"{' + '.join(way)}: step {stats.step}, loss {stats.loss:.3f}", file=sys.stderr, flush=True)
    return model.eval(), time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help=f"of {BATCH_ROWS} rows of {CONTEXT} tokens")
    parser.add_argument("--preset", default="jie-s", help="default %(default)s")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--adamw-rate", type=float, default=3e-3, help="of AdamW alone; default %(default)s")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    relaunch_with_allocator()
    runtime = detect(threads=options.threads, seed=options.seed)
    world = World(options.seed)
    texts = [document.text for document in world.documents(6_000_000, junk=False)]
    tokenizer = Tokenizer.train(texts, VOCAB_SIZE)
    rows = encode(tokenizer, texts)
    heldout = encode(tokenizer, (document.text for document in world.documents(300_000, "heldout", junk=False)))
    repeated = repetitions(tokenizer)
    lines = []
    for way in WAYS:
        model, seconds = train(way, rows, tokenizer.vocab_size, options, runtime)
        nats, _ = heldout_nats(model, heldout, runtime)
        copied, num_copied = heldout_nats(model, repeated, runtime)
        bits = bits_per_byte(nats, scored_bytes(heldout, tokenizer))
        lines.append([*way, f"{bits:.3f}", f"{copied / num_copied:.2f}", f"{seconds:.0f}"])
    header = ["start", "optimizer", "held-out bits per byte", "nats a repeated token", "seconds"]
    print(markdown_table(header, lines) + "\n\n" + machine(environment(runtime)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
