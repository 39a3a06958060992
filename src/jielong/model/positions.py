"""How a model knows where a token stands: rotary, learned or sinusoidal positions.

Each kind is a module with the same two methods: `add` puts positions into the embeddings (rotary ones do not), and
`rotation` gives what turns queries and keys (the others turn nothing). An index of positions is (T,) int64, the same
for all rows, or (B, T). Notation: B batch, T length, D width, H head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jielong.model.config import ModelConfig, RopeScaling


class Rotation(Protocol):
    """Turns queries and keys by their positions in one forward pass."""

    def turn(self, x: Tensor, axis: int | None = None, scale: float = 1.0) -> Tensor:
        """scale * x, each head turned. x (..., T, H); axis: where x has one axis more than the positions' (B, T, H)."""
        ...

    def turn_back(self, x: Tensor, axis: int | None = None, scale: float = 1.0) -> Tensor:
        """scale times the inverse turn: the gradient of `turn`."""
        ...


@dataclass(frozen=True)
class Turned:
    """Rotary angles. cos, sin: (T, H), or (B, T, H) where rows have positions of their own, in the compute dtype."""

    cos: Tensor
    sin: Tensor

    def turn(self, x: Tensor, axis: int | None = None, scale: float = 1.0) -> Tensor:
        return rotate(x, *self._tables(axis, scale))

    def turn_back(self, x: Tensor, axis: int | None = None, scale: float = 1.0) -> Tensor:
        return rotate_back(x, *self._tables(axis, scale))

    def _tables(self, axis: int | None, scale: float) -> tuple[Tensor, Tensor]:
        cos, sin = (self.cos, self.sin) if axis is None else (self.cos.unsqueeze(axis), self.sin.unsqueeze(axis))
        return (cos, sin) if scale == 1.0 else (cos * scale, sin * scale)


class Unturned:
    """No rotation: positions are in the embeddings, or (in cross-attention) nowhere."""

    def turn(self, x: Tensor, axis: int | None = None, scale: float = 1.0) -> Tensor:
        return x if scale == 1.0 else x * scale

    def turn_back(self, x: Tensor, axis: int | None = None, scale: float = 1.0) -> Tensor:
        return self.turn(x, axis, scale)


class RotaryPositions(nn.Module):
    """Queries and keys are turned by angles that grow with the position; nothing is learned or added.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
    """

    cos: Tensor  # (max_length, H)
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def build_tables(self, device: torch.device) -> None:
        config = self.config
        if device.type == "meta":  # torch would import its compiler to compute nothing
            cos = sin = torch.empty(config.max_length, config.head_size, device=device)
        else:
            cos, sin = rotary_tables(config.max_length, config.head_size, config.rope_base, config.rope_scaling)
        self.register_buffer("cos", cos.to(device), persistent=False)
        self.register_buffer("sin", sin.to(device), persistent=False)

    def add(self, x: Tensor, index: Tensor) -> Tensor:
        return x

    def rotation(self, index: Tensor, dtype: torch.dtype) -> Rotation:
        return Turned(self.cos[index].to(dtype), self.sin[index].to(dtype))


class LearnedPositions(nn.Module):
    """One learned vector a position, added to the embedding. Source: Radford et al. 2018 (GPT-1), section 3.1."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.max_length, config.width))

    def build_tables(self, device: torch.device) -> None:
        """There are none."""

    def add(self, x: Tensor, index: Tensor) -> Tensor:
        return x + F.embedding(index, self.weight)

    def rotation(self, index: Tensor, dtype: torch.dtype) -> Rotation:
        return Unturned()


class SinusoidalPositions(nn.Module):
    """A fixed vector a position, added to the embedding: see `sinusoidal_table`."""

    table: Tensor  # (max_length, D)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def build_tables(self, device: torch.device) -> None:
        if device.type == "meta":
            table = torch.empty(self.config.max_length, self.config.width, device=device)
        else:
            table = sinusoidal_table(self.config.max_length, self.config.width)
        self.register_buffer("table", table.to(device), persistent=False)

    def add(self, x: Tensor, index: Tensor) -> Tensor:
        return x + self.table[index].to(x.dtype)

    def rotation(self, index: Tensor, dtype: torch.dtype) -> Rotation:
        return Unturned()


Positions = RotaryPositions | LearnedPositions | SinusoidalPositions
_KINDS: dict[str, type[Positions]] = {
    "rotary": RotaryPositions,
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
}


def build_positions(config: ModelConfig) -> Positions:
    """The positions that config.positions names; their tables come with `build_tables`."""
    return _KINDS[config.positions](config)


def sinusoidal_table(length: int, width: int) -> Tensor:
    """(length, D) float32: sin(p / 10000^(2i/D)) of all i = 0 .. D/2 - 1, then cos of the same.

    The paper has sine and cosine of each frequency side by side, so this is a permutation of its columns, the one of
    tensor2tensor and Marian. A model trained from scratch is the same up to that permutation of its dimensions, for
    every weight that touches the residual stream may be permuted with it; weights of others must keep their order.
    Exponents are 2i/D as in the paper and Marian; tensor2tensor has i / (D/2 - 1), another set of frequencies. Source:
    Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)  # (D/2,)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    return torch.cat((angles.sin(), angles.cos()), dim=1).float()


def rotary_tables(
    length: int, head_size: int, base: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin of position * base^(-2i/H), each (length, H) float32, for `rotate`.

    The angles stand twice, once for each half of a head; the first half of sin is negated, which is what turning needs.
    Source: Su et al. 2021, arXiv:2104.09864, eq. 34; pairs are (i, i + H/2) as in Hugging Face's Llama, not (2i, 2i+1).
    """
    frequencies = base ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)  # (H/2,)
    if scaling is not None:
        frequencies = scaled_frequencies(frequencies, scaling)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)  # (length, H/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=1), torch.cat((-sin, sin), dim=1)


def scaled_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Radians a token, (H/2,): slow ones divided by the factor, fast ones kept, blended between; see `RopeScaling`.

    The weight of the kept frequency rises linearly with the number of turns in the original context.
    """
    turns = scaling.original_length * frequencies / (2 * math.pi)
    kept = (turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
    kept = kept.clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + H/2]) by its position's angle. x (..., H); cos, sin broadcast against it."""
    turned = x.roll(x.shape[-1] // 2, dims=-1)
    return (x * cos).add_(turned * sin)


def rotate_back(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The inverse turn, which is also the gradient of `rotate`."""
    turned = x.roll(x.shape[-1] // 2, dims=-1)
    return (x * cos).sub_(turned * sin)
