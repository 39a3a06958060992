"""The task table of one model, outside of a run: questions of the world, and benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jielong.cli.models import Found
from jielong.config import data_root
from jielong.data.world import SKILLS, World
from jielong.errors import UsageError, nearest
from jielong.evaluate.asking import Asking
from jielong.evaluate.harness import Result, evaluate_task, with_contamination
from jielong.evaluate.skills import exact_match
from jielong.evaluate.tasks import TASKS, check_present, read_items
from jielong.generate.engine import Engine
from jielong.recipe import parse_recipe
from jielong.stages.context import write_jsonl
from jielong.stages.corpus import askable


@dataclass(frozen=True)
class Benchmarks:
    """names of TASKS, how to ask them, and where their files are.

    root: None where the data of the model's run are, else the usual place.
    overlap: look for the items in the training text of the model's run. items: a file for one line an item.
    """

    names: list[str]
    asking: Asking
    root: str | None
    overlap: bool
    items: Path | None


def split_names(names: str) -> tuple[list[str], list[str]]:
    """(questions of the world, benchmarks) out of names with commas between; all of the world's when there are none.

    Raises UsageError for a task that is not known.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    for name in asked:
        if name not in SKILLS and name not in TASKS:
            guess = nearest(name, [*SKILLS, *TASKS])
            hint = f"; did you mean {guess}?" if guess else ""
            raise UsageError(
                f"--tasks {name}: no such task{hint} (of the world: {', '.join(SKILLS)}; "
                f"benchmarks: {', '.join(TASKS)})"
            )
    asked = list(dict.fromkeys(asked)) or list(SKILLS)
    return [name for name in asked if name in SKILLS], [name for name in asked if name in TASKS]


def ask_world(
    engine: Engine,
    found: Found,
    names: list[str],
    num_questions: int,
    max_new_tokens: int,
    world_seed: int | None,
    say: Console,
) -> dict[str, dict[str, Any]]:
    """Task -> {"rate", "ci95", ...} on the first held-out questions of the world that the model was trained on."""
    if world_seed is None:
        recipe = found.recipe
        world_seed = parse_recipe(recipe).world_seed if recipe else 0
        if recipe is None:
            say.print(
                f"{found.folder} stands in no run folder: asking about world 0; facts hold in a model's own world only "
                "(--world-seed)",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
    world = World(world_seed)
    questions = [question for name in names for question in world.questions(name, num_questions, "heldout")]
    questions = askable(questions, engine.tokenizer, engine.model.config.max_length)
    table, _ = exact_match(engine, engine.tokenizer, questions, max_new_tokens=max_new_tokens)
    return table


def ask_benchmarks(engine: Engine, found: Found, wanted: Benchmarks, say: Console) -> dict[str, dict[str, Any]]:
    """Task -> what `Result.as_record` says. Side effect: the file of items. Raises DataError for files not there."""
    root = data_root(wanted.root or (parse_recipe(found.recipe).data.root if found.recipe else None))
    check_present(wanted.names, root)
    corpus = _corpus(found) if wanted.overlap else None
    results = []
    for name in wanted.names:
        with say.status(f"{name} …"):
            results.append(evaluate_task(engine, name, root, wanted.asking))
    if corpus is not None:
        with say.status(f"looking for the items in {corpus} …"):
            asked = [(one, read_items(one.name, root, wanted.asking.limit)) for one in results]
            results = with_contamination(asked, _texts(corpus))
    for result in results:
        for line in _notes(result):
            say.print(f"{result.name}: {line}", style="yellow", markup=False, soft_wrap=True)
    if wanted.items is not None:
        write_jsonl(wanted.items, ({"task": one.name, **row} for one in results for row in one.rows))
    return {result.name: result.as_record() for result in results}


def _corpus(found: Found) -> Path | None:
    """The curated text of the run that the model belongs to."""
    run = found.recipe.parent if found.recipe else None
    files = sorted(run.glob("[0-9][0-9]-*/documents.jsonl")) if run else []
    return files[-1] if files else None


def _texts(corpus: Path) -> Iterator[str]:
    with open(corpus, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def _notes(result: Result) -> list[str]:
    """What a reader of the figure must know beside it."""
    notes = []
    if result.num_cut:
        notes.append(
            f"{result.num_cut} of {len(result.rows)} items are longer than the context: their beginning was cut"
        )
    if result.num_too_long:
        notes.append(f"{result.num_too_long} items left out: an option alone is longer than the context")
    found = (result.contamination or {}).get("items_found", 0)
    if found:
        notes.append(f"{found} items share a run of 13 words with the training text; see `contamination` in --json")
    if any(row.get("shut", {}).get("network") is False for row in result.rows):
        notes.append("programs were run with the network open: this system gives no namespace to shut it")
    return notes


def print_table(table: dict[str, dict[str, Any]], out: Console) -> None:
    """One line a task and figure."""
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("task", "figure", "value", "95 % interval", "chance", "items"):
        shown.add_column(title, justify="left" if title in ("task", "figure") else "right")
    for name, row in table.items():
        if "rate" in row:
            shown.add_row(name, "exact match", *_percent(row["rate"], row["ci95"]), "", str(row["num"]))
            continue
        for figure, one in row["figures"].items():
            cells = _percent(one["value"], one["ci95"]) if figure != "perplexity" else _plain(one["value"], one["ci95"])
            chance = "" if row["chance"] is None or not figure.startswith("acc") else f"{100 * row['chance']:.1f} %"
            shown.add_row(name, figure, *cells, chance, str(one["num"]))
    out.print(shown)


def _percent(value: float, ci95: list[float]) -> tuple[str, str]:
    return f"{100 * value:.1f} %", f"{100 * ci95[0]:.1f} – {100 * ci95[1]:.1f} %"


def _plain(value: float, ci95: list[float]) -> tuple[str, str]:
    return f"{value:.4g}", f"{ci95[0]:.4g} – {ci95[1]:.4g}"
