"""What is asked of a model that only continues text: a row of a benchmark's file becomes an item.

Every reader takes one row and gives one Item; a missing key is a DataError that names the file. Texts are put together
as lm-eval does it, so that figures can be set beside published ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from jielong.errors import DataError

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Item:
    """One question.

    contexts, continuations: an option is a continuation after the one context, or the one continuation after a context
    of its own (partial scoring); the model chooses the likeliest. Where the model writes, the one context is the
    prompt, and the continuation is how a worked example would go on. gold: the number of the right option.
    answer: what a written reply must come to. group: the subject or phenomenon. test: of a program. number: the row of
    the file, from 0.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int = 0
    answer: str = ""
    group: str = ""
    test: str = ""
    number: int = 0

    @property
    def options(self) -> list[tuple[str, str]]:
        """(context, continuation) of each option."""
        if len(self.contexts) > 1:
            return [(context, self.continuations[0]) for context in self.contexts]
        return [(self.contexts[0], continuation) for continuation in self.continuations]

    @property
    def num_options(self) -> int:
        return max(len(self.contexts), len(self.continuations))

    @property
    def text(self) -> str:
        """The item with its right answer: a worked example, and what a training text must not hold."""
        context, continuation = self.options[self.gold]
        return context + continuation


def _spaced(texts: list[str]) -> tuple[str, ...]:
    return tuple(f" {text}" for text in texts)


def read_query(row: dict[str, Any]) -> Item:
    """{"query", "choices", "gold"}: the choice goes on after the query."""
    return Item((row["query"].rstrip(),), _spaced(row["choices"]), _index(row["gold"], row["choices"]))


def read_question(row: dict[str, Any]) -> Item:
    """The same with "Answer:" on a line of its own between the two: ARC, PIQA, BoolQ."""
    item = read_query(row)
    return Item((f"{item.contexts[0]}\nAnswer:",), item.continuations, item.gold)


def read_hellaswag(row: dict[str, Any]) -> Item:
    """{"ctx", "endings", "label"}, with the marks of WikiHow's pages taken out."""
    endings = [_without_marks(text) for text in row["endings"]]
    return Item((_without_marks(row["ctx"]),), _spaced(endings), _index(row["label"], endings))


def _without_marks(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def read_lambada(row: dict[str, Any]) -> Item:
    """{"text"}: a passage whose last word is to be found."""
    context, _, word = row["text"].rstrip().rpartition(" ")
    return Item((context,), (f" {word}",))


def read_winograd(row: dict[str, Any]) -> Item:
    """{"context_options", "continuation", "gold"}: the same ending after each reading of the pronoun.

    Source: Trinh and Le 2018, arXiv:1806.02847, section 3.1 (partial scoring).
    """
    contexts = tuple(text.rstrip() for text in row["context_options"])
    return Item(contexts, _spaced([row["continuation"]]), _index(row["gold"], contexts))


def read_blimp(row: dict[str, Any]) -> Item:
    """{"good", "bad", "field"}: two whole sentences, the grammatical one is to be the likelier."""
    return Item(("",), (row["good"], row["bad"]), 0, group=row["field"])


def read_mmlu(row: dict[str, Any]) -> Item:
    """{"subject", "question", "choices", "answer"}: the options are listed, the answer is a letter."""
    listed = "".join(f"\n{LETTERS[i]}. {choice}" for i, choice in enumerate(row["choices"]))
    letters = [LETTERS[i] for i in range(len(row["choices"]))]
    gold, subject = _index(int(row["answer"]), letters), row["subject"].replace("_", " ")
    return Item((f"{row['question'].strip()}{listed}\nAnswer:",), _spaced(letters), gold, group=subject)


def read_gsm8k(row: dict[str, Any]) -> Item:
    """{"question", "answer"}: the chain of thought, its calculator marks taken out, then "#### number"."""
    reasoning, _, number = re.sub(r"<<.*?>>", "", row["answer"]).rpartition("####")
    return _problem(row["question"], reasoning.strip(), number.strip().replace(",", ""))


def read_svamp(row: dict[str, Any]) -> Item:
    """{"context", "chain_of_thought", "answer"}."""
    return _problem(row["context"], row["chain_of_thought"].strip(), row["answer"].strip())


def _problem(question: str, reasoning: str, number: str) -> Item:
    worked = f" {reasoning}\n#### {number}" if reasoning else f" #### {number}"
    return Item((f"Question: {question.strip()}\nAnswer:",), (worked,), answer=number)


def without_reasoning(item: Item) -> Item:
    """The same problem answered at once, without a chain of thought."""
    return replace(item, continuations=(f" #### {item.answer}",))


def read_human_eval(row: dict[str, Any]) -> Item:
    """{"prompt", "canonical_solution", "test", "entry_point"}: a function's head, to be gone on with."""
    test = f"{row['test']}\ncheck({row['entry_point']})\n"
    return Item((row["prompt"],), (row["canonical_solution"],), test=test)


def _index(gold: Any, options: Any) -> int:
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(options):
        raise DataError(f"the right answer is {gold!r}; it must be a number from 0 to {len(options) - 1}")
    return gold
