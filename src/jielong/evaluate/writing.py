"""Benchmarks that are answered in writing: numbers to be read off, programs to be run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jielong.evaluate.answers import cut_at, final_number, plain_number
from jielong.evaluate.asking import Asking
from jielong.evaluate.figures import Figure, mean_figure, pass_at_k, vote
from jielong.evaluate.items import Item
from jielong.evaluate.sandbox import run_program
from jielong.evaluate.tasks import Task
from jielong.generate.engine import Engine

Written = tuple[list[dict[str, Any]], dict[str, Figure]]
_KS = (1, 10, 100)  # of pass@k, as far as there are samples


def write_numbers(engine: Engine, task: Task, items: Sequence[Item], prompts: Sequence[str], asking: Asking) -> Written:
    """(rows, figures). acc: of one reply, or of the vote of several; then acc_single is the mean over the samples.

    readable: the share of replies in which a number was found. acc_any: of questions with a right one among the
    samples, which a perfect judge could reach.
    """
    rows = []
    for item, (replies, cut) in zip(items, _replies(engine, task, prompts, asking), strict=True):
        answers = [final_number(reply) for reply in replies]
        wanted, voted = plain_number(item.answer), vote(answers)
        row: dict[str, Any] = {"item": item.number, "group": item.group, "replies": replies, "answers": answers}
        row |= {"answer": wanted, "voted": voted, "right": voted == wanted, "any_right": wanted in answers, "cut": cut}
        row["share_right"] = sum(answer == wanted for answer in answers) / len(answers)
        rows.append(row)
    figures = {"acc": mean_figure([float(row["right"]) for row in rows])}
    if asking.samples > 1:
        figures["acc_single"] = mean_figure([row["share_right"] for row in rows])
        figures["acc_any"] = mean_figure([float(row["any_right"]) for row in rows])
    figures["readable"] = mean_figure([sum(a is not None for a in row["answers"]) / asking.samples for row in rows])
    return rows, figures


def write_programs(
    engine: Engine, task: Task, items: Sequence[Item], prompts: Sequence[str], asking: Asking
) -> Written:
    """(rows, figures): pass@k for each k of 1, 10, 100 that there are samples for."""
    rows = []
    for item, (replies, cut) in zip(items, _replies(engine, task, prompts, asking), strict=True):
        outcomes = [run_program(f"{item.contexts[0]}{reply}\n{item.test}") for reply in replies]
        num_passed = sum(outcome.passed for outcome in outcomes)
        row: dict[str, Any] = {"item": item.number, "group": item.group, "replies": replies, "num_passed": num_passed}
        row |= {"reasons": [outcome.reason for outcome in outcomes], "shut": outcomes[0].shut}
        rows.append(row | {"right": num_passed / len(outcomes), "cut": cut})
    ks = [k for k in _KS if k <= asking.samples]
    return rows, {
        f"pass@{k}": mean_figure([pass_at_k(asking.samples, row["num_passed"], k) for row in rows]) for k in ks
    }


def _replies(engine: Engine, task: Task, prompts: Sequence[str], asking: Asking) -> Iterator[tuple[list[str], bool]]:
    """(replies, whether the prompt lost its beginning) for each prompt; replies end before the first stop.

    A reply is given at most half of the model's context.
    """
    tokenizer, context = engine.tokenizer, engine.model.config.max_length
    limit = min(asking.max_new_tokens or task.max_new_tokens, context // 2)
    whole = [[*tokenizer.prefix_ids, *tokenizer.encode(prompt)] for prompt in prompts]
    asked = [ids[max(0, len(ids) - (context - limit)) :] for ids in whole]
    completions = engine.generate(
        [ids for ids in asked for _ in range(asking.samples)],
        max_new_tokens=limit,
        temperature=asking.temperature,
        seed=asking.seed,
    )
    # after the prompt, for the blank that begins an indented line is not the beginning of a text
    texts = [cut_at(tokenizer.decode(made.tokens, made.prompt), task.stops) for made in completions]
    for number, (ids, before) in enumerate(zip(asked, whole, strict=True)):
        yield texts[number * asking.samples : (number + 1) * asking.samples], len(ids) < len(before)
