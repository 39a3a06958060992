from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.data.loader import RowLoader
from jielong.data.pack import Rows, pack_stream
from jielong.errors import DataError, UsageError


def numbered(num_rows: int) -> Rows:
    """Rows whose every token is the row's number."""
    return pack_stream([[number] * 3 for number in range(num_rows)], 3)


def visited(loader: RowLoader, step: int) -> list[int]:
    return [int(row[0]) for batch in loader.batches(step) for row in batch.tokens]


@settings(max_examples=100, deadline=None)
@given(
    num_rows=st.integers(1, 25),
    batch_rows=st.integers(1, 6),
    accumulate=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_each_epoch_visits_each_row_once(num_rows: int, batch_rows: int, accumulate: int, seed: int) -> None:
    batch_rows = min(batch_rows, num_rows)
    loader = RowLoader(numbered(num_rows), batch_rows, seed, accumulate)
    num_epochs = 3
    group = batch_rows * accumulate
    num_steps = -(-num_epochs * num_rows // group)
    sequence = [row for step in range(num_steps) for row in visited(loader, step)]
    for epoch in range(num_epochs):
        assert sorted(sequence[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))
    assert loader.num_steps_per_epoch == -(-num_rows // group)


def test_epochs_and_seeds_differ_in_order() -> None:
    loader = RowLoader(numbered(64), 64, 0)
    orders = [visited(loader, step) for step in range(3)] + [visited(RowLoader(numbered(64), 64, 1), 0)]
    assert len({tuple(order) for order in orders}) == 4
    assert list(range(64)) not in orders  # shuffled from the first epoch on


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.integers(0, 60), min_size=1, max_size=10))
def test_a_step_does_not_depend_on_the_steps_asked_before(steps: list[int]) -> None:
    """Resuming is asking for step k, in a new process or an old one, in whatever order."""
    rows = numbered(11)
    used = RowLoader(rows, 2, 5, accumulate=3)
    for step in steps:
        fresh = RowLoader(rows, 2, 5, accumulate=3)
        assert torch.equal(used.indices(step), fresh.indices(step))


def test_accumulation_only_cuts_the_same_rows_differently() -> None:
    rows = numbered(20)
    whole, cut = RowLoader(rows, 6, 3), RowLoader(rows, 2, 3, accumulate=3)
    for step in range(10):
        assert visited(whole, step) == visited(cut, step)
    batches = cut.batches(0)
    assert [batch.tokens.shape for batch in batches] == [(2, 3)] * 3
    assert [batch.num_units for batch in batches] == [4, 4, 4]


def test_a_corpus_smaller_than_one_batch_is_refused() -> None:
    with pytest.raises(
        DataError, match="smaller than one batch: 9 tokens make 3 rows of 3 tokens, but batch_rows is 4"
    ):
        RowLoader(numbered(3), 4, 0)
    with pytest.raises(DataError, match="0 tokens make 0 rows"):
        RowLoader(numbered(0), 1, 0)
    assert len(RowLoader(numbered(3), 3, 0, accumulate=4).batches(0)) == 4


@pytest.mark.parametrize(("batch_rows", "accumulate"), [(0, 1), (1, 0), (-1, 1)])
def test_counts_below_one_are_refused(batch_rows: int, accumulate: int) -> None:
    with pytest.raises(UsageError, match=f"batch_rows is {batch_rows} and accumulate is {accumulate}"):
        RowLoader(numbered(3), batch_rows, 0, accumulate)


def test_a_negative_step_is_a_bug() -> None:
    with pytest.raises(ValueError, match="step is -1"):
        RowLoader(numbered(3), 1, 0).batches(-1)
