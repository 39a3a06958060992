"""Labelled examples of five kinds of task, in the formats people publish.

    classification  {"text", "label"}                                      a text and its label
    pairs           {"sentence1", "sentence2", "label"}, SICK's, SNLI's    two texts and how they are related
    similarity      {"sentence1", "sentence2", "score"}, SICK's            two texts and a number
    choice          {"query", "choices", "gold"}                           a question, candidates, the right one's index
    span            {"context", "question", "answers": {"text": [...], "answer_start": [...]}}, or SQuAD's nested file

Other names of the keys are in the tables below. A row without them is an error that names file and line. A row that
says nothing (a blank text, no candidates) is left out and its reason recorded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from jielong.data.sources import Source, _rows, files
from jielong.errors import DataError, nearest

TASKS = ("classification", "pairs", "similarity", "choice", "span")

_TEXT = ("text", "sentence", "content", "review")
_PAIR = (
    ("sentence1", "sentence2"), ("sentence_A", "sentence_B"), ("premise", "hypothesis"), ("question1", "question2"),
    ("text1", "text2"),
)  # fmt: skip
_LABEL = ("label", "gold_label", "entailment_judgment", "sentiment", "class")
_SCORE = ("score", "relatedness_score", "similarity_score", "similarity")
_QUERY = ("query", "question", "context", "premise")
_CHOICES = ("choices", "candidates", "options")
_GOLD = ("gold", "label", "answer")


@dataclass(frozen=True)
class Example:
    """texts: one, or two; of choice the question and then the candidates, of span the context and the question.

    label: a text for classification and pairs, a number for similarity, the index of the right candidate for choice,
    the character at which the answer begins for span. answers: for span, all texts that count as right. where: file and
    line.
    """

    texts: tuple[str, ...]
    label: str | float | int
    where: str
    answers: tuple[str, ...] = ()


class _Nothing(DataError):
    """A row of the right shape that says nothing; it is left out."""


def read_examples(source: Source, root: Path, task: str, left_out: list[str] | None = None) -> list[Example]:
    """All examples of a source, in order.

    left_out: gets one line, "file:line: reason", for each row that says nothing.
    Raises DataError naming file and line for a row of another shape, and when no row is left.
    """
    reasons: list[str] = []
    examples: list[Example] = []
    for where, row in _located(source, root):
        for here, record in _flat(row, where) if task == "span" else ((where, row),):
            try:
                examples.append(_READERS[task](record, here))
            except _Nothing as reason:
                reasons.append(str(reason))
    if left_out is not None:
        left_out += reasons
    if not examples:
        first = f"; the first reason: {reasons[0]}" if reasons else ""
        raise DataError(f"source {source.name!r} has no usable row{first}")
    return examples


def _located(source: Source, root: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = (pair for path in files(source, root) for pair in _rows(source, path))
    return islice(rows, source.limit_documents)


def _classification(row: Mapping[str, Any], where: str) -> Example:
    return Example((_text(row, _key(row, _TEXT, where), where),), _label(row, where), where)


def _pairs(row: Mapping[str, Any], where: str) -> Example:
    return Example(_both(row, where), _label(row, where), where)


def _similarity(row: Mapping[str, Any], where: str) -> Example:
    key, texts = _key(row, _SCORE, where), _both(row, where)
    try:
        score = float(row[key])
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f'{where}: "{key}" is {row[key]!r}; it must be a number')
    return Example(texts, score, where)


def _choice(row: Mapping[str, Any], where: str) -> Example:
    candidates = row[_key(row, _CHOICES, where)]
    if not isinstance(candidates, list) or not all(isinstance(candidate, str) for candidate in candidates):
        raise DataError(f"{where}: the candidates must be a list of texts")
    key = _key(row, _GOLD, where)
    gold = row[key]
    if len(candidates) < 2 or not all(candidate.strip() for candidate in candidates):
        raise _Nothing(f"{where}: {len(candidates)} candidates, or a blank one")
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(candidates):
        raise DataError(
            f'{where}: "{key}" is {gold!r}; it must be the index of a candidate, 0 to {len(candidates) - 1}'
        )
    return Example((_text(row, _key(row, _QUERY, where), where), *candidates), gold, where)


def _span(row: Mapping[str, Any], where: str) -> Example:
    context, question = (_text(row, key, where) for key in ("context", "question"))
    answers = row.get("answers")
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
        paired = zip(texts, starts, strict=False) if isinstance(texts, list) and isinstance(starts, list) else ()
        answers = [{"text": text, "answer_start": start} for text, start in paired]
    if not isinstance(answers, list):
        raise DataError(f'{where}: needs "answers", a list of {{"text", "answer_start"}}; found {_keys(row)}')
    if not answers:
        raise _Nothing(f"{where}: no answer")
    found = tuple(str(answer.get("text", "")) for answer in answers if isinstance(answer, Mapping))
    first = answers[0]
    start = first.get("answer_start") if isinstance(first, Mapping) else None
    if not isinstance(start, int) or start < 0 or not found[0] or context[start : start + len(found[0])] != found[0]:
        raise _Nothing(f"{where}: the answer {found[:1]} does not stand at character {start} of its context")
    return Example((context, question), start, where, found)


def _flat(row: Mapping[str, Any], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The questions of one article of SQuAD's nested form, or the row itself."""
    if "paragraphs" not in row:
        yield where, row
        return
    for number, paragraph in enumerate(_objects(row["paragraphs"], '"paragraphs"', where), start=1):
        here = f"{where}, paragraph {number}"
        for question in _objects(paragraph.get("qas", []), '"qas"', here):
            yield here, {"context": paragraph.get("context"), **question}


def _objects(value: object, what: str, where: str) -> list[Mapping[str, Any]]:
    """The value as a list of objects."""
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise DataError(f"{where}: {what} must be a list of objects")
    return value


_READERS: dict[str, Callable[[Mapping[str, Any], str], Example]] = {
    "classification": _classification,
    "pairs": _pairs,
    "similarity": _similarity,
    "choice": _choice,
    "span": _span,
}


def _both(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    for first, second in _PAIR:
        if first in row and second in row:
            return _text(row, first, where), _text(row, second, where)
    wanted = ", ".join(f'"{first}" and "{second}"' for first, second in _PAIR)
    raise DataError(f"{where}: needs two texts, as one of {wanted}; found {_keys(row)}")


def _label(row: Mapping[str, Any], where: str) -> str:
    label = row[_key(row, _LABEL, where)]
    if not isinstance(label, str | int) or not str(label).strip():
        raise DataError(f"{where}: the label is {label!r}; it must be a word or a whole number")
    return str(label)


def _key(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    for name in names:
        if name in row:
            return name
    wanted = " or ".join(f'"{name}"' for name in names)
    hint = next((near for key in row if (near := nearest(str(key), names))), None)
    close = f"; did you mean {hint!r}?" if hint else ""
    raise DataError(f"{where}: needs {wanted}; found {_keys(row)}{close}")


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(f'"{key}"' for key in row) or "no keys"


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f'{where}: "{key}" must be text; found {_keys(row)}')
    if not value.strip():
        raise _Nothing(f'{where}: "{key}" is blank')
    return value


# What may teach and what is kept to examine.


def telling_texts(example: Example, task: str) -> tuple[str, ...]:
    """The texts that an example is known by: of choice the question alone, of span the context."""
    return example.texts[:1] if task in ("choice", "span") else example.texts


def identity(example: Example, task: str) -> str:
    """What must not stand on both sides: the texts without regard to case and blanks.

    Of span and choice the context and the question alone: several questions on one paragraph stay together.
    """
    texts = telling_texts(example, task)
    return "\x1f".join(" ".join(text.casefold().split()) for text in texts)


def split_heldout(
    examples: Iterable[Example], task: str, fraction: float, seed: int = 0
) -> tuple[list[Example], list[Example]]:
    """(to learn from, held out): by a hash of what `identity` says, so that equal texts are on the same side."""
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        digest = hashlib.sha256(f"{seed}\x1f{identity(example, task)}".encode()).digest()
        sides[int.from_bytes(digest[:4], "big") / 2**32 < fraction].append(example)
    return sides


def without_test(
    examples: Iterable[Example], test: Iterable[Example], task: str
) -> tuple[list[Example], list[tuple[str, str]]]:
    """(the examples that are not in the test, (where, where in the test) of those that are)."""
    places = {identity(example, task): example.where for example in test}
    kept, found = [], []
    for example in examples:
        place = places.get(identity(example, task))
        if place is None:
            kept.append(example)
        else:
            found.append((example.where, place))
    return kept, found


def label_numbers(examples: Iterable[Example], labels: Sequence[str]) -> list[int]:
    """The number of each example's label. Raises DataError naming file, line and label for one that is not legal."""
    numbers = {label: number for number, label in enumerate(labels)}
    found = []
    for example in examples:
        if example.label not in numbers:
            near = nearest(str(example.label), labels)
            close = f"; did you mean {near!r}?" if near else ""
            raise DataError(
                f"{example.where}: the label is {example.label!r}; legal are {', '.join(labels)}{close}. "
                "Correct the row, or name all labels in `labels`"
            )
        found.append(numbers[str(example.label)])
    return found
