from __future__ import annotations

import torch

from jielong.model.context import Mask, as_bias, segment_positions, visible_keys, visible_source

SEGMENTS = torch.tensor([[1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]])
SLOTS = torch.arange(6)


def test_positions_restart_with_each_segment() -> None:
    assert segment_positions(SEGMENTS).tolist() == [[0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 2, 0]]


def test_causal_keys_by_hand() -> None:
    seen = visible_keys(SLOTS, 6, SEGMENTS)
    assert seen[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    assert torch.equal(seen[1], torch.ones(6, 6, dtype=torch.bool).tril())
    assert torch.equal(visible_keys(SLOTS, 6), torch.ones(1, 6, 6, dtype=torch.bool).tril())


def test_window_by_hand() -> None:
    assert visible_keys(SLOTS, 6, window=2)[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]


def test_both_directions_by_hand() -> None:
    seen = visible_keys(SLOTS, 6, SEGMENTS, causal=False)[2].int().tolist()
    padding, text = [1, 1, 0, 0, 0, 1], [0, 0, 1, 1, 1, 0]
    assert seen == [padding, padding, text, text, text, padding]
    assert visible_keys(SLOTS, 6, causal=False).all()


def test_decoding_queries_stand_at_the_end() -> None:
    slots = torch.tensor([[2, 3], [0, 1]])  # two new tokens after 2 held, and after none
    assert visible_keys(slots, 4).int().tolist() == [[[1, 1, 1, 0], [1, 1, 1, 1]], [[1, 0, 0, 0], [1, 1, 0, 0]]]
    assert visible_keys(slots, 4, window=2)[0].int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]


def test_source_by_hand() -> None:
    source = torch.tensor([[1, 1, 2, 0], [0, 1, 1, 1], [1, 1, 1, 1]])
    seen = visible_source(SEGMENTS, source).int()
    assert seen[0].tolist() == [[1, 1, 0, 0]] * 2 + [[0, 0, 1, 0]] * 2 + [[1, 1, 1, 1]] * 2  # padding sees everything
    assert seen[1].tolist() == [[0, 1, 1, 1]] * 6
    assert visible_source(None, source).int().tolist() == [[[1, 1, 1, 0]], [[0, 1, 1, 1]], [[1, 1, 1, 1]]]


def test_a_mask_makes_each_bias_once() -> None:
    mask = Mask(True, SLOTS, torch.float32, SEGMENTS)
    assert mask.bias(0, 6) is mask.bias(0, 6) and mask.bias(2, 6) is not mask.bias(0, 6)
    assert torch.equal(mask.bias(2, 6), as_bias(visible_keys(SLOTS, 6, SEGMENTS, window=2), torch.float32))
    assert not mask.is_triangle(0)
    whole = Mask(True, SLOTS, torch.bfloat16)
    assert whole.is_triangle(0) and not whole.is_triangle(3) and whole.bias(0, 6).dtype == torch.bfloat16
    open_mask = Mask(False, SLOTS, torch.float32)
    assert open_mask.bias(0, 6) is None and not open_mask.is_triangle(0)


def test_no_row_is_without_a_key() -> None:
    """An empty softmax row would be NaN."""
    for window in (0, 1, 3):
        assert visible_keys(SLOTS, 6, SEGMENTS, window=window).any(-1).all()
    assert visible_keys(SLOTS, 6, SEGMENTS, causal=False).any(-1).all()
