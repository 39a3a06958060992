"""Variety of replies, by hand."""

from __future__ import annotations

import pytest

from jielong.align.diversity import distinct, diversity_figures, grams, repeated
from jielong.generate.engine import Completion


def test_grams_by_hand() -> None:
    assert grams([1, 2, 3], 2) == [(1, 2), (2, 3)]
    assert grams([1], 2) == [] and grams([], 1) == []


def test_distinct_counts_over_all_replies() -> None:
    assert distinct([[1, 2, 1], [1, 2]], 1) == pytest.approx(2 / 5)
    assert distinct([[1, 2, 1], [1, 2]], 2) == pytest.approx(2 / 3)  # 12 21 | 12
    assert distinct([[1], []], 2) == 0.0


def test_repeated_is_a_mean_over_replies_that_are_long_enough() -> None:
    loop = [1, 2, 1, 2, 1, 2]  # 1212 2121 1212: one of three was there before
    assert repeated([loop]) == pytest.approx(1 / 3)
    assert repeated([loop, [1, 2, 3, 4, 5], [1, 2, 3]]) == pytest.approx(1 / 6)  # the last has no 4-gram
    assert repeated([[1, 2]]) == 0.0
    assert repeated([[1, 1, 1]], n=1) == pytest.approx(2 / 3)


def test_figures_are_of_the_sampled_ids() -> None:
    replies = [Completion([9, 9, 9, 9, 9], tokens, "same text", [], "stop") for tokens in ([1, 2, 3], [1, 2, 3])]
    assert diversity_figures(replies) == {
        "distinct_1": pytest.approx(0.5),
        "distinct_2": pytest.approx(0.5),
        "repeated_4gram_rate": 0.0,
    }
