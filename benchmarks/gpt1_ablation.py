"""What pre-training and the auxiliary language model are worth to GPT-1's way, on its four kinds of task.

    python benchmarks/gpt1_ablation.py runs/gpt1-tasks/03-pretrain/model --data-root DATA

Three ways for each task: as in the paper (lambda = 0.5), without the language model's loss (lambda = 0), and the same
net without pre-training, its weights drawn at random. With --start FOLDER a fourth: the weights with which pre-training
began, where those are not random alone, to tell what they gave from what the text gave. --scratch-rate: the nets that
were not pre-trained may have a learning rate of their own.
The table is printed and written to OUT/table.md, the numbers to OUT/scores.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from finetunes import Scores, absolute, figures, gain, interval, run_ways, shown, task_parser
from table import machine, markdown_table

from jielong import detect
from jielong.runtime import environment

SOURCES = {
    "polarity": "sentence_polarity/sentence_polarity.train.jsonl",
    "sick": "sick/sick.train.tsv",
    "stsb": "stsb/stsb.en.train.jsonl",
    "stsb_dev": "stsb/stsb.en.dev.jsonl",
    "arc_easy": "zero_shot/arc_easy.jsonl",
}
TASKS: dict[str, dict[str, Any]] = {
    "classification": {"sources": ["polarity"]},
    "pairs": {"sources": ["sick"]},
    "similarity": {"sources": ["stsb"], "heldout_sources": ["stsb_dev"]},
    "choice": {"sources": ["arc_easy"], "heldout_fraction": 0.3},  # 2376 items in all: a tenth would tell little
}
MEASURES = {"classification": "accuracy", "pairs": "accuracy", "similarity": "Pearson", "choice": "accuracy"}
WAYS: dict[str, dict[str, Any]] = {
    "full": {"language_weight": 0.5},
    "no_language": {"language_weight": 0.0},
    "scratch": {"language_weight": 0.5, "from_scratch": True},
}


def ways_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The ways of these options, name -> what it has of its own."""
    rate = {} if options.scratch_rate is None else {"learning_rate": options.scratch_rate}
    ways = {**WAYS, "scratch": {**WAYS["scratch"], **rate}}
    if options.start is not None:
        ways["start"] = {"language_weight": 0.5, "model": str(options.start), **rate}
    return ways


def plan(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """name -> settings of a stage, for every task and way."""
    shared: dict[str, Any] = {"epochs": options.epochs, "warmup_steps": 10}
    if options.rate is not None:
        shared["learning_rate"] = options.rate
    if options.limit is not None:
        shared["limit_examples"] = options.limit
    return {
        f"{task}-{way}": {"task": task, **TASKS[task], **shared, **settings}
        for task in options.tasks
        for way, settings in ways_of(options).items()
    }


HEADER = {"full": "full", "no_language": "λ = 0", "scratch": "no pre-training", "start": "the start alone"}


def render(options: argparse.Namespace, scores: Scores) -> str:
    """A row for every task."""
    rows, ways = [], list(ways_of(options))
    for task in options.tasks:
        full, without, scratch = (f"{task}-{way}" for way in WAYS)
        found = figures(options, full)
        rows.append(
            [
                f"{task} ({', '.join(TASKS[task]['sources'])}), {MEASURES[task]}",
                *(shown(*interval(scores[f"{task}-{way}"])) for way in ways),
                shown(*gain(scores, full, scratch), sign=True),
                shown(*gain(scores, full, without), sign=True),
                f"{100 * found['trivial_score']:.1f}",
                f"{100 * found['words_score']:.1f}",
                f"{found['examples']} / {found['heldout_examples']}",
            ]
        )
    header = ["task", *(HEADER[way] for way in ways), "gain of pre-training", "gain of λ", "same answer", "words", "n"]
    seeds = f"{len(options.seeds)} seeds" if len(options.seeds) > 1 else "1 seed: no interval"
    said = "95 % by Student's t over the seeds; n: examples to learn from / held out."
    return f"{markdown_table(header, rows)}\n\n{seeds}; {said}\n"


def main(arguments: list[str] | None = None) -> None:
    parser = task_parser(__doc__, "runs/gpt1-ablation")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--limit", type=int, help="learn from so many examples of each task")
    parser.add_argument("--rate", type=float, help="learning rate of all ways; else the recipe's")
    parser.add_argument("--start", type=Path, help="model folder that pre-training began with, as a fourth way")
    parser.add_argument("--scratch-rate", type=float, help="learning rate of what was not pre-trained; else the same")
    options = absolute(parser.parse_args(arguments))
    if options.start is not None:
        options.start = options.start.resolve()
    scores = run_ways(options, used(options.tasks), plan(options))
    text = render(options, scores)
    (options.out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    print(machine(environment(detect(threads=options.threads))))


def used(tasks: list[str]) -> dict[str, str]:
    """The sources that these tasks name; a recipe may not have others."""
    names = [name for task in tasks for key in ("sources", "heldout_sources") for name in TASKS[task].get(key, ())]
    return {name: SOURCES[name] for name in names}


if __name__ == "__main__":
    main()
