"""n-gram probabilities against hand-made numbers and a plain dictionary version of the same formula."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.data.pack import Rows, pack_stream
from jielong.errors import DataError, UsageError
from jielong.evaluate.ngram import NGram, _discounts, fit_ngram

Texts = list[list[int]]


def arrays(texts: Texts) -> list[np.ndarray]:
    return [np.array(text) for text in texts]


# ---- by hand ----


def test_tiny_example_by_hand() -> None:
    # Text 0 1 0 1 2. Too few n-grams for estimated discounts, so 1/2, 1, 3/2.
    grams = fit_ngram(arrays([[0, 1, 0, 1, 2]]), 2, 3)
    # Occurrences (the first token is not predicted): 1, 2, 1 of 4; half of the mass is taken and spread evenly.
    assert grams.probabilities([], 1) == pytest.approx([0.5 / 4 + 1 / 6, 1 / 4 + 1 / 6, 0.5 / 4 + 1 / 6])
    # Below a bigram every word has one kind of left neighbour: 1/3 each.
    # After 0: only 1, twice: (2 - 1) / 2, and half is left to the third.
    assert grams.probabilities([0], 2) == pytest.approx([1 / 6, 1 / 2 + 1 / 6, 1 / 6])
    # After 1: 0 once and 2 once: (1 - 1/2) / 2 each, and half is left.
    assert grams.probabilities([1], 2) == pytest.approx([1 / 4 + 1 / 6, 1 / 6, 1 / 4 + 1 / 6])
    # After 2 nothing was ever seen.
    assert grams.probabilities([2], 2) == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_scores_of_rows_by_hand() -> None:
    grams = fit_ngram(arrays([[0, 1, 0, 1, 2]]), 2, 3)
    rows = pack_stream([[0, 1, 2]], 4)  # one padded token
    scores = grams.logprobs(rows)
    assert scores.shape == (1, 4)
    assert np.exp(scores[0]) == pytest.approx([1, 2 / 3, 5 / 12, 1])
    assert grams.nats(rows) == (pytest.approx(-math.log(2 / 3) - math.log(5 / 12)), 2)


def test_discounts_by_hand() -> None:
    # n1..n4 = 4, 2, 1, 1: Y = 4 / (4 + 4); 1 - 2Y 2/4, 2 - 3Y 1/2, 3 - 4Y 1/1
    counts = np.array([1, 1, 1, 1, 2, 2, 3, 4, 9, 0, 0], dtype=np.int32)
    assert _discounts(counts) == pytest.approx([0, 0.5, 1.25, 1.0])


@pytest.mark.parametrize("counts", [[1, 2, 3], [5, 6], [1, 2, *[3] * 30, 4], [0, 0]])
def test_discounts_that_cannot_be_estimated(counts: list[int]) -> None:
    assert _discounts(np.array(counts, dtype=np.int32)) == pytest.approx([0, 0.5, 1.0, 1.5])


# ---- the slow twin ----


def plain_probability(texts: Texts, order: int, vocab_size: int, context: list[int], word: int) -> float:
    """The formula of the module's docstring, with dictionaries and recursion."""
    occurrences: dict[tuple[int, ...], int] = defaultdict(int)
    lefts: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for text in texts:
        for end in range(1, len(text)):
            for length in range(1, min(order, end + 1) + 1):
                gram = tuple(text[end + 1 - length : end + 1])
                occurrences[gram] += 1
                lefts[gram].add(text[end - length] if end >= length else -1)

    def probability(told: tuple[int, ...], is_highest: bool) -> float:
        length = len(told) + 1
        kind = {gram: count if is_highest else len(lefts[gram]) for gram, count in occurrences.items()}
        kind = {gram: count for gram, count in kind.items() if len(gram) == length}
        numbers = [sum(count == times for count in kind.values()) for times in (1, 2, 3, 4)]
        discounts = [0, 0.5, 1.0, 1.5]
        if all(numbers):
            share = numbers[0] / (numbers[0] + 2 * numbers[1])
            found = [times - (times + 1) * share * numbers[times] / numbers[times - 1] for times in (1, 2, 3)]
            if all(0 < discount <= times for times, discount in enumerate(found, start=1)):
                discounts = [0, *found]
        followers = {gram[-1]: count for gram, count in kind.items() if gram[:-1] == told}
        below = probability(told[1:], False) if told else 1 / vocab_size
        total = sum(followers.values())
        if total == 0:
            return below
        taken = sum(discounts[min(count, 3)] for count in followers.values())
        count = followers.get(word, 0)
        return (count - discounts[min(count, 3)]) / total + taken / total * below

    told = tuple(context[max(0, len(context) - order + 1) :])
    return probability(told, True)


texts_of_four = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=25), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(
    texts=texts_of_four.filter(lambda texts: any(len(text) > 1 for text in texts)),
    order=st.integers(1, 5),
    context=st.lists(st.integers(0, 3), max_size=6),
)
def test_equals_the_plain_version_and_sums_to_one(texts: Texts, order: int, context: list[int]) -> None:
    found = fit_ngram(arrays(texts), order, 4).probabilities(context)
    wanted = [plain_probability(texts, order, 4, context, word) for word in range(4)]
    assert found == pytest.approx(wanted, rel=1e-9)
    assert found.sum() == pytest.approx(1.0) and found.min() > 0


@settings(max_examples=15, deadline=None)
@given(train=texts_of_four, heldout=texts_of_four, order=st.integers(1, 5), row_tokens=st.integers(2, 9))
def test_rows_are_scored_with_all_their_segment_has(train: Texts, heldout: Texts, order: int, row_tokens: int) -> None:
    grams = fit_ngram(arrays([*train, [0, 1]]), order, 4)
    rows = pack_stream(heldout, row_tokens)
    scores = grams.logprobs(rows)
    assert not scores[~rows.mask.numpy()].any()
    for row, place in rows.mask.nonzero().tolist():
        segment = rows.segments[row]
        told = [int(rows.tokens[row, t]) for t in range(place) if segment[t] == segment[place]]
        wanted = grams.probabilities(told)[int(rows.tokens[row, place])]
        assert math.exp(scores[row, place]) == pytest.approx(wanted, rel=1e-9)


# ---- on text with structure ----


def sentences(seed: int, num: int) -> Texts:
    """[bos] and eos around phrases of several words, so that the fourth word back still tells something."""
    generator = np.random.default_rng(seed)
    phrases = np.random.default_rng(99).integers(3, 60, size=(40, 6)).tolist()
    texts = []
    for _ in range(num):
        picked = generator.integers(0, 40, size=4)
        texts.append([1, *[token for number in picked for token in phrases[number]], 2])
    return texts


@pytest.fixture(scope="module")
def fitted() -> tuple[NGram, Rows]:
    train, heldout = pack_stream(sentences(0, 400), 64), pack_stream(sentences(1, 60), 64)
    return fit_ngram(train, 5, 60), heldout


def test_longer_contexts_predict_structured_text_better(fitted: tuple[NGram, Rows]) -> None:
    grams, heldout = fitted
    losses = {order: grams.nats(heldout, order)[0] / int(heldout.mask.sum()) for order in (1, 2, 3, 5)}
    assert losses[5] < losses[3] < losses[2] < losses[1] < math.log(60)
    assert losses[5] < 1.1  # a choice of 40 phrases, log 40 = 3.7 nats, every sixth token; the rest is nearly certain


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_sums_to_one_after_any_context(fitted: tuple[NGram, Rows], order: int) -> None:
    grams, heldout = fitted
    generator = np.random.default_rng(order)
    for length in range(6):
        random = generator.integers(0, 60, size=length).tolist()
        seen = heldout.tokens[3, 10 : 10 + length].tolist()
        for context in (random, seen):
            found = grams.probabilities(context, order)
            assert found.shape == (60,) and found.min() > 0
            assert found.sum() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("order", [1, 3])
def test_lower_order_of_a_fit_is_the_fit_of_that_order(fitted: tuple[NGram, Rows], order: int) -> None:
    grams, heldout = fitted
    alone = fit_ngram(pack_stream(sentences(0, 400), 64), order, 60)
    assert grams.order == 5 and alone.order == order
    assert grams.nats(heldout, order) == alone.nats(heldout)


def test_counts_every_scored_token_once(fitted: tuple[NGram, Rows]) -> None:
    grams, heldout = fitted
    assert grams.nats(heldout)[1] == int(heldout.mask.sum()) == int((grams.logprobs(heldout) < 0).sum())


def test_context_does_not_cross_segments(fitted: tuple[NGram, Rows]) -> None:
    grams, _ = fitted
    first, second = sentences(7, 2)
    changed = [*first[:-3], 5, 6, 7]
    before = grams.logprobs(pack_stream([first, second], 64))
    after = grams.logprobs(pack_stream([changed, second], 64))
    assert (before[0, : len(first)] != after[0, : len(first)]).any()
    assert np.array_equal(before[0, len(first) :], after[0, len(first) :])


def test_padding_changes_nothing(fitted: tuple[NGram, Rows]) -> None:
    grams, _ = fitted
    texts = sentences(8, 2)
    short, wide = pack_stream(texts, 52), pack_stream(texts, 70)
    assert grams.nats(short) == pytest.approx(grams.nats(wide))
    refit = [fit_ngram(rows, 3, 60).probabilities(texts[0][1:3]) for rows in (short, wide)]
    assert np.array_equal(refit[0], refit[1])


def test_rows_and_plain_texts_count_alike() -> None:
    texts = sentences(3, 5)
    rows = pack_stream(texts, 26)  # each text fills one row
    for context in ([1], texts[0][1:4]):
        from_rows = fit_ngram(rows, 4, 60).probabilities(context)
        assert np.array_equal(from_rows, fit_ngram(arrays(texts), 4, 60).probabilities(context))


# ---- wrong use ----


def test_wrong_orders_and_tokens_are_named() -> None:
    texts = arrays([[0, 1, 2]])
    with pytest.raises(UsageError, match="order = 6 must be 1 to 5"):
        fit_ngram(texts, 6, 3)
    with pytest.raises(UsageError, match="order = 3 was not counted; legal are 1 to 2"):
        fit_ngram(texts, 2, 3).probabilities([], 3)
    with pytest.raises(DataError, match="from 0 to 2, the vocabulary from 0 to 1"):
        fit_ngram(texts, 2, 2)
    with pytest.raises(DataError, match="another tokenizer"):
        fit_ngram(texts, 2, 3).nats(pack_stream([[0, 5]], 2))
    for empty in ([], [[1], [2]]):
        with pytest.raises(DataError, match="nothing to count"):
            fit_ngram(arrays(empty), 2, 3)


def test_rows_that_score_nothing() -> None:
    grams = fit_ngram(arrays([[0, 1, 2]]), 2, 3)
    zeros = torch.zeros(2, 3, dtype=torch.int32)
    rows = Rows(zeros, zeros.bool(), zeros + 1)
    assert grams.nats(rows) == (0.0, 0)
