"""The task table of one model, outside of a run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from jielong.cli.models import Found
from jielong.data.world import SKILLS, World
from jielong.errors import UsageError, nearest
from jielong.evaluate.skills import exact_match
from jielong.generate.engine import Engine
from jielong.recipe import parse_recipe
from jielong.stages.corpus import askable


def task_table(
    engine: Engine,
    found: Found,
    names: list[str],
    num_questions: int,
    max_new_tokens: int,
    world_seed: int | None,
    say: Console,
) -> dict[str, dict[str, Any]]:
    """Task -> {"rate", "ci95", ...} on the first held-out questions of the world that the model was trained on.

    Raises UsageError for a task that is not known.
    """
    for name in names:
        if name not in SKILLS:
            guess = nearest(name, SKILLS)
            hint = f"; did you mean {guess}?" if guess else ""
            raise UsageError(f"--tasks {name}: no such task{hint} (legal: {', '.join(SKILLS)})")
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
    questions = [question for name in names or SKILLS for question in world.questions(name, num_questions, "heldout")]
    questions = askable(questions, engine.tokenizer, engine.model.config.max_length)
    table, _ = exact_match(engine, engine.tokenizer, questions, max_new_tokens=max_new_tokens)
    return table


def print_table(table: dict[str, dict[str, Any]], out: Console) -> None:
    """One line a task."""
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("task", "exact match", "95 % interval"):
        shown.add_column(title, justify="left" if title == "task" else "right")
    for name, row in table.items():
        low, high = row["ci95"]
        shown.add_row(name, f"{100 * row['rate']:.1f} %", f"{100 * low:.1f} – {100 * high:.1f} %")
    out.print(shown)
