"""The parts of a model that act on each position alone: norms, feed-forward, and the small functions between.

Notation of the package: B batch, T target length, S key length, D width, N heads, K kv heads, H head size, F ffn width.
What a config names is resolved here into a module or a function, so that no `forward` asks the config.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from jielong.errors import ModelError
from jielong.model.config import ModelConfig
from jielong.model.context import Context, identity


def _wide_and_scale(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x in float32 or wider, and 1 / rms(x), (..., 1)."""
    wide = x.float() if x.element_size() == 2 else x
    squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
    return wide, squares.div_(x.shape[-1]).add_(eps).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight in a few passes; torch's own is put together from small operations on a CPU and takes 1.7x.

    With n = x / rms(x), g the gradient and m the mean over D: dx = (g w - n m(g w n)) / rms(x), dw = sum of g n.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide, scale = _wide_and_scale(x, eps)
        ctx.save_for_backward(wide, scale, weight)
        ctx.dtype = x.dtype
        return (wide * scale).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        wide, scale, weight = ctx.saved_tensors
        gradient = gradient.to(wide.dtype)
        normed = wide * scale
        product = gradient * normed
        d_weight = product.flatten(0, -2).sum(dim=0).to(weight.dtype)
        mean = (product @ weight.to(product.dtype)).unsqueeze(-1).div_(-wide.shape[-1])  # (..., 1), negative
        d_x = (gradient * weight).addcmul_(normed, mean).mul_(scale)
        return d_x.to(ctx.dtype), d_weight, None, None


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 and returned as `dtype` (None: as x).

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.shared: Callable[[Tensor], Tensor] = identity  # sums the weight's gradient where heads are in parts

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        if not torch.is_grad_enabled():  # the same, without the ceremony that takes longer than the norm of one token
            wide, scale = _wide_and_scale(x, self.eps)
            return (wide * scale).mul_(self.weight).to(dtype or x.dtype)
        output: Tensor = _RMSNorm.apply(x, self.shared(self.weight), self.eps, dtype or x.dtype)
        return output


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last axis, returned as `dtype` (None: as x).

    Source: Ba et al. 2016, arXiv:1607.06450, section 3.1.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        normed = F.layer_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.bias, self.eps)
        return normed.to(dtype or x.dtype)


class NoNorm:
    """Stands where a model has no norm, with the same call. No module, for it has no state and costs less to call."""

    def __call__(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return x


_NORMS: dict[str, type[RMSNorm | LayerNorm]] = {"rms": RMSNorm, "layer": LayerNorm}


def build_norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    """The norm over the width that config.norm names."""
    return _NORMS[config.norm](config.width, config.norm_eps)


class Dropout(nn.Module):
    """Zero for a share of the numbers while training, and the rest scaled so that the mean stays.

    On a CPU a number is decided by one random byte, eight of which come from one draw of torch's generator: the share
    is then the nearest of 256, and the scale its own. A draw for each number takes a seventh of a translator's step.
    Source: Srivastava et al. 2014.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.threshold = min(255, max(1, round(256 * probability)))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.probability)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.threshold
        return x * kept.to(x.dtype).mul_(256 / (256 - self.threshold))


def build_dropout(probability: float) -> Callable[[Tensor], Tensor]:
    """A dropout module, or the identity, which costs nothing."""
    return Dropout(probability) if probability else identity


@dataclass(frozen=True)
class Scale:
    """x * factor."""

    factor: float

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor


@dataclass(frozen=True)
class Softcap:
    """limit * tanh(x / limit): nearly x where small, never beyond the limit. Source: xai-org/grok-1, model.py."""

    limit: float

    def __call__(self, x: Tensor) -> Tensor:
        return (x / self.limit).tanh() * self.limit


def build_scale(factor: float) -> Callable[[Tensor], Tensor]:
    """x * factor, or the identity when that is 1."""
    return identity if factor == 1.0 else Scale(factor)


_gelu_tanh = partial(F.gelu, approximate="tanh")
# The nonlinearity of each activation; the gated ones apply it to the gate. geglu has the tanh form, as Grok-1's
# jax.nn.gelu by default; the paper (Shazeer 2020) has the exact one.
NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,  # exact, with erf; google-research/bert computes the tanh form, Hugging Face's BERT this one
    "gelu_tanh": _gelu_tanh,  # differs from the exact one by up to 5e-4
    "silu": F.silu,
    "swiglu": F.silu,
    "geglu": _gelu_tanh,
}


class FeedForward(nn.Module):
    """down(f(up(x))) with f a ReLU, GELU or SiLU.

    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 2.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.ffn_width, bias=config.ffn_bias)
        self.down = nn.Linear(config.ffn_width, config.width, bias=config.ffn_bias)
        self.nonlinearity = NONLINEARITIES[config.activation]

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        mixed: Tensor = self.down(self.nonlinearity(self.up(x)))  # (B, T, F) inside
        return mixed


class GatedFeedForward(nn.Module):
    """SwiGLU or GeGLU: down(f(gate(x)) * up(x)) with f the SiLU or GELU.

    gate and up stay two matrices: the halves of one product are not contiguous, and silu on those takes 3x as long.
    Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn_width, bias=config.ffn_bias)
        self.up = nn.Linear(config.width, config.ffn_width, bias=config.ffn_bias)
        self.down = nn.Linear(config.ffn_width, config.width, bias=config.ffn_bias)
        self.nonlinearity = NONLINEARITIES[config.activation]

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        mixed: Tensor = self.down(self.nonlinearity(self.gate(x)) * self.up(x))  # (B, T, F) inside
        return mixed


class TokenTypes(nn.Module):
    """A learned vector for each sentence of a row, added to the embedding. Source: Devlin et al. 2018, section 3.

    types: (B, T) int64, 0 where None.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.token_types, config.width))

    def forward(self, x: Tensor, types: Tensor | None) -> Tensor:
        return x + (self.weight[0] if types is None else F.embedding(types, self.weight))


class NoTokenTypes:
    """For models that do not tell sentences apart. Raises ModelError when types are given all the same."""

    def __call__(self, x: Tensor, types: Tensor | None) -> Tensor:
        if types is not None:
            raise ModelError("token_types are given, but this model tells no sentences apart (its token_types is 0)")
        return x
