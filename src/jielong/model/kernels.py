"""Attention itself: the explicit oracle, and the kernels for training and decoding that are held to it.

A kernel of self-attention takes the fused projection, `mixed` (B, T, (N + 2K) H), and gives (B, T, N H). Those of
cross-attention take queries (B, N, T, H), keys and values (B, K, S, H) and a bias (B or 1, T or 1, S) or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from jielong.model.context import Context, Heads, identity

# Explicit attention on the CPU beats torch's fused kernel in bfloat16 at all lengths up to here, in float32 up to
# KEPT_LENGTH (docs/speed.md has the figures and the command). A constant, not a probe at each start: another choice
# rounds otherwise, and a run that goes on would end in other weights than one that was never stopped.
PLAIN_LENGTH = 2048
KEPT_LENGTH = 512  # up to here it keeps its T^2 / 2 weights a head for the backward pass, beyond it makes them again
STEADY_KEYS = 128  # see `steady_attention`
BLOCK_LENGTH = 64  # query blocks of this length skip the keys that lie wholly in their future, or before their window

SelfKernel = Callable[[Tensor, Context, Heads], Tensor]
CrossKernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, Context, Heads], Tensor]


def explicit_attention(
    queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor, cap: Callable[[Tensor], Tensor] = identity
) -> Tensor:
    """softmax(q k^T / sqrt(H)) v, written out in float32: the oracle that the kernels below are tested against.

    queries (B, N, T, H); keys, values (B, K, S, H); visible: bool, broadcasts against (B, 1, T, S). cap: what bounds
    the scores. -> (B, N, T, H).
    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
    """
    group = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, dim=1).float(), values.repeat_interleave(group, dim=1).float()
    scores = cap(queries.float() @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1]))  # (B, N, T, S)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return (weights @ values).to(queries.dtype)


class _PlainAttention(torch.autograd.Function):
    """Rotary, q k^T, softmax and the weighted sum as plain batched products, with a backward pass of its own.

    Copies are the enemy here: heads move to the front once, (B, T, N + 2K, H) -> (K, B, G, T, H), which turns every
    product into one `bmm` without further copies and shares kv heads by stacking the rows of their G query heads.
    """

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, context: Context, heads: Heads) -> Tensor:
        batch, length, _ = mixed.shape
        kv, group, size = heads.num_kv_heads, heads.group, heads.head_size
        bias, triangle = context.mask.bias(heads.window, length), context.mask.is_triangle(heads.window)
        split = mixed.view(batch, length, -1, size)  # (B, T, N + 2K, H)
        queries = split[:, :, : heads.num_heads].unflatten(2, (kv, group)).permute(2, 0, 3, 1, 4).contiguous()
        queries = context.rotation.turn(queries, -3, 1 / math.sqrt(size))  # (K, B, G, T, H), 1 / sqrt(H) already in it
        others = split[:, :, heads.num_heads :].unflatten(2, (2, kv)).permute(2, 3, 0, 1, 4).contiguous()
        keys = context.rotation.turn(others[0]).flatten(0, 1)  # (K B, T, H)
        values = others[1].flatten(0, 1)  # (K B, T, H)
        output = torch.empty_like(queries)  # (K, B, G, T, H)
        kept = []
        spans = _spans(length, context.mask.causal, heads.window)
        for span in spans:
            start, end, low, high = span
            weights = _weights(queries, keys, bias, triangle, span)
            if length <= KEPT_LENGTH:
                kept.append(weights)
            output[:, :, :, start:end] = torch.bmm(weights, values[:, low:high]).view(kv, batch, group, -1, size)
        ctx.save_for_backward(queries, keys, values, bias, *kept)
        ctx.heads, ctx.rotation, ctx.spans, ctx.triangle = heads, context.rotation, spans, triangle
        return output.permute(1, 3, 0, 2, 4).reshape(batch, length, -1)  # (B, T, N H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        queries, keys, values, bias, *kept = ctx.saved_tensors
        heads: Heads = ctx.heads
        kv, batch, group, length, size = queries.shape
        gradient = gradient.view(batch, length, kv, group, size).permute(2, 0, 3, 1, 4).contiguous()
        d_queries, d_keys, d_values = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        for index, span in enumerate(ctx.spans):
            start, end, low, high = span
            weights = kept[index] if kept else _weights(queries, keys, bias, ctx.triangle, span)
            rows = queries[:, :, :, start:end].reshape(kv * batch, -1, size)  # (K B, G t, H)
            d_output = gradient[:, :, :, start:end].reshape(kv * batch, -1, size)
            d_weights = torch.bmm(d_output, values[:, low:high].transpose(1, 2))  # (K B, G t, s)
            d_values[:, low:high] += torch.bmm(weights.transpose(1, 2), d_output)
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_queries[:, :, :, start:end] = torch.bmm(d_scores, keys[:, low:high]).view(kv, batch, group, -1, size)
            d_keys[:, low:high] += torch.bmm(d_scores.transpose(1, 2), rows)
        d_mixed = gradient.new_empty(batch, length, heads.num_heads + 2 * kv, size)
        d_queries = ctx.rotation.turn_back(d_queries, -3, 1 / math.sqrt(size)).permute(1, 3, 0, 2, 4)  # (B, T, K, G, H)
        d_mixed[:, :, : heads.num_heads].unflatten(2, (kv, group)).copy_(d_queries)
        d_keys = ctx.rotation.turn_back(d_keys.view(kv, batch, length, size))
        d_mixed[:, :, heads.num_heads : heads.num_heads + kv] = d_keys.permute(1, 2, 0, 3)
        d_mixed[:, :, heads.num_heads + kv :] = d_values.view(kv, batch, length, size).permute(1, 2, 0, 3)
        return d_mixed.view(batch, length, -1), None, None


def _weights(
    queries: Tensor, keys: Tensor, bias: Tensor | None, triangle: bool, span: tuple[int, int, int, int]
) -> Tensor:
    """What the queries of a span give to its keys, (K B, G t, s), from all turned queries and keys."""
    start, end, low, high = span
    kv, batch, group, _, size = queries.shape
    rows = queries[:, :, :, start:end].reshape(kv * batch, -1, size)  # (K B, G t, H)
    scores = torch.bmm(rows, keys[:, low:high].transpose(1, 2)).view(kv, batch, group, end - start, -1)
    if bias is not None:
        first = start if triangle else low  # of a triangle only the diagonal block hides anything
        scores[..., first - low :].add_(bias[:, None, start:end, first:high])
    return torch.softmax(scores, dim=-1).view(kv * batch, -1, high - low)


def _spans(length: int, causal: bool, window: int) -> list[tuple[int, int, int, int]]:
    """(start, end, low, high): blocks of queries, and the keys that hold all any of them sees."""
    spans, step = [], BLOCK_LENGTH if length <= KEPT_LENGTH else 2 * BLOCK_LENGTH  # fewer products of long rows
    for start in range(0, length, step):
        end = min(start + step, length)
        low = max(0, start - window + 1) if window else 0
        spans.append((start, end, low, end if causal else length))
    return spans


def plain_attention(mixed: Tensor, context: Context, heads: Heads) -> Tensor:
    """For the CPU and rows up to PLAIN_LENGTH, without cap and dropout."""
    output: Tensor = _PlainAttention.apply(mixed, context, heads)
    return output


def sdpa_attention(mixed: Tensor, context: Context, heads: Heads) -> Tensor:
    """torch's own kernel: flash attention where the device has it, and memory linear in T. It has no cap."""
    queries, keys, values = split_heads(mixed, context, heads)
    triangle = context.mask.is_triangle(heads.window)
    bias = None if triangle else context.mask.bias(heads.window, mixed.shape[1])
    output = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=None if bias is None else bias[:, None],
        dropout_p=context.dropout,
        is_causal=triangle,
        enable_gqa=heads.group > 1,
    )
    return output.transpose(1, 2).flatten(2)


def written_attention(mixed: Tensor, context: Context, heads: Heads) -> Tensor:
    """Every option, differentiated by torch: caps, and dropout on the CPU."""
    queries, keys, values = split_heads(mixed, context, heads)
    output = written_weighing(queries, keys, values, context.mask.bias(heads.window, mixed.shape[1]), context, heads)
    return output.transpose(1, 2).flatten(2)


def cached_attention(mixed: Tensor, context: Context, heads: Heads) -> Tensor:
    """For decoding: the T queries of a row see the keys held for it and their own up to themselves."""
    queries, keys, values = split_heads(mixed, context, heads)
    assert context.cache is not None
    keys, values = context.cache.update(heads.layer, keys, values)  # (B, K, S, H)
    output = written_weighing(queries, keys, values, context.mask.bias(heads.window, keys.shape[2]), context, heads)
    return output.transpose(1, 2).flatten(2)


def steady_attention(mixed: Tensor, context: Context, heads: Heads) -> Tensor:
    """cached_attention whose bits do not depend on who else is in the batch, nor on how a row was cut into parts.

    The cache must give keys as `steady_keys` counts them, with zeros behind each row's own. Few rows in a product are
    summed in another order than many, so that few queries are repeated; and so are long sums, so that values are
    summed STEADY_KEYS at a time. That this is enough on a CPU in float32 is tested, and no promise of torch.
    """
    batch, length, _ = mixed.shape
    if length == 1:
        split = mixed.view(batch, -1, heads.head_size)  # (B, N + 2K, H)
        num_turned = heads.num_heads + heads.num_kv_heads
        turned = context.rotation.turn(split[:, :num_turned])
        queries, keys = turned[:, : heads.num_heads, None], turned[:, heads.num_heads :, None]
        values = split[:, num_turned:, None]
    else:
        queries, keys, values = split_heads(mixed, context, heads)
    assert context.cache is not None
    keys, values = context.cache.update(heads.layer, keys, values)  # (B, K, S, H)
    bias = context.mask.bias(heads.window, keys.shape[2])
    return steady_weighing(queries, keys, values, bias, context, heads).transpose(1, 2).flatten(2)


def steady_weighing(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, context: Context, heads: Heads
) -> Tensor:
    """written_weighing with the bits of `steady_attention`; for cross-attention from a cache."""
    batch, _, length, size = queries.shape
    kv, num_rows = heads.num_kv_heads, heads.group * length
    times = steady_copies(num_rows)
    rows = queries.reshape(batch * kv, 1, num_rows, size) * queries.new_full((times, 1, 1), 1 / math.sqrt(size))
    rows = rows.reshape(batch * kv, -1, size)  # (B K, times G T, H)
    scores = heads.cap(torch.bmm(rows, keys.flatten(0, 1).transpose(1, 2)))  # (B K, times G T, S)
    if bias is not None:
        scores.view(batch, kv * times * heads.group, length, -1).add_(bias[:, None])
    weights, values = scores.softmax(dim=-1), values.flatten(0, 1)  # (B K, S, H)
    found = torch.bmm(weights[..., :STEADY_KEYS], values[:, :STEADY_KEYS])
    for start in range(STEADY_KEYS, weights.shape[2], STEADY_KEYS):
        end = start + STEADY_KEYS
        found = torch.baddbmm(found, weights[..., start:end], values[:, start:end])
    return found[:, :num_rows].reshape(batch, heads.num_heads, length, size)


def steady_copies(num_rows: int) -> int:
    """How often so many rows must be repeated for steady sums: two threads share 5, 6, 7 or 9 rows badly."""
    return -(-(4 if num_rows in (1, 2, 4) else 16) // num_rows)


def steady_keys(num_keys: int) -> int:
    """The least S >= num_keys of which `steady_attention` makes steady sums."""
    step = 16 if num_keys <= STEADY_KEYS else STEADY_KEYS
    return -(-num_keys // step) * step


def written_weighing(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, context: Context, heads: Heads
) -> Tensor:
    """explicit_attention in the compute dtype."""
    weights = written_weights(queries, keys, bias, heads)
    if context.dropout:
        weights = F.dropout(weights, context.dropout)
    return torch.bmm(weights, values.flatten(0, 1)).view(queries.shape)  # (B K, G T, H) -> (B, N, T, H)


def written_weights(queries: Tensor, keys: Tensor, bias: Tensor | None, heads: Heads) -> Tensor:
    """The weights alone, (B K, G T, S): kv heads are shared by stacking the rows of their G query heads.

    The same numbers in the same order as (B, N, T, S).
    """
    batch, _, length, size = queries.shape
    rows = (queries / math.sqrt(size)).reshape(batch * heads.num_kv_heads, -1, size)
    scores = torch.bmm(rows, keys.flatten(0, 1).transpose(1, 2))  # (B K, G T, S)
    scores = heads.cap(scores)
    if bias is not None:
        scores.view(batch, heads.num_heads, length, -1).add_(bias[:, None])
    return scores.softmax(dim=-1)


def sdpa_weighing(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, context: Context, heads: Heads
) -> Tensor:
    """torch's own kernel for cross-attention."""
    return F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=None if bias is None else bias[:, None],
        dropout_p=context.dropout,
        enable_gqa=heads.group > 1,
    )


def split_heads(mixed: Tensor, context: Context, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Turned queries (B, N, T, H), turned keys and values (B, K, T, H)."""
    split = mixed.unflatten(2, (-1, heads.head_size))  # (B, T, N + 2K, H)
    num_turned = heads.num_heads + heads.num_kv_heads
    turned = context.rotation.turn(split[:, :, :num_turned], -2).transpose(1, 2)
    return turned[:, : heads.num_heads], turned[:, heads.num_heads :], split[:, :, num_turned:].transpose(1, 2)


def choose_kernels(
    device: torch.device, dtype: torch.dtype, length: int, cached: bool, dropout: float
) -> tuple[SelfKernel, CrossKernel]:
    """The kernels of self- and cross-attention for one forward pass of T = length; asked once, not per layer.

    dtype: the compute dtype.
    """
    on_cpu, narrow = device.type == "cpu", dtype.itemsize == 2
    short = on_cpu and length <= KEPT_LENGTH
    across = written_weighing if short else sdpa_weighing
    if cached:
        return cached_attention, across
    if dropout:
        return written_attention if short else sdpa_attention, across
    plain = on_cpu and length <= (PLAIN_LENGTH if narrow else min(PLAIN_LENGTH, KEPT_LENGTH))
    return plain_attention if plain else sdpa_attention, across


def choose_capped_kernels(
    device: torch.device, dtype: torch.dtype, length: int, cached: bool, dropout: float
) -> tuple[SelfKernel, CrossKernel]:
    """The same for a model whose scores are capped, which only the written kernels do."""
    return cached_attention if cached else written_attention, written_weighing
