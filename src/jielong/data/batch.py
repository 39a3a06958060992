"""The three types that carry token rows from the data to the objectives.

Alignment rule, for every per-token tensor here: entry t speaks about token t. There is no shifted targets tensor and
no sentinel; the shift by one happens in `model/logprobs.py`. Padding is always on the right and has segment 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

SelfT = TypeVar("SelfT", bound="OnDevice")


class OnDevice:
    """A dataclass of tensors, which lie together on one device, and of plain values."""

    def to(self: SelfT, device: torch.device | str) -> SelfT:
        """The same with its tensors on `device`. Copies out of pinned memory do not keep the host waiting.

        All others do: torch would not wait for a copy to the CPU either, nor, on a Mac, keep what it still copies.
        """
        return self._with(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))

    def pinned(self: SelfT) -> SelfT:
        """The same with its tensors in pinned memory, out of which a GPU takes them by itself."""
        return self._with(Tensor.pin_memory)

    def _with(self: SelfT, change: Callable[[Tensor], Tensor]) -> SelfT:
        values = {name: change(value) if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        return type(self)(**values)


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless `tensor` has this dtype and shape. Reads no values, so it costs no device sync."""
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, must be {dtype} {shape}")


def _matrix_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    """The shape of a (rows, tokens) tensor; raises ValueError for any other rank."""
    if tensor.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, must be (rows, tokens)")
    return tuple(tensor.shape)


@dataclass(frozen=True)
class Batch(OnDevice):
    """Rows to learn from.

    tokens: (B, T) int64, the truth. mask: (B, T) bool, which tokens are scored; never the first token of a segment,
    never padding. segments: (B, T) int32, 0 = padding, k = k-th document of the row; attention stays inside a segment.
    num_units: what the loss is averaged over; for a language model mask.sum().
    source, source_segments: (B, S) int64 and int32, what tokens translate; None but for an encoder-decoder.
    Raises ValueError when shapes or dtypes are wrong.
    """

    tokens: Tensor
    mask: Tensor
    segments: Tensor
    num_units: int
    source: Tensor | None = None
    source_segments: Tensor | None = None

    def __post_init__(self) -> None:
        shape = _matrix_shape("tokens", self.tokens)
        _check("tokens", self.tokens, torch.int64, shape)
        _check("mask", self.mask, torch.bool, shape)
        _check("segments", self.segments, torch.int32, shape)
        if self.source is not None and self.source_segments is not None:
            source_shape = _matrix_shape("source", self.source)
            _check("source", self.source, torch.int64, (shape[0], source_shape[1]))
            _check("source_segments", self.source_segments, torch.int32, source_shape)
        elif self.source is not None or self.source_segments is not None:
            raise ValueError("source and source_segments belong together; one of them is None")
        if self.num_units < 0:
            raise ValueError(f"num_units is {self.num_units}, must not be negative")


@dataclass(frozen=True)
class PairBatch(OnDevice):
    """Replies to compare: R rows (prompt + reply), each run once, and M judged pairs among them.

    tokens: (R, T) int64. segments: (R, T) int32, 1 = real, 0 = padding. starts, ends: (R,) int64, index of the reply's
    first token and of the last real one, where a score is read. pairs: (M, 2) int64, row numbers (better, worse).
    weights: (M,) float32, such that each prompt weighs one in all. margins: (M,) float32, how much better at least.
    targets: (M,) float32, chance that the better one is preferred: 1, or 1/2 for a tie. num_units: number of prompts.
    ref_logprobs: (R,) float32, of the replies under a reference; DPO alone has them.
    Raises ValueError when shapes or dtypes are wrong.
    """

    tokens: Tensor
    segments: Tensor
    starts: Tensor
    ends: Tensor
    pairs: Tensor
    weights: Tensor
    margins: Tensor
    targets: Tensor
    num_units: int
    ref_logprobs: Tensor | None = None

    def __post_init__(self) -> None:
        shape = _matrix_shape("tokens", self.tokens)
        num_pairs = self.pairs.shape[0]
        _check("tokens", self.tokens, torch.int64, shape)
        _check("segments", self.segments, torch.int32, shape)
        for name in ("starts", "ends"):
            _check(name, self.__dict__[name], torch.int64, shape[:1])
        _check("pairs", self.pairs, torch.int64, (num_pairs, 2))
        for name in ("weights", "margins", "targets"):
            _check(name, self.__dict__[name], torch.float32, (num_pairs,))
        if self.ref_logprobs is not None:
            _check("ref_logprobs", self.ref_logprobs, torch.float32, shape[:1])
        if self.num_units < 0:
            raise ValueError(f"num_units is {self.num_units}, must not be negative")


@dataclass(frozen=True)
class Rollout(OnDevice):
    """Replies sampled from the policy, with all that PPO needs to know about each of their tokens.

    tokens: (B, T) int64. mask: (B, T) bool, tokens the policy chose. segments: (B, T) int32, 1 = real, 0 = padding.
    logprobs, ref_logprobs: (B, T) float32, nats, under the sampling policy and under the reference.
    values, rewards, advantages, returns: (B, T) float32. The last six are zero where mask is False.
    num_units: scored tokens, mask.sum(). Raises ValueError when shapes or dtypes are wrong.
    """

    tokens: Tensor
    mask: Tensor
    segments: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    num_units: int

    def __post_init__(self) -> None:
        shape = _matrix_shape("tokens", self.tokens)
        _check("tokens", self.tokens, torch.int64, shape)
        _check("mask", self.mask, torch.bool, shape)
        _check("segments", self.segments, torch.int32, shape)
        for name, tensor in self._tensors().items():
            if name not in ("tokens", "mask", "segments"):
                _check(name, tensor, torch.float32, shape)
        if self.num_units < 0:
            raise ValueError(f"num_units is {self.num_units}, must not be negative")

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: self.__dict__[field.name] for field in fields(self) if field.name != "num_units"}

    def rows(self, index: Tensor | slice) -> Rollout:
        """The rows picked by `index` ((n,) int64 or a slice) as a rollout of their own, num_units counted anew."""
        picked = {name: tensor[index] for name, tensor in self._tensors().items()}
        return Rollout(**picked, num_units=int(picked["mask"].sum()))
