"""The benchmarks that can be asked of a model: one literal table.

The items are data, found under the data root; none is shipped. `path` is where this project keeps them; any file with
the same keys will do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jielong.data.sources import Source, find, read_records
from jielong.errors import DataError, UsageError, nearest
from jielong.evaluate import items
from jielong.evaluate.items import Item


@dataclass(frozen=True)
class Task:
    """How a benchmark is asked.

    asks: what the model must do, in a few words. path: its items, under the data root. read: a row to an item.
    scoring: "choice" (the likeliest of the options), "word" (the likeliest continuation of all), "number" (written,
    read off the reply) or "program" (written and run). headline: the figure to be told first.
    shots: where worked examples come from; "" for the items themselves, never an item to its own question.
    shots_by_group: examples of the same subject only. header: before the examples, with {group} for the subject.
    normalised: whether options differ so in length that log-probability a byte is told as well.
    max_new_tokens, stops: of a written reply, which ends before any of the stops.
    """

    asks: str
    path: str
    read: Callable[[dict[str, Any]], Item]
    scoring: str = "choice"
    headline: str = "acc"
    shots: str = ""
    shots_by_group: bool = False
    header: str = ""
    normalised: bool = True
    max_new_tokens: int = 0
    stops: tuple[str, ...] = ()


_NEXT_QUESTION = ("\nQuestion:", "\n\n\n")
_NEXT_DEFINITION = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@", "\n```")  # Chen et al. 2021, and fences
_MMLU_HEADER = "The following are multiple choice questions (with answers) about {group}.\n\n"

TASKS: dict[str, Task] = {
    "lambada": Task(
        "the last word of a passage",
        "zero_shot/lambada_test.first2577.jsonl",
        items.read_lambada,
        scoring="word",
        normalised=False,
    ),
    "hellaswag": Task(
        "how a scene goes on", "zero_shot/hellaswag_val.even.jsonl", items.read_hellaswag, headline="acc_norm"
    ),
    "arc_easy": Task("school science", "zero_shot/arc_easy.jsonl", items.read_question),
    "piqa": Task("how things are done", "zero_shot/piqa_valid.jsonl", items.read_question),
    "copa": Task("cause or effect", "zero_shot/copa.jsonl", items.read_query, normalised=False),
    "winograd": Task("whom a pronoun means", "zero_shot/winograd_wsc273.jsonl", items.read_winograd, normalised=False),
    "boolq": Task("yes or no, of a passage", "zero_shot/boolq_val.jsonl", items.read_question, normalised=False),
    "openbook_qa": Task(
        "science, by what everybody knows", "zero_shot/openbook_qa.jsonl", items.read_query, headline="acc_norm"
    ),
    "commonsense_qa": Task(
        "common sense, by letter", "zero_shot/commonsense_qa.jsonl", items.read_query, normalised=False
    ),
    "strategy_qa": Task(
        "yes or no, in several steps", "zero_shot/bigbench_strategy_qa.jsonl", items.read_query, normalised=False
    ),
    "blimp": Task("which sentence is grammatical", "blimp/blimp.jsonl", items.read_blimp, normalised=False),
    "mmlu": Task(
        "57 subjects, by letter",
        "mmlu/mmlu.test_even.jsonl",
        items.read_mmlu,
        shots="mmlu/mmlu.dev.jsonl",
        shots_by_group=True,
        header=_MMLU_HEADER,
        normalised=False,
    ),
    "gsm8k": Task(
        "school sums, worked out",
        "gsm8k/gsm8k.test_first660.jsonl",
        items.read_gsm8k,
        scoring="number",
        shots="gsm8k/gsm8k.train.jsonl",
        max_new_tokens=256,
        stops=_NEXT_QUESTION,
    ),
    "svamp": Task(
        "sums in a sentence or two",
        "zero_shot/svamp.jsonl",
        items.read_svamp,
        scoring="number",
        max_new_tokens=64,
        stops=_NEXT_QUESTION,
    ),
    "human_eval": Task(
        "a Python function, run against its tests",
        "human_eval/HumanEval.first82.jsonl",
        items.read_human_eval,
        scoring="program",
        headline="pass@1",
        max_new_tokens=384,
        stops=_NEXT_DEFINITION,
    ),
}


def find_task(name: str) -> Task:
    """Raises UsageError naming what there is for a task that there is not."""
    if name not in TASKS:
        guess = nearest(name, TASKS)
        hint = f"; did you mean {guess}?" if guess else ""
        raise UsageError(f"task {name!r} is not known{hint} (legal: {', '.join(TASKS)})")
    return TASKS[name]


def check_present(names: list[str] | tuple[str, ...], root: Path) -> None:
    """Raises DataError, before anything is scored, when a task's items are not under the data root."""
    for name in names:
        task = find_task(name)
        for path in filter(None, (task.path, task.shots)):
            if find(Source(name, path), root) is None:
                raise DataError(
                    f"task {name!r} reads {Path(root) / path} (or with .gz), which is not there; put the file there or "
                    f"set the data root (now {root})"
                )


def read_items(name: str, root: Path, limit: int | None = None, path: str | None = None) -> list[Item]:
    """The items of a task in the file's order, all or `limit` of them; path: another file, as of worked examples.

    A limit takes items evenly spaced, for files are sorted by subject: the first ones alone would be of one. Raises
    DataError naming the file and the row for a key that is missing or of another kind.
    """
    task = find_task(name)
    source = Source(name, path or task.path)
    rows = list(read_records(source, root))
    found = []
    for number in spaced(len(rows), limit):
        try:
            found.append(replace(task.read(rows[number]), number=number))
        except (KeyError, TypeError, AttributeError, ValueError, DataError) as error:
            missing = f"no key {error}" if isinstance(error, KeyError) else str(error)
            where = f"{Path(root) / source.path}, row {number + 1}"
            raise DataError(f"{where}: not an item of {name!r}: {missing}") from None
    if not found:
        raise DataError(f"{Path(root) / source.path}: holds no item of {name!r}")
    return found


def spaced(num: int, limit: int | None) -> list[int]:
    """Numbers below num, evenly spaced and ascending: all, or `limit` where that is less."""
    return list(range(num)) if limit is None or limit >= num else [index * num // limit for index in range(limit)]
