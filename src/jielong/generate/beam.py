"""Beam search: the likeliest sentences, near enough, by keeping the best few beginnings of each at every step.

All beams of all sentences are one batch. A step scores every continuation of every beam, takes the best 2K of each
sentence (K the beam), sets those aside that have ended and goes on with the best K that have not.

The order of events is that of `transformers`, so that with penalty = "length" its hypotheses and scores are ours.
Notation: B sentences, K beams, R = B K rows, V vocabulary, T most new tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from jielong.errors import ModelError, UsageError, nearest

PENALTIES = ("gnmt", "length")
STOPS = ("current", "bound", "full")
MOST_BEAMS = 64


@dataclass(frozen=True)
class BeamConfig:
    """beam: K, 1 = greedy. num_best: how many hypotheses to give of each sentence, at most K.

    length_penalty: alpha; the sum of log-probabilities of n tokens, the end among them, is divided by ((5 + n) / 6) to
    the alpha with penalty = "gnmt", by n to the alpha with "length". 0 divides by nothing.
    stop: when a sentence that has K ended hypotheses is done. "current": when none of its beams, were it to end now,
    would be better than the worst of them. "bound": when none could be, at whatever length. "full": at once.
    Raises UsageError naming the setting, its value and what is legal.
    Source: Wu et al. 2016, arXiv:1609.08144, eq. 14 (gnmt, without the coverage penalty); Vaswani et al. 2017,
    arXiv:1706.03762, section 6.1 (beam 4, alpha 0.6, at most 50 tokens more than the source has).
    """

    beam: int = 4
    length_penalty: float = 0.6
    penalty: str = "gnmt"
    stop: str = "current"
    num_best: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.beam <= MOST_BEAMS:
            raise UsageError(f"beam is {self.beam}; legal are 1 (greedy) to {MOST_BEAMS}")
        if not 1 <= self.num_best <= self.beam:
            raise UsageError(f"num_best is {self.num_best}; legal are 1 to the beam, {self.beam}")
        if not (math.isfinite(self.length_penalty) and abs(self.length_penalty) <= 10):
            raise UsageError(f"length_penalty is {self.length_penalty}; legal are -10 to 10, 0 for none")
        for name, value, legal in (("penalty", self.penalty, PENALTIES), ("stop", self.stop, STOPS)):
            if value not in legal:
                near = nearest(value, legal)
                hint = f"; did you mean {near!r}?" if near else ""
                raise UsageError(f"{name} is {value!r}; legal are {', '.join(legal)}{hint}")

    def divisor(self, num_tokens: Tensor | int) -> Tensor:
        """What the log-probability of so many tokens is divided by."""
        length = torch.as_tensor(num_tokens, dtype=torch.float32)
        return (length if self.penalty == "length" else (5 + length) / 6) ** self.length_penalty


@dataclass(frozen=True)
class Hypothesis:
    """tokens: new ids, the stop token included where it came. score: logprob divided by the length's penalty. logprob:
    of all tokens together, in nats.
    """

    tokens: list[int]
    score: float
    logprob: float


class Decoder(Protocol):
    """R rows being written, in the order of their sentences, K rows each. `decoders.py` has those of our models."""

    def step(self, ids: Tensor) -> Tensor:
        """The next token of every row read, (R,) int64: logits (R, V) of the one after it."""
        ...

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        """Keep these rows (R',) int64, in this order, K of each sentence. sentences: those left, None for all."""
        ...


@dataclass
class _Ended:
    """The best K ended hypotheses of each sentence, best first; score -inf where there is none yet."""

    scores: Tensor  # (B, K)
    logprobs: Tensor  # (B, K)
    lengths: Tensor  # (B, K) int64
    tokens: Tensor  # (B, K, T)

    def merge(self, scores: Tensor, logprobs: Tensor, length: int, tokens: Tensor) -> None:
        """Let (B, C) candidates of one length in; those with score -inf are none. tokens: (B, C, T)."""
        all_scores = torch.cat([self.scores, scores], dim=1)
        self.scores, best = all_scores.topk(self.scores.shape[1], dim=1)
        self.logprobs = torch.cat([self.logprobs, logprobs], dim=1).gather(1, best)
        self.lengths = torch.cat([self.lengths, torch.full(scores.shape, length)], dim=1).gather(1, best)
        every = torch.cat([self.tokens, tokens], dim=1)
        self.tokens = every.gather(1, best[..., None].expand(-1, -1, every.shape[2]))

    def keep(self, kept: Tensor) -> None:
        for name, value in self.__dict__.items():
            setattr(self, name, value[kept])

    def hypotheses(self, sentence: int, num_best: int) -> list[Hypothesis]:
        found = []
        for index in range(num_best):
            score, length = float(self.scores[sentence, index]), int(self.lengths[sentence, index])
            if score > -math.inf:
                tokens = self.tokens[sentence, index, :length].tolist()
                found.append(Hypothesis(tokens, score, float(self.logprobs[sentence, index])))
        return found


def beam_search(
    decoder: Decoder, start_id: int, stop_ids: Collection[int], limits: Sequence[int], config: BeamConfig
) -> list[list[Hypothesis]]:
    """`beam_steps` to its end: the best hypotheses of each sentence."""
    *_, results = beam_steps(decoder, start_id, stop_ids, limits, config)
    assert results is not None
    return results


@torch.inference_mode()
def beam_steps(
    decoder: Decoder, start_id: int, stop_ids: Collection[int], limits: Sequence[int], config: BeamConfig
) -> Iterator[list[list[Hypothesis]] | None]:
    """None after every step but the last, then the best hypotheses of each sentence, best first, at most num_best.

    decoder: has read the sources and nothing yet of the targets; it holds K rows a sentence. start_id: a target's first
    id, which is no part of a hypothesis. limits: most new tokens of each sentence, 1 or more; a hypothesis that reaches
    it counts as ended. Raises ModelError at scores that are not finite.
    """
    beam = config.beam
    stops = torch.tensor(sorted(stop_ids), dtype=torch.int64)
    num_kept, longest = max(2, 1 + len(stops)) * beam, max(limits)
    results: list[list[Hypothesis]] = [[] for _ in limits]
    sentences, bounds = torch.arange(len(limits)), torch.tensor(limits)  # which sentence each of the B stands for
    scores = torch.full((len(limits), beam), -math.inf)  # (B, K) log-probability so far
    scores[:, 0] = 0.0  # all beams begin alike, so that one of them may speak
    written = torch.zeros(len(limits), beam, longest, dtype=torch.int64)  # (B, K, T)
    nothing = torch.full_like(scores, -math.inf)
    ended = _Ended(nothing, nothing, torch.zeros_like(scores, dtype=torch.int64), torch.zeros_like(written))
    ids = torch.full((len(limits) * beam,), start_id)
    for step in range(longest):
        totals, parents, tokens = _continuations(decoder.step(ids), scores, num_kept)
        ends = torch.isin(tokens, stops) | (bounds == step + 1)[:, None]  # (B, C)
        candidates = written.gather(1, parents[..., None].expand(-1, -1, longest))  # (B, C, T)
        candidates[..., step] = tokens
        if bool(ends.any()):
            normed = (totals / config.divisor(step + 1)).masked_fill(~ends, -math.inf)
            ended.merge(normed[:, :beam], totals[:, :beam], step + 1, candidates[:, :beam])
        scores, chosen = totals.masked_fill(ends, -math.inf).topk(beam, dim=1)  # (B, K)
        done = _done(scores, ended.scores, step + 1, bounds, config)
        told = _tell(results, sentences, done, ended, config.num_best)
        if bool(told.all()):
            break
        kept = (~told).nonzero()[:, 0] if 4 * int(told.sum()) >= len(told) else torch.arange(len(told))
        rows = (torch.arange(len(told))[:, None] * beam + parents.gather(1, chosen))[kept].flatten()
        written = candidates.gather(1, chosen[..., None].expand(-1, -1, longest))[kept]
        ids = tokens.gather(1, chosen)[kept].flatten()
        if len(kept) < len(told):
            decoder.select(rows, kept)
            sentences, bounds = sentences[kept], bounds[kept]
            ended.keep(kept)
        elif not torch.equal(rows, torch.arange(len(rows))):  # some beam takes the place of another
            decoder.select(rows, None)
        scores = scores[kept]
        yield None
    yield results


def _tell(results: list[list[Hypothesis]], sentences: Tensor, done: Tensor, ended: _Ended, num_best: int) -> Tensor:
    """(B,) bool, which sentences have their results; one that is done gets them now.

    It goes on unheard until there are enough of them to be dropped.
    """
    for index, sentence in enumerate(sentences.tolist()):
        if bool(done[index]) and not results[sentence]:
            results[sentence] = ended.hypotheses(index, num_best)
    return torch.tensor([bool(results[sentence]) for sentence in sentences.tolist()])


def _continuations(logits: Tensor, scores: Tensor, num_kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probabilities (B, C), beams that they continue (B, C), their tokens (B, C)), best first.

    logits: (R, V); scores: (B, K) of the beams. C is num_kept, or all there are.
    """
    scores = scores.to(logits.device)
    num_sentences, beam = scores.shape
    logits = logits.float()
    # The best of a sentence are among the best of its beams; so no table of all log-probabilities is made.
    own, own_tokens = logits.topk(min(num_kept, logits.shape[-1]), dim=-1)  # (R, C)
    # log-normaliser = peak - log p(peak): torch.logsumexp takes twice as long as softmax
    normaliser = own[:, :1] - logits.softmax(dim=-1).gather(1, own_tokens[:, :1]).log()
    logprobs = (own - normaliser).view(num_sentences, beam, -1)
    totals = (logprobs + scores[..., None]).flatten(1)  # (B, K C)
    best, index = totals.topk(min(num_kept, totals.shape[1]), dim=1)
    tokens = own_tokens.view(num_sentences, -1).gather(1, index)
    best, parents, tokens = best.to("cpu"), (index // own.shape[1]).to("cpu"), tokens.to("cpu")
    if bool(best[:, 0].isnan().any()):
        raise ModelError(
            "the model's scores for the next token are not finite numbers (NaN): its weights are damaged or its "
            "training diverged; go back to an earlier checkpoint"
        )
    return best, parents, tokens


def _done(running: Tensor, ended: Tensor, num_tokens: int, bounds: Tensor, config: BeamConfig) -> Tensor:
    """(B,) bool: sentences whose ended hypotheses will not change, by config.stop; all that have reached their limit.

    running, ended: (B, K), log-probabilities of the beams and scores of ended hypotheses, best first.
    """
    full = ended[:, -1] > -math.inf
    if config.stop != "full" and config.beam > 1:
        # more tokens can only lower the sum, but a longer hypothesis is divided by more
        at = bounds if config.stop == "bound" and config.length_penalty > 0 else torch.full_like(bounds, num_tokens)
        full &= running[:, 0] / config.divisor(at) <= ended[:, -1]
    return full | (bounds <= num_tokens)
