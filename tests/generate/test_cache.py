from __future__ import annotations

import pytest
import torch

from jielong.generate.cache import KeyValueCache
from jielong.model.transformer import Transformer


def make_cache(model: Transformer, batch: int, capacity: int = 20) -> KeyValueCache:
    return KeyValueCache(model.config, batch, capacity, torch.float32, torch.device("cpu"))


def test_update_writes_each_row_at_its_length(model: Transformer) -> None:
    cache = make_cache(model, 2, 6)
    keys = torch.arange(2 * 2 * 3 * 8.0).view(2, 2, 3, 8)
    held, _ = cache.update(0, keys, -keys)
    torch.testing.assert_close(held, keys)
    cache.advance(torch.tensor([3, 1]))  # two of the second row's tokens were padding
    new = torch.full((2, 2, 1, 8), 99.0)
    held, values = cache.update(1, new, -new)
    assert held.shape == (2, 2, 4, 8) and cache.lengths.tolist() == [3, 1]
    assert held[0, :, 3].eq(99).all() and held[1, :, 1].eq(99).all() and held.eq(99).sum() == 2 * 2 * 8
    torch.testing.assert_close(values, -held)
    cache.advance(torch.tensor([1, 0]))
    assert cache.lengths.tolist() == [4, 1] and cache.num_keys(1) == 5


def test_select_keeps_rows_in_order(model: Transformer) -> None:
    cache = make_cache(model, 3)
    keys = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    cache.update(0, keys, keys)
    cache.advance(torch.tensor([5, 2, 4]))
    cache.select(torch.tensor([2, 1]))
    assert cache.lengths.tolist() == [4, 2] and cache.num_keys(1) == 5
    new = torch.zeros(2, 2, 1, 8)
    held, _ = cache.update(0, new, new)
    torch.testing.assert_close(held[0, :, :4], keys[2, :, :4])
    torch.testing.assert_close(held[1, :, :2], keys[1, :, :2])


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 12])
def test_reading_in_chunks_equals_reading_at_once(model: Transformer, chunk: int) -> None:
    tokens = torch.randint(0, 260, (3, 12), generator=torch.Generator().manual_seed(1))
    cache = make_cache(model, 3)
    parts = []
    with torch.inference_mode():
        for start in range(0, 12, chunk):
            part = tokens[:, start : start + chunk]
            parts.append(model(part, cache=cache))
            cache.advance(torch.full((3,), part.shape[1]))
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-4, atol=1e-4)


def test_no_row_can_write_into_the_next(model: Transformer) -> None:
    cache = make_cache(model, 2, 4)
    zeros = torch.zeros(2, 2, 4, 8)
    cache.update(0, zeros, zeros)
    cache.advance(torch.tensor([4, 1]))
    new = torch.ones(2, 2, 1, 8)
    cache.update(0, new, new)  # the first row is full
    assert cache.keys[0][1, :, 0].eq(0).all() and cache.keys[0][1, :, 1].eq(1).all()


def test_padding_and_stale_entries_are_never_seen(model: Transformer) -> None:
    """Huge numbers at every place beyond the lengths change nothing."""
    tokens = torch.randint(0, 260, (2, 6), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        logits = []
        for poison in (0.0, 1e9):
            cache = make_cache(model, 2)
            model(tokens, cache=cache)
            cache.advance(torch.tensor([6, 3]))
            for buffer in (*cache.keys, *cache.values):
                buffer[1, :, 3:] = poison
                buffer[0, :, 6:] = poison
            logits.append(model(torch.tensor([[1], [2]]), cache=cache))
    assert torch.equal(logits[0], logits[1])


def test_the_source_is_made_once_and_selected_with_its_rows(model: Transformer) -> None:
    cache = make_cache(model, 3)
    made = (torch.arange(3.0).view(3, 1, 1, 1), -torch.arange(3.0).view(3, 1, 1, 1))
    assert cache.source(0, lambda: made) is made
    assert cache.source(0, lambda: pytest.fail("made twice")) is made
    cache.select(torch.tensor([2, 0]), same_sources=True)
    assert cache.source(0, lambda: pytest.fail("made twice")) is made
    cache.select(torch.tensor([1]))
    keys, values = cache.source(0, lambda: pytest.fail("made twice"))
    assert keys.flatten().tolist() == [1.0] and values.flatten().tolist() == [-1.0]
    assert cache.source(1, lambda: made) is made  # another layer has its own


def test_it_grows_with_what_is_read_and_keeps_it_through_selections(model: Transformer) -> None:
    """Rows of unequal length that change places, are dropped and doubled: what is held is what was written."""
    draw = torch.Generator().manual_seed(2)
    cache, written = make_cache(model, 4, 90), [torch.empty(2, 0, 8) for _ in range(4)]
    for num, rows in ((3, [0, 1, 2, 3]), (5, [3, 3, 1]), (30, [2, 0]), (1, [1, 0, 1]), (40, [0, 2, 1])):
        new = torch.randn(len(written), 2, num, 8, generator=draw)
        counted = torch.tensor([max(1, num - row) for row in range(len(written))])
        held, _ = cache.update(0, new, new)
        for row, before in enumerate(written):
            written[row] = torch.cat([before, new[row, :, : counted[row]]], dim=1)
            assert torch.equal(held[row, :, : written[row].shape[1]], written[row])
        assert held.isfinite().all()
        cache.advance(counted)
        cache.select(torch.tensor(rows))
        written = [written[row] for row in rows]
        assert cache.lengths.tolist() == [one.shape[1] for one in written]


def test_what_a_dropped_row_held_is_not_left_behind(model: Transformer) -> None:
    cache = make_cache(model, 2, 20)
    new = torch.full((2, 2, 9, 8), float("nan"))
    new[1] = 1.0
    cache.update(0, new, new)
    cache.advance(torch.tensor([9, 2]))
    cache.select(torch.tensor([1]))
    held, _ = cache.update(0, torch.ones(1, 2, 9, 8), torch.ones(1, 2, 9, 8))
    assert held.isfinite().all()
