"""Evaluation prompts in training text: found whole or by 13 words, and nothing else is."""

from __future__ import annotations

import pytest

from jielong.data.decontaminate import Decontaminator
from jielong.data.words import TextBatch, Vocabulary, tokenize

LONG = "A farmer has twelve cows and buys three more at the market before noon, so how many cows are on the farm?"


def find(prompts: list[str], texts: list[str], least: int = 4) -> list[bool]:
    vocabulary = Vocabulary()
    return Decontaminator(prompts, vocabulary, 13, least).find(TextBatch(texts, vocabulary)).tolist()


def test_tokens() -> None:
    assert tokenize("Don’t! 37+45 = 82, 3 - 4; well-known 好的 x2") == [
        "don't", "37", "+", "45", "=", "82", "3", "-", "4", "well", "known", "好", "的", "x2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is 37 + 45?", True),
        ("They asked: WHAT IS 37+45 ?\nNobody knew.", True),
        ("What is 37 - 45?", False),
        ("What is 37 + 46?", False),
        ("What is it? 37 + 45", False),
        ("请翻译成中文：三只猫。", True),
        ("请翻译成中文：三只狗。", False),
    ],
)
def test_short_prompts_are_whole_runs(text: str, expected: bool) -> None:
    assert find(["What is 37 + 45?", "请翻译成中文:三只猫"], [text]) == [expected]


def test_long_prompts_are_found_by_thirteen_tokens() -> None:
    words = LONG.split()
    assert find([LONG], ["He said: " + " ".join(words[3:16]) + " ..."]) == [True]
    assert find([LONG], ["He said: " + " ".join(words[3:15]) + " ..."]) == [False]


def test_a_prompt_cut_by_a_document_border_is_no_find() -> None:
    assert find(["one two three four five"], ["one two three", "four five", "one two three four five"]) == [
        False,
        False,
        True,
    ]


def test_template_text_of_many_prompts_marks_none_of_them() -> None:
    template = "Please write a short and friendly story for young children that uses both of the words {} and {}."
    prompts = [
        template.format(a, b)
        for a, b in (("cat", "sun"), ("dog", "moon"), ("owl", "rain"), ("fox", "sea"), ("ant", "sky"))
    ]
    texts = [template.format("hen", "fog"), template.format("fox", "sea"), template.format("cat", "sun")]
    assert find(prompts, texts) == [False, True, True]
    assert find([LONG] * 10, [LONG]) == [True]  # the same prompt many times is one prompt


def test_short_and_repeated_prompts_are_counted() -> None:
    found = Decontaminator(["Hi", "Who?", "What is 1 + 1?", "what is 1+1", ""], Vocabulary(), 13, 4)
    assert (found.num_prompts, found.num_skipped) == (1, 3)
    assert find(["Hi"], ["Hi there"]) == [False]
    assert find([], ["text"]) == [False]
