"""What all layers of a stack share in one forward pass: who sees whom, positions, the cache, the source.

Keys and values have K heads, queries N; query head n reads kv head n // G with G = N / K. A bias is 0 where a query
sees a key and -inf elsewhere. Every query sees at least one key, so no row of a softmax is empty.
Notation: B batch, T queries, S keys, H head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from jielong.model.positions import Rotation
from jielong.model.routing import Routing


class Cache(Protocol):
    """Keys and values of tokens already seen; `generate/cache.py` has one for a batch, `generate/rows.py` for requests.

    lengths: (B,) int64, tokens held per row. The engine, not the model, moves it on after a forward pass.
    """

    lengths: Tensor

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the T new entries of row b at lengths[b]..lengths[b]+T-1; return all keys and values, (B, K, S, H)."""
        ...

    def source(self, layer: int, project: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Keys and values of the source for cross-attention, (B, K, S, H): `project()` once, then what that gave."""
        ...


def identity(x: Tensor) -> Tensor:
    """x itself: the place of an option that is off."""
    return x


@dataclass(frozen=True)
class Heads:
    """How the columns of the fused q, k, v projection of one layer fall into heads: N of q, K of k, K of v.

    layer: counted within its stack. window: how many keys up to itself a query sees, 0 = all.
    cap: bounds the scores, before the mask hides any of them.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int
    layer: int
    window: int = 0
    cap: Callable[[Tensor], Tensor] = identity

    @property
    def group(self) -> int:
        """G, query heads per kv head."""
        return self.num_heads // self.num_kv_heads


@dataclass
class Mask:
    """Which keys the queries of a stack see; each window's bias is made once, when the first layer asks for it.

    causal: no query sees its future. slots: (T,) or (B, T) int64, where among the keys each query stands.
    segments: (B, T) int or None, queries see their own segment only. dtype: of the biases, the compute dtype.
    """

    causal: bool
    slots: Tensor
    dtype: torch.dtype
    segments: Tensor | None = None
    biases: dict[int, Tensor | None] = field(default_factory=dict)

    def is_triangle(self, window: int) -> bool:
        """Whether a query sees all keys up to itself and no others, in every row."""
        return self.causal and self.segments is None and window == 0

    def bias(self, window: int, num_keys: int) -> Tensor | None:
        """(B or 1, T, S) in the compute dtype; None where nothing is hidden."""
        if window not in self.biases:
            hides = self.causal or self.segments is not None
            seen = visible_keys(self.slots, num_keys, self.segments, self.causal, window) if hides else None
            self.biases[window] = None if seen is None else as_bias(seen, self.dtype)
        return self.biases[window]


@dataclass
class Context:
    """One forward pass of one stack.

    dtype: the compute dtype, which norms return so that autocast need not copy what goes into several products.
    attend: self-attention's kernel, (mixed, context, heads) -> (B, T, N H). weigh: cross-attention's, (queries, keys,
    values, bias, context, heads) -> (B, N, T, H). dropout: probability with which a weight of attention is dropped.
    memory: (B, S, D), the source encoded; memory_bias: (B, T or 1, S) or None. real: (B, T) bool, False at padding,
    None where there is none. routing: collects what routers do, for the caller who passed one.
    """

    dtype: torch.dtype
    rotation: Rotation
    mask: Mask
    attend: Callable[[Tensor, Context, Heads], Tensor]
    weigh: Callable[[Tensor, Tensor, Tensor, Tensor | None, Context, Heads], Tensor]
    dropout: float = 0.0
    cache: Cache | None = None
    memory: Tensor | None = None
    memory_bias: Tensor | None = None
    real: Tensor | None = None
    routing: Routing | None = None

    def source(self, layer: int, project: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Keys and values of the source: made now, or once for a whole decoding where there is a cache."""
        return project() if self.cache is None else self.cache.source(layer, project)


def segment_positions(segments: Tensor) -> Tensor:
    """Positions that restart at 0 with each segment. segments (B, T) int -> (B, T) int64."""
    index = torch.arange(segments.shape[1], device=segments.device).expand(segments.shape)
    starts = torch.zeros_like(index)
    starts[:, 1:] = torch.where(segments[:, 1:] != segments[:, :-1], index[:, 1:], 0)
    return index - starts.cummax(dim=1).values


def visible_keys(
    slots: Tensor, num_keys: int, segments: Tensor | None = None, causal: bool = True, window: int = 0
) -> Tensor:
    """(B or 1, T, S) bool: the key is in the query's segment, not in its future, and among the last `window` keys.

    slots: (T,) or (B, T) int64, the query's place among the keys. segments: (B, T) int with S = T, or None for one.
    Padding, segment 0, sees padding.
    """
    slots = slots[..., None] if slots.dim() == 2 else slots[None, :, None]  # (B or 1, T, 1)
    keys = torch.arange(num_keys, device=slots.device)
    seen = keys <= slots if causal else torch.ones(1, slots.shape[1], num_keys, dtype=torch.bool, device=slots.device)
    if window:
        seen = seen & (keys > slots - window)
    return seen if segments is None else seen & (segments[:, :, None] == segments[:, None, :])


def visible_source(segments: Tensor | None, source_segments: Tensor) -> Tensor:
    """(B, T or 1, S) bool: the source token belongs to the target's segment. (B, T) or None, and (B, S) int.

    segments None: each row is one target, which sees all of its source but the padding. Padding of the target sees
    everything, so that its softmax is not empty; nothing reads what it finds.
    """
    if segments is None:
        return (source_segments > 0)[:, None, :]
    same = segments[:, :, None] == source_segments[:, None, :]
    return same | (segments == 0)[:, :, None]


def as_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, -inf elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))
