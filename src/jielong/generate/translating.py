"""Translations asked for one by one, and made beside each other: what `batching` is for decoders.

Each request has a decoder of its own, a row for each of its beams, and a forward of its own at every step; all that run
take a step in turn. So what a request gets is to the bit what it gets alone, and it ends within a step when its client
leaves. What that costs: weights are read once a request and step, not once a step. A translator reads its source once
and writes a sentence, so that its requests are short; and a beam makes a batch of each by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch

from jielong.errors import ModelError, UsageError
from jielong.generate.beam import Hypothesis, beam_steps
from jielong.generate.penalties import Penalties
from jielong.generate.progress import Progress, draw, score_tokens
from jielong.generate.requests import Delta, Request, TokenLogprob, check_request
from jielong.generate.translator import EXTRA_TOKENS, Translator
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.tokenizer.tokenizer import Tokenizer, check_sizes


class TranslationBatcher:
    """Makes the translations of many requests at once, with one encoder-decoder and its tokenizer. For one thread.

    A request's prompt is its source: ids with what stands around a text (`translator.source_ids`). It has as many new
    tokens as `Translator` gives it at most. max_rows: most requests that run at the same time. prefill_tokens: of
    sources read in one step.
    Raises ModelError as `Translator` does.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, runtime: Runtime, *, max_rows: int, prefill_tokens: int
    ) -> None:
        # float32 on a CPU, as `jielong translate`: the promise is its text
        runtime = replace(runtime, dtype=torch.float32) if runtime.device.type == "cpu" else runtime
        self._translator = Translator(model, tokenizer, runtime)
        self.model, self.tokenizer, self.config, self.runtime = model, tokenizer, model.config, runtime
        check_sizes(tokenizer, model.config.vocab_size, "a model and its tokenizer")
        self.max_rows, self.prefill_tokens = max_rows, prefill_tokens
        self._waiting: deque[Progress] = deque()
        self._running: list[_Drawn | _Searched] = []
        self._ended: list[Delta] = []  # to be told with the next step
        self._num_submitted = 0
        self._counts = dict.fromkeys(("steps", "finished", "cancelled", "prompt_tokens", "new_tokens"), 0)

    @property
    def is_idle(self) -> bool:
        """Whether `step` would do nothing and tell nothing."""
        return not (self._waiting or self._running or self._ended)

    def stats(self) -> dict[str, float]:
        """Counts since the beginning, and what is held now, for metrics."""
        held = {"running": len(self._running), "waiting": len(self._waiting)}
        return {name: float(value) for name, value in {**self._counts, **held}.items()}

    def check(self, request: Request) -> None:
        """Raises UsageError when the request cannot be answered, whatever else runs."""
        check_request(request, self.tokenizer.vocab_size)
        most = self.config.max_length
        if len(request.prompt) > most:
            raise UsageError(f"the source has {len(request.prompt)} tokens, but the model reads at most {most}")
        if request.prompt_logprobs is not None:
            raise UsageError("a translator reads its source and writes another text: it has no odds of the source")
        drawn = request.sampling.changes_scores or request.min_new_tokens or request.constraint is not None
        if request.beam is not None and drawn:
            raise UsageError(
                "bias, penalties, min_new_tokens and forms are for tokens drawn one by one; beam must be 1"
            )

    def submit(self, request: Request) -> int:
        """Takes a request; the number under which its deltas come. Raises UsageError as `check` does."""
        self.check(request)
        number = self._num_submitted
        self._num_submitted += 1
        num_source = len(request.prompt)
        most = num_source + min(self.config.max_length, num_source + EXTRA_TOKENS)
        progress = Progress(number, request, self.tokenizer, most, self.runtime.device)
        if progress.penalties is not None:  # of what is written: words of the source are another language's
            progress.penalties = Penalties(request.sampling, (), self.tokenizer.vocab_size, self.runtime.device)
        self._waiting.append(progress)
        self._counts["prompt_tokens"] += num_source
        return number

    def cancel(self, number: int) -> None:
        """Ends a request at once; its last delta comes with the next step. Nothing happens if it has ended."""
        for progress in [*self._waiting, *(work.progress for work in self._running)]:
            if progress.number == number:
                self._waiting = deque(one for one in self._waiting if one is not progress)
                self._running = [work for work in self._running if work.progress is not progress]
                self._ended.append(progress.end("cancelled"))

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """One step of every request that runs, and some of those that wait begun. What came of it."""
        deltas, self._ended = self._ended, []
        for work in self._running:
            delta = work.step()
            if delta is not None:
                deltas.append(delta)
                self._counts["new_tokens"] += len(delta.tokens)
        ended = {delta.request for delta in deltas if delta.finish_reason is not None}
        self._running = [work for work in self._running if work.progress.number not in ended]
        room = self.prefill_tokens
        while room > 0 and self._waiting and len(self._running) < self.max_rows:
            progress = self._waiting.popleft()
            room -= progress.num_prompt
            if progress.limit:
                self._running.append(self._begin(progress))
            else:
                deltas.append(progress.end("length"))
        self._counts["steps"] += 1
        for delta in deltas:
            if delta.finish_reason is not None:
                self._counts["cancelled" if delta.finish_reason == "cancelled" else "finished"] += 1
        return deltas

    def _begin(self, progress: Progress) -> _Drawn | _Searched:
        """Read a source."""
        if progress.request.beam is None:
            return _Drawn(self._translator, progress)
        return _Searched(self._translator, self.model, progress)


class _Drawn:
    """One translation that is drawn token by token."""

    def __init__(self, translator: Translator, progress: Progress) -> None:
        self.progress = progress
        self._decoder, self._last = translator.begin([progress.request.prompt], 1, progress.limit), translator.start

    def step(self) -> Delta:
        [delta] = draw([self.progress], self._decoder.step(torch.tensor([self._last])))
        self._last = self.progress.tokens[-1]
        return delta


class _Searched:
    """One translation that a beam is searched for."""

    def __init__(self, translator: Translator, model: Transformer, progress: Progress) -> None:
        beam = progress.request.beam
        assert beam is not None
        self.progress, self._translator, self._model = progress, translator, model
        decoder = translator.begin([progress.request.prompt], beam.beam, progress.limit)
        self._steps = beam_steps(decoder, translator.start, progress.stop_ids, [progress.limit], beam)

    def step(self) -> Delta | None:
        """What was found, after the last step."""
        try:
            results = next(self._steps)
        except ModelError:
            return self.progress.end("error")
        if results is None:
            return None
        return self._told(results[0][-1]) if results[0] else self.progress.end("error")

    def _told(self, found: Hypothesis) -> Delta:
        """All tokens as one delta; a stop string cuts them."""
        num_top = self.progress.request.logprobs
        odds: Sequence[TokenLogprob | None] = [None] * len(found.tokens)
        if num_top is not None:
            odds = self._scored(found.tokens, num_top)
        deltas = []
        for token, logprob in zip(found.tokens, odds, strict=True):
            deltas.append(self.progress.add(token, logprob))
            if deltas[-1].finish_reason is not None:
                break
        return replace(
            deltas[-1],
            tokens=tuple(token for delta in deltas for token in delta.tokens),
            text="".join(delta.text for delta in deltas),
            logprobs=tuple(one for delta in deltas for one in delta.logprobs),
        )

    def _scored(self, tokens: Sequence[int], num_top: int) -> list[TokenLogprob]:
        """What the model says of each token of a translation, read once more as a whole."""
        runtime, num_tokens = self._translator.runtime, self._translator.tokenizer.vocab_size
        target = torch.tensor([[self._translator.start, *tokens[:-1]]], device=runtime.device)
        source = torch.tensor([self.progress.request.prompt], device=runtime.device)
        with runtime.autocast():
            logits = self._model(target, source=source)[0, :, :num_tokens]  # (T, V)
        return score_tokens(logits, tokens, num_top)
