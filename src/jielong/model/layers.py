"""The parts of a layer that act on each position alone: norm, feed-forward, rotary positions.

Notation of the package: B batch, T target length, S key length, D width, N heads, K kv heads, H head size, F ffn width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from jielong.model.config import ModelConfig


class _RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight in a few passes; torch's own is put together from small operations on a CPU and takes 1.7x.

    With n = x / rms(x), g the gradient and m the mean over D: dx = (g w - n m(g w n)) / rms(x), dw = sum of g n.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x.float() if x.dtype == torch.bfloat16 else x
        squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = squares.div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1), 1 / rms(x)
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

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        output: Tensor = _RMSNorm.apply(x, self.weight, self.eps, dtype or x.dtype)
        return output


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)).

    gate and up stay two matrices: the halves of one product are not contiguous, and silu on those takes 3x as long.
    Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))  # (B, T, F) inside
        return mixed


def rotary_tables(length: int, head_size: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position * base^(-2i/H), each (length, H) float32, for `rotate`.

    The angles stand twice, once for each half of a head; the first half of sin is negated, which is what turning needs.
    Source: Su et al. 2021, arXiv:2104.09864, eq. 34; pairs are (i, i + H/2) as in Hugging Face's Llama, not (2i, 2i+1).
    """
    frequencies = base ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)  # (H/2,)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)  # (length, H/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=1), torch.cat((-sin, sin), dim=1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + H/2]) by its position's angle. x (..., H); cos, sin broadcast against it."""
    turned = x.roll(x.shape[-1] // 2, dims=-1)
    return (x * cos).add_(turned * sin)


def rotate_back(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The inverse turn, which is also the gradient of `rotate`."""
    turned = x.roll(x.shape[-1] // 2, dims=-1)
    return (x * cos).sub_(turned * sin)
