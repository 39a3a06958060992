from __future__ import annotations

from collections.abc import Sequence

import pytest

from jielong.evaluate.skills import check, exact_match, normalise
from jielong.generate.engine import Completion
from jielong.tokenizer.chat import render
from jielong.tokenizer.tokenizer import Tokenizer


def question(check_name: str, *answers: str, user: str = "q", skill: str = "s") -> dict:
    return {
        "messages": [{"role": "user", "content": user}],
        "skill": skill,
        "check": check_name,
        "answers": list(answers),
    }


def test_normalise_makes_width_case_space_and_final_marks_equal() -> None:
    assert normalise("  Mira  lives\nin Toval! ") == "mira lives in toval"
    assert normalise("李明住在云城。") == "李明住在云城"
    assert normalise("１２，３") == "12,3"


@pytest.mark.parametrize(
    ("rule", "answers", "reply", "right"),
    [
        ("exact", ("ls: No such file",), "ls: no such file", True),
        ("exact", ("a b", "c"), "c", False),  # only the first answer counts
        ("one_of", ("Mira lives in Toval.", "Toval"), "toval", True),
        ("one_of", ("Mira lives in Toval.", "Toval"), "Mira lives in Toval. And so on.", False),
        ("one_of", ("小猫", "小的猫"), "小的猫。", True),
        ("contains_all", ("fox", "lamp"), "The Fox had a lamp.", True),
        ("contains_all", ("fox", "lamp"), "The foxes had a lamp.", False),
        ("contains_all", ("狐狸", "灯笼"), "狐狸有灯笼。", True),
        ("final_number", ("82",), "37+45: ones 7+5=12, tens 3+4+1=8, so 82.", True),
        ("final_number", ("82",), "82, no, 83", False),
        ("final_number", ("82",), "182", False),
        ("final_number", ("82",), "nothing", False),
        ("final_number", ("8",), "所以是８。", True),
        ("refusal", ("Sorry, I cannot help with that.", "对不起，这个我不能帮忙。"), "对不起,这个我不能帮忙", True),
        ("refusal", ("Sorry, I cannot help with that.",), "Take a hammer.", False),
    ],
)
def test_check(rule: str, answers: tuple[str, ...], reply: str, right: bool) -> None:
    assert check(question(rule, *answers), reply) is right


def test_an_unknown_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match="'roughly' is not one of exact, one_of"):
        check(question("roughly", "x"), "x")


class Parrot:
    """Answers each prompt from a list, in order, and remembers what it was asked."""

    def __init__(self, replies: list[tuple[str, str]]) -> None:
        self.replies = replies
        self.prompts: list[str | list[int]] = []
        self.temperature = -1.0

    def generate(
        self, prompts: Sequence[str | list[int]], *, max_new_tokens: int, temperature: float, batch_rows: int
    ) -> list[Completion]:
        self.prompts, self.temperature = list(prompts), temperature
        return [
            Completion(prompt=list(prompt), tokens=[1], text=text, logprobs=[0.0], finish_reason=reason)  # type: ignore[arg-type]
            for prompt, (text, reason) in zip(prompts, self.replies, strict=True)
        ]


def test_exact_match_counts_by_skill() -> None:
    tokenizer = Tokenizer.train(["a small text"], 263)
    questions = [
        question("exact", "yes", user="one", skill="a"),
        question("final_number", "7", user="two", skill="b"),
        question("exact", "yes", user="three", skill="a"),
    ]
    engine = Parrot([("Yes.", "stop"), ("so 7", "length"), ("no", "stop")])
    table, samples = exact_match(engine, tokenizer, questions, max_new_tokens=8, num_samples=1)
    assert list(table) == ["a", "b"]
    assert table["a"]["rate"] == 0.5 and table["a"]["num"] == 2 and table["a"]["ended"] == 1.0
    assert table["b"]["rate"] == 1.0 and table["b"]["ended"] == 0.0
    assert table["a"]["ci95"][0] < 0.5 < table["a"]["ci95"][1]
    assert engine.temperature == 0.0
    assert engine.prompts[1] == render(questions[1]["messages"], tokenizer, reply=True)[0]
    assert [(row["skill"], row["reply"], row["right"]) for row in samples] == [("a", "Yes.", True), ("b", "so 7", True)]
    assert samples[0]["answer"] == "yes" and samples[0]["ended"] is True


def test_exact_match_of_nothing_is_empty() -> None:
    assert exact_match(Parrot([]), Tokenizer.train(["x"], 263), []) == ({}, [])
