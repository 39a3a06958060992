"""Scores against numbers worked out by hand, and the answers that they are of."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from jielong.data.labelled import Example
from jielong.data.span_rows import span_rows
from jielong.data.task_rows import Frame, task_rows
from jielong.evaluate.labelled import answers_of, correlation, fisher_ci95, plain_words, ranks, score, word_f1
from jielong.evaluate.wordbag import trivial_answer, word_answers
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import detect
from jielong.tokenizer.tokenizer import Tokenizer


def examples(*texts: tuple[str, ...], answers: tuple[str, ...] = ()) -> list[Example]:
    return [Example(each, 0, "f", answers) for each in texts]


def test_correlations_by_hand() -> None:
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 4.0, 9.0])
    # deviations -1.5 -0.5 0.5 1.5 and -2 -3 0 5: 12 / sqrt(5 * 38)
    assert correlation(x, y) == pytest.approx(12 / math.sqrt(5 * 38))
    assert correlation(x, np.ones(4)) == correlation(np.full(4, 2.7030816635556), x) == 0.0
    assert ranks(np.array([3.0, 1.0, 3.0, 9.0])).tolist() == [2.5, 1.0, 2.5, 4.0]
    found = score([1, 2, 3, 4], examples(*[("a", "b")] * 4), [2.0, 1.0, 4.0, 9.0], "similarity")
    assert found.figures["spearman"] == pytest.approx(0.8) and found.value == found.figures["pearson"]
    low, high = fisher_ci95(0.5, 103)  # z = 0.5493, half = 0.196
    assert (low, high) == pytest.approx((math.tanh(0.54931 - 0.19600), math.tanh(0.54931 + 0.19600)), abs=1e-4)


def test_accuracy() -> None:
    found = score([0, 1, 1, 2], examples(*[("a",)] * 4), [0, 1, 0, 2], "classification")
    assert found.value == found.figures["accuracy"] == 0.75
    assert found.ci95[0] < 0.75 < found.ci95[1]


@pytest.mark.parametrize(
    ("said", "right", "f1"),
    [
        ("The cat.", "a cat", 1.0),
        ("the black cat", "cat sat", 0.5),  # black cat, cat sat: one of two on both sides
        ("", "cat", 0.0),
        ("光荣公司", "光荣", 2 * 2 / (4 + 2)),
        ("cat cat", "cat", 2 / 3),
    ],
)
def test_word_f1_by_hand(said: str, right: str, f1: float) -> None:
    assert word_f1(said, right) == pytest.approx(f1)


def test_words_as_squad_compares_them() -> None:
    assert plain_words("The U.S., 3。在1969年") == ["us", "3", "在", "1969", "年"]


def test_the_best_of_several_answers_counts() -> None:
    found = score(["black cat", "x"], examples(("c", "q"), ("c", "q"), answers=("dog", "the cat")), [0, 0], "span")
    assert found.figures == {"f1": pytest.approx(1 / 3), "exact_match": 0.0}
    assert score(["The cat"], examples(("c", "q"), answers=("dog", "cat")), [0], "span").figures["exact_match"] == 1.0


def build(tokenizer: Tokenizer, head: str, num_labels: int = 1) -> Transformer:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, max_length=24, width=16, encoder_layers=1, decoder_layers=0, num_heads=2,
        num_kv_heads=2, head_size=8, ffn_width=24, head=head, num_labels=num_labels, dropout=0.5,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(3))
    return model


def test_answers_are_in_order_and_do_not_depend_on_the_batch() -> None:
    """Read together in the order of their lengths, and each alone: the same."""
    tokenizer = Tokenizer.from_merges([]).with_controls(Tokenizer.ENCODER)
    frame, runtime = Frame.encoder(tokenizer, 24), detect("cpu", "float32")
    given = examples(*((("x" * (1 + 7 * n % 17)) + str(n),) for n in range(12)))
    items = task_rows(given, [0] * 12, "classification", tokenizer, frame)
    model = build(tokenizer, "classes", 5).train()
    answers = answers_of(model, items, given, "classification", tokenizer.pad_id, runtime)
    assert len(set(answers)) > 1 and model.training
    for number in range(12):
        alone = answers_of(model, items[number : number + 1], given[number : number + 1], "classification", 0, runtime)
        assert alone == answers[number : number + 1]


def test_spans_are_pieces_of_their_context() -> None:
    tokenizer = Tokenizer.from_merges([]).with_controls(Tokenizer.ENCODER)
    frame = Frame.encoder(tokenizer, 24)
    given = examples(("a long context of 40 characters, or more", "q?"), ("tiny", "why?"), answers=("a",))
    items = [item for item in span_rows(given, tokenizer, frame, teach=False) if item is not None]
    assert len(items[0].rows) > 1
    model = build(tokenizer, "span")
    answers = answers_of(model, items, given, "span", tokenizer.pad_id, detect("cpu", "float32"))
    assert all(answer and str(answer) in example.texts[0] for answer, example in zip(answers, given, strict=True))


def test_a_span_ends_where_it_begins_or_later() -> None:
    """The best begin is behind the best end: the pair with the greatest sum among the legal ones is taken."""
    tokenizer = Tokenizer.from_merges([]).with_controls(Tokenizer.ENCODER)
    given = examples(("abcd", "q"), answers=("a",))
    items = [item for item in span_rows(given, tokenizer, Frame.encoder(tokenizer, 24), teach=False) if item]
    model = build(tokenizer, "span")
    logits = torch.zeros(1, 8, 2)
    logits[0, 5, 0], logits[0, 3, 1], logits[0, 6, 1] = 3.0, 4.0, 2.5  # c begins; a ends, d ends
    model.unembed = lambda hidden, segments=None: logits  # type: ignore[method-assign]
    assert answers_of(model, items, given, "span", 0, detect("cpu", "float32")) == ["cd"]


def test_words_alone() -> None:
    train = examples(*[("good film",), ("bad film",), ("good fun",), ("bad mess",)])
    test = examples(("a good mess",), ("bad",))
    assert word_answers(train, [1, 0, 1, 0], test, "classification") == [1, 0]
    pairs = examples(("a b c", "a b c"), ("a b", "c d"), ("a b c d", "a b x y"))
    assert word_answers(pairs, [1.0], pairs, "similarity") == [1.0, 0.0, pytest.approx(2 / 6)]
    quiz = examples(("where is the cat", "a dog", "the cat is here", "x"))
    assert word_answers(quiz, [0], quiz, "choice") == [1]
    # The label depends on whether the second text says "not": a bag of both texts' words tells.
    said = [("it is", "it is"), ("it is", "it is not"), ("he runs", "he runs"), ("he runs", "he not runs")] * 3
    assert word_answers(examples(*said), [0, 1] * 6, examples(("we go", "we go not")), "pairs") == [1]
    assert (trivial_answer([0, 1, 1], "pairs"), trivial_answer([1.0, 2.0], "similarity")) == (1, 1.5)
