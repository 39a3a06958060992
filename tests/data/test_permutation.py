from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.data.permutation import Permutation


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 1 << 62))
def test_each_number_stands_at_one_place(size: int, seed: int) -> None:
    found = Permutation(size, seed).at(np.arange(size))
    assert sorted(found.tolist()) == list(range(size))


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 1 << 50), seed=st.integers(0, 1 << 62), data=st.data())
def test_a_place_does_not_depend_on_what_else_is_asked(size: int, seed: int, data: st.DataObject) -> None:
    """Nor does it cost memory: these sizes could not be stored."""
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))
    together = Permutation(size, seed).at(np.array(places))
    alone = [int(Permutation(size, seed).at(np.array([place]))[0]) for place in places]
    assert together.tolist() == alone
    assert all(0 <= number < size for number in alone)
    assert len(set(alone)) == len(set(places))


def test_the_same_on_every_machine() -> None:
    """A change here would change the order of rows of every run that is to be gone on with."""
    assert Permutation(10, 0).at(np.arange(10)).tolist() == [4, 9, 5, 0, 6, 3, 8, 7, 2, 1]
    assert Permutation(10**12, 1).at(np.arange(3)).tolist() == [882566217954, 571716683718, 10145174642]


def test_every_order_of_four_comes_about_as_often() -> None:
    """24 orders, 4800 seeds: 200 of each, with a standard deviation of 14."""
    counts = Counter(tuple(Permutation(4, seed).at(np.arange(4)).tolist()) for seed in range(4800))
    assert len(counts) == 24
    assert 130 < min(counts.values()) and max(counts.values()) < 270


@pytest.mark.parametrize("size", [7, 1000, 4097])
def test_a_number_lands_anywhere_and_neighbours_part(size: int) -> None:
    """Of a fair shuffle: the mean place of a number is the middle, and neighbours are a third of the size apart."""
    places = np.arange(size)
    orders = [Permutation(size, seed).at(places) for seed in range(300)]
    first = np.mean([order[0] for order in orders]) / (size - 1)
    assert abs(first - 0.5) < 4 * 0.31 / np.sqrt(300)
    apart = np.mean([np.abs(np.diff(order)).mean() for order in orders]) / size
    assert apart == pytest.approx((size + 1) / 3 / size, rel=0.05)


def test_sizes_below_one_are_a_bug() -> None:
    with pytest.raises(ValueError, match="size is 0"):
        Permutation(0, 1)
