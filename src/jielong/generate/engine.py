"""Batched, cached decoding: many prompts in, a completion for each, in their order.

A batch is one prefill of the right-padded prompts, then one forward a token. Finished rows idle until they are half of
the batch, then the cache is compacted. What a step decides stays on the device; the host asks for one number a step.

The weights are read from the model for every batch. Nothing derived from them outlives one call, so a model that is
being trained is sampled as it is now; unless an engine is asked to pack them once, for speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from jielong.errors import ModelError, UsageError
from jielong.generate.cache import FixedCache, KeyValueCache
from jielong.generate.cast import cast_copy
from jielong.generate.packed import decoding_runtime, pack
from jielong.generate.penalties import Penalties, penalised
from jielong.generate.recording import choose_recorder
from jielong.generate.rows import BatchRows
from jielong.generate.sampling import Sampling, choose, row_seeds, uniforms
from jielong.generate.unrolled import build_step
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.tokenizer.tokenizer import TextStream, Tokenizer, check_sizes

Prompt = str | Sequence[int]  # text, the beginning of a document; or ids


@dataclass(frozen=True)
class Completion:
    """What came after one prompt.

    prompt: its ids. tokens: the new ids, the stop token included where there is one. text: tokens decoded, without
    control tokens. logprobs: log-probability in nats of each new token under the distribution it was drawn from (after
    temperature, top-k and the rest; at temperature 0 the model's own, after bias and penalties). finish_reason: "stop"
    at a stop token, "length" when max_new_tokens or the context ran out.
    """

    prompt: list[int]
    tokens: list[int]
    text: str
    logprobs: list[float]
    finish_reason: str


@dataclass(frozen=True)
class Job:
    """One batch of rows to decode, on the host. limits: most new tokens a row, at least 1. seeds: one a row."""

    prompts: list[list[int]]
    limits: list[int]
    seeds: list[int]
    sampling: Sampling
    stop_ids: frozenset[int]


@dataclass(frozen=True)
class _Step:
    """What one step made.

    rows (R,) int64: which rows of the job are meant. ids (R,), logprobs (R,). active (R,) bool: False where the row had
    ended before this step, so that its id means nothing.
    """

    rows: Tensor
    ids: Tensor
    logprobs: Tensor
    active: Tensor


class Engine:
    """Generates with one model and its tokenizer.

    The model may be trained between calls; it is only read. It may have rows beyond the tokenizer's vocabulary, as
    embeddings of others are padded to round numbers; those are never chosen. Raises ModelError when the model gives no
    tokens, or has another number of them than the tokenizer.
    weights: None reads the model's own for every batch. One of `packed.WEIGHTS` packs them now, on a CPU: faster, but
    for a model that learns no more, see `packed`.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, runtime: Runtime | None = None, weights: str | None = None
    ) -> None:
        if model.config.head != "lm":
            raise ModelError(f"this model has a {model.config.head!r} head and gives no tokens; generate needs 'lm'")
        check_sizes(tokenizer, model.config.vocab_size, "a model and its tokenizer")
        self.model = model
        self.tokenizer = tokenizer
        self.runtime = decoding_runtime(model, runtime)
        self.recorder = choose_recorder(model, self.runtime)  # on a GPU; None: steps run as they are written
        self._network = model if weights is None else pack(model, weights)
        if weights is not None:
            self.runtime = replace(self.runtime, dtype=torch.float32)  # the packed parts see to theirs themselves

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | Sequence[int] = 0,
        stop_ids: Collection[int] | None = None,
        batch_rows: int = 64,
    ) -> list[Completion]:
        """One completion a prompt, in their order.

        prompts: text (the beginning of a document: bos is put before it) or ids, taken as they are. temperature to
        logit_bias (id -> what is added to its score): see `Sampling`.
        seed: row i draws with derive_seed(seed, i); a sequence gives every row its own seed instead. What a row draws
        depends on its seed, its prompt and the weights, not on its neighbours; but a batch of another size rounds sums
        in another order, which may tip a choice about once in a million tokens in float32, in a thousand in bfloat16.
        stop_ids: None means the tokenizer's (end of document, end of turn). batch_rows: most rows decoded together.
        Raises UsageError for settings out of range, an empty prompt, ids that are no tokens, or a prompt that leaves no
        room in the context; ModelError when the model's scores are not finite.
        """
        penalties = (repetition_penalty, presence_penalty, frequency_penalty)
        sampling = Sampling(temperature, top_k, top_p, min_p, *penalties, self._bias(logit_bias))
        stops = self._stops(stop_ids)
        ids = [self._encode(prompt, index) for index, prompt in enumerate(prompts)]
        limits = [self._limit(len(row), max_new_tokens) for row in ids]
        seeds = row_seeds(seed, len(ids))
        if isinstance(batch_rows, bool) or not isinstance(batch_rows, int) or batch_rows < 1:
            raise UsageError(f"batch_rows is {batch_rows!r}; it must be a whole number, 1 or more")
        done: dict[int, tuple[list[int], list[float]]] = {}
        # Prompts of like length together: less padding, and the long ones' cache is not reserved for short rows.
        order = sorted((row for row in range(len(ids)) if limits[row]), key=lambda row: len(ids[row]))
        for start in range(0, len(order), batch_rows):
            rows = order[start : start + batch_rows]
            job = Job([ids[r] for r in rows], [limits[r] for r in rows], [seeds[r] for r in rows], sampling, stops)
            done.update(zip(rows, self._collect(job), strict=True))
        made = [done.get(row, ([], [])) for row in range(len(ids))]
        return [self._completion(*row, stops) for row in zip(prompts, ids, made, strict=True)]

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int = 0,
        stop_ids: Collection[int] | None = None,
    ) -> Iterator[str]:
        """The text of `generate([prompt], ...)` piece by piece as it is made; never half a character, never "".

        Settings and errors are those of `generate`; they are checked here and now, not at the first piece.
        """
        ids = self._encode(prompt, 0)
        limit = self._limit(len(ids), max_new_tokens)
        penalties = (repetition_penalty, presence_penalty, frequency_penalty)
        sampling = Sampling(temperature, top_k, top_p, min_p, *penalties, self._bias(logit_bias))
        job = Job([ids], [limit], row_seeds(seed, 1), sampling, self._stops(stop_ids))
        return self._pieces(job, TextStream(self.tokenizer, ids if isinstance(prompt, str) else ()))

    def top_tokens(self, prompt: Prompt, k: int) -> list[tuple[str, int, float]]:
        r"""The k likeliest next tokens as (text, id, probability), likeliest first, lower ids first among equals.

        The text of a control token is its name, that of a part of a character its bytes, as in \xe4.
        """
        num_tokens = self.tokenizer.vocab_size
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= num_tokens:
            raise UsageError(f"k is {k!r}; legal are whole numbers from 1 to {num_tokens}")
        ids = self._encode(prompt, 0)
        self._limit(len(ids), 1)
        with torch.inference_mode(), self.runtime.autocast():
            tokens = torch.tensor([ids], device=self.runtime.device)
            logits = self._network.unembed(self._network.hidden(tokens)[0, -1])  # (V,)
        probabilities = logits[:num_tokens].float().softmax(dim=-1)
        if not bool(probabilities.isfinite().all()):
            raise _not_finite()
        ordered, best = probabilities.sort(descending=True, stable=True)
        pairs = zip(best[:k].tolist(), ordered[:k].tolist(), strict=True)
        return [(self.tokenizer.name(token), token, probability) for token, probability in pairs]

    # What was asked, checked.

    def _encode(self, prompt: Prompt, index: int) -> list[int]:
        if isinstance(prompt, str):
            ids = self.tokenizer.beginning(prompt)
            if not ids:
                raise UsageError(f"prompt {index} is empty, and this model has no token to begin with; give some text")
            return ids
        ids = [int(token) for token in prompt]
        if not ids:
            raise UsageError(f"prompt {index} has no tokens; give at least one")
        vocab_size = self.tokenizer.vocab_size
        wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise UsageError(f"prompt {index} holds the id {wrong}; the model's ids go from 0 to {vocab_size - 1}")
        return ids

    def _limit(self, num_prompt: int, max_new_tokens: int) -> int:
        """The most tokens that may follow a prompt of num_prompt tokens."""
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 0:
            raise UsageError(f"max_new_tokens is {max_new_tokens!r}; it must be a whole number, 0 or more")
        context = self.model.config.max_length
        if num_prompt >= context:
            raise UsageError(
                f"a prompt has {num_prompt} tokens, but the model's context is {context} and the reply needs at least "
                f"one of them; shorten the prompt to {context - 1} tokens or fewer"
            )
        return min(max_new_tokens, context - num_prompt)

    def _stops(self, stop_ids: Collection[int] | None) -> frozenset[int]:
        stops = frozenset(self.tokenizer.stop_ids if stop_ids is None else stop_ids)
        wrong = next((token for token in stops if not 0 <= token < self.tokenizer.vocab_size), None)
        if wrong is not None:
            raise UsageError(f"stop id {wrong} is no token; ids go from 0 to {self.tokenizer.vocab_size - 1}")
        return stops

    def _bias(self, logit_bias: Mapping[int, float] | None) -> tuple[tuple[int, float], ...]:
        vocab_size, pairs = self.tokenizer.vocab_size, tuple((logit_bias or {}).items())
        wrong = next((token for token, _ in pairs if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise UsageError(f"logit_bias names the id {wrong}; the model's ids go from 0 to {vocab_size - 1}")
        return pairs

    # What was made, told.

    def _completion(
        self, prompt: Prompt, ids: list[int], made: tuple[list[int], list[float]], stops: frozenset[int]
    ) -> Completion:
        tokens, logprobs = made
        reason = "stop" if tokens and tokens[-1] in stops else "length"
        # A text is continued, and the blank before its next word counts; ids are taken for a finished turn.
        text = self.tokenizer.decode(tokens, ids) if isinstance(prompt, str) else self.tokenizer.decode(tokens)
        return Completion(ids, tokens, text, logprobs, reason)

    def _pieces(self, job: Job, text: TextStream) -> Iterator[str]:
        if job.limits[0]:
            for step in self._decode(job):
                piece = text.feed(int(step.ids))
                if piece:
                    yield piece
        rest = text.flush()
        if rest:
            yield rest

    # The decoding itself.

    def _collect(self, job: Job) -> list[tuple[list[int], list[float]]]:
        """(ids, logprobs) of every row of the job."""
        steps = [(step.rows, step.ids, step.logprobs, step.active) for step in self._decode(job)]
        told = [torch.cat(parts).tolist() for parts in zip(*steps, strict=True)]  # asks the device once for all
        made: list[tuple[list[int], list[float]]] = [([], []) for _ in job.prompts]
        for row, token, logprob, active in zip(*told, strict=True):
            if active:
                made[row][0].append(token)
                made[row][1].append(logprob)
        return made

    # inference_mode, not no_grad: under it autocast keeps no cast weights, which in a caller's open autocast would be
    # stale after a training step, or reach the next forward without gradients. What is cast here is a batch's own.
    @torch.inference_mode()
    def _decode(self, job: Job) -> Iterator[_Step]:
        """Steps until every row has ended. Raises ModelError at scores that are not finite, before the step is told."""
        device = self.runtime.device
        rows = torch.arange(len(job.prompts), device=device)  # (R,); R shrinks when ended rows are dropped
        limits = torch.tensor(job.limits, device=device)  # (R,)
        numbers = uniforms(job.seeds, max(job.limits)).to(device).T.contiguous()  # (steps, R)
        is_stop = torch.zeros(self.model.config.vocab_size, dtype=torch.bool, device=device)
        is_stop[list(job.stop_ids)] = True
        active = torch.ones_like(rows, dtype=torch.bool)
        # A row's last token is never read, but once it has ended the row goes on writing at that one place.
        capacity = max(len(prompt) + limit for prompt, limit in zip(job.prompts, job.limits, strict=True))
        network = self._network
        if network is self.model and self.runtime.dtype != torch.float32:
            network = cast_copy(network, self.runtime.dtype)
        cache, step = self._begin(network, len(rows), capacity)
        logits = self._prefill(network, job.prompts, cache)
        num_tokens = self.tokenizer.vocab_size
        said = None  # by each row, where that changes its scores
        if job.sampling.changes_scores:
            said = [Penalties(job.sampling, prompt, num_tokens, device) for prompt in job.prompts]
        for index in range(len(numbers)):
            scores = logits[:, :num_tokens] if said is None else penalised(logits[:, :num_tokens], said)
            ids, logprobs = choose(scores, job.sampling, numbers[index])
            remaining = active & ~is_stop[ids] & (limits > index + 1)
            num_remaining = float(remaining.sum() + 0 * logprobs.sum())  # the step's one question; 0 * infinity is NaN
            if math.isnan(num_remaining):
                raise _not_finite()
            yield _Step(rows, ids, logprobs, active)
            if num_remaining == 0:
                return
            active = remaining
            if said is not None:
                for row, token in zip(said, ids.tolist(), strict=True):
                    row.add(token)
            if 2 * num_remaining <= len(rows):
                kept = active.nonzero()[:, 0]
                cache.select(kept)
                rows, limits, numbers, active, ids = rows[kept], limits[kept], numbers[:, kept], active[kept], ids[kept]
                said = None if said is None else [said[row] for row in kept.tolist()]
            logits = step(ids)  # (R, V)
            cache.advance(active.long())  # an ended row stays where it is; what it says is never told

    def _begin(
        self, network: Transformer, num_rows: int, capacity: int
    ) -> tuple[KeyValueCache | BatchRows, Callable[[Tensor], Tensor]]:
        """An empty cache, and what reads one new token a row: (R,) ids -> logits (R, V)."""
        kind = KeyValueCache if self.recorder is None else FixedCache
        make = kind if self._network is self.model else BatchRows  # packed parts are made for rows
        dtype = network.compute_dtype or self.runtime.dtype
        cache: KeyValueCache | BatchRows = make(self.model.config, num_rows, capacity, dtype, self.runtime.device)
        read = build_step(network)

        def run(ids: Tensor) -> Tensor:
            with self.runtime.autocast():
                return read(ids, cache.view(1))

        if self.recorder is None or not isinstance(cache, FixedCache):
            return cache, run
        return cache, cache.recorded(run, self.recorder)

    def _prefill(self, network: Transformer, prompts: list[list[int]], cache: KeyValueCache | BatchRows) -> Tensor:
        """Read all prompts in one forward; the logits after each one's last token, (R, V)."""
        device = self.runtime.device
        tokens = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True).to(device)  # (R, T)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        with self.runtime.autocast():
            hidden = network.hidden(tokens, cache=cache.view(tokens.shape[1]))  # (R, T, D)
            cache.advance(lengths)
            return network.unembed(hidden[torch.arange(len(prompts), device=device), lengths - 1])


def _not_finite() -> ModelError:
    return ModelError(
        "the model's scores for the next token are not finite numbers (NaN or infinity): its weights are damaged or "
        "its training diverged; go back to an earlier checkpoint"
    )
