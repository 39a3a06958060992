"""Self-attention of one new token a row, in as few calls of torch as it takes.

A step of a small model is made of calls, each of which takes longer than what it computes. So queries, keys and values
are turned together, keys and values are written together, and what all layers share (tables, masks, views of the
buffer, places in it) is made once a step or once for many. The arithmetic is that of `steady_attention`, to the bit:
a token may be read among others in one conversation, and be said in another.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jielong.generate.quantize import Product
from jielong.generate.rows import RowsView
from jielong.model.context import Context, Heads, identity
from jielong.model.kernels import STEADY_KEYS, steady_copies
from jielong.model.positions import Rotation, Turned


class QuickAttention:
    """Stands for an `Attention` in a packed copy. project: x (B, T, D) -> (B, T, (N + 2K) H). out: back to D."""

    def __init__(self, heads: Heads, project: Product, out: Product) -> None:
        self.heads, self.project, self.out = heads, project, out
        kv, num = heads.num_kv_heads, heads.num_heads
        kinds = torch.tensor([1.0] * (num + kv) + [0.0] * kv)[:, None]  # (N + 2K, 1): what is turned
        self._is_turned, self._is_not = kinds, torch.stack((1 - kinds, torch.zeros_like(kinds)))
        scale = torch.full((steady_copies(heads.group), 1, 1), 1 / math.sqrt(heads.head_size))
        self._scales = {torch.float32: scale}

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        view, mixed = context.cache, self.project(x)
        if x.shape[1] > 1 or not isinstance(view, RowsView) or self.heads.cap is not identity:
            return self.out(context.attend(mixed, context, self.heads))
        return self.out(self._attend(mixed, context, view))

    def _attend(self, mixed: Tensor, context: Context, view: RowsView) -> Tensor:
        heads, batch = self.heads, view.num_real
        kv, num, size = heads.num_kv_heads, heads.num_heads, heads.head_size
        if view.turns is None:
            view.turns = self._tables(context.rotation, mixed.dtype, batch)
        num_none = mixed.shape[0] - batch
        real = mixed[:batch] if num_none else mixed  # nobody looks at what the others see
        split = real.view(batch, -1, size)  # (B, N + 2K, H)
        if view.turns:
            cos, sin = view.turns
            split = (split * cos).add_(split.roll(size // 2, -1) * sin)
        keys, values = view.put(heads.layer, split[:, num:])  # (B K, H, S), and blocks of (B K, s, H)
        scale = self._scales.get(mixed.dtype)
        if scale is None:
            scale = self._scales[mixed.dtype] = self._scales[torch.float32].to(mixed.dtype)
        rows = split[:, :num].view(batch, kv, 1, heads.group, size) * scale  # few rows are repeated, to be steady
        weights = torch.baddbmm(view.bias(heads.window), rows.view(batch * kv, -1, size), keys).softmax(dim=-1)
        if len(values) == 1:
            found = torch.bmm(weights, values[0])
        else:
            parts = weights.split(STEADY_KEYS, dim=2)
            found = torch.bmm(parts[0], values[0])
            for part, block in zip(parts[1:], values[1:], strict=True):
                found = torch.baddbmm(found, part, block)
        found = found[:, : heads.group].reshape(batch, 1, num * size)
        return torch.cat((found, found.new_zeros(num_none, 1, num * size))) if num_none else found

    def _tables(self, rotation: Rotation, dtype: torch.dtype, batch: int) -> tuple[Tensor, ...]:
        """cos and sin (B, N + 2K, H) that turn queries and keys, and leave values as they are; () to turn nothing."""
        if not isinstance(rotation, Turned):
            return ()
        both = torch.stack((rotation.cos[:batch], rotation.sin[:batch]), dim=1).float()  # (B, 2, 1, H)
        return (both * self._is_turned).add_(self._is_not).to(dtype).unbind(1)
