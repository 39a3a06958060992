"""Batches by length: each pair once an epoch, within the budget, little padding, a function of the step."""

from __future__ import annotations

import random

import pytest
import torch

from jielong.data.buckets import PairLoader, pair_batch
from jielong.errors import DataError, UsageError

BUDGET = 64


def lists(num: int = 200, seed: int = 3) -> tuple[list[list[int]], list[list[int]]]:
    """Pairs whose source begins with its own number and whose target is about as long."""
    draw = random.Random(seed)
    sources = [[number, *[7] * draw.randint(1, 20)] for number in range(num)]
    return sources, [[1, *[8] * max(1, len(source) + draw.randint(-3, 3)), 2] for source in sources]


def test_every_pair_once_an_epoch_within_the_budget() -> None:
    sources, targets = lists()
    loader = PairLoader(sources, targets, BUDGET, seed=5)
    for epoch in range(2):
        seen: list[int] = []
        for step in range(epoch * loader.num_batches, (epoch + 1) * loader.num_batches):
            (batch,) = loader.batches(step)
            assert batch.source is not None and batch.source_segments is not None
            assert len(batch.tokens) * max(batch.tokens.shape[1], batch.source.shape[1]) <= BUDGET
            for row, number in enumerate(batch.source[:, 0].tolist()):
                assert batch.source[row][batch.source_segments[row] > 0].tolist() == sources[number]
                assert batch.tokens[row][batch.segments[row] > 0].tolist() == targets[number]
                seen.append(number)
            assert batch.num_units == int(batch.mask.sum()) == int((batch.segments > 0).sum()) - len(batch.tokens)
        assert sorted(seen) == list(range(len(sources)))


def test_a_step_is_a_function_of_the_seed_and_itself() -> None:
    first, second, other = (PairLoader(*lists(), BUDGET, seed=seed, accumulate=2) for seed in (5, 5, 6))
    for step in (40, 3, 17):
        ours, theirs = first.batches(step), second.batches(step)
        assert len(ours) == 2
        for one, same in zip(ours, theirs, strict=True):
            assert torch.equal(one.tokens, same.tokens) and torch.equal(one.source, same.source)
    orders = [
        [batch.source[0, 0].item() for step in range(9) for batch in loader.batches(step)] for loader in (first, other)
    ]
    assert orders[0] != orders[1]


def test_a_batch_is_dealt_out_whole() -> None:
    """With three processes a step has the same pairs; one that would get none reads one that is not scored."""
    whole, dealt = PairLoader(*lists(), BUDGET, seed=5), PairLoader(*lists(), BUDGET, seed=5, parts=3)
    idle = 0
    for step in range(whole.num_batches):
        (batch,), parts = whole.batches(step), dealt.batches(step)
        assert len(parts) == 3 and sum(part.num_units for part in parts) == batch.num_units
        seen = [number for part in parts if part.num_units for number in part.source[:, 0].tolist()]
        assert sorted(seen) == sorted(batch.source[:, 0].tolist())
        idle += sum(not part.mask.any() for part in parts)
    assert idle > 0


def test_epochs_come_in_another_order() -> None:
    loader = PairLoader(*lists(), BUDGET, seed=5)
    epochs = [[int(loader.batches(e * loader.num_batches + s)[0].source[0, 0]) for s in range(20)] for e in range(2)]
    assert epochs[0] != epochs[1]


def test_padding_share_is_what_the_batches_have() -> None:
    loader = PairLoader(*lists(), BUDGET, seed=5)
    places = real = 0
    for step in range(loader.num_batches):
        (batch,) = loader.batches(step)
        places += batch.tokens.numel() + batch.source.numel()
        real += int((batch.segments > 0).sum() + (batch.source_segments > 0).sum())
    assert loader.padding_share == pytest.approx(1 - real / places)
    assert loader.padding_share < 0.15  # rows drawn at random would have about 0.4


def test_batch_scores_all_but_the_start() -> None:
    batch = pair_batch([[5, 6]], [[1, 9, 2]])
    assert batch.mask.tolist() == [[False, True, True]]


def test_errors() -> None:
    with pytest.raises(UsageError, match="no room for a pair of 9 and 3 tokens"):
        PairLoader([[1] * 9], [[1, 2, 3]], 8, seed=0)
    with pytest.raises(DataError, match="no pair"):
        PairLoader([], [], 8, seed=0)
