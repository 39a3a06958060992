"""Does the model answer right? Each question carries the rule by which its reply is judged; no model judges another."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Protocol

from jielong.generate.engine import Completion
from jielong.intervals import wilson_ci95
from jielong.tokenizer.chat import render
from jielong.tokenizer.tokenizer import Tokenizer

CHECKS = ("exact", "one_of", "contains_all", "final_number", "refusal")
_TRAILING = " \t\r\n.,;:!?。、…~\"'”’"  # after NFKC, which turns full-width marks into these
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class Generates(Protocol):
    """What is asked of an engine here; `generate.engine.Engine` is one."""

    def generate(
        self, prompts: Sequence[str | list[int]], *, max_new_tokens: int, temperature: float, batch_rows: int
    ) -> list[Completion]: ...


def normalise(text: str) -> str:
    """NFKC, lower case, single spaces, without trailing punctuation: what two replies must share to count as equal."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.rstrip(_TRAILING)


def check(question: dict, reply: str) -> bool:
    """Whether reply answers question by the question's own rule.

    exact: equals the first answer; one_of, refusal: equals any answer; contains_all: every answer stands in the reply
    (as a whole word where words have spaces); final_number: the last number of the reply is the first answer. All
    comparisons are made after normalise().
    Raises ValueError for a rule that does not exist.
    """
    rule, answers = question["check"], [normalise(answer) for answer in question["answers"]]
    said = normalise(reply)
    if rule == "exact":
        return said == answers[0]
    if rule in ("one_of", "refusal"):
        return said in answers
    if rule == "contains_all":
        return all(_contains(said, answer) for answer in answers)
    if rule == "final_number":
        numbers = _NUMBER.findall(said)
        return bool(numbers) and numbers[-1] == answers[0]
    raise ValueError(f"check {rule!r} is not one of {', '.join(CHECKS)}")


def _contains(text: str, word: str) -> bool:
    if word.isascii():
        return re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", text) is not None
    return word in text


def exact_match(
    engine: Generates,
    tokenizer: Tokenizer,
    questions: Sequence[dict],
    max_new_tokens: int = 64,
    *,
    batch_rows: int = 64,
    num_samples: int = 3,
) -> tuple[dict[str, dict], list[dict]]:
    """Asks every question greedily and judges the replies.

    Returns (table, samples). table: {skill: {"rate", "num", "ci95": [low, high], "ended"}}, skills in order of first
    appearance; ended is the share of replies that came to an end token. samples: for each skill the first num_samples
    rows {"skill", "messages", "reply", "right", "ended", "answer"}.
    """
    prompts: list[str | list[int]] = [render(q["messages"], tokenizer, reply=True)[0] for q in questions]
    completions = engine.generate(prompts, max_new_tokens=max_new_tokens, temperature=0.0, batch_rows=batch_rows)
    rows: dict[str, list[dict]] = {}
    for question, completion in zip(questions, completions, strict=True):
        row = {
            "skill": question["skill"],
            "messages": question["messages"],
            "reply": completion.text,
            "right": check(question, completion.text),
            "ended": completion.finish_reason == "stop",
            "answer": question["answers"][0],
        }
        rows.setdefault(question["skill"], []).append(row)
    table = {skill: _summary(asked) for skill, asked in rows.items()}
    return table, [row for asked in rows.values() for row in asked[:num_samples]]


def _summary(rows: list[dict]) -> dict:
    num, num_right = len(rows), sum(row["right"] for row in rows)
    return {
        "rate": num_right / num,
        "num": num,
        "ci95": list(wilson_ci95(num_right, num)),
        "ended": sum(row["ended"] for row in rows) / num,
    }
