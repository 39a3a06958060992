from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.data.batch import Batch
from jielong.data.loader import MixedOrder, RowLoader, RowOrder
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


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    data=st.data(),
    group=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_mixed_sources_each_visit_their_rows_once_an_epoch(
    sizes: list[int], data: st.DataObject, group: int, seed: int
) -> None:
    weights = data.draw(st.lists(st.floats(0.2, 5.0), min_size=len(sizes), max_size=len(sizes)))
    order = MixedOrder(sizes, weights, group, seed)
    sequence = torch.cat([order.indices(step) for step in range(400 // group)]).tolist()
    first = 0
    for size, weight in zip(sizes, weights, strict=True):
        mine = [row - first for row in sequence if first <= row < first + size]
        for epoch in range(len(mine) // size):
            assert sorted(mine[epoch * size : (epoch + 1) * size]) == list(range(size))
        assert abs(len(mine) - len(sequence) * weight / sum(weights)) < 2
        first += size


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.integers(0, 500), min_size=1, max_size=10), group=st.integers(1, 12))
def test_a_mixed_step_does_not_depend_on_the_steps_asked_before(steps: list[int], group: int) -> None:
    used = MixedOrder([7, 100, 1], [1.0, 2.0, 0.5], group, 3)
    for step in steps:
        assert torch.equal(used.indices(step), MixedOrder([7, 100, 1], [1.0, 2.0, 0.5], group, 3).indices(step))


@settings(max_examples=30, deadline=None)
@given(step=st.integers(0, 1 << 40), num_rows=st.integers(1 << 20, 1 << 45))
def test_the_order_of_a_corpus_of_any_size_is_there_at_once(step: int, num_rows: int) -> None:
    """Nothing is stored for its rows, nor for the steps before."""
    rows = RowOrder(num_rows, 8, 1).indices(step)
    assert len(rows) == 8 and 0 <= int(rows.min()) and int(rows.max()) < num_rows


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_same_rows_make_a_step_whatever_the_number_of_processes(world_size: int) -> None:
    """And each process makes only those that it takes."""
    made: list[int] = []

    class Watched:
        row_tokens = num_tokens = 3

        def __len__(self) -> int:
            return 100

        def batch(self, indices: torch.Tensor) -> Batch:
            made.extend(indices.tolist())
            return numbered(100).batch(indices)

    loader = RowLoader(Watched(), 8 // world_size, 3, 2 * world_size, ([60, 40], [1.0, 3.0]))
    whole = RowLoader(numbered(100), 8, 3, 2, ([60, 40], [1.0, 3.0]))
    for step in (0, 7):
        shares = []
        for rank in range(world_size):
            made.clear()
            shares.append(loader.batches(step)[rank::world_size])
            assert len(made) == 16 // world_size
        dealt = [shares[place % world_size][place // world_size] for place in range(2 * world_size)]
        rows = torch.cat([batch.tokens for batch in dealt])
        assert torch.equal(rows, torch.cat([batch.tokens for batch in whole.batches(step)]))


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
