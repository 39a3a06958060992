"""Whole tasks on a model of no knowledge: figures from rows, baselines, what was cut, what was found in the text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jielong.errors import DataError, UsageError
from jielong.evaluate import harness
from jielong.evaluate.asking import Asking
from jielong.evaluate.harness import evaluate_task, with_contamination
from jielong.evaluate.tasks import read_items
from jielong.generate.engine import Completion, Engine


class Parrot:
    """An engine that replies what it is told to, prompt by prompt."""

    def __init__(self, engine: Engine, replies: list[str]) -> None:
        self.model, self.tokenizer, self.runtime = engine.model, engine.tokenizer, engine.runtime
        self.replies, self.asked = replies, list[str]()

    def generate(self, prompts: list[list[int]], **settings: Any) -> list[Completion]:
        self.settings = settings
        self.asked = [self.tokenizer.decode(prompt) for prompt in prompts]
        assert len(prompts) == len(self.replies)
        made = zip(prompts, map(self.tokenizer.encode, self.replies), strict=True)
        return [Completion(prompt, tokens, "", [0.0] * len(tokens), "length") for prompt, tokens in made]


@pytest.mark.parametrize("name", ["arc_easy", "hellaswag", "winograd", "boolq", "blimp", "mmlu"])
def test_a_choice_is_the_likeliest_option(opinionated: Engine, benchmark_root: Path, name: str) -> None:
    result = evaluate_task(opinionated, name, benchmark_root)
    asked = read_items(name, benchmark_root)
    assert [row["item"] for row in result.rows] == list(range(len(asked)))
    for row, item in zip(result.rows, asked, strict=True):
        assert len(row["logprobs_nats"]) == item.num_options
        assert row["logprobs_nats"][row["chosen"]] == max(row["logprobs_nats"])
        assert row["right"] == (row["chosen"] == item.gold)
    assert result.figures["acc"].value == sum(row["right"] for row in result.rows) / len(asked)
    assert result.headline in result.figures


def test_a_byte_counts_where_options_differ_in_length(opinionated: Engine, benchmark_root: Path) -> None:
    result = evaluate_task(opinionated, "arc_easy", benchmark_root)
    row = result.rows[0]
    sizes = [len(text) for text in ("heat", "cold water at night", "wind", "sound")]
    rates = [logprob / size for logprob, size in zip(row["logprobs_nats"], sizes, strict=True)]
    assert row["chosen_norm"] == rates.index(max(rates))
    assert result.chance == pytest.approx((4 * 0.25 + 0.5) / 5)


def test_lambada_has_a_perplexity_and_no_chance(opinionated: Engine, benchmark_root: Path) -> None:
    result = evaluate_task(opinionated, "lambada", benchmark_root)
    assert set(result.figures) == {"acc", "perplexity"} and result.chance is None
    assert result.figures["perplexity"].value > 1


def test_the_commonest_answer_is_a_baseline(opinionated: Engine, benchmark_root: Path) -> None:
    result = evaluate_task(opinionated, "boolq", benchmark_root)
    assert result.chance == 0.5 and result.majority == pytest.approx(2 / 3)
    assert evaluate_task(opinionated, "arc_easy", benchmark_root).majority is None
    assert evaluate_task(opinionated, "winograd", benchmark_root).majority is None


def test_groups_and_limit(opinionated: Engine, benchmark_root: Path) -> None:
    result = evaluate_task(opinionated, "blimp", benchmark_root)
    assert list(result.groups) == ["semantics", "syntax"]
    one = evaluate_task(opinionated, "blimp", benchmark_root, Asking(limit=1))
    assert one.rows[0]["chosen"] == result.rows[0]["chosen"] and one.groups == {}
    two = evaluate_task(opinionated, "blimp", benchmark_root, Asking(limit=2))
    assert [row["item"] for row in two.rows] == [0, 1]


def test_examples_stand_before_the_question_and_change_the_score(opinionated: Engine, benchmark_root: Path) -> None:
    bare = evaluate_task(opinionated, "mmlu", benchmark_root)
    taught = evaluate_task(opinionated, "mmlu", benchmark_root, Asking(shots=2))
    assert taught.shots == 2
    assert taught.rows[0]["logprobs_nats"] != bare.rows[0]["logprobs_nats"]
    again = evaluate_task(opinionated, "mmlu", benchmark_root, Asking(shots=2, limit=2))
    for row, other in zip(again.rows, taught.rows[:2], strict=True):  # not what else is asked decides, but the number
        assert row["logprobs_nats"] == pytest.approx(other["logprobs_nats"], abs=1e-4)


def test_what_is_cut_is_counted(opinionated: Engine, benchmark_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(opinionated.model.config, max_length=64)
    assert evaluate_task(opinionated, "arc_easy", benchmark_root).num_cut == 0
    monkeypatch.setattr(opinionated.model, "config", short)
    taught = evaluate_task(opinionated, "arc_easy", benchmark_root, Asking(shots=4))
    assert taught.num_cut == 5 and taught.as_record()["items_cut"] == 5
    monkeypatch.setattr(harness, "fits", lambda pair, length: len(pair.continuation) < 12)
    left = evaluate_task(opinionated, "arc_easy", benchmark_root)
    assert 0 < left.num_too_long == 5 - len(left.rows)
    monkeypatch.setattr(harness, "fits", lambda pair, length: False)
    with pytest.raises(DataError, match="no item fits a model that reads 64 tokens"):
        evaluate_task(opinionated, "arc_easy", benchmark_root)


# Written answers


def test_a_number_is_read_off_the_reply(opinionated: Engine, benchmark_root: Path) -> None:
    parrot = Parrot(opinionated, [" 2 and 3 are 5.\n#### 5\n\nQuestion: what is 6?\nAnswer: #### 6", " I do not know"])
    result = evaluate_task(parrot, "gsm8k", benchmark_root)  # type: ignore[arg-type]
    assert [row["answers"] for row in result.rows] == [["5"], [None]]
    assert result.figures["acc"].value == 0.5 and result.figures["readable"].value == 0.5
    assert "Question: what" not in result.rows[0]["replies"][0]
    assert parrot.asked[0].endswith("How many?\nAnswer:")


def test_samples_vote(opinionated: Engine, benchmark_root: Path) -> None:
    replies = ["#### 5", "#### 7", "#### 5.0", "1250", "#### 3", "#### 3"]
    parrot = Parrot(opinionated, replies)
    result = evaluate_task(parrot, "gsm8k", benchmark_root, Asking(samples=3, temperature=0.7))  # type: ignore[arg-type]
    assert [row["voted"] for row in result.rows] == ["5", "3"]
    assert result.figures["acc"].value == 0.5 and result.figures["acc_any"].value == 1.0
    assert result.figures["acc_single"].value == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert parrot.settings["temperature"] == 0.7 and parrot.asked[0] == parrot.asked[2]


@pytest.mark.parametrize("reasons", [True, False])
def test_worked_examples_show_their_reasoning_or_not(opinionated: Engine, benchmark_root: Path, reasons: bool) -> None:
    parrot = Parrot(opinionated, ["", ""])
    asking = Asking(shots=2, chain_of_thought=reasons, max_new_tokens=8)  # to leave room for the examples
    evaluate_task(parrot, "gsm8k", benchmark_root, asking)  # type: ignore[arg-type]
    assert ("It is" in parrot.asked[1]) == reasons and "#### " in parrot.asked[1]


def test_programs_are_run(opinionated: Engine, benchmark_root: Path) -> None:
    replies = ["    return 1\n\nprint('more')\ndef two(:", "    return 2\n", "    return 1"]
    parrot = Parrot(opinionated, replies)
    result = evaluate_task(parrot, "human_eval", benchmark_root, Asking(samples=3, temperature=0.8))  # type: ignore[arg-type]
    assert result.rows[0]["reasons"] == ["passed", "failed", "passed"]
    assert result.figures["pass@1"].value == pytest.approx(2 / 3) and set(result.figures) == {"pass@1"}


def test_a_model_writes_by_itself(opinionated: Engine, benchmark_root: Path) -> None:
    asking = Asking(samples=2, temperature=1.0, max_new_tokens=4)
    first = evaluate_task(opinionated, "gsm8k", benchmark_root, asking)
    assert first.rows == evaluate_task(opinionated, "gsm8k", benchmark_root, asking).rows


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"shots": -1}, "shots is -1"), ({"samples": 0}, "samples is 0"), ({"samples": 3}, "would all be the same"),
     ({"limit": 0}, "limit is 0"), ({"temperature": -1.0}, "is -1.0"), ({"max_new_tokens": 0}, "new_tokens")],
)  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Asking(**settings)


# Contamination


def test_items_in_the_training_text_are_counted_and_left_out(opinionated: Engine, benchmark_root: Path) -> None:
    result = evaluate_task(opinionated, "hellaswag", benchmark_root)
    asked = read_items("hellaswag", benchmark_root)
    other = evaluate_task(opinionated, "lambada", benchmark_root)
    texts = read_items("lambada", benchmark_root)
    both = with_contamination([(other, texts), (result, asked)], ["Once: " + asked[0].text, texts[1].text])
    assert [one.name for one in both] == ["lambada", "hellaswag"]
    first, told = both[0].contamination, both[1].contamination
    assert first is not None and told is not None and first["first_found"] == [1]
    assert told["items_found"] == 1 and told["first_found"] == [0] and told["documents"] == 2
    assert told["headline_on_clean"]["value"] == float(result.rows[1]["right_norm"])
    nothing = with_contamination([(result, asked)], [item.text for item in asked])[0].contamination
    assert nothing is not None and nothing["headline_on_clean"] is None
