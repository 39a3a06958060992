"""How many labels does pre-training spare? Accuracy against the number of labels, pre-trained and from scratch.

    python benchmarks/labels_curve.py runs/bert-novels/03-mlm/model --data-root DATA --labels 100 500 2000 8636

The same net in both cases, fine-tuned on the same examples: a seed draws the examples and the new weights. The settings
are the same but for the learning rate, of which each way has its own: what serves trained weights best is not what
serves new ones. With few labels the steps are not fewer than --least-steps, which the net from scratch needs more.
The table is printed and written to OUT/table.md, the numbers to OUT/scores.json.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from finetunes import Scores, absolute, figures, gain, interval, run_ways, shown, task_parser
from table import machine, markdown_table

from jielong import detect
from jielong.runtime import environment

WAYS = {"pretrained": False, "scratch": True}


def plan(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """name -> settings of a stage, for every number of labels and both beginnings."""
    ways = {}
    for labels in options.labels:
        steps = max(options.least_steps, round(options.epochs * labels / 32))
        for start, scratch in WAYS.items():
            ways[f"{start}-{labels}"] = {
                "task": options.task,
                "sources": ["labelled"],
                "limit_examples": labels,
                "from_scratch": scratch,
                "pooling": options.pooling,
                "learning_rate": options.scratch_rate if scratch else options.rate,
                "num_steps": steps,
                "warmup_steps": max(1, steps // 10),
            }
    return ways


def render(options: argparse.Namespace, scores: Scores) -> str:
    """A row for every number of labels."""
    rows = []
    for labels in options.labels:
        pretrained, scratch = f"pretrained-{labels}", f"scratch-{labels}"
        rows.append(
            [
                str(labels),
                shown(*interval(scores[pretrained])),
                shown(*interval(scores[scratch])),
                shown(*gain(scores, pretrained, scratch), sign=True),
                f"{100 * figures(options, pretrained)['words_score']:.1f}",
            ]
        )
    found = figures(options, f"pretrained-{options.labels[0]}")
    note = (
        f"{found['heldout_examples']} held-out examples, {len(options.seeds)} seeds (95 % by Student's t over them); "
        f"the same answer to all: {100 * found['trivial_score']:.1f}; bag of words: seed {options.seeds[0]}."
    )
    header = ["labels", "pre-trained", "from scratch", "gain in points", "bag of words"]
    return f"{markdown_table(header, rows)}\n\n{note}\n"


def main(arguments: list[str] | None = None) -> None:
    parser = task_parser(__doc__, "runs/labels-curve")
    parser.add_argument("--source", default="sentence_polarity/sentence_polarity.train.jsonl")
    parser.add_argument("--task", choices=["classification", "pairs"], default="classification")
    parser.add_argument("--pooling", choices=["cls", "mean"], default="cls", help="what the label is read off")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of the pre-trained net")
    parser.add_argument("--scratch-rate", type=float, default=5e-4, help="of the one from scratch")
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--least-steps", type=int, default=150)
    options = absolute(parser.parse_args(arguments))
    scores = run_ways(options, {"labelled": options.source}, plan(options))
    text = render(options, scores)
    (options.out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    print(machine(environment(detect(threads=options.threads))))


if __name__ == "__main__":
    main()
