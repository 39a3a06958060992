"""What pre-training and the auxiliary language model are worth to GPT-1's way, on its four kinds of task.

    python benchmarks/gpt1_ablation.py runs/gpt1-tasks/03-pretrain/model --data-root DATA

Three ways for each task: as in the paper (lambda = 0.5), without the language model's loss (lambda = 0), and the same
net without pre-training. The table is printed and written to OUT/table.md, the numbers to OUT/scores.json.
"""

from __future__ import annotations

import argparse
import json
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
    "choice": {"sources": ["arc_easy"]},
}
MEASURES = {"classification": "accuracy", "pairs": "accuracy", "similarity": "Pearson", "choice": "accuracy"}
WAYS: dict[str, dict[str, Any]] = {
    "full": {"language_weight": 0.5},
    "no_language": {"language_weight": 0.0},
    "scratch": {"language_weight": 0.5, "from_scratch": True},
}


def plan(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """name -> settings of a stage, for every task and way."""
    shared: dict[str, Any] = {"epochs": options.epochs, "warmup_steps": 10}
    if options.limit is not None:
        shared["limit_examples"] = options.limit
    return {
        f"{task}-{way}": {"task": task, **TASKS[task], **shared, **settings}
        for task in options.tasks
        for way, settings in WAYS.items()
    }


def render(options: argparse.Namespace, scores: Scores) -> str:
    """A row for every task."""
    rows = []
    for task in options.tasks:
        full, without, scratch = (f"{task}-{way}" for way in WAYS)
        found = figures(options, full)
        rows.append(
            [
                f"{task} ({', '.join(TASKS[task]['sources'])}), {MEASURES[task]}",
                *(shown(*interval(scores[name])) for name in (full, without, scratch)),
                shown(*gain(scores, full, scratch), sign=True),
                shown(*gain(scores, full, without), sign=True),
                f"{100 * found['trivial_score']:.1f}",
                f"{100 * found['words_score']:.1f}",
            ]
        )
    header = ["task", "full", "λ = 0", "no pre-training", "gain of pre-training", "gain of λ", "same answer", "words"]
    seeds = f"{len(options.seeds)} seeds" if len(options.seeds) > 1 else "1 seed: no interval"
    return f"{markdown_table(header, rows)}\n\n{seeds}; 95 % by Student's t over the seeds.\n"


def main(arguments: list[str] | None = None) -> None:
    parser = task_parser(__doc__, "runs/gpt1-ablation")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--limit", type=int, help="learn from so many examples of each task")
    options = absolute(parser.parse_args(arguments))
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
