"""The stage `evaluate`: the same questions to every model of the run, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jielong.errors import RecipeError
from jielong.evaluate.asking import Asking
from jielong.evaluate.harness import Result, evaluate_task, with_contamination
from jielong.evaluate.skills import exact_match
from jielong.evaluate.tasks import read_items
from jielong.generate.engine import Engine
from jielong.stages.context import Context, each_jsonl, write_json, write_jsonl
from jielong.stages.corpus import askable, evaluation_questions
from jielong.tokenizer import Tokenizer
from jielong.tokenizer.chat import render

# kind -> what its model is called in tables
MODEL_KINDS = {
    "pretrain": "base",
    "sft": "sft",
    "best_of_n": "best_of_n",
    "dpo": "dpo",
    "grpo": "grpo",
    "ppo": "ppo",
}


def run_evaluate(context: Context) -> dict[str, Any]:
    """Exact match by skill and benchmarks for base, sft and what was made of it, and their answers side by side."""
    settings = context.settings
    questions: list[dict[str, Any]] = []
    if context.has_world:
        pool = evaluation_questions(context, settings.questions_per_skill)
        questions = [question for skill in settings.skills or pool for question in pool[skill]]
    tables: dict[str, dict[str, Any]] = {}
    results: dict[str, list[Result]] = {}
    shown: list[dict[str, Any]] = []
    num_too_long = 0
    names = [name for name in context.earlier if context.kinds[name] in MODEL_KINDS]
    for number, name in enumerate(names, start=1):
        label = MODEL_KINDS[context.kinds[name]]
        label = name if label in tables or any(label in sample for sample in shown) else label  # a later round's
        model, tokenizer = context.load_model(context.earlier[name] / "model")
        engine = Engine(model, tokenizer, context.runtime)
        if context.has_world:
            asked = askable(questions, tokenizer, model.config.max_length)  # the same ones for all models
            tables[label], rows = exact_match(engine, tokenizer, asked, max_new_tokens=settings.max_new_tokens)
            num_too_long = len(questions) - len(asked)
        else:
            rows = _answers(engine, tokenizer, settings.prompts, settings.max_new_tokens)
        _put_beside(shown, label, rows)
        results[label] = [evaluate_task(engine, task, context.root, _asking(context)) for task in settings.tasks]
        context.progress.update(number, total=len(names), model=label)
    write_json(context.folder / "samples.json", shown)
    return {
        "exact_match": {label: {skill: row["rate"] for skill, row in table.items()} for label, table in tables.items()},
        "exact_match_ci95": {
            label: {skill: row["ci95"] for skill, row in table.items()} for label, table in tables.items()
        },
        "questions_per_skill": settings.questions_per_skill if questions else 0,
        "questions_too_long": num_too_long,
        **(_benchmarks(context, results) if settings.tasks else {}),
    }


def _asking(context: Context) -> Asking:
    return Asking(shots=context.settings.shots, limit=context.settings.items_per_task, seed=context.recipe.run.seed)


def _benchmarks(context: Context, results: dict[str, list[Result]]) -> dict[str, Any]:
    """The figures of all models side by side; side effect: tasks.jsonl, one line a model and item.

    What the run's training text has of a task's items is looked up once, for it is the same for all models.
    """
    rows = (
        {"model": label, "task": one.name, **row}
        for label, found in results.items()
        for one in found
        for row in one.rows
    )
    write_jsonl(context.folder / "tasks.jsonl", rows)
    last = list(results.values())[-1]
    overlaps: dict[str, dict[str, Any] | None] = {}
    if context.has("curate"):
        asked = [(one, read_items(one.name, context.root, context.settings.items_per_task)) for one in last]
        overlaps = {one.name: one.contamination for one in with_contamination(asked, _training_texts(context))}
    each = {label: {one.name: one.figures[one.headline] for one in found} for label, found in results.items()}
    return {
        "tasks": {label: {name: figure.value for name, figure in row.items()} for label, row in each.items()},
        "tasks_ci95": {label: {name: list(figure.ci95) for name, figure in row.items()} for label, row in each.items()},
        "tasks_headline": {one.name: one.headline for one in last},
        "tasks_chance": {one.name: one.chance for one in last},
        "tasks_items_cut": {label: {one.name: one.num_cut for one in found} for label, found in results.items()},
        "tasks_items_in_training_text": {name: found["items_found"] for name, found in overlaps.items() if found},
    }


def _training_texts(context: Context) -> Iterator[str]:
    return (record["text"] for record in each_jsonl(context.folder_of("curate") / "documents.jsonl"))


def check_prompts(prompts: Sequence[str], tokenizer: Tokenizer, context_tokens: int) -> None:
    """Raises RecipeError for a prompt of [evaluate] that fills the context: before a model is trained for hours."""
    for prompt in prompts:
        num_tokens = len(render([{"role": "user", "content": prompt}], tokenizer, reply=True)[0])
        if num_tokens >= context_tokens:
            raise RecipeError(
                f"[evaluate] prompts: {prompt[:40]!r}... is {num_tokens} tokens as a turn, which leaves no room for a "
                f"reply in the model's context of {context_tokens}; shorten it"
            )


def _answers(engine: Engine, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int) -> list[dict[str, Any]]:
    """Greedy answers to the recipe's own prompts, which no program can judge."""
    asked = [[{"role": "user", "content": text}] for text in prompts]
    ids = [render(messages, tokenizer, reply=True)[0] for messages in asked]
    completions = engine.generate(ids, max_new_tokens=max_new_tokens, temperature=0.0)
    return [{"messages": m, "reply": c.text} for m, c in zip(asked, completions, strict=True)]


def _put_beside(shown: list[dict[str, Any]], label: str, rows: list[dict[str, Any]]) -> None:
    """Add one model's replies to the prompts that all models answer, first ones first: chosen before they are seen."""
    if not shown:
        shown += [{"skill": row.get("skill", ""), "prompt": row["messages"][-1]["content"]} for row in rows]
    for sample, row in zip(shown, rows, strict=True):
        sample[label] = row["reply"]
