"""From logits to a token: temperature, top-k, top-p, and the draw.

Every draw is the inverse of the cumulative distribution at one uniform number, so a row's token is a function of its
own logits and its own number: neighbours, batch size and order cannot reach it. The numbers of a row come from a
generator of its own before the first step; no generator is touched while tokens are being made.

Order of operations: divide by the temperature, keep the top_k, renormalise, keep the top_p, renormalise, draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jielong.errors import UsageError

TEMPERATURES = (0.001, 100.0)  # outside, logits / temperature is no longer a useful distribution in float32


@dataclass(frozen=True)
class Sampling:
    """How a token is picked.

    temperature: 0 = always the likeliest token (the lowest id among equals), else 0.001 to 100.
    top_k: only the k likeliest tokens (lower ids first among equals); 0 = all.
    top_p: only the likeliest tokens whose probabilities sum to p, the one that crosses p included; 1 = all.
    Raises UsageError naming the setting, its value and the legal interval.
    Source: top-p is nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751, section 3.1.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        low, high = TEMPERATURES
        if not _is_number(self.temperature) or not (self.temperature == 0 or low <= self.temperature <= high):
            raise UsageError(
                f"temperature is {self.temperature!r}; legal are 0 (the likeliest token) and {low} to {high:g}"
            )
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k!r}; legal are whole numbers from 0 (all tokens) on")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p!r}; legal is above 0 and up to 1 (all tokens)")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def uniforms(seeds: Sequence[int], num: int) -> Tensor:
    """(len(seeds), num) float32 in [0, 1): row b holds the first `num` numbers of a generator seeded with seeds[b]."""
    rows = [torch.rand(num, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, num)


def restrict(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """(B, V) float -> (B, V): -inf at every token that top-k or top-p leaves out, the others unchanged."""
    num_tokens = logits.shape[-1]
    if 0 < top_k < num_tokens:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        above, equal = logits > threshold, logits == threshold
        room = top_k - above.sum(dim=-1, keepdim=True)  # how many of those equal to the k-th are still kept
        logits = logits.masked_fill(~(above | (equal & (equal.cumsum(dim=-1) <= room))), -math.inf)
    if top_p < 1:
        ordered, ids = logits.sort(dim=-1, descending=True, stable=True)  # stable: lower ids first among equals
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        dropped = torch.zeros_like(ids, dtype=torch.bool).scatter_(1, ids, before >= top_p)
        logits = logits.masked_fill(dropped, -math.inf)
    return logits


def choose(logits: Tensor, sampling: Sampling, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row.

    logits: (B, V). numbers: (B,) float32 in [0, 1), one a row; not read at temperature 0.
    Returns (ids (B,) int64, logprobs (B,) float32). The log-probability is that of the distribution drawn from: after
    temperature, top-k and top-p. Temperature 0 has none of its own; there it is the model's, at temperature 1.
    A row with a NaN, an infinite logit or no finite one gets a non-finite log-probability and a meaningless id.
    """
    scores = logits.float()
    if sampling.temperature == 0:
        peak, ids = scores.max(dim=-1)
        return ids, peak - scores.logsumexp(dim=-1)
    if sampling.temperature != 1:
        scores = scores / sampling.temperature
    scores = restrict(scores, sampling.top_k, sampling.top_p)
    peak = scores.amax(dim=-1, keepdim=True)
    cumulative = (scores - peak).exp_().cumsum(dim=-1)  # (B, V); not divided by its total: the number is scaled
    total = cumulative[:, -1:].contiguous()
    # right=True finds the first entry above the number: a token of probability 0 adds nothing and is never found. The
    # number is at most 1 - 2**-24, so number * total rounds below total; the clamp only serves rows that are NaN.
    ids = torch.searchsorted(cumulative, numbers[:, None] * total, right=True).clamp_(max=scores.shape[-1] - 1)
    return ids[:, 0], (scores.gather(1, ids) - peak - total.log())[:, 0]


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generators: torch.Generator | Sequence[torch.Generator],
) -> Tensor:
    """(B, V) -> (B,) int64: one token a row.

    generators: one for all rows, or one for each; CPU generators. Each row takes one number, also at temperature 0.
    Raises UsageError for settings out of range or a number of generators that is not B.
    """
    num_rows = logits.shape[0]
    if isinstance(generators, torch.Generator):
        numbers = torch.rand(num_rows, generator=generators)
    elif len(generators) == num_rows:
        numbers = torch.cat([torch.rand(1, generator=generator) for generator in generators])
    else:
        raise UsageError(f"{len(generators)} generators for {num_rows} rows of logits; give one, or one for each row")
    return choose(logits, Sampling(temperature, top_k, top_p), numbers.to(logits.device))[0]
