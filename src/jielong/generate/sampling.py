"""From logits to a token: temperature, top-k, top-p, min-p, and the draw.

Every draw is the inverse of the cumulative distribution at one uniform number, so a row's token is a function of its
own logits and its own number: neighbours, batch size and order cannot reach it. The numbers of a row come from a
generator of its own before the first step; no generator is touched while tokens are being made.

Order of operations: bias and penalties (`penalties`), divide by the temperature, keep the top_k, renormalise, keep the
top_p, keep what min_p leaves, renormalise, draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jielong.errors import UsageError
from jielong.runtime import derive_seed

TEMPERATURES = (0.001, 100.0)  # outside, logits / temperature is no longer a useful distribution in float32
REPETITION_PENALTIES = (0.01, 100.0)
MOST_PENALTY, MOST_BIAS = 2.0, 100.0  # of the OpenAI API
# The likeliest this many tokens nearly always hold all that top_p keeps; only then is there no need to sort them all.
_NUM_LIKELIEST = 256


@dataclass(frozen=True)
class Sampling:
    """How a token is picked.

    temperature: 0 = always the likeliest token (the lowest id among equals), else 0.001 to 100.
    top_k: only the k likeliest tokens (lower ids first among equals); 0 = all.
    top_p: only the likeliest tokens whose probabilities sum to p, the one that crosses p included; 1 = all.
    min_p: only tokens at least min_p times as likely as the likeliest; 0 = all.
    repetition_penalty, presence_penalty, frequency_penalty, logit_bias: (id, what is added to its score); see
    `penalties`. 1, 0, 0 and () change nothing.
    Raises UsageError naming the setting, its value and the legal interval.
    Source: top-p is nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751, section 3.1; min-p is Nguyen et al. 2024,
    arXiv:2407.01082, section 3.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

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
        if not _is_number(self.min_p) or not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p is {self.min_p!r}; legal is from 0 (all tokens) to 1")
        self._check_penalties()

    def _check_penalties(self) -> None:
        low, high = REPETITION_PENALTIES
        if not _is_number(self.repetition_penalty) or not low <= self.repetition_penalty <= high:
            raise UsageError(
                f"repetition_penalty is {self.repetition_penalty!r}; legal is {low} to {high:g}, 1 is none"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            value = self.__dict__[name]
            if not _is_number(value) or abs(value) > MOST_PENALTY:
                raise UsageError(f"{name} is {value!r}; legal is -{MOST_PENALTY:g} to {MOST_PENALTY:g}, 0 is none")
        for token, bias in self.logit_bias:
            if not _is_number(bias) or abs(bias) > MOST_BIAS:
                raise UsageError(f"logit_bias of {token!r} is {bias!r}; legal is -{MOST_BIAS:g} to {MOST_BIAS:g}")
        if len({token for token, _ in self.logit_bias}) < len(self.logit_bias):
            raise UsageError("logit_bias names a token twice; give each one number")

    @property
    def changes_scores(self) -> bool:
        """Whether bias or penalties are at work, so that what has been said must be kept count of."""
        penalties = (self.repetition_penalty != 1, self.presence_penalty, self.frequency_penalty, self.logit_bias)
        return any(penalties)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def row_seeds(seed: int | Sequence[int], num_rows: int) -> list[int]:
    """One seed a row: derive_seed(seed, row), or those of a sequence. Raises UsageError when it has another length."""
    if isinstance(seed, int):
        return [derive_seed(seed, row) for row in range(num_rows)]
    if len(seed) != num_rows:
        raise UsageError(f"{len(seed)} seeds for {num_rows} prompts; give one number, or one for each prompt")
    return list(seed)


def uniforms(seeds: Sequence[int], num: int) -> Tensor:
    """(len(seeds), num) float32 in [0, 1): row b holds the first `num` numbers of a generator seeded with seeds[b]."""
    rows = [torch.rand(num, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, num)


def restrict(logits: Tensor, top_k: int, top_p: float, min_p: float = 0.0) -> Tensor:
    """(B, V) float -> (B, V): -inf at every token that top-k, top-p or min-p leaves out, the others unchanged."""
    if 0 < top_k < logits.shape[-1]:
        logits = _keep(logits, logits.topk(top_k, dim=-1).values[:, -1:], top_k)
    if top_p < 1:
        logits = _keep(logits, *_nucleus(logits, top_p))
    if min_p > 0:
        logits = logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(min_p), -math.inf)
    return logits


def _keep(logits: Tensor, threshold: Tensor, num_kept: int | Tensor) -> Tensor:
    """-inf at all but num_kept (B, 1) tokens a row: those above the threshold (B, 1), and the first equal to it."""
    above, equal = logits > threshold, logits == threshold
    room = num_kept - above.sum(dim=-1, keepdim=True)  # how many of those equal to the last are still kept
    return logits.masked_fill(~(above | (equal & (equal.cumsum(dim=-1) <= room))), -math.inf)


def _nucleus(logits: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The score (B, 1) of the token that crosses top_p, and how many are kept, (B, 1)."""
    num_tokens, total = logits.shape[-1], logits.logsumexp(dim=-1, keepdim=True)
    # On an accelerator sorting all is quicker than asking whether it was needed.
    num_best = num_tokens if logits.is_cuda else min(num_tokens, _NUM_LIKELIEST)
    while True:
        best = logits.topk(num_best, dim=-1).values  # (B, num_best), likeliest first
        probabilities = (best - total).exp()
        summed = probabilities.cumsum(dim=-1)
        if num_best == num_tokens or bool((summed[:, -1] >= top_p).all()):
            break
        num_best = num_tokens
    num_kept = (summed - probabilities < top_p).sum(dim=-1, keepdim=True).clamp_(min=1)  # 0 in a row of NaN
    return best.gather(1, num_kept - 1), num_kept


def choose(logits: Tensor, sampling: Sampling, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row.

    logits: (B, V). numbers: (B,) float32 in [0, 1), one a row; not read at temperature 0.
    Returns (ids (B,) int64, logprobs (B,) float32). The log-probability is that of the distribution drawn from: after
    temperature, top-k, top-p and min-p. Temperature 0 has none of its own; there it is the model's, at temperature 1.
    A row with a NaN, an infinite logit or no finite one gets a non-finite log-probability and a meaningless id.
    """
    scores = logits.float()
    if sampling.temperature == 0:
        ids = scores.argmax(dim=-1, keepdim=True)
        return ids[:, 0], scores.log_softmax(dim=-1).gather(1, ids)[:, 0]
    if sampling.temperature != 1:
        scores = scores / sampling.temperature
    scores = restrict(scores, sampling.top_k, sampling.top_p, sampling.min_p)
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
