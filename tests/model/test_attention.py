from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from jielong.model import attention
from jielong.model.attention import (
    Attention,
    Context,
    as_bias,
    choose_attention,
    explicit_attention,
    plain_attention,
    sdpa_attention,
    segment_positions,
    visible_keys,
)
from jielong.model.config import ModelConfig
from jielong.model.layers import rotary_tables, rotate

LENGTH = 40


def make_inputs(kv_heads: int, dtype: torch.dtype) -> tuple[Attention, Tensor, Tensor]:
    """A module, its fused projections (B, T, (N + 2K) H), and segments with padding (B, T)."""
    config = ModelConfig(
        vocab_size=9, max_length=LENGTH, width=32, decoder_layers=1, num_heads=4, num_kv_heads=kv_heads, head_size=8,
        ffn_width=8,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(kv_heads)
    mixed = torch.randn(3, LENGTH, (4 + 2 * kv_heads) * 8, generator=generator).to(dtype)
    segments = torch.ones(3, LENGTH, dtype=torch.int32)
    segments[1, 11:] = 2
    segments[1, 30:] = 0
    segments[2, 5:17] = 2
    segments[2, 17:] = 3
    return Attention(config, layer=0), mixed, segments


def make_context(mixed: Tensor, segments: Tensor | None, kernel: str) -> Context:
    cos, sin = (table.to(mixed.dtype) for table in rotary_tables(LENGTH, 8, 10000.0))
    attend = {"plain": plain_attention, "sdpa": sdpa_attention}[kernel]
    if segments is None:
        triangle = torch.ones(1, LENGTH, LENGTH, dtype=torch.bool).tril()
        return Context(cos, sin, attend, as_bias(triangle, mixed.dtype))
    positions = segment_positions(segments)
    return Context(cos[positions], sin[positions], attend, as_bias(visible_keys(segments), mixed.dtype), whole=False)


def oracle(mixed: Tensor, segments: Tensor | None, kv_heads: int) -> Tensor:
    """Attention of each segment alone by the explicit formula, document by document."""
    if segments is None:
        segments = torch.ones(mixed.shape[:2], dtype=torch.int32)
    output = []
    for row, ids in zip(mixed, segments, strict=True):
        pieces = []
        for start, end in zip(*_edges(ids), strict=True):
            cos, sin = rotary_tables(end - start, 8, 10000.0)
            heads = row[start:end].float().unflatten(1, (-1, 8)).transpose(0, 1)[None]  # (1, N + 2K, t, H)
            queries, keys, values = heads.split([4, kv_heads, kv_heads], dim=1)
            triangle = torch.ones(end - start, end - start, dtype=torch.bool).tril()
            mixture = explicit_attention(rotate(queries, cos, sin), rotate(keys, cos, sin), values, triangle)
            pieces.append(mixture[0].transpose(0, 1).flatten(1))
        output.append(torch.cat(pieces))
    return torch.stack(output)


def _edges(ids: Tensor) -> tuple[list[int], list[int]]:
    cuts = [0, *((ids[1:] != ids[:-1]).nonzero()[:, 0] + 1).tolist(), len(ids)]
    return cuts[:-1], cuts[1:]


@pytest.mark.parametrize("kernel", ["plain", "sdpa"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("block", [16, 64])  # 16 does not divide the length, so the last block is ragged
def test_kernels_equal_the_oracle(
    kernel: str, packed: bool, kv_heads: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK_LENGTH", block)
    module, mixed, segments = make_inputs(kv_heads, torch.float32)
    given = segments if packed else None
    upstream = torch.randn(3, LENGTH, 32, generator=torch.Generator().manual_seed(9))

    slow_input = mixed.clone().requires_grad_()
    slow = oracle(slow_input, given, kv_heads)
    slow.backward(upstream)
    fast_input = mixed.clone().requires_grad_()
    context = make_context(mixed, given, kernel)
    fast = context.attend(fast_input, context, module.heads)
    fast.backward(upstream)

    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast_input.grad, slow_input.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_plain_attention_in_bfloat16_is_near_the_oracle(packed: bool) -> None:
    module, mixed, segments = make_inputs(2, torch.bfloat16)
    given = segments if packed else None
    slow_input = mixed.float().requires_grad_()
    slow = oracle(slow_input, given, 2)
    fast_input = mixed.clone().requires_grad_()
    context = make_context(mixed, given, "plain")
    fast = plain_attention(fast_input, context, module.heads)
    upstream = torch.randn(slow.shape, generator=torch.Generator().manual_seed(9)).bfloat16()
    slow.backward(upstream.float())
    fast.backward(upstream)
    assert fast_input.grad is not None and slow_input.grad is not None
    for ours, exact in ((fast, slow), (fast_input.grad, slow_input.grad)):
        assert (ours.float() - exact).norm() < 0.02 * exact.norm()  # bfloat16 has 8 bits


def test_plain_attention_gradcheck() -> None:
    module, _, segments = make_inputs(2, torch.float64)
    heads = dataclasses.replace(module.heads, num_heads=2, num_kv_heads=1, head_size=2)
    generator = torch.Generator().manual_seed(4)
    mixed = torch.randn(2, 6, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    segments = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    cos, sin = (table.double()[segment_positions(segments)] for table in rotary_tables(6, 2, 100.0))
    context = Context(cos, sin, plain_attention, as_bias(visible_keys(segments), torch.float64), whole=False)
    assert torch.autograd.gradcheck(lambda x: plain_attention(x, context, heads), (mixed,))


def test_segment_positions_and_mask_by_hand() -> None:
    segments = torch.tensor([[1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1]])
    assert segment_positions(segments).tolist() == [[0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5]]
    seen = visible_keys(segments)[0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    assert torch.equal(visible_keys(segments)[1], torch.ones(6, 6, dtype=torch.bool).tril())


def test_choice_of_kernel() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_attention(cpu, attention.PLAIN_LENGTH, cached=False) is plain_attention
    assert choose_attention(cpu, attention.PLAIN_LENGTH + 1, cached=False) is sdpa_attention
    assert choose_attention(cuda, 16, cached=False) is sdpa_attention
    assert choose_attention(cuda, 16, cached=True) is attention.cached_attention
