"""A reward model on published human preferences, every pair held out once: k folds by prompt, beside trivial judges.

    python benchmarks/human_preferences.py runs/novels-chat/04-sft/model --data-root ../shared/data \\
        --path hh_rlhf/harmless_base.part1.jsonl

One split of some 1,900 pairs leaves an interval of five points; all of them leave two and a half. Folds are by what the
user says first, so that no conversation is on both sides. Judges beside: the shorter reply, the longer one, and a
linear model of the words that one reply has and the other has not. Nothing of the texts is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from table import machine, markdown_table
from torch import Tensor

from jielong.align.agreement import longer_wins, measure_agreement
from jielong.align.comparisons import Candidates, Comparison, comparison_batches, encode_comparisons
from jielong.align.reward import bradley_terry, scalar_from_policy
from jielong.data.examples import read_comparisons
from jielong.data.sources import Source
from jielong.folder import load
from jielong.intervals import wilson_ci95
from jielong.runtime import Runtime, detect, environment
from jielong.tokenizer import Tokenizer
from jielong.tokenizer.chat import render
from jielong.train.loop import FitConfig, fit
from jielong.train.optim import OptimizerConfig, build_optimizer
from jielong.train.schedule import multiplier

_WORD = re.compile(r"[a-z']+|[^\sa-z']")
NUM_WORDS = 4000


def fold_of(comparison: Comparison, num_folds: int) -> int:
    """By the first thing the user says: whatever goes on from it stays on one side."""
    first = next(message["content"] for message in comparison.messages if message["role"] == "user")
    return int(hashlib.sha256(first.encode()).hexdigest()[:8], 16) % num_folds


def longest(comparison: Comparison, tokenizer: Tokenizer) -> int:
    """Tokens of the prompt with the longer of its replies."""
    told = ([*comparison.messages, {"role": "assistant", "content": reply}] for reply in comparison.replies)
    return max(len(render(each, tokenizer)[0]) for each in told)


def shortened(comparison: Comparison, tokenizer: Tokenizer, max_length: int) -> Comparison:
    """Without the oldest turns, as far as needed for both replies to fit; the last turn of the user always stays."""
    while len(comparison.messages) > 1 and longest(comparison, tokenizer) > max_length:
        cut = 2 if comparison.messages[0]["role"] == "user" else 1
        comparison = replace(comparison, messages=comparison.messages[cut:])
    return comparison


def train(
    policy: Any, items: Sequence[Candidates], tokenizer: Tokenizer, runtime: Runtime, options: argparse.Namespace
) -> Any:
    """A reward model of these comparisons."""
    batches, per_epoch = comparison_batches(items, options.batch_rows, tokenizer.pad_id, options.seed)
    num_steps = max(1, round(options.epochs * per_epoch))
    model = scalar_from_policy(policy, runtime.generator("head"))
    optimizer = build_optimizer(model, OptimizerConfig(options.learning_rate, weight_decay=0.1))

    def rate(step: int) -> float:
        return multiplier(step, kind="cosine", warmup_steps=min(10, num_steps - 1), num_steps=num_steps)

    for _ in fit(model, optimizer, batches, bradley_terry, rate, runtime, FitConfig(num_steps)):
        pass
    return model.eval()


def words_of(comparisons: Sequence[Comparison], vocabulary: dict[str, int]) -> Tensor:
    """(P, V + 1) float64: words that the better reply has and the worse has not (+1), the other way (-1); length."""
    rows = torch.zeros(len(comparisons), len(vocabulary) + 1, dtype=torch.float64)
    for row, comparison in enumerate(comparisons):
        for sign, reply in zip((1, -1), (comparison.replies[i] for i in comparison.pairs[0]), strict=True):
            found = _WORD.findall(reply.lower())
            for word in set(found):
                if word in vocabulary:
                    rows[row, vocabulary[word]] += sign
            rows[row, -1] += sign * len(found) / 100
    return rows


def word_hits(training: Sequence[Comparison], held: Sequence[Comparison], penalty: float = 0.02) -> Tensor:
    """(P,) 1 where a logistic model of words, learned from the training pairs (L2 penalty), agrees with people."""
    counts: dict[str, int] = {}
    for comparison in training:
        for reply in comparison.replies:
            for word in set(_WORD.findall(reply.lower())):
                counts[word] = counts.get(word, 0) + 1
    known = sorted(counts, key=lambda word: -counts[word])[:NUM_WORDS]
    vocabulary = {word: index for index, word in enumerate(known)}
    features = words_of(training, vocabulary)
    weights = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.softplus(-features @ weights).mean() + penalty * (weights**2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    margin = words_of(held, vocabulary) @ weights.detach()
    return (margin > 0).double() + 0.5 * (margin == 0)


def row(name: str, hits: float, num: int) -> tuple[str, ...]:
    low, high = wilson_ci95(hits, num)
    return (name, f"{100 * hits / num:.1f} %", f"{100 * low:.1f} – {100 * high:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an SFT model's folder, the reward model's start")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--path", default="hh_rlhf/harmless_base.part1.jsonl")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch-rows", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--judges-only", action="store_true", help="the trivial judges, no reward model; seconds")
    parser.add_argument("--json", type=Path, help="where to put the figures as well")
    options = parser.parse_args()
    runtime = detect("cpu", threads=options.threads, seed=options.seed)
    policy, tokenizer = load(options.model)
    records = read_comparisons(Source(name="preferences", path=options.path), options.data_root)
    limit = policy.config.max_length
    read = [(each, fold_of(each, options.folds)) for each in map(Comparison.from_record, records)]
    short = [(shortened(each, tokenizer, limit), fold) for each, fold in read]
    given = [(each, fold) for each, fold in short if longest(each, tokenizer) <= limit]
    print(f"{len(read) - len(given)} of {len(read)} pairs are left out: a reply beyond {limit} tokens", flush=True)
    hits, word_sum, longer, num, training_hits = 0.0, 0.0, 0.0, 0, []
    started = time.perf_counter()
    for fold in range(options.folds):
        training = [each for each, its in given if its != fold]
        held = [each for each, its in given if its == fold]
        items, held_items = (encode_comparisons(part, tokenizer, limit).items for part in (training, held))
        num += len(held_items)
        longer += longer_wins(held_items) * len(held_items)
        words = float(word_hits(training, held).mean())
        word_sum += words * len(held_items)
        if options.judges_only:
            continue
        model = train(policy, items, tokenizer, runtime, options)
        found = measure_agreement(model, held_items, tokenizer.pad_id)
        training_hits.append(measure_agreement(model, items[:400], tokenizer.pad_id).accuracy)
        hits += found.accuracy * len(held_items)
        print(
            f"fold {fold + 1}: {100 * found.accuracy:.1f} % of {len(held_items)}, words {100 * words:.1f} %", flush=True
        )
    print(machine(environment(runtime)))
    shown = [
        row("shorter wins", num - longer, num),
        row("longer wins", longer, num),
        row("words, linear", word_sum, num),
    ]
    shown = shown if options.judges_only else [row("reward model", hits, num), *shown]
    print(markdown_table((f"{num} pairs, each held out once", "agrees with people", "95 %"), shown))
    if options.judges_only:
        return
    best, rate = max(longer, num - longer) / num, hits / num
    sigma = (rate * (1 - rate) / num) ** 0.5
    seconds, seen = time.perf_counter() - started, sum(training_hits) / len(training_hits)
    print(f"above the better length rule by {(rate - best) / sigma:+.1f} σ; on training pairs {100 * seen:.1f} %")
    print(f"{seconds:.0f} s")
    if options.json is not None:
        figures = {"pairs": num, "accuracy": rate, "longer_wins": longer / num, "words": word_sum / num}
        options.json.write_text(json.dumps(figures) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
