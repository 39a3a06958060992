"""The structure lab: from encoder-decoder to decoder-only, one switch at a time, on the same pairs.

    python benchmarks/structure.py --out runs/structure [--seeds 3] [--steps 250] [--threads 1]

Two sets of generated pairs: letters to be sorted, and English phrases of the built-in world with their Chinese, where
the unseen ones hold a pair of words that no training phrase has. Every model sees the same batches. Two budgets: the
same depth and width (a token passes as many layers, so about equal compute), and the same number of parameters. Then
what a conversation costs by turn where the input is read both ways, and where keys and values are kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from structure_picture import draw
from table import machine, markdown_table
from torch import Tensor

from jielong import ModelConfig, Runtime, Transformer, World, detect
from jielong.data.batch import OnDevice
from jielong.generate.cache import KeyValueCache
from jielong.model.logprobs import hidden_logprobs
from jielong.model.structure import DECODER_ONLY, ENCODER_DECODER, Structure, StructuredTransformer
from jielong.runtime import derive_seed, environment
from jielong.train.loop import FitConfig, fit
from jielong.train.optim import OptimizerConfig, build_optimizer
from jielong.train.schedule import multiplier

PAD, FIRST, END, NUM_SPECIAL = 0, 1, 2, 3
CHAIN = {
    "encoder-decoder": ENCODER_DECODER,
    "+ one attention": Structure(one_attention=True),
    "+ one stack": Structure(one_attention=True, one_stack=True),
    "+ layer by layer": replace(DECODER_ONLY, causal_source=False),
    "+ causal source = decoder-only": DECODER_ONLY,
}
BUDGETS = ("depth", "parameters")
Pair = tuple[list[str], list[str]]


@dataclass(frozen=True)
class Pairs(OnDevice):
    """Rows of a batch: source (B, S) and its segments, tokens (B, T) from FIRST to END, mask: what is scored."""

    source: Tensor
    segments: Tensor
    tokens: Tensor
    mask: Tensor

    @property
    def num_units(self) -> int:
        return int(self.mask.sum())


def sorting(split: str, num: int, seed: int) -> list[Pair]:
    """10 of 20 letters, in alphabetical order: each letter of the answer depends on all of the question."""
    rng = random.Random(derive_seed(seed, "sort", split))
    letters = [rng.choices("abcdefghijklmnopqrst", k=10) for _ in range(num)]
    return [(row, sorted(row)) for row in letters]


def phrases(split: str, num: int, seed: int) -> list[Pair]:
    """English words and Chinese characters; "heldout" has a pair of words that "train" never has."""
    rng, world = random.Random(derive_seed(seed, "phrases", split)), World(0).translation
    drawn = [world.phrase(rng, split) for _ in range(num)]
    return [(phrase.en.split(), list(phrase.zh)) for phrase in drawn]


TASKS: dict[str, Callable[[str, int, int], list[Pair]]] = {"sort": sorting, "translate": phrases}


def vocabulary(pairs: Sequence[Pair]) -> dict[str, int]:
    words = sorted({word for pair in pairs for side in pair for word in side})
    return {word: NUM_SPECIAL + number for number, word in enumerate(words)}


def lay_out(pairs: Sequence[Pair], ids: dict[str, int]) -> Pairs:
    """Padded on the right. Words that the vocabulary lacks cannot be: it is made of both splits."""
    sources = [[ids[word] for word in source] for source, _ in pairs]
    targets = [[FIRST, *(ids[word] for word in target), END] for _, target in pairs]
    source, tokens = (torch.full((len(rows), max(map(len, rows))), PAD) for rows in (sources, targets))
    for table, rows in ((source, sources), (tokens, targets)):
        for index, row in enumerate(rows):
            table[index, : len(row)] = torch.tensor(row)
    mask = tokens != PAD
    mask[:, 0] = False
    return Pairs(source, (source != PAD).int(), tokens, mask)


def objective(model: StructuredTransformer, batch: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the target tokens' negative log-likelihoods; the source is read, not learned, by all alike."""
    hidden = model.target_hidden(batch.tokens, model.read(batch.source, batch.segments))
    logprobs, _ = hidden_logprobs(model, hidden, batch.tokens, batch.mask, entropy=False)
    return -logprobs.sum(), {}


def base_config(vocab_size: int, width: int, layers: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size, max_length=32, width=width, encoder_layers=layers, decoder_layers=layers, num_heads=4,
        num_kv_heads=4, head_size=width // 4, ffn_width=3 * width,
    )  # fmt: skip


def count(config: ModelConfig, structure: Structure) -> int:
    return sum(parameter.numel() for parameter in StructuredTransformer(config, structure).parameters())


def of_equal_parameters(config: ModelConfig, structure: Structure, wanted: int) -> ModelConfig:
    """As many layers as keep the feed-forward about as wide, then the width of it that comes nearest to `wanted`."""
    factor = 2 if structure.one_stack else 1
    layers = config.encoder_layers * factor
    deeper = replace(config, encoder_layers=layers, decoder_layers=layers)
    widths = range(config.ffn_width // 2, 3 * config.ffn_width)
    unit = count(replace(deeper, ffn_width=2), structure) - count(replace(deeper, ffn_width=1), structure)
    rest = count(replace(deeper, ffn_width=1), structure) - unit
    return replace(deeper, ffn_width=min(widths, key=lambda ffn: abs(rest + ffn * unit - wanted)))


def train_one(
    config: ModelConfig,
    structure: Structure,
    data: tuple[list[Pair], list[Pair]],
    options: argparse.Namespace,
    seed: int,
) -> dict[str, float]:
    """{"loss_nats", "exact", "parameters"}: held-out figures after training."""
    runtime = Runtime(torch.device("cpu"), torch.float32, seed)
    training, heldout = data
    ids = vocabulary([*training, *heldout])
    model = StructuredTransformer(replace(config, vocab_size=NUM_SPECIAL + len(ids)), structure)
    model.init_weights(runtime.generator("weights"))
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=3e-3, weight_decay=0.01))

    def batches(step: int) -> list[Pairs]:
        rng = random.Random(derive_seed(seed, "batch", step))
        return [lay_out(rng.choices(training, k=options.batch_rows), ids)]

    def schedule(step: int) -> float:
        return multiplier(step, kind="cosine", warmup_steps=options.steps // 20, num_steps=options.steps)

    for _ in fit(model, optimizer, batches, objective, schedule, runtime, FitConfig(num_steps=options.steps)):
        pass
    model.eval()
    rows = lay_out(heldout, ids)
    with torch.no_grad():
        loss = float(objective(model, rows)[0]) / rows.num_units
    said = model.greedy(rows.source, rows.segments, FIRST, END, rows.tokens.shape[1])
    right = [row == [ids[word] for word in target] for row, (_, target) in zip(said, heldout, strict=True)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"loss_nats": loss, "exact": sum(right) / len(right), "parameters": parameters}


def lab(options: argparse.Namespace) -> list[dict[str, object]]:
    """One record a seed, budget, task and structure. Those that stand in records.jsonl are not made again."""
    path = options.out / "records.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    known = {tuple(record[key] for key in ("seed", "budget", "task", "structure")) for record in records}
    for seed, budget, task in itertools.product(range(options.seeds), BUDGETS, options.tasks):
        data = TASKS[task]("train", options.pairs, seed), TASKS[task]("heldout", options.heldout, seed)
        base = base_config(NUM_SPECIAL + len(vocabulary([*data[0], *data[1]])), options.width, options.layers)
        for name, config in models(base, budget):
            if (seed, budget, task, name) in known:
                continue
            found = train_one(config, CHAIN[name], data, options, seed)
            record = {"seed": seed, "budget": budget, "task": task, "structure": name, **found}
            records.append({**record, "layers": config.decoder_layers, "ffn_width": config.ffn_width})
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(records[-1]) + "\n")
    return records


def models(base: ModelConfig, budget: str) -> Iterator[tuple[str, ModelConfig]]:
    """(structure, config) of every model; the first of the chain is what the others are made equal to."""
    wanted = count(base, ENCODER_DECODER)
    for name, structure in CHAIN.items():
        if budget == "depth":
            yield name, base
        elif structure != ENCODER_DECODER:
            yield name, of_equal_parameters(base, structure, wanted)


# What a conversation costs


def turns(options: argparse.Namespace, runtime: Runtime) -> list[dict[str, float]]:
    """For each turn the processor's milliseconds until the reply can begin: all read anew, or what is new alone."""
    num, length = options.turns, options.turn_tokens
    config = ModelConfig(
        vocab_size=2048, max_length=num * length, width=256, decoder_layers=4, num_heads=4, num_kv_heads=4,
        head_size=64, ffn_width=704,
    )  # fmt: skip
    causal = Transformer(config)
    both_ways = Transformer(replace(config, decoder_layers=0, encoder_layers=4, head="masked_lm"))
    for model in (causal, both_ways):
        model.init_weights(runtime.generator("weights"))
        model.eval()
    tokens = torch.randint(2048, (1, num * length), generator=runtime.generator("tokens"))
    spent: dict[str, list[list[float]]] = {"anew": [[] for _ in range(num)], "kept": [[] for _ in range(num)]}
    with torch.inference_mode():
        for _ in range(options.repeats):
            cache = KeyValueCache(config, 1, num * length, torch.float32, torch.device("cpu"))
            for turn in range(num):
                start, end = turn * length, (turn + 1) * length
                began = time.process_time()
                causal.hidden(tokens[:, start:end], cache=cache)
                cache.advance(torch.tensor([length]))
                spent["kept"][turn].append(time.process_time() - began)
                began = time.process_time()
                both_ways.hidden(tokens[:, :end])
                spent["anew"][turn].append(time.process_time() - began)
    return [
        {
            "turn": turn + 1,
            "tokens": (turn + 1) * length,
            **{name: 1000 * statistics.median(times[turn]) for name, times in spent.items()},
        }
        for turn in range(num)
    ]


# Telling


def summary(records: Sequence[dict[str, object]]) -> list[list[str]]:
    """A line for each task, budget and structure: means over seeds, with the range."""
    groups: dict[tuple[str, str, str], list[dict[str, object]]] = {}
    for record in records:
        groups.setdefault((str(record["task"]), str(record["budget"]), str(record["structure"])), []).append(record)
    lines = []
    for (task, budget, structure), found in sorted(groups.items(), key=lambda one: (one[0][0], one[0][1])):
        values = {name: [float(str(one[name])) for one in found] for name in ("exact", "loss_nats", "parameters")}
        exact = values["exact"]
        lines.append(
            [
                task,
                f"same {budget}",
                structure,
                f"{statistics.mean(values['parameters']):,.0f}",
                f"{100 * statistics.mean(exact):.1f} % ({100 * min(exact):.1f} – {100 * max(exact):.1f})",
                f"{statistics.mean(values['loss_nats']):.4f}",
            ]
        )
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="folder for records.jsonl, turns.json, structure.png")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch-rows", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=8000)
    parser.add_argument("--heldout", type=int, default=200)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--layers", type=int, default=2, help="of each stack of the encoder-decoder")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--turn-tokens", type=int, default=96, help="a question and the reply before it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    runtime = detect("cpu", "float32", options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    records, by_turn = lab(options), turns(options, runtime)
    (options.out / "turns.json").write_text(json.dumps(by_turn, indent=1) + "\n", encoding="utf-8")
    draw(records, by_turn, list(CHAIN), options.out / "structure.png")
    header = ["pairs", "budget", "structure", "parameters", "exact on unseen (range)", "loss, nats"]
    print(markdown_table(header, summary(records)))
    rows = [
        [f"{one[key]:.0f}" for key in ("turn", "tokens")] + [f"{one[key]:.1f}" for key in ("kept", "anew")]
        for one in by_turn
    ]
    print("\n" + markdown_table(["turn", "tokens so far", "causal, kept: ms", "both ways, anew: ms"], rows))
    print(
        f"\n{options.seeds} seeds, {options.steps} steps of {options.batch_rows} pairs. {machine(environment(runtime))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
