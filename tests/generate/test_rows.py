from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jielong.errors import ModelError
from jielong.generate.rows import RowCache
from jielong.model.transformer import Transformer


def make_rows(model: Transformer, max_rows: int = 4) -> RowCache:
    return RowCache(model.config, max_rows, torch.float32, torch.device("cpu"))


def test_growing_keeps_what_is_held(model: Transformer) -> None:
    rows = make_rows(replace_length(model, 200))
    rows.reserve(1, 10)
    assert rows.buffer.shape == (4, 1, 2, 64, 8)
    block = torch.randn(4, 2, 7, 8)
    rows.write(0, 3, block)
    rows.reserve(3, 65)
    assert rows.buffer.shape == (4, 3, 2, 96, 8) and torch.equal(rows.read(0, 3, 10), block)
    rows.reserve(2, 20)  # it does not shrink
    rows.reserve(4, 200)
    assert rows.buffer.shape == (4, 4, 2, 256, 8) and torch.equal(rows.read(0, 3, 10), block)
    assert rows.num_bytes == rows.bytes_per_token * 4 * 256
    assert rows.buffer.count_nonzero() == block.count_nonzero()


def replace_length(model: Transformer, max_length: int) -> Transformer:
    return Transformer(replace(model.config, max_length=max_length))


def test_claim_leaves_zeros_and_move_takes_the_row_along(model: Transformer) -> None:
    rows = make_rows(model)
    rows.wiped_with = float("nan")
    rows.reserve(2, 9)
    block = torch.randn(4, 2, 5, 8)
    rows.write(0, 0, block)
    rows.release(1)
    assert bool(rows.buffer[:, 1].isnan().all())
    rows.move(0, 1, 5)
    assert torch.equal(rows.read(1, 0, 5), block) and not rows.buffer[:, 1, :, 5:].any()
    assert bool(rows.buffer[:, 0].isnan().all())
    rows.claim(0)
    assert not rows.buffer[:, 0].any()


def test_rows_at_any_place_read_as_alone(model: Transformer) -> None:
    """Two rows of other lengths behind a third: each sees its own past, and writes where it ends."""
    tokens = torch.randint(0, 270, (2, 9), generator=torch.Generator().manual_seed(0))
    rows = make_rows(model)
    rows.reserve(3, 12)
    with torch.inference_mode():
        full = model(tokens)
        for row, length in ((1, 8), (2, 4)):
            model(tokens[row - 1 : row, :length], cache=rows.view(row, [0], length))
        last = torch.stack([tokens[0, 8], tokens[1, 4]])[:, None]
        found = model(last, cache=rows.view(1, [8, 4], 1))[:, 0]
    torch.testing.assert_close(found, torch.stack([full[0, 8], full[1, 4]]), rtol=1e-4, atol=1e-4)
    assert not rows.buffer[:, 0].any() and not rows.buffer[:, 2, :, 5:].any()


def test_room_must_be_reserved_and_sources_have_no_place(model: Transformer) -> None:
    rows = make_rows(model)
    rows.reserve(1, 3)
    with pytest.raises(ModelError, match="reserve room"):
        rows.view(0, [64], 1)
    with pytest.raises(ModelError, match="reserve room"):
        rows.view(0, [1, 1], 1)
    with pytest.raises(ModelError, match="no source"):
        rows.view(0, [0], 1).source(0, lambda: (torch.zeros(1), torch.zeros(1)))


def test_arranged_rows_take_what_they_hold_along(model: Transformer) -> None:
    """Beams change places, some are dropped: each row holds what its parent held, and zeros behind it."""
    rows = make_rows(model, 5)
    rows.reserve(5, 12)
    held = [torch.randn(4, 2, length, 8) for length in (3, 9, 1, 6, 6)]
    for row, block in enumerate(held):
        rows.claim(row)
        rows.write(row, 0, block)
    rows.wiped_with = float("nan")
    for order in ([1, 1, 0, 4, 3], [2, 1, 4]):
        held, before = [held[row] for row in order], len(held)
        rows.arrange(order, before)
        for row, block in enumerate(held):
            assert torch.equal(rows.read(row, 0, block.shape[2]), block)
            assert not rows.buffer[:, row, :, block.shape[2] :].any()
    assert bool(rows.buffer[:, 3:].isnan().all())  # what was dropped is given back
    rows.claim(4)
    assert not rows.buffer[:, 4].any()


def test_what_a_free_row_holds_is_found_by_its_tokens_and_partition(model: Transformer) -> None:
    rows = make_rows(model)
    rows.reserve(2, 9)
    block = torch.randn(4, 2, 5, 8)
    rows.wiped_with = float("nan")
    rows.write(0, 0, block)
    rows.release(0, "a", [1, 2, 3, 4])
    assert [rows.num_left(0, "a", ids) for ids in ([1, 2, 3, 4, 5], [1, 2], [1, 9, 3], [], [2])] == [4, 2, 1, 0, 0]
    assert rows.num_left(0, "b", [1, 2]) == rows.num_left(0, "", [1, 2]) == rows.num_left(1, "a", [1, 2]) == 0
    rows.claim(0, 2)
    assert torch.equal(rows.read(0, 0, 2), block[:, :, :2]) and not rows.buffer[:, 0, :, 2:].any()
    assert rows.num_left(0, "a", [1, 2]) == 0  # it is in use
    rows.release(0, "a", [1, 2])
    rows.view(0, [0, 0], 1, num_real=1)  # as a row that stands in for another it is written to
    assert rows.num_left(0, "a", [1, 2]) == 0
