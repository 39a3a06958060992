"""The Transformer: tokens in, logits (or one number a token) out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jielong.errors import ModelError
from jielong.model.attention import (
    Attention,
    Cache,
    Context,
    as_bias,
    choose_attention,
    plain_attention,
    segment_positions,
    visible_keys,
)
from jielong.model.config import ModelConfig
from jielong.model.layers import FeedForward, RMSNorm, rotary_tables


class Layer(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, layer)
        self.ffn_norm = RMSNorm(config.width, config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        # The norms return the compute dtype, so that autocast need not copy what goes into three products.
        dtype = context.cos.dtype
        x = x + self.attention(self.attention_norm(x, dtype), context)
        return x + self.ffn(self.ffn_norm(x, dtype))


class Transformer(nn.Module):
    """A decoder-only model built from its config; call `init_weights` before training it.

    tokens: (B, T) int64. segments: (B, T) int, 0 = padding, k = k-th document of the row: attention stays inside a
    segment and positions restart with it; None says that every row is one document of full length, which needs no
    mask. Padding may only stand at the right. cache: see `attention.Cache`; then tokens are those after the ones held.
    """

    cos: Tensor  # (max_length, H)
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.decoder_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        if config.head == "scalar":
            self.score = nn.Linear(config.width, 1, bias=False)
        elif not config.tie_embeddings:
            self.unembedding = nn.Linear(config.width, config.vocab_size, bias=False)
        self.build_tables()

    def build_tables(self) -> None:
        """Make the rotary tables on the device of the weights; they are no part of the state."""
        cos, sin = rotary_tables(self.config.max_length, self.config.head_size, self.config.rope_base)
        self.register_buffer("cos", cos.to(self.embed.weight.device), persistent=False)
        self.register_buffer("sin", sin.to(self.embed.weight.device), persistent=False)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """N(0, 1/sqrt(D)); projections into the residual stream / sqrt(2 L); norms 1; scalar head N(0, 1/sqrt(D+1)).

        At the usual 0.02 the attention of a narrow model starts all but uniform, and heads that copy form late: 128
        wide, on repeated lines, the loss of the second copy after 400 steps was 2.9 nats instead of 3.8.

        Source: Radford et al. 2019 (GPT-2), section 2.3, for the residual scaling; Stiennon et al. 2020,
        arXiv:2009.01325, for the head of a reward model.
        """
        usual = 1 / math.sqrt(self.config.width)
        residual = usual / math.sqrt(2 * self.config.decoder_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
                continue
            spread = residual if name.endswith(("attention.out.weight", "ffn.down.weight")) else usual
            if name == "score.weight":
                spread = 1 / math.sqrt(self.config.width + 1)
            # Drawn on the CPU, so that a seed means the same weights on every device.
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)

    @property
    def unembed_weight(self) -> Tensor:
        """The matrix (V, D) that turns hidden states into logits; the embedding itself when tied."""
        return self.embed.weight if self.config.tie_embeddings else self.unembedding.weight

    def hidden(self, tokens: Tensor, segments: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """(B, T) tokens -> (B, T, D) after the final norm.

        Raises ModelError when a row is longer than the model's max_length.
        """
        if tokens.shape[1] > self.config.max_length:
            raise ModelError(
                f"a row has {tokens.shape[1]} tokens, but the model reads at most {self.config.max_length} "
                "(max_length); shorten the row or build the model with a greater max_length"
            )
        x = self.embed(tokens)  # (B, T, D)
        context = self._context(tokens, segments, cache)
        for layer in self.layers:
            x = layer(x, context)
        return self.norm(x)

    def _context(self, tokens: Tensor, segments: Tensor | None, cache: Cache | None) -> Context:
        device, length = tokens.device, tokens.shape[1]
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else self.embed.weight.dtype
        attend = choose_attention(device, length, cache is not None)
        if cache is not None:
            positions = cache.lengths.to(device)[:, None] + torch.arange(length, device=device)  # (B, T)
            positions = positions.clamp_(max=self.config.max_length - 1)  # padded queries may stand beyond the end
            cos, sin = self.cos[positions].to(dtype), self.sin[positions].to(dtype)  # (B, T, H)
            return Context(cos, sin, attend, cache=cache, positions=positions)
        if segments is not None:
            positions = segment_positions(segments)
            cos, sin = self.cos[positions].to(dtype), self.sin[positions].to(dtype)  # (B, T, H)
            return Context(cos, sin, attend, as_bias(visible_keys(segments), dtype), whole=False)
        cos, sin = self.cos[:length].to(dtype), self.sin[:length].to(dtype)  # (T, H)
        triangle = torch.ones(1, length, length, dtype=torch.bool, device=device).tril_()
        return Context(cos, sin, attend, as_bias(triangle, dtype) if attend is plain_attention else None)

    def unembed(self, hidden: Tensor) -> Tensor:
        """(..., D) -> logits (..., V); with the scalar head (..., D) -> (...) float32."""
        if self.config.head == "scalar":
            # Not a matrix product, so that autocast leaves it in float32: a reward in bfloat16 has 3 digits.
            return (hidden.float() * self.score.weight[0].float()).sum(dim=-1)
        return F.linear(hidden, self.unembed_weight)

    def forward(self, tokens: Tensor, segments: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """unembed(hidden(...)): (B, T, V), or (B, T) with the scalar head."""
        return self.unembed(self.hidden(tokens, segments, cache))
