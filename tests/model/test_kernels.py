"""Each kernel against the explicit formula, document by document, for every mask, head count, rotation and cap."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from jielong.model import kernels
from jielong.model.context import Context, Heads, Mask, identity, segment_positions
from jielong.model.kernels import (
    cached_attention,
    choose_capped_kernels,
    choose_kernels,
    explicit_attention,
    plain_attention,
    sdpa_attention,
    sdpa_weighing,
    written_attention,
    written_weighing,
)
from jielong.model.layers import Softcap
from jielong.model.positions import Turned, Unturned, rotary_tables, rotate

LENGTH = 40
KERNELS = {"plain": plain_attention, "sdpa": sdpa_attention, "written": written_attention}
SEGMENTS = torch.ones(3, LENGTH, dtype=torch.int32)
SEGMENTS[1, :3] = 0  # padding at the left
SEGMENTS[1, 11:] = 2
SEGMENTS[1, 30:] = 0  # and at the right
SEGMENTS[2, 5:17] = 2
SEGMENTS[2, 17:] = 3


def make_mixed(kv_heads: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The fused projection (3, T, (N + 2K) H)."""
    generator = torch.Generator().manual_seed(kv_heads)
    return torch.randn(3, LENGTH, (4 + 2 * kv_heads) * 8, generator=generator).to(dtype)


def make_context(kernel: str, segments: Tensor | None, causal: bool, turning: bool, dtype: torch.dtype) -> Context:
    cos, sin = (table.to(dtype) for table in rotary_tables(LENGTH, 8, 10000.0))
    index = torch.arange(LENGTH) if segments is None else segment_positions(segments)
    rotation = Turned(cos[index], sin[index]) if turning else Unturned()
    mask = Mask(causal, torch.arange(LENGTH), dtype, segments)
    return Context(dtype, rotation, mask, KERNELS[kernel], written_weighing)


def oracle(mixed: Tensor, segments: Tensor | None, heads: Heads, causal: bool, turning: bool) -> Tensor:
    """Attention of each segment alone by the explicit formula. Padding gets 0; what a kernel says there is nothing."""
    if segments is None:
        segments = torch.ones(mixed.shape[:2], dtype=torch.int32)
    output = []
    for row, ids in zip(mixed, segments, strict=True):
        pieces = []
        for start, end in zip(*_edges(ids), strict=True):
            split = row[start:end].float().unflatten(1, (-1, 8)).transpose(0, 1)[None]  # (1, N + 2K, t, H)
            queries, keys, values = split.split([4, heads.num_kv_heads, heads.num_kv_heads], dim=1)
            if turning:
                cos, sin = rotary_tables(end - start, 8, 10000.0)
                queries, keys = rotate(queries, cos, sin), rotate(keys, cos, sin)
            place = torch.arange(end - start)
            ahead = place[None, :] - place[:, None]  # how far a key is in the query's future
            seen = (ahead <= 0) & (ahead > -(heads.window or end)) if causal else ahead == ahead
            weighed = explicit_attention(queries, keys, values, seen, heads.cap)[0].transpose(0, 1).flatten(1)
            pieces.append(weighed * (ids[start] > 0))
        output.append(torch.cat(pieces))
    return torch.stack(output)


def _edges(ids: Tensor) -> tuple[list[int], list[int]]:
    cuts = [0, *((ids[1:] != ids[:-1]).nonzero()[:, 0] + 1).tolist(), len(ids)]
    return cuts[:-1], cuts[1:]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("causal", "window"), [(True, 0), (True, 1), (True, 7), (True, 39), (False, 0)])
@pytest.mark.parametrize("block", [16, 64])  # 16 does not divide the length, so the last block is ragged
def test_kernels_equal_the_oracle(
    kernel: str, packed: bool, kv_heads: int, causal: bool, window: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BLOCK_LENGTH", block)
    segments = SEGMENTS if packed else None
    real = torch.ones(3, LENGTH, 1, dtype=torch.bool) if segments is None else (segments > 0)[..., None]
    upstream = torch.randn(3, LENGTH, 32, generator=torch.Generator().manual_seed(9)) * real
    for turning, cap in ((True, identity), (False, identity), (True, Softcap(1.5))):
        if cap is not identity and kernel != "written":
            continue
        heads = Heads(4, kv_heads, 8, layer=0, window=window, cap=cap)
        slow_input = make_mixed(kv_heads).requires_grad_()
        slow = oracle(slow_input, segments, heads, causal, turning)
        slow.backward(upstream)
        fast_input = make_mixed(kv_heads).requires_grad_()
        context = make_context(kernel, segments, causal, turning, torch.float32)
        fast = context.attend(fast_input, context, heads)
        fast.backward(upstream)
        torch.testing.assert_close(fast * real, slow, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fast_input.grad, slow_input.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_kernels_in_bfloat16_are_near_the_oracle(kernel: str, packed: bool, causal: bool) -> None:
    segments, heads = SEGMENTS if packed else None, Heads(4, 2, 8, layer=0)
    real = torch.ones(3, LENGTH, 1, dtype=torch.bool) if segments is None else (segments > 0)[..., None]
    slow_input = make_mixed(2, torch.bfloat16).float().requires_grad_()
    slow = oracle(slow_input, segments, heads, causal, True)
    fast_input = make_mixed(2, torch.bfloat16).requires_grad_()
    context = make_context(kernel, segments, causal, True, torch.bfloat16)
    fast = context.attend(fast_input, context, heads)
    upstream = torch.randn(slow.shape, generator=torch.Generator().manual_seed(9)).bfloat16() * real
    slow.backward(upstream.float())
    fast.backward(upstream)
    assert fast_input.grad is not None and slow_input.grad is not None
    for ours, exact in ((fast * real, slow), (fast_input.grad, slow_input.grad)):
        assert (ours.float() - exact).norm() < 0.02 * exact.norm()  # bfloat16 has 8 bits


@pytest.mark.parametrize("turning", [False, True])
@pytest.mark.parametrize(("causal", "window"), [(True, 0), (True, 2), (False, 0)])
def test_plain_attention_gradcheck(turning: bool, causal: bool, window: int) -> None:
    heads = Heads(2, 1, 2, layer=0, window=window)
    generator = torch.Generator().manual_seed(4)
    mixed = torch.randn(2, 6, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    segments = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    cos, sin = (table.double()[segment_positions(segments)] for table in rotary_tables(6, 2, 100.0))
    mask = Mask(causal, torch.arange(6), torch.float64, segments)
    rotation = Turned(cos, sin) if turning else Unturned()
    context = Context(torch.float64, rotation, mask, plain_attention, written_weighing)
    assert torch.autograd.gradcheck(lambda x: plain_attention(x, context, heads), (mixed,))


@pytest.mark.parametrize("weigh", [written_weighing, sdpa_weighing])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("hidden", [False, True])
def test_kernels_of_cross_attention_equal_the_oracle(weigh: kernels.CrossKernel, kv_heads: int, hidden: bool) -> None:
    generator = torch.Generator().manual_seed(6)
    shapes = ((2, 4, 5, 8), (2, kv_heads, 7, 8), (2, kv_heads, 7, 8))
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    seen = torch.ones(2, 1, 7, dtype=torch.bool)
    seen[1, :, 4:] = not hidden
    heads, context = Heads(4, kv_heads, 8, layer=0), make_context("plain", None, True, False, torch.float32)
    bias = torch.zeros(2, 1, 7).masked_fill(~seen, float("-inf")) if hidden else None
    fast = weigh(*inputs, bias, context, heads)
    slow = explicit_attention(*inputs, seen[:, None])
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    upstream = torch.randn(fast.shape, generator=generator)
    for ours, exact in zip(
        torch.autograd.grad(fast, inputs, upstream), torch.autograd.grad(slow, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["written", "sdpa"])
def test_dropped_weights_of_attention_keep_their_mean(kernel: str) -> None:
    """With values of 1 a head says the sum of its kept weights / (1 - p): mean 1, variance p / (1 - p) * sum of w^2."""
    mixed = torch.zeros(3, LENGTH, (4 + 4) * 8)  # equal scores: each of t keys weighs 1 / t
    mixed[:, :, 6 * 8 :] = 1
    context, heads = make_context(kernel, None, True, True, torch.float32), Heads(4, 2, 8, layer=0)
    context.dropout = 0.25
    torch.manual_seed(0)
    draws = torch.stack([context.attend(mixed, context, heads)[:, -1, ::8] for _ in range(400)])  # one a head
    assert draws.mean().item() == pytest.approx(1, abs=0.01)
    assert draws.var().item() == pytest.approx(0.25 / 0.75 / LENGTH, rel=0.1)
    context.dropout = 0.0
    torch.testing.assert_close(context.attend(mixed, context, heads), torch.ones(3, LENGTH, 32))


def test_choice_of_kernels() -> None:
    cpu, cuda, most, kept = torch.device("cpu"), torch.device("cuda"), kernels.PLAIN_LENGTH, kernels.KEPT_LENGTH
    narrow, wide = torch.bfloat16, torch.float32
    for dtype in (narrow, wide):
        assert choose_kernels(cpu, dtype, kept, cached=False, dropout=0.0) == (plain_attention, written_weighing)
        assert choose_kernels(cpu, dtype, kept, cached=False, dropout=0.1) == (written_attention, written_weighing)
        assert choose_kernels(cpu, dtype, kept + 1, cached=False, dropout=0.1) == (sdpa_attention, sdpa_weighing)
        assert choose_kernels(cpu, dtype, most + 1, cached=False, dropout=0.0) == (sdpa_attention, sdpa_weighing)
    assert choose_kernels(cpu, narrow, most, cached=False, dropout=0.0) == (plain_attention, sdpa_weighing)
    assert choose_kernels(cpu, wide, kept + 1, cached=False, dropout=0.0) == (sdpa_attention, sdpa_weighing)
    assert choose_kernels(cuda, wide, 16, cached=False, dropout=0.1) == (sdpa_attention, sdpa_weighing)
    assert choose_kernels(cuda, wide, 16, cached=True, dropout=0.0)[0] is cached_attention
    for device, dropout in ((cpu, 0.0), (cuda, 0.1)):
        assert choose_capped_kernels(device, wide, 16, False, dropout) == (written_attention, written_weighing)
        assert choose_capped_kernels(device, wide, 16, True, dropout) == (cached_attention, written_weighing)


def test_a_window_skips_blocks_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK_LENGTH", 4)
    assert kernels._spans(10, causal=True, window=0) == [(0, 4, 0, 4), (4, 8, 0, 8), (8, 10, 0, 10)]
    assert kernels._spans(10, causal=True, window=3) == [(0, 4, 0, 4), (4, 8, 2, 8), (8, 10, 6, 10)]
    assert kernels._spans(10, causal=False, window=0) == [(0, 4, 0, 10), (4, 8, 0, 10), (8, 10, 0, 10)]
    monkeypatch.setattr(kernels, "KEPT_LENGTH", 9)
    assert kernels._spans(10, causal=True, window=3) == [(0, 8, 0, 8), (8, 10, 6, 10)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("causal", "window"), [(True, 0), (True, 7), (False, 0)])
def test_weights_that_are_made_again_are_the_same(
    packed: bool, causal: bool, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long rows keep no weights: the same bits as kept ones give in blocks of the same length."""
    heads, found = Heads(4, 2, 8, layer=0, window=window), []
    upstream = torch.randn(3, LENGTH, 32, generator=torch.Generator().manual_seed(9))
    for kept, block in ((LENGTH, 16), (LENGTH - 1, 8)):
        monkeypatch.setattr(kernels, "KEPT_LENGTH", kept)
        monkeypatch.setattr(kernels, "BLOCK_LENGTH", block)
        mixed = make_mixed(2).requires_grad_()
        context = make_context("plain", SEGMENTS if packed else None, causal, True, torch.float32)
        output = plain_attention(mixed, context, heads)
        assert len(output.grad_fn.saved_tensors) == 4 + (3 if kept == LENGTH else 0)  # type: ignore[union-attr]
        output.backward(upstream)
        found.append((output.detach(), mixed.grad))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_heads_are_grouped_in_order() -> None:
    heads = Heads(6, 2, 8, layer=0)
    assert heads.group == 3 and dataclasses.replace(heads, num_kv_heads=6).group == 1
