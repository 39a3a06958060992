"""One request on its way: what it has read and said, and what of that is told."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jielong.generate.penalties import Penalties
from jielong.generate.requests import Delta, Request, TokenLogprob
from jielong.generate.sampling import choose, uniforms
from jielong.generate.stopping import StoppedText
from jielong.tokenizer.tokenizer import Tokenizer


class Progress:
    """A request that was taken in.

    number: from `submit`. tokens: the prompt and what was said. num_held: how many of them have their keys and values
    in its row of the cache. num_cached: how many came from the prefix cache. limit: most new tokens.
    """

    def __init__(self, number: int, request: Request, tokenizer: Tokenizer, context: int, device: torch.device) -> None:
        self.number, self.request = number, request
        self.stop_ids = frozenset(tokenizer.stop_ids) if request.stop_ids is None else request.stop_ids
        self.tokens = list(request.prompt)
        self.num_prompt = len(request.prompt)
        self.limit = min(request.max_new_tokens, context - self.num_prompt)
        self.num_held = self.num_cached = 0
        self.numbers: list[float] = uniforms([request.seed], self.limit)[0].tolist()
        self.text = StoppedText(tokenizer, request.stop, request.prompt if request.continues_text else ())
        self.penalties: Penalties | None = None
        if request.sampling.changes_scores or request.min_new_tokens or request.constraint is not None:
            self.penalties = Penalties(request.sampling, request.prompt, tokenizer.vocab_size, device)
        self.prompt_logprobs: list[TokenLogprob] | None = None if request.prompt_logprobs is None else []
        self._told_prompt = False

    @property
    def num_new(self) -> int:
        """How many tokens it has said."""
        return len(self.tokens) - self.num_prompt

    @property
    def barred(self) -> frozenset[int] | Tensor:
        """Ids that may not be drawn now, or (V,) bool, True at those."""
        if self.request.constraint is not None:
            return self.request.constraint.barred()
        return self.stop_ids if self.num_new < self.request.min_new_tokens else frozenset()

    def add(self, token: int, logprob: TokenLogprob | None) -> Delta:
        """Take a new token, and tell what it makes certain."""
        self.tokens.append(token)
        if self.penalties is not None:
            self.penalties.add(token)
        may_stop = self.num_new >= self.request.min_new_tokens
        is_stop = token in self.stop_ids
        if self.request.constraint is not None and not is_stop:
            self.request.constraint.take(token)
        text = "" if is_stop else self.text.feed(token, may_stop)
        reason = None
        if is_stop or self.text.stopped:
            reason = "stop"
        elif self.num_new == self.limit:
            reason = "length"
        return self._delta((token,), text, () if logprob is None else (logprob,), reason)

    def end(self, reason: str) -> Delta:
        """The last delta of a request that ends without a new token."""
        return self._delta((), "", (), reason)

    def _delta(
        self, tokens: tuple[int, ...], text: str, logprobs: tuple[TokenLogprob, ...], reason: str | None
    ) -> Delta:
        if reason is not None:
            text += self.text.flush()
        told = None if self._told_prompt or self.prompt_logprobs is None else tuple(self.prompt_logprobs)
        self._told_prompt = True
        return Delta(self.number, tokens, text, logprobs, told, reason, self.num_prompt, self.num_cached)


def draw(group: Sequence[Progress], logits: Tensor) -> list[Delta]:
    """The next token of each of `group`, by its row of logits (R, V)."""
    raw = logits.float()
    scores = raw
    if any(progress.penalties is not None for progress in group):
        scores = raw.clone()
        for row, progress in enumerate(group):
            if progress.penalties is not None:
                progress.penalties.apply(scores[row], progress.barred)
    ids, finite = _choose(group, scores)
    deltas = []
    for row, (progress, token) in enumerate(zip(group, ids, strict=True)):
        if not finite[row]:
            deltas.append(progress.end("error"))
            continue
        num_top = progress.request.logprobs
        told = None if num_top is None else score_tokens(raw[row : row + 1], [token], num_top)[0]
        deltas.append(progress.add(token, told))
    return deltas


def _choose(group: Sequence[Progress], scores: Tensor) -> tuple[list[int], list[bool]]:
    """One token a row of scores (R, V), each by its own settings and number; whether its log-probability is finite.

    Rows of equal settings are drawn together, which gives each what it would get alone.
    """
    kinds: dict[tuple[float, int, float, float], list[int]] = {}
    for row, progress in enumerate(group):
        asked = progress.request.sampling
        kinds.setdefault((asked.temperature, asked.top_k, asked.top_p, asked.min_p), []).append(row)
    if len(kinds) == 1 and group[0].request.sampling.temperature == 0:  # a NaN or infinity is the largest of its row
        peak, best = scores.max(dim=-1)
        return best.tolist(), [math.isfinite(score) for score in peak.tolist()]
    numbers = torch.tensor([progress.numbers[progress.num_new] for progress in group], device=scores.device)
    if len(kinds) == 1:
        ids, logprobs = choose(scores, group[0].request.sampling, numbers)
        return ids.tolist(), [math.isfinite(logprob) for logprob in logprobs.tolist()]
    ids = torch.zeros(len(group), dtype=torch.int64, device=scores.device)
    finite = torch.zeros(len(group), dtype=torch.bool, device=scores.device)
    for rows in kinds.values():
        index = torch.tensor(rows, device=scores.device)
        ids[index], logprobs = choose(scores[index], group[rows[0]].request.sampling, numbers[index])
        finite[index] = logprobs.isfinite()
    return ids.tolist(), finite.tolist()


def score_tokens(logits: Tensor, tokens: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """What the model says of each token by the logits (T, V) before it, with the num_top likeliest of each place."""
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    tops = likeliest(logprobs, num_top)
    return [TokenLogprob(*entry) for entry in zip(tokens, own, tops, strict=True)]


def likeliest(logprobs: Tensor, num_top: int) -> list[tuple[tuple[int, float], ...]]:
    """(id, log-probability) of the num_top likeliest in each row (T, V), lower ids first among equals."""
    if not num_top:
        return [()] * len(logprobs)
    last = logprobs.topk(num_top, dim=-1).values[:, -1]
    found = []
    for row, least in zip(logprobs, last, strict=True):
        ids = (row >= least).nonzero()[:, 0]  # more than num_top where the last has equals
        pairs = zip(ids.tolist(), row[ids].tolist(), strict=True)
        found.append(tuple(sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:num_top]))
    return found
