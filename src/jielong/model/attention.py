"""The modules of attention: projections around the kernels, for a stack's own tokens and for a source.

Multi-head, grouped-query and multi-query attention differ in the number of kv heads alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from jielong.errors import ModelError
from jielong.model.config import ModelConfig
from jielong.model.context import Context, Heads, identity
from jielong.model.layers import RMSNorm, Softcap


def build_heads(config: ModelConfig, layer: int, window: int = 0) -> Heads:
    """The heads of one layer of either stack."""
    cap: Callable[[Tensor], Tensor] = Softcap(config.attention_softcap) if config.attention_softcap else identity
    return Heads(config.num_heads, config.num_kv_heads, config.head_size, layer, window, cap)


class Attention(nn.Module):
    """Multi-head self-attention. q, k and v are one matrix, in the order of `Heads`.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2, where k and v have as many heads as q and nothing has
    a bias; Ainslie et al. 2023, arXiv:2305.13245, for fewer.
    """

    def __init__(self, config: ModelConfig, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        num_all = config.num_heads + 2 * config.num_kv_heads
        self.qkv = nn.Linear(config.width, num_all * config.head_size, bias=config.qkv_bias)
        self.out = nn.Linear(config.num_heads * config.head_size, config.width, bias=config.out_bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        mixed: Tensor = self.out(context.attend(self.project(x), context, self.heads))
        return mixed

    def project(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, (N + 2K) H)."""
        mixed: Tensor = self.qkv(x)
        return mixed


class NormedAttention(Attention):
    """Self-attention whose queries and keys pass an RMSNorm over each head before they are turned.

    Source: Qwen3 technical report 2025, arXiv:2505.09388, section 2, after Dehghani et al. 2023, arXiv:2302.05442.
    """

    def __init__(self, config: ModelConfig, heads: Heads) -> None:
        super().__init__(config, heads)
        self.q_norm = RMSNorm(config.head_size, config.norm_eps)
        self.k_norm = RMSNorm(config.head_size, config.norm_eps)

    def project(self, x: Tensor) -> Tensor:
        kv, size = self.heads.num_kv_heads, self.heads.head_size
        split = self.qkv(x).unflatten(2, (-1, size))  # (B, T, N + 2K, H)
        queries, keys, values = split.split((self.heads.num_heads, kv, kv), dim=2)
        return torch.cat((self.q_norm(queries), self.k_norm(keys), values), dim=2).flatten(2)


class CrossAttention(nn.Module):
    """Multi-head attention of a decoder to the source: queries from x, keys and values from the memory, not turned.

    Every decoder layer reads the last layer of the encoder. Several rows may read one source, as the beams of a
    sentence do: of B G rows, b G to b G + G - 1 read source b of B, to which they are so many more queries.
    Keys and values are not normed where qk_norm is on.
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3.
    """

    def __init__(self, config: ModelConfig, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(config.width, config.num_heads * config.head_size, bias=config.qkv_bias)
        self.kv = nn.Linear(config.width, 2 * config.num_kv_heads * config.head_size, bias=config.qkv_bias)
        self.out = nn.Linear(config.num_heads * config.head_size, config.width, bias=config.out_bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        keys, values = context.source(self.heads.layer, partial(self.keys_values, context.memory))
        split = self.q(x).view(len(keys), -1, self.heads.num_heads, self.heads.head_size)  # (B, G T, N, H)
        output = context.weigh(split.transpose(1, 2), keys, values, context.memory_bias, context, self.heads)
        mixed: Tensor = self.out(output.transpose(1, 2).reshape(*x.shape[:2], -1))
        return mixed

    def keys_values(self, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, S, D) -> keys and values of the source, each (B, K, S, H)."""
        if memory is None:
            raise ModelError("the decoder attends to a source: give `memory`, or a cache that has read it")
        split = self.kv(memory).unflatten(2, (2, -1, self.heads.head_size))  # (B, S, 2, K, H)
        keys, values = split.permute(2, 0, 3, 1, 4).contiguous()  # once: every step of a decoding reads them
        return keys, values
