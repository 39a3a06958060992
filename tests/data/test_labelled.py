"""Labelled examples: every published format, named errors, and nothing of the test among what teaches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jielong.data.labelled import (
    Example,
    identity,
    label_numbers,
    read_examples,
    split_heldout,
    without_test,
)
from jielong.data.sources import Source
from jielong.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def read(tmp_path: Path, task: str, *rows: Any, left_out: list[str] | None = None) -> list[Example]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_examples(Source("rows", "rows.jsonl"), tmp_path, task, left_out)


@pytest.mark.parametrize(
    ("task", "row", "texts", "label"),
    [
        ("classification", {"text": "a film", "label": "neg"}, ("a film",), "neg"),
        ("classification", {"sentence": "a film", "label": 1}, ("a film",), "1"),
        ("pairs", {"premise": "a", "hypothesis": "b", "label": "neutral"}, ("a", "b"), "neutral"),
        ("pairs", {"sentence_A": "a", "sentence_B": "b", "relatedness_score": "4.5", "entailment_judgment": "NEUTRAL"},
         ("a", "b"), "NEUTRAL"),
        ("similarity", {"sentence_A": "a", "sentence_B": "b", "relatedness_score": "4.5", "entailment_judgment": "N"},
         ("a", "b"), 4.5),
        ("similarity", {"sentence1": "a", "sentence2": "b", "score": 3}, ("a", "b"), 3.0),
        ("choice", {"query": "q", "choices": ["a", "b", "c"], "gold": 2}, ("q", "a", "b", "c"), 2),
        ("span", {"context": "in 1969 it flew", "question": "when?",
                  "answers": {"text": ["1969"], "answer_start": [3]}}, ("in 1969 it flew", "when?"), 3),
    ],
)  # fmt: skip
def test_formats(tmp_path: Path, task: str, row: dict[str, Any], texts: tuple[str, ...], label: object) -> None:
    (found,) = read(tmp_path, task, row)
    assert (found.texts, found.label) == (texts, label) and found.where.endswith("rows.jsonl:1")
    assert found.answers == (("1969",) if task == "span" else ())


def test_squads_nested_file(tmp_path: Path) -> None:
    question = {"id": "7", "question": "when?", "answers": [{"text": "1969", "answer_start": 3}]}
    article = {"title": "Moon", "paragraphs": [{"context": "in 1969 it flew", "qas": [question, question]}]}
    (tmp_path / "squad.json").write_text(json.dumps({"version": "1.1", "data": [article]}))
    found = read_examples(Source("squad", "squad.json"), tmp_path, "span")
    assert [example.texts for example in found] == [("in 1969 it flew", "when?")] * 2
    assert found[0].where.endswith("squad.json, record 1, paragraph 1")


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("classification", {"text": "a", "lable": "x"}, r'rows.jsonl:1: needs "label".*did you mean .*label'),
        ("classification", {"text": 3, "label": "x"}, 'rows.jsonl:1: "text" must be text'),
        ("classification", {"text": "a", "label": None}, "the label is None; it must be a word or a whole number"),
        ("pairs", {"sentence1": "a", "label": "x"}, "needs two texts, as one of"),
        (
            "similarity",
            {"sentence1": "a", "sentence2": "b", "score": "high"},
            "\"score\" is 'high'; it must be a number",
        ),
        ("similarity", {"sentence1": "a", "sentence2": "b", "score": float("nan")}, "is nan; it must be a number"),
        ("choice", {"query": "a", "choices": "ab", "gold": 0}, "the candidates must be a list of texts"),
        ("choice", {"query": "a", "choices": ["a", "b"], "gold": True}, "the index of a candidate, 0 to 1"),
        ("span", {"context": "a", "question": "b", "answers": 1}, 'needs "answers", a list of'),
        ("span", {"paragraphs": ["a"]}, 'rows.jsonl:1: "paragraphs" must be a list of objects'),
        ("span", {"paragraphs": [{"qas": {"question": "b"}}]}, 'paragraph 1: "qas" must be a list of objects'),
    ],
)
def test_other_shapes_are_errors(tmp_path: Path, task: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, task, row)


def test_rows_that_say_nothing_are_left_out_with_their_reason(tmp_path: Path) -> None:
    reasons: list[str] = []
    answer = {"answers": [{"text": "cat", "answer_start": 5}]}
    rows = [{"context": "the cat", "question": "who?", **answer}, {"context": "a", "question": "b", "answers": []},
            {"context": " ", "question": "b", **answer},
            {"context": "the cat", "question": "who?", "answers": [{"text": "cat", "answer_start": 4}]},
            {"context": "the cat", "question": "who?", "answers": [{"text": "the", "answer_start": -7}]}]  # fmt: skip
    assert len(read(tmp_path, "span", *rows, left_out=reasons)) == 1
    assert [reason.partition("rows.jsonl:")[2][:2] for reason in reasons] == ["1:", "2:", "3:", "5:"]
    assert "does not stand at character 5" in reasons[0] and "blank" in reasons[2]
    with pytest.raises(DataError, match="'rows' has no usable row; the first reason: .*no answer"):
        read(tmp_path, "span", rows[1])


def examples(*texts: str) -> list[Example]:
    return [Example((text,), "x", f"f:{number}") for number, text in enumerate(texts)]


def test_equal_texts_are_on_the_same_side() -> None:
    many = examples(*(f"text {number % 200}" for number in range(400)), "  TEXT   7 ")
    train, test = split_heldout(many, "classification", 0.25)
    assert len(train) + len(test) == 401 and 60 < len(test) < 140
    sides = [{identity(example, "classification") for example in side} for side in (train, test)]
    assert not sides[0] & sides[1]
    assert (
        split_heldout(many, "classification", 0.25) == (train, test) != split_heldout(many, "classification", 0.25, 1)
    )


def test_questions_on_one_paragraph_stay_together() -> None:
    spans = [Example(("one context", f"question {number}"), 0, "f", ("one",)) for number in range(50)]
    assert sorted(map(len, split_heldout(spans, "span", 0.5))) == [0, 50]


def test_what_is_in_the_test_does_not_teach() -> None:
    kept, found = without_test(examples("A film", "b", "a  FILM"), examples("x", "a film"), "classification")
    assert [example.texts for example in kept] == [("b",)]
    assert found == [("f:0", "f:1"), ("f:2", "f:1")]


def test_labels_are_numbered_or_refused() -> None:
    assert label_numbers([Example(("a",), label, "f") for label in ("pos", "neg")], ["neg", "pos"]) == [1, 0]
    with pytest.raises(DataError, match="rows:3: the label is 'positive'; legal are neg, pos"):
        label_numbers([Example(("a",), "positive", "rows:3")], ["neg", "pos"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
@pytest.mark.parametrize(
    ("path", "task", "num"),
    [
        ("sentence_polarity/sentence_polarity.train.jsonl", "classification", 9596),
        ("sick/sick.train.tsv", "pairs", 4500),
        ("sick/sick.train.tsv", "similarity", 4500),
        ("stsb/stsb.en.dev.jsonl", "similarity", 1500),
        ("zero_shot/arc_easy.jsonl", "choice", 2376),
        ("zero_shot/copa.jsonl", "choice", 100),
        ("xquad/xquad.zh.json", "span", 1190),
    ],
)
def test_shared_sets_are_read_whole(path: str, task: str, num: int) -> None:
    left_out: list[str] = []
    assert len(read_examples(Source("it", path), SHARED, task, left_out)) + len(left_out) == num
    assert len(left_out) < 0.01 * num
