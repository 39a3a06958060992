from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.data.mixture import CYCLE_ROWS, Mixture, check_weights
from jielong.errors import UsageError

WEIGHTS = st.lists(st.floats(0.1, 10.0), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(weights=WEIGHTS)
def test_shares_are_those_of_the_weights(weights: list[float]) -> None:
    mixture = Mixture(weights)
    sources, _ = mixture.at(np.arange(3 * CYCLE_ROWS))
    for num in (0, 5, CYCLE_ROWS, 2 * CYCLE_ROWS + 77):
        assert mixture.totals(num).tolist() == np.bincount(sources[:num], minlength=len(weights)).tolist()
    for number, weight in enumerate(weights):
        assert abs((sources == number).sum() / len(sources) - weight / sum(weights)) <= 1 / CYCLE_ROWS


@settings(max_examples=50, deadline=None)
@given(weights=WEIGHTS, first=st.integers(0, 10 * CYCLE_ROWS))
def test_each_source_gives_its_rows_one_after_another(weights: list[float], first: int) -> None:
    """From any place on, and whatever was asked before."""
    sources, turns = Mixture(weights).at(np.arange(first, first + 500))
    before, _ = Mixture(weights).at(np.arange(first))
    for number in range(len(weights)):
        mine = turns[sources == number]
        begin = int((before == number).sum())
        assert mine.tolist() == list(range(begin, begin + len(mine)))


def test_a_source_comes_at_even_intervals() -> None:
    """So that every step is mixed as the whole is: of 16 rows with weights 3 and 1, always 12 and 4."""
    sources, _ = Mixture([3.0, 1.0]).at(np.arange(CYCLE_ROWS))
    assert {tuple(np.bincount(step, minlength=2)) for step in sources.reshape(-1, 16)} == {(12, 4)}
    places = np.flatnonzero(Mixture([0.2, 99.8]).at(np.arange(CYCLE_ROWS))[0] == 0)
    assert np.diff(places).max() - np.diff(places).min() <= 1


def test_a_share_of_less_than_a_row_is_refused() -> None:
    check_weights({"a": 1.0, "b": 4000.0})
    with pytest.raises(UsageError, match="mixture: a = 1 of 9001 in all is less than one row in 4096; raise it"):
        check_weights({"a": 1.0, "b": 9000.0})
    with pytest.raises(UsageError, match="mixture: a = inf of inf in all"):
        check_weights({"a": math.inf})
