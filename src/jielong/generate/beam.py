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
_NUM_STRIPES = 16
_ROWS_AT_ONCE = 32  # whose logits stay in a core's cache


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

    def merge(self, scores: Tensor, logprobs: Tensor, lengths: Tensor, tokens: Tensor) -> None:
        """Let (B, C) candidates of `lengths` (B,) in; those with score -inf are none. tokens: (B, C, T)."""
        all_scores = torch.cat([self.scores, scores], dim=1)
        self.scores, best = all_scores.topk(self.scores.shape[1], dim=1)
        self.logprobs = torch.cat([self.logprobs, logprobs], dim=1).gather(1, best)
        self.lengths = torch.cat([self.lengths, lengths[:, None].expand_as(scores)], dim=1).gather(1, best)
        every = torch.cat([self.tokens, tokens], dim=1)
        self.tokens = every.gather(1, best[..., None].expand(-1, -1, every.shape[2]))

    def keep(self, kept: Tensor) -> None:
        for name, value in self.__dict__.items():
            setattr(self, name, value[kept])

    def join(self, num: int, longest: int) -> None:
        """Make room for so many sentences more, and for `longest` tokens of each."""
        beam = self.scores.shape[1]
        self.scores = torch.cat([self.scores, torch.full((num, beam), -math.inf)])
        self.logprobs = torch.cat([self.logprobs, torch.full((num, beam), -math.inf)])
        self.lengths = torch.cat([self.lengths, torch.zeros(num, beam, dtype=torch.int64)])
        self.tokens = _joined(self.tokens, num, longest)

    def hypotheses(self, sentence: int) -> list[Hypothesis]:
        found = []
        for index in range(self.scores.shape[1]):
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
    results: list[list[Hypothesis]] = [[] for _ in limits]
    search = Search(start_id, stop_ids, config)
    search.admit(range(len(limits)), limits)
    while True:
        for sentence, found in search.advance(decoder.step(search.ids)).items():
            if found is None:
                raise ModelError(
                    "the model's scores for the next token are not finite numbers (NaN): its weights are damaged or "
                    "its training diverged; go back to an earlier checkpoint"
                )
            results[sentence] = found[: config.num_best]
        if search.is_done:
            break
        search.arrange(decoder)
        yield None
    yield results


class Search:
    """Sentences that beams are searched for side by side, each at a place of its own, so that they may come and go.

    ids: (R,) int64, what each row reads next. What is told goes on unheard until `arrange` drops it.
    """

    def __init__(self, start_id: int, stop_ids: Collection[int], config: BeamConfig) -> None:
        self.config, self.start = config, start_id
        self._stops = torch.tensor(sorted(stop_ids), dtype=torch.int64)
        self._num_kept, beam = max(2, 1 + len(self._stops)) * config.beam, config.beam
        self._sentences: list[int] = []  # the number of each of the B
        self._told: list[bool] = []
        self.ids = self._steps = self._bounds = torch.empty(0, dtype=torch.int64)  # (R,), (B,) tokens so far, (B,)
        self._rows = self.ids  # (R,) which row had read what this one goes on with
        self._scores = torch.empty(0, beam)  # (B, K) log-probability so far
        self._written = torch.empty(0, beam, 0, dtype=torch.int64)  # (B, K, T)
        counts = torch.empty(0, beam, dtype=torch.int64)
        self._ended = _Ended(self._scores, self._scores, counts, self._written)

    @property
    def is_done(self) -> bool:
        return all(self._told)

    def admit(self, sentences: Sequence[int], limits: Sequence[int]) -> None:
        """More sentences behind those there are, by numbers of their own. limits: most new tokens of each, 1 or more.

        The decoder must have so many rows more, or get them before the next step.
        """
        num, beam = len(sentences), self.config.beam
        longest = max(self._written.shape[2], *limits)
        scores = torch.full((num, beam), -math.inf)
        scores[:, 0] = 0.0  # all beams begin alike, so that one of them may speak
        self._scores = torch.cat([self._scores, scores])
        self._written = _joined(self._written, num, longest)
        self._ended.join(num, longest)
        self._steps = torch.cat([self._steps, torch.zeros(num, dtype=torch.int64)])
        self._bounds = torch.cat([self._bounds, torch.tensor(limits)])
        self.ids = torch.cat([self.ids, torch.full((num * beam,), self.start)])
        self._rows = torch.cat([self._rows, torch.arange(len(self._rows), len(self.ids))])
        self._sentences += sentences
        self._told += [False] * num

    def advance(self, logits: Tensor) -> dict[int, list[Hypothesis] | None]:
        """One token more, by the logits (R, V) behind `ids`.

        Returns the sentences that are done now: their hypotheses, best first, at most K; None instead where the
        scores are not finite.
        """
        beam, longest = self.config.beam, self._written.shape[2]
        totals, parents, tokens = _continuations(logits, self._scores, self._num_kept)
        self._steps = self._steps + 1
        ends = torch.isin(tokens, self._stops) | (self._bounds == self._steps)[:, None]  # (B, C)
        candidates = self._written.gather(1, parents[..., None].expand(-1, -1, longest))  # (B, C, T)
        candidates.scatter_(2, (self._steps - 1)[:, None, None].expand(-1, tokens.shape[1], 1), tokens[..., None])
        if bool(ends.any()):
            normed = (totals / self.config.divisor(self._steps)[:, None]).masked_fill(~ends, -math.inf)
            self._ended.merge(normed[:, :beam], totals[:, :beam], self._steps, candidates[:, :beam])
        self._scores, chosen = totals.masked_fill(ends, -math.inf).topk(beam, dim=1)  # (B, K)
        self._written = candidates.gather(1, chosen[..., None].expand(-1, -1, longest))
        self.ids = tokens.gather(1, chosen).flatten()
        first = torch.arange(len(tokens))[:, None] * beam
        self._rows = (first + parents.gather(1, chosen)).flatten()
        return self._tell(totals[:, 0].isnan())

    def forget(self, sentence: int) -> None:
        """Nothing more is told of this one."""
        self._told[self._sentences.index(sentence)] = True

    def arrange(self, decoder: Decoder) -> None:
        """Let the decoder follow, and drop the sentences that were told."""
        beam, kept = self.config.beam, None
        if any(self._told):
            kept = torch.tensor([place for place, told in enumerate(self._told) if not told], dtype=torch.int64)
            self._ended.keep(kept)
            self._scores, self._written = self._scores[kept], self._written[kept]
            self._steps, self._bounds = self._steps[kept], self._bounds[kept]
            self.ids, self._rows = self.ids.view(-1, beam)[kept].flatten(), self._rows.view(-1, beam)[kept].flatten()
            self._sentences = [self._sentences[place] for place in kept.tolist()]
            self._told = [False] * len(kept)
        order = torch.arange(len(self._rows))
        if kept is not None or not torch.equal(self._rows, order):  # some beam takes the place of another
            decoder.select(self._rows, kept)
        self._rows = order

    def _tell(self, failed: Tensor) -> dict[int, list[Hypothesis] | None]:
        done = _done(self._scores, self._ended.scores, self._steps, self._bounds, self.config) | failed
        results: dict[int, list[Hypothesis] | None] = {}
        for place, (is_done, is_broken) in enumerate(zip(done.tolist(), failed.tolist(), strict=True)):
            if is_done and not self._told[place]:
                self._told[place] = True
                results[self._sentences[place]] = None if is_broken else self._ended.hypotheses(place)
        return results


def _joined(tokens: Tensor, num: int, longest: int) -> Tensor:
    """(B, K, T) -> (B + num, K, longest), zeros where there is nothing yet."""
    joined = tokens.new_zeros(tokens.shape[0] + num, tokens.shape[1], longest)
    joined[: tokens.shape[0], :, : tokens.shape[2]] = tokens
    return joined


def _continuations(logits: Tensor, scores: Tensor, num_kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probabilities (B, C), beams that they continue (B, C), their tokens (B, C)), best first.

    logits: (R, V); scores: (B, K) of the beams. C is num_kept, or all there are.
    """
    scores = scores.to(logits.device)
    num_sentences, beam = scores.shape
    logits = logits.float()
    rows_at_once = _ROWS_AT_ONCE if logits.device.type == "cpu" else len(logits)
    # The best of a sentence are among the best of its beams; so no table of all log-probabilities is made.
    parts = [_best_of_rows(part, num_kept) for part in logits.split(rows_at_once)]
    own, own_tokens = (torch.cat(part) for part in zip(*parts, strict=True))  # (R, C)
    logprobs = own.view(num_sentences, beam, -1)
    totals = (logprobs + scores[..., None]).flatten(1)  # (B, K C)
    best, index = totals.topk(min(num_kept, totals.shape[1]), dim=1)
    tokens = own_tokens.view(num_sentences, -1).gather(1, index)
    return best.to("cpu"), (index // own.shape[1]).to("cpu"), tokens.to("cpu")


def _best_of_rows(logits: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The log-probabilities (R, C) of the best C = num tokens of each row of (R, V), best first, and the tokens."""
    best, tokens = topk_by_stripes(logits, min(num, logits.shape[-1]))
    # log-normaliser = peak - log p(peak): torch.logsumexp takes twice as long as softmax
    normaliser = best[:, :1] - logits.softmax(dim=-1).gather(1, tokens[:, :1]).log()
    return best - normaliser, tokens


def topk_by_stripes(scores: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """topk of (R, V), num of each row: values and ids, best first; a NaN is above all.

    A row is cut into stripes of V / 16. The best num of it stand in the num columns where the best of all stripes is
    highest, so that only these are looked through: on a CPU half the time of topk, which passes each row several times.
    """
    width = scores.shape[-1] // _NUM_STRIPES
    if scores.device.type != "cpu" or width < 4 * num:
        return scores.topk(num, dim=-1)
    whole = width * _NUM_STRIPES
    peaks = scores[:, :whole].unflatten(1, (_NUM_STRIPES, width)).amax(1)
    columns = peaks.topk(num, dim=-1, sorted=False).indices  # (R, num)
    ids = (columns[:, None] + width * torch.arange(_NUM_STRIPES)[:, None]).flatten(1)
    ids = torch.cat([ids, torch.arange(whole, scores.shape[-1]).expand(len(scores), -1)], dim=1)
    best, places = scores.gather(1, ids).topk(num, dim=-1)
    return best, ids.gather(1, places)


def _done(running: Tensor, ended: Tensor, lengths: Tensor, bounds: Tensor, config: BeamConfig) -> Tensor:
    """(B,) bool: sentences whose ended hypotheses will not change, by config.stop; all that have reached their limit.

    running, ended: (B, K), log-probabilities of the beams and scores of ended hypotheses, best first. lengths, bounds:
    (B,) tokens written, and the most there may be.
    """
    full = ended[:, -1] > -math.inf
    if config.stop != "full" and config.beam > 1:
        # more tokens can only lower the sum, but a longer hypothesis is divided by more
        at = bounds if config.stop == "bound" and config.length_penalty > 0 else lengths
        full &= running[:, 0] / config.divisor(at) <= ended[:, -1]
    return full | (bounds <= lengths)
