"""Translations asked for one by one, and made beside each other: what `batching` is for decoders.

Those that are made in the same way, all that are drawn and all that are searched for with equal beams, take a step
together, in one forward, and come and go at any step. What a request gets is a function of itself and the weights, on a
CPU to the bit (`pool`), and it ends within a step when its client leaves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch

from jielong.errors import UsageError
from jielong.generate.beam import Hypothesis, Search
from jielong.generate.packed import pack
from jielong.generate.penalties import Penalties
from jielong.generate.pool import TranslationPool
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
        self._start = Translator(model, tokenizer, runtime).start
        check_sizes(tokenizer, model.config.vocab_size, "a model and its tokenizer")
        self.model = pack(model, "float32") if runtime.device.type == "cpu" else model
        self.tokenizer, self.config, self.runtime = tokenizer, model.config, runtime
        self.max_rows, self.prefill_tokens = max_rows, prefill_tokens
        self._waiting: deque[Progress] = deque()
        self._groups: dict[Hashable, _Drawn | _Searched] = {}  # by what those in one must have in common
        self._ended: list[Delta] = []  # to be told with the next step
        self._num_submitted = 0
        self._counts = dict.fromkeys(("steps", "finished", "cancelled", "prompt_tokens", "new_tokens"), 0)

    @property
    def is_idle(self) -> bool:
        """Whether `step` would do nothing and tell nothing."""
        return not (self._waiting or self._groups or self._ended)

    @property
    def num_running(self) -> int:
        return sum(len(group.running) for group in self._groups.values())

    def stats(self) -> dict[str, float]:
        """Counts since the beginning, and what is held now, for metrics."""
        held = {"running": self.num_running, "waiting": len(self._waiting)}
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

    @torch.inference_mode()
    def cancel(self, number: int) -> None:
        """Ends a request at once; its last delta comes with the next step. Nothing happens if it has ended."""
        for progress in self._waiting:
            if progress.number == number:
                self._waiting.remove(progress)
                self._ended.append(progress.end("cancelled"))
                return
        for group in self._groups.values():
            found = group.running.get(number)
            if found is not None:
                group.drop([number])
                self._ended.append(found.end("cancelled"))
        self._forget_empty()

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """One step of every request that runs, and some of those that wait begun. What came of it."""
        deltas, self._ended = self._ended, []
        for group in self._groups.values():
            made = group.step()
            self._counts["new_tokens"] += sum(len(delta.tokens) for delta in made)
            deltas += made
        self._forget_empty()
        room = self.prefill_tokens
        while room > 0 and self._waiting and self.num_running < self.max_rows:
            progress = self._waiting.popleft()
            room -= progress.num_prompt
            if progress.limit:
                self._group(progress).admit(progress)
            else:
                deltas.append(progress.end("length"))
        self._counts["steps"] += 1
        for delta in deltas:
            if delta.finish_reason is not None:
                self._counts["cancelled" if delta.finish_reason == "cancelled" else "finished"] += 1
        return deltas

    def _group(self, progress: Progress) -> _Drawn | _Searched:
        """Where a request belongs."""
        beam = progress.request.beam
        key = None if beam is None else (replace(beam, num_best=1), progress.stop_ids)
        if key not in self._groups:
            num_rows = 1 if beam is None else beam.beam
            pool = TranslationPool(self.model, self.runtime, num_rows, self.max_rows, self.tokenizer.vocab_size)
            if beam is None:
                self._groups[key] = _Drawn(pool, self._start)
            else:
                search = Search(self._start, progress.stop_ids, replace(beam, num_best=1))
                self._groups[key] = _Searched(pool, search, self.model, self.runtime)
        return self._groups[key]

    def _forget_empty(self) -> None:
        self._groups = {key: group for key, group in self._groups.items() if group.running}


class _Drawn:
    """Translations that are drawn token by token. running: by their numbers, in the order of the pool's rows."""

    def __init__(self, pool: TranslationPool, start: int) -> None:
        self.running: dict[int, Progress] = {}
        self._pool, self._start = pool, start

    def admit(self, progress: Progress) -> None:
        self._pool.admit(progress.request.prompt)
        self.running[progress.number] = progress

    def step(self) -> list[Delta]:
        group = list(self.running.values())
        last = [progress.tokens[-1] if progress.num_new else self._start for progress in group]
        deltas = draw(group, self._pool.step(torch.tensor(last)))
        self.drop([delta.request for delta in deltas if delta.finish_reason is not None])
        return deltas

    def drop(self, numbers: Sequence[int]) -> None:
        """Take these out."""
        if not numbers:
            return
        kept = torch.tensor([row for row, number in enumerate(self.running) if number not in numbers], dtype=torch.long)
        self._pool.select(kept, kept)
        for number in numbers:
            del self.running[number]


class _Searched:
    """Translations that beams are searched for, all with the same settings."""

    def __init__(self, pool: TranslationPool, search: Search, model: Transformer, runtime: Runtime) -> None:
        self.running: dict[int, Progress] = {}
        self._pool, self._search, self._model, self._runtime = pool, search, model, runtime

    def admit(self, progress: Progress) -> None:
        self._pool.admit(progress.request.prompt)
        self._search.admit([progress.number], [progress.limit])
        self.running[progress.number] = progress

    def step(self) -> list[Delta]:
        """What was found, after the last step of each."""
        deltas = []
        for number, found in self._search.advance(self._pool.step(self._search.ids)).items():
            progress = self.running.pop(number)
            config = progress.request.beam
            assert config is not None
            deltas.append(self._told(progress, found[: config.num_best][-1]) if found else progress.end("error"))
        self._search.arrange(self._pool)
        return deltas

    def drop(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._search.forget(number)
            del self.running[number]
        self._search.arrange(self._pool)

    def _told(self, progress: Progress, found: Hypothesis) -> Delta:
        """All tokens as one delta; a stop string cuts them."""
        num_top = progress.request.logprobs
        odds: Sequence[TokenLogprob | None] = [None] * len(found.tokens)
        if num_top is not None:
            odds = self._scored(progress, found.tokens, num_top)
        deltas = []
        for token, logprob in zip(found.tokens, odds, strict=True):
            deltas.append(progress.add(token, logprob))
            if deltas[-1].finish_reason is not None:
                break
        return replace(
            deltas[-1],
            tokens=tuple(token for delta in deltas for token in delta.tokens),
            text="".join(delta.text for delta in deltas),
            logprobs=tuple(one for delta in deltas for one in delta.logprobs),
        )

    def _scored(self, progress: Progress, tokens: Sequence[int], num_top: int) -> list[TokenLogprob]:
        """What the model says of each token of a translation, read once more as a whole."""
        device = self._runtime.device
        target = torch.tensor([[self._search.start, *tokens[:-1]]], device=device)
        source = torch.tensor([progress.request.prompt], device=device)
        with self._runtime.autocast():
            logits = self._model(target, source=source)[0, :, : self._pool.num_tokens]  # (T, V)
        return score_tokens(logits, tokens, num_top)
