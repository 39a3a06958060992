"""Causal self-attention: the explicit oracle, the kernels for training and decoding, and the module around them.

Keys and values have K heads, queries N; query head n reads kv head n // G with G = N / K. A bias is 0 where a query
sees a key and -inf elsewhere. Every query sees at least one key, so no row of a softmax is empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from jielong.model.config import ModelConfig
from jielong.model.layers import rotate, rotate_back

# Explicit attention on the CPU beats torch's fused kernel 3x in bfloat16 up to about here; it keeps T^2 numbers a head.
PLAIN_LENGTH = 512
BLOCK_LENGTH = 64  # query blocks of this length skip the keys that lie wholly in their future


class Cache(Protocol):
    """Keys and values of tokens already seen; `generate/cache.py` has the one we ship.

    lengths: (B,) int64, tokens held per row. The engine, not the model, moves it on after a forward pass.
    """

    lengths: Tensor

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the T new entries of row b at lengths[b]..lengths[b]+T-1; return all keys and values, (B, K, S, H)."""
        ...


@dataclass(frozen=True)
class Heads:
    """How the columns of the fused q, k, v projection of one layer fall into heads: N of q, K of k, K of v."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    layer: int

    @property
    def group(self) -> int:
        """G, query heads per kv head."""
        return self.num_heads // self.num_kv_heads


@dataclass
class Context:
    """What all layers of one forward pass share, so that it is made once.

    cos, sin: rotary tables in the compute dtype, (T, H), or (B, T, H) where rows have positions of their own.
    bias: (B or 1, T, S) in the compute dtype; whole: it is the plain triangle, every row being one document.
    With a cache the first layer makes the bias, for only then S is known; positions (B, T) are those of the queries.
    """

    cos: Tensor
    sin: Tensor
    attend: Callable[[Tensor, Context, Heads], Tensor]
    bias: Tensor | None = None
    whole: bool = True
    cache: Cache | None = None
    positions: Tensor | None = None


def explicit_attention(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(H)) v, written out in float32: the oracle that the kernels below are tested against.

    queries (B, N, T, H); keys, values (B, K, S, H); visible: bool, broadcasts against (B, 1, T, S). -> (B, N, T, H).
    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
    """
    group = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, dim=1).float(), values.repeat_interleave(group, dim=1).float()
    scores = queries.float() @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])  # (B, N, T, S)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return (weights @ values).to(queries.dtype)


def segment_positions(segments: Tensor) -> Tensor:
    """Positions that restart at 0 with each segment. segments (B, T) int -> (B, T) int64."""
    index = torch.arange(segments.shape[1], device=segments.device).expand(segments.shape)
    starts = torch.zeros_like(index)
    starts[:, 1:] = torch.where(segments[:, 1:] != segments[:, :-1], index[:, 1:], 0)
    return index - starts.cummax(dim=1).values


def visible_keys(segments: Tensor) -> Tensor:
    """(B, T, T) bool: the key is not in the query's future and stands in its segment. segments (B, T) int."""
    return (segments[:, :, None] == segments[:, None, :]).tril_()


def as_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, -inf elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


class _PlainAttention(torch.autograd.Function):
    """Rotary, q k^T, softmax and the weighted sum as plain batched products, with a backward pass of its own.

    Copies are the enemy here: heads move to the front once, (B, T, N + 2K, H) -> (K, B, G, T, H), which turns every
    product into one `bmm` without further copies and shares kv heads by stacking the rows of their G query heads.
    """

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, context: Context, heads: Heads) -> Tensor:
        batch, length, _ = mixed.shape
        kv, group, size = heads.num_kv_heads, heads.group, heads.head_size
        assert context.bias is not None
        split = mixed.view(batch, length, -1, size)  # (B, T, N + 2K, H)
        scale = 1 / math.sqrt(size)
        cos, sin = context.cos.unsqueeze(-3), context.sin.unsqueeze(-3)  # ((B,) 1, T, H)
        queries = split[:, :, : heads.num_heads].unflatten(2, (kv, group)).permute(2, 0, 3, 1, 4).contiguous()
        queries = rotate(queries, cos * scale, sin * scale)  # (K, B, G, T, H), 1 / sqrt(H) already in it
        others = split[:, :, heads.num_heads :].unflatten(2, (2, kv)).permute(2, 3, 0, 1, 4).contiguous()
        keys = rotate(others[0], context.cos, context.sin).flatten(0, 1)  # (K B, T, H)
        values = others[1].flatten(0, 1)  # (K B, T, H)
        output = torch.empty_like(queries)  # (K, B, G, T, H)
        kept = []
        for start, end in _blocks(length):
            rows = queries[:, :, :, start:end].reshape(kv * batch, -1, size)  # (K B, G t, H)
            scores = torch.bmm(rows, keys[:, :end].transpose(1, 2)).view(kv, batch, group, end - start, end)
            first = start if context.whole else 0  # without segments only the diagonal block hides anything
            scores[..., first:].add_(context.bias[:, None, start:end, first:end])
            weights = torch.softmax(scores, dim=-1).view(kv * batch, -1, end)  # (K B, G t, s)
            kept.append(weights)
            output[:, :, :, start:end] = torch.bmm(weights, values[:, :end]).view(kv, batch, group, -1, size)
        ctx.save_for_backward(queries, keys, values, context.cos, context.sin, *kept)
        ctx.heads = heads
        return output.permute(1, 3, 0, 2, 4).reshape(batch, length, -1)  # (B, T, N H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        queries, keys, values, cos, sin, *kept = ctx.saved_tensors
        heads: Heads = ctx.heads
        kv, batch, group, length, size = queries.shape
        scale = 1 / math.sqrt(size)
        gradient = gradient.view(batch, length, kv, group, size).permute(2, 0, 3, 1, 4).contiguous()
        d_queries, d_keys, d_values = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        for (start, end), weights in zip(_blocks(length), kept, strict=True):
            rows = queries[:, :, :, start:end].reshape(kv * batch, -1, size)  # (K B, G t, H)
            d_output = gradient[:, :, :, start:end].reshape(kv * batch, -1, size)
            d_weights = torch.bmm(d_output, values[:, :end].transpose(1, 2))  # (K B, G t, s)
            d_values[:, :end] += torch.bmm(weights.transpose(1, 2), d_output)
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_queries[:, :, :, start:end] = torch.bmm(d_scores, keys[:, :end]).view(kv, batch, group, -1, size)
            d_keys[:, :end] += torch.bmm(d_scores.transpose(1, 2), rows)
        d_mixed = gradient.new_empty(batch, length, heads.num_heads + 2 * kv, size)
        wide_cos, wide_sin = cos.unsqueeze(-3) * scale, sin.unsqueeze(-3) * scale
        d_queries = rotate_back(d_queries, wide_cos, wide_sin).permute(1, 3, 0, 2, 4)  # (B, T, K, G, H)
        d_mixed[:, :, : heads.num_heads].unflatten(2, (kv, group)).copy_(d_queries)
        d_keys = rotate_back(d_keys.view(kv, batch, length, size), cos, sin)
        d_mixed[:, :, heads.num_heads : heads.num_heads + kv] = d_keys.permute(1, 2, 0, 3)
        d_mixed[:, :, heads.num_heads + kv :] = d_values.view(kv, batch, length, size).permute(1, 2, 0, 3)
        return d_mixed.view(batch, length, -1), None, None


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK_LENGTH, length)) for start in range(0, length, BLOCK_LENGTH)]


def plain_attention(mixed: Tensor, context: Context, heads: Heads) -> Tensor:
    """For the CPU and rows up to PLAIN_LENGTH. mixed (B, T, (N + 2K) H) -> (B, T, N H), as the two kernels below."""
    output: Tensor = _PlainAttention.apply(mixed, context, heads)
    return output


def sdpa_attention(mixed: Tensor, context: Context, heads: Heads) -> Tensor:
    """torch's own kernel: flash attention where the device has it, and memory linear in T."""
    queries, keys, values = _split(mixed, context, heads)
    bias = None if context.whole or context.bias is None else context.bias[:, None]
    output = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=bias, is_causal=context.whole, enable_gqa=heads.group > 1
    )
    return output.transpose(1, 2).flatten(2)


def cached_attention(mixed: Tensor, context: Context, heads: Heads) -> Tensor:
    """For decoding: the T queries of a row see the keys held for it and their own up to themselves."""
    queries, keys, values = _split(mixed, context, heads)
    assert context.cache is not None and context.positions is not None
    keys, values = context.cache.update(heads.layer, keys, values)  # (B, K, S, H)
    batch, length, num_keys = mixed.shape[0], mixed.shape[1], keys.shape[2]
    if context.bias is None:
        visible = torch.arange(num_keys, device=mixed.device) <= context.positions[:, :, None]
        context.bias = as_bias(visible, mixed.dtype)  # (B, T, S)
    rows = (queries / math.sqrt(heads.head_size)).reshape(batch * heads.num_kv_heads, -1, heads.head_size)
    scores = torch.bmm(rows, keys.flatten(0, 1).transpose(1, 2))  # (B K, G T, S)
    scores.view(batch, heads.num_heads, length, num_keys).add_(context.bias[:, None])
    output = torch.bmm(scores.softmax(dim=-1), values.flatten(0, 1))  # (B K, G T, H)
    return output.view(batch, heads.num_heads, length, heads.head_size).transpose(1, 2).flatten(2)


def _split(mixed: Tensor, context: Context, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Turned queries (B, N, T, H), turned keys and values (B, K, T, H)."""
    split = mixed.unflatten(2, (-1, heads.head_size))  # (B, T, N + 2K, H)
    num_turned = heads.num_heads + heads.num_kv_heads
    turned = rotate(split[:, :, :num_turned], context.cos.unsqueeze(-2), context.sin.unsqueeze(-2)).transpose(1, 2)
    return turned[:, : heads.num_heads], turned[:, heads.num_heads :], split[:, :, num_turned:].transpose(1, 2)


def choose_attention(device: torch.device, length: int, cached: bool) -> Callable[[Tensor, Context, Heads], Tensor]:
    """The kernel for this forward pass; asked once, not per layer."""
    if cached:
        return cached_attention
    return plain_attention if device.type == "cpu" and length <= PLAIN_LENGTH else sdpa_attention


class Attention(nn.Module):
    """Multi-head self-attention. q, k and v are one matrix, in the order of `Heads`."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads = Heads(config.num_heads, config.num_kv_heads, config.head_size, layer)
        num_all = config.num_heads + 2 * config.num_kv_heads
        self.qkv = nn.Linear(config.width, num_all * config.head_size, bias=False)
        self.out = nn.Linear(config.num_heads * config.head_size, config.width, bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        mixed: Tensor = self.out(context.attend(self.qkv(x), context, self.heads))
        return mixed
