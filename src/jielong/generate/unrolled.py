"""The forward of a small decoder for one new token a row, unrolled: over buffers that stay, in the fewest steps.

A step of a small model is made of calls, each of which takes longer than what it computes, and one of torch takes two
to four times as long as one of numpy. So what lies between the products is numpy's here, on the memory of torch's
tensors, and everything that does not change with the step is made once: buffers, views of them, the keys' places.

The bits are those of the packed modules that read prompts (`packed`, `quick`), for a token may be read in one
conversation and be said in another. Therefore numpy does only what has one right answer in every library: the sum,
the product and the quotient of two numbers. Matrix products, sums of many numbers and functions are torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jielong.generate.packed import JoinedGate, QuickNorm, whole_rows
from jielong.generate.quantize import STEADY_SIZES, PlainProduct, steady_size
from jielong.generate.quick import QuickAttention
from jielong.generate.rows import RowsView, Seen
from jielong.model.context import Cache, Heads, identity
from jielong.model.kernels import STEADY_KEYS, steady_copies
from jielong.model.positions import RotaryPositions
from jielong.model.transformer import Transformer

Step = Callable[[Tensor, Cache], Tensor]  # (R,) ids, the next token of each row of the cache -> logits (R, V)


def build_step(network: Transformer) -> Step:
    """What reads one new token a row: unrolled where the packed network's parts are known, else its own forward."""

    def forward(ids: Tensor, cache: Cache) -> Tensor:
        logits: Tensor = network(ids[:, None], cache=cache)[:, 0]
        return logits

    config, positions = network.config, network.positions
    norms, layers = _known_norms(network.norm), [_known_layer(layer) for layer in network.layers]
    known = [layer for layer in layers if layer is not None]
    plain = config.norm_at == "pre" and not config.embedding_norm and config.embedding_scale == 1
    plain = plain and network.embed.weight.dtype == torch.float32 and not config.encoder_layers
    if not (plain and norms and len(known) == len(layers) and isinstance(positions, RotaryPositions)):
        return forward
    return UnrolledStep(network, positions, known, norms[0], forward)


@dataclass(frozen=True)
class _Norm:
    """What `QuickNorm` divides by is at least `least`, what it multiplies by `weight` (D,)."""

    weight: np.ndarray
    least: Tensor


@dataclass(frozen=True)
class _Layer:
    """The parts of a layer: x + out(attention(qkv(norm(x)))), then x + down(silu(gate) up) behind the other norm."""

    heads: Heads
    norms: tuple[_Norm, _Norm]
    qkv: PlainProduct
    out: PlainProduct
    gate_up: PlainProduct
    down: PlainProduct


def _known_norms(*norms: object) -> list[_Norm]:
    return [_Norm(norm.weight.numpy(), norm.least) for norm in norms if isinstance(norm, QuickNorm)]


def _known_layer(layer: nn.Module) -> _Layer | None:
    """A packed layer's parts, None where one of them is not as it must be."""
    attention, ffn, norms = layer.attention, layer.ffn, _known_norms(layer.attention_norm, layer.ffn_norm)
    if not (isinstance(attention, QuickAttention) and isinstance(ffn, JoinedGate)):
        return None
    products = [
        product
        for product in (attention.project, attention.out, ffn.gate_up, ffn.down)
        if isinstance(product, PlainProduct)
    ]
    heads = attention.heads
    if heads.window or heads.cap is not identity or ffn.nonlinearity is not F.silu:
        return None
    return _Layer(heads, (norms[0], norms[1]), *products) if (len(norms), len(products)) == (2, 4) else None


class UnrolledStep:
    """(R,) ids of one new token a row -> logits (R, V), those of rows that are no one's without a meaning."""

    def __init__(
        self, network: Transformer, positions: RotaryPositions, layers: list[_Layer], norm: _Norm, forward: Step
    ) -> None:
        self._network, self._layers, self._norm, self._forward = network, layers, norm, forward
        self._embed = network.embed.weight.detach().numpy()  # (V, D)
        self._cos, self._sin = positions.cos.numpy(), positions.sin.numpy()  # (max_length, H)
        self._buffers: _Buffers | None = None

    def __call__(self, ids: Tensor, view: Cache) -> Tensor:
        if len(ids) > STEADY_SIZES[-1] or not isinstance(view, RowsView):
            return self._forward(ids, view)
        seen, size = view.seen(), steady_size(len(ids))
        at = self._buffers
        if at is None or at.seen is not seen or at.size != size:
            at = self._buffers = _Buffers(self._network.config.width, self._layers[0], seen, size, view.num_real)
        with np.errstate(all="ignore"):  # a row that breaks is told by its scores
            self._begin(at, ids.numpy()[: at.num_real], view.lengths.numpy()[: at.num_real])
            for layer in self._layers:
                self._attend(at, layer)
                self._feed(at, layer)
            self._norm_into(at, self._norm)
        logits: Tensor = self._network.unembed(at.normed)
        return logits[: len(ids)]

    def _begin(self, at: _Buffers, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Embed the tokens; find where each stands, and which keys it sees."""
        self._embed.take(ids, 0, at.x_real, "clip")
        at.cos[:] = self._cos.take(lengths, 0)[:, None]
        self._sin.take(lengths, 0, at.sin, "clip")
        ends = lengths[:, None]
        np.add(at.first, ends, at.places)
        at.bias.fill(0)
        at.bias[at.slots > ends] = -math.inf

    def _norm_into(self, at: _Buffers, norm: _Norm) -> None:
        """`QuickNorm`."""
        torch.linalg.vector_norm(at.x, dim=-1, keepdim=True, out=at.length)
        torch.hypot(at.length, norm.least, out=at.length)
        np.divide(at.x_array, at.length_array, at.normed_array)
        np.multiply(at.normed_array, norm.weight, at.normed_array)

    def _attend(self, at: _Buffers, layer: _Layer) -> None:
        """x += out(attention): `QuickAttention`."""
        self._norm_into(at, layer.norms[0])
        layer.qkv.into(at.normed, at.mixed)
        np.multiply(at.split, at.cos_all, at.turned)
        np.multiply(at.swapped, at.sin_halves, at.across)
        np.add(at.turned_heads, at.across_heads, at.turned_heads)
        number = layer.heads.layer
        at.flat[at.places[number]] = at.new
        np.multiply(at.queries, at.scale, at.repeated)
        torch.bmm(at.rows, at.seen.keys[number], out=at.scores)
        np.add(at.scores_array, at.bias_all, at.scores_array)
        weights, values = at.scores.softmax(dim=-1), at.seen.values[number]
        if len(values) == 1:
            torch.bmm(weights, values[0], out=at.found)
        else:
            parts = weights.split(STEADY_KEYS, dim=2)
            torch.bmm(parts[0], values[0], out=at.found)
            for part, block in zip(parts[1:], values[1:], strict=True):
                at.found.baddbmm_(part, block)
        at.gathered_heads[:] = at.found_once
        layer.out.into(at.gathered, at.added)
        np.add(at.x_array, at.added_array, at.x_array)

    def _feed(self, at: _Buffers, layer: _Layer) -> None:
        """x += feed-forward: `JoinedGate`."""
        self._norm_into(at, layer.norms[1])
        layer.gate_up.into(at.normed, at.gate_up)
        for gate in at.gates:
            F.silu(gate, inplace=True)
        np.multiply(at.gate_array, at.up_array, at.gated_array)
        layer.down.into(at.gated, at.added)
        np.add(at.x_array, at.added_array, at.x_array)


class _Buffers:
    """All that a step of so many rows writes to, and views of it: names in _array are numpy's, of the same memory.

    size: rows of the products, of which num_real are anybody's. The others begin as zeros; biases are added to
    them, and nothing looks at what comes of it.
    """

    def __init__(self, width: int, layer: _Layer, seen: Seen, size: int, num_real: int) -> None:
        self.seen, self.size, self.num_real = seen, size, num_real
        self.x, self.normed, self.added = torch.zeros(3, size, width).unbind(0)
        self.length = torch.zeros(size, 1)
        self.x_array, self.normed_array, self.added_array = self.x.numpy(), self.normed.numpy(), self.added.numpy()
        self.x_real, self.length_array = self.x_array[:num_real], self.length.numpy()
        self._add_heads(layer.heads)
        self._add_attention(layer.heads)
        ffn_width = layer.down.weight.shape[1]
        self.gate_up, self.gated = torch.zeros(size, 2 * ffn_width), torch.zeros(size, ffn_width)
        gate, up = self.gate_up.chunk(2, dim=-1)
        self.gates = whole_rows(gate)
        self.gate_array, self.up_array, self.gated_array = gate.numpy(), up.numpy(), self.gated.numpy()

    def _add_heads(self, heads: Heads) -> None:
        """What comes of the projection: split into heads, turned, and put with the keys and values."""
        num, kv, size, real = heads.num_heads, heads.num_kv_heads, heads.head_size, self.num_real
        num_turned = num + kv
        self.mixed = torch.zeros(self.size, (num_turned + kv) * size)
        self.split = self.mixed.numpy()[:real].reshape(real, -1, size)  # (B, N + 2K, H)
        self.turned = np.zeros_like(self.split)
        self.swapped = self.split[:, :num_turned].reshape(real, num_turned, 2, -1)[:, :, ::-1]  # its halves exchanged
        self.across = np.zeros((real, num_turned, 2, size // 2), np.float32)
        self.turned_heads, self.across_heads = self.turned[:, :num_turned], self.across.reshape(real, num_turned, size)
        self.cos_all = np.ones_like(self.split)  # values are multiplied by 1
        self.cos, self.sin = self.cos_all[:, :num_turned], np.zeros((real, size), np.float32)
        self.sin_halves = self.sin.reshape(real, 1, 2, -1)
        self.new = self.turned[:, num:]  # (B, 2K, H)
        self.flat, self.first = self.seen.flat.numpy(), self.seen.first.numpy()
        self.places = np.zeros_like(self.first)  # (L, B, 2K)

    def _add_attention(self, heads: Heads) -> None:
        num, kv, size, real, group = heads.num_heads, heads.num_kv_heads, heads.head_size, self.num_real, heads.group
        times, num_keys = steady_copies(group), len(self.seen.slots)
        self.slots = self.seen.slots.numpy()
        self.scale = np.float32(1 / math.sqrt(size))
        self.queries = self.turned[:, :num].reshape(real, kv, 1, group, size)
        self.rows = torch.zeros(real * kv, times * group, size)
        self.repeated = self.rows.numpy().reshape(real, kv, times, group, size)
        self.scores = torch.zeros(real * kv, times * group, num_keys)
        self.scores_array = self.scores.numpy().reshape(real, -1, num_keys)
        self.bias = np.zeros((real, num_keys), np.float32)
        self.bias_all = self.bias[:, None]
        self.found = torch.zeros(real * kv, times * group, size)
        self.found_once = self.found.numpy().reshape(real, kv, -1, size)[:, :, :group]
        self.gathered = torch.zeros(self.size, num * size)
        self.gathered_heads = self.gathered.numpy()[:real].reshape(real, kv, group, size)
