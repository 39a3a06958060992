"""Continuous batching: requests come and go at every step, and none can tell that others are there.

A step is one forward for all rows that are writing, a token each, and then up to `prefill_tokens` of prompts that wait
to be read, in chunks, so that a long prompt does not hold up those who write. One prompt is read at a time, in the
order of their coming. What was read is kept by its tokens, so that the next turn of a conversation begins where the
last one ended (`prefix`).

What a request gets is a function of itself and the weights: its numbers are drawn from its own seed, and no operation
here looks from one row into another. On a CPU that holds to the bit, log-probabilities included, in float32: products
are such whose rows do not depend on how many there are from LEAST_ROWS on, so no forward has fewer (`quantize`);
keys come in multiples of 16 with zeros behind a row's own (`rows`, `kernels.steady_attention`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from jielong.errors import ModelError, UsageError
from jielong.generate.cast import cast_copy
from jielong.generate.packed import choose_kind, decoding_runtime, pack
from jielong.generate.prefix import PrefixCache
from jielong.generate.progress import Progress, draw, score_tokens
from jielong.generate.quantize import LEAST_ROWS
from jielong.generate.recording import Recordings, choose_recorder, num_recorded_keys
from jielong.generate.requests import Delta, Request, TokenLogprob, check_request
from jielong.generate.rows import RowCache
from jielong.generate.unrolled import build_step
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.tokenizer.tokenizer import Tokenizer, check_sizes

MAX_ROWS = 16
CACHE_BYTES = 256 << 20
PREFILL_TOKENS = 256
MOST_RECORDINGS = 12  # of steps on a GPU: by the number of rows, in powers of two, and of keys


class Batcher:
    """Makes the completions of many requests at once, with one decoder and its tokenizer. For one thread.

    max_rows: most requests that run at the same time; others wait. cache_bytes: most bytes of the prefix cache, 0 for
    none. prefill_tokens: most tokens of prompts read in a step. weights: on a CPU one of `packed.WEIGHTS`; None is the
    runtime's dtype. The weights are packed or cast now, for a model that learns no more, see `packed` and `cast`.
    Raises ModelError for a model that is no decoder of tokens, or not of this tokenizer.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        runtime: Runtime | None = None,
        *,
        max_rows: int = MAX_ROWS,
        cache_bytes: int = CACHE_BYTES,
        prefill_tokens: int = PREFILL_TOKENS,
        weights: str | None = None,
    ) -> None:
        config = model.config
        if config.head != "lm" or config.encoder_layers:
            raise ModelError(
                f"requests are answered by a decoder with an 'lm' head; this model has a {config.head!r} head and "
                f"{config.encoder_layers} encoder layers"
            )
        check_sizes(tokenizer, config.vocab_size, "a model and its tokenizer")
        for name, value, least in (("max_rows", max_rows, 1), ("cache_bytes", cache_bytes, 0)):
            _check_size(name, value, least)
        _check_size("prefill_tokens", prefill_tokens, 1)
        self.tokenizer, self.config = tokenizer, config
        self.runtime = decoding_runtime(model, runtime)
        self.model, self.least_rows = model, 1
        if self.runtime.device.type == "cpu":
            kind = weights or str(self.runtime.dtype).removeprefix("torch.")
            kind = choose_kind(model) if kind == "auto" else kind
            self.model, self.least_rows = pack(model, kind), LEAST_ROWS[kind]
            self.runtime = replace(self.runtime, dtype=torch.float32)  # the packed parts see to theirs themselves
        elif weights is not None:
            raise UsageError(f"weights is {weights!r}, but packed weights are for a CPU; leave it out on other devices")
        elif self.runtime.dtype != torch.float32:
            self.model = cast_copy(model, self.runtime.dtype)
        self._read_one = build_step(self.model)
        recorder = choose_recorder(model, self.runtime)  # on a GPU
        self.recordings = None if recorder is None else Recordings(recorder, MOST_RECORDINGS)
        self.max_rows, self.prefill_tokens = max_rows, prefill_tokens
        dtype = self.model.compute_dtype or self.runtime.dtype
        self.rows = RowCache(config, max(max_rows, self.least_rows), dtype, self.runtime.device)
        self.prefix = PrefixCache(cache_bytes)
        self._waiting: deque[Progress] = deque()
        self._writing: list[Progress] = []  # in rows 0, 1, ... of the cache
        self._reading: Progress | None = None  # in the row behind them
        self._ended: list[Delta] = []  # to be told with the next step
        self._num_submitted = 0
        self._counts = dict.fromkeys(("steps", "finished", "cancelled", "prompt_tokens", "cached_tokens"), 0)
        self._counts["new_tokens"] = 0

    @property
    def num_running(self) -> int:
        return len(self._writing) + (self._reading is not None)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether `step` would do nothing and tell nothing."""
        return not (self._waiting or self._writing or self._reading or self._ended)

    def stats(self) -> dict[str, float]:
        """Counts since the beginning, and what is held now, for metrics."""
        held = {
            "running": self.num_running,
            "waiting": self.num_waiting,
            "prefix_blocks": self.prefix.num_blocks,
            "prefix_bytes": self.prefix.num_bytes,
            "row_bytes": self.rows.num_bytes,
        }
        return {name: float(value) for name, value in {**self._counts, **held}.items()}

    def check(self, request: Request) -> None:
        """Raises UsageError when the request cannot be answered, whatever else runs."""
        check_request(request, self.tokenizer.vocab_size)
        context, num_needed = self.config.max_length, min(request.max_new_tokens, 1)
        if len(request.prompt) + num_needed > context:
            raise UsageError(
                f"the prompt has {len(request.prompt)} tokens, but the model's context is {context} and a reply needs "
                f"at least one of them; shorten the prompt to {context - num_needed} tokens or fewer"
            )
        if request.beam is not None:
            raise UsageError("a beam is searched for translations; this model is a decoder, which draws its tokens")

    def submit(self, request: Request) -> int:
        """Takes a request; the number under which its deltas come. Raises UsageError as `check` does."""
        self.check(request)
        number = self._num_submitted
        self._num_submitted += 1
        context, device = self.config.max_length, self.runtime.device
        self._waiting.append(Progress(number, request, self.tokenizer, context, device))
        self._counts["prompt_tokens"] += len(request.prompt)
        return number

    @torch.inference_mode()
    def cancel(self, number: int) -> None:
        """Ends a request at once; its last delta comes with the next step. Nothing happens if it has ended."""
        for progress in self._waiting:
            if progress.number == number:
                self._waiting.remove(progress)
                self._ended.append(progress.end("cancelled"))
                return
        if self._reading is not None and self._reading.number == number:
            self._ended.append(self._reading.end("cancelled"))
            self._give_back(self._reading, len(self._writing))
            self._reading = None
            return
        for row, progress in enumerate(self._writing):
            if progress.number == number:
                self._ended.append(progress.end("cancelled"))
                self._retire(row)
                return

    # inference_mode, as in `Engine`: nothing of a step may keep gradients, or cast weights.
    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """One step: a token for every row that writes, and some of the prompts read. What came of it."""
        deltas, self._ended = self._ended, []
        if self._writing:
            deltas += self._write()
        room = self.prefill_tokens
        while room > 0 and (self._reading is not None or self._begin()):
            num_read, made = self._read(room)
            room -= num_read
            deltas += made
        self._counts["steps"] += 1
        for delta in deltas:
            if delta.finish_reason is not None:
                self._counts["cancelled" if delta.finish_reason == "cancelled" else "finished"] += 1
        return deltas

    # Reading prompts.

    def _begin(self) -> bool:
        """Give the next request that waits a row; False when there is none, or no row."""
        if not self._waiting or len(self._writing) == self.max_rows:
            return False
        progress = self._reading = self._waiting.popleft()
        row = len(self._writing)
        self.rows.reserve(row + 1, progress.num_prompt + self.least_rows)
        progress.num_held = self._find_beginning(progress, row)
        progress.num_cached = progress.num_held
        self._counts["cached_tokens"] += progress.num_cached
        return True

    def _find_beginning(self, progress: Progress, row: int) -> int:
        """Claim a row, with what was read before of this prompt in it; of how many tokens that is."""
        if progress.prompt_logprobs is not None or not self.prefix.max_bytes:  # every place's logits are needed
            self.rows.claim(row)
            return 0
        partition, most = progress.request.cache_partition, progress.num_prompt - 1
        num_left = self.rows.num_left(row, partition, progress.tokens[:most])
        self.rows.claim(row, num_left)
        blocks, size = self.prefix.find(partition, progress.tokens, most), self.prefix.block_tokens
        for number in range(num_left // size, len(blocks)):
            self.rows.write(row, number * size, blocks[number])
        return max(num_left, len(blocks) * size)

    def _read(self, room: int) -> tuple[int, list[Delta]]:
        """Read up to `room` tokens of the prompt at hand, and draw its first new one when that was all of it."""
        progress = self._reading
        assert progress is not None
        row, start = len(self._writing), progress.num_held
        end = min(start + room, progress.num_prompt)
        num_read = end - start
        # Tokens that are no one's stand in for rows that a product must have; what they leave in the cache is hidden,
        # and the next tokens read or written take their places.
        tokens = progress.tokens[start:end] + [0] * (self.least_rows - num_read)
        view = self.rows.view(row, [start], len(tokens))
        with self.runtime.autocast():
            ids = torch.tensor([tokens], device=self.runtime.device)  # (1, T)
            hidden = self.model.hidden(ids, cache=view)[0]  # (T, D)
            if progress.prompt_logprobs is not None:
                self._score_prompt(progress, hidden, start, num_read)
            first = max(num_read - self.least_rows, 0)
            logits = self.model.unembed(hidden[first : first + self.least_rows])[num_read - 1 - first :][:1]  # (1, V)
        logits = logits[:, : self.tokenizer.vocab_size]
        progress.num_held = end
        if end < progress.num_prompt:
            return num_read, []
        self._reading = None
        if not bool(logits.isfinite().all()):
            self.rows.release(row)
            return num_read, [progress.end("error")]
        if not progress.limit:
            self._give_back(progress, row)
            return num_read, [progress.end("length")]
        self._keep_prefix(progress, row)
        self._writing.append(progress)
        return num_read, self._draw([progress], logits)

    def _score_prompt(self, progress: Progress, hidden: Tensor, start: int, num_read: int) -> None:
        """Log-probabilities of the prompt's tokens behind the num_read just read; hidden: (T, D)."""
        assert progress.prompt_logprobs is not None and progress.request.prompt_logprobs is not None
        if start == 0:
            progress.prompt_logprobs.append(TokenLogprob(progress.tokens[0], None, ()))
        tokens = progress.tokens[start + 1 : min(start + 1 + num_read, progress.num_prompt)]
        logits = self.model.unembed(hidden)[: len(tokens), : self.tokenizer.vocab_size]
        progress.prompt_logprobs += score_tokens(logits, tokens, progress.request.prompt_logprobs)

    def _keep_prefix(self, progress: Progress, row: int) -> None:
        """Put what a row holds into the prefix cache."""

        def read(start: int, end: int) -> Tensor:
            return self.rows.read(row, start, end)

        self.prefix.add(progress.request.cache_partition, progress.tokens[: progress.num_held], read)

    def _give_back(self, progress: Progress, row: int) -> None:
        """Free a row; what it holds may be found again, in the prefix cache and, until it is used again, in itself."""
        self._keep_prefix(progress, row)
        held = progress.tokens[: progress.num_held] if self.prefix.max_bytes else ()
        self.rows.release(row, progress.request.cache_partition, held)

    # Writing.

    def _write(self) -> list[Delta]:
        """One new token for every row that writes."""
        writing = list(self._writing)
        lengths = [progress.num_held for progress in writing]
        least = self.least_rows
        if self.recordings is not None:  # few numbers of rows, for each is a recording of its own
            least = max(least, min(self.max_rows, 1 << (len(writing) - 1).bit_length()))
        # Rows that are no one's, or the one that is being read, write where the next token of theirs will come.
        others = [0 if self._reading is None else self._reading.num_held, *[0] * least]
        lengths += others[: max(least - len(writing), 0)]
        self.rows.reserve(len(lengths), max(lengths) + 1)
        tokens = [progress.tokens[-1] for progress in writing] + [0] * (len(lengths) - len(writing))
        logits = self._next_logits(torch.tensor(tokens, device=self.runtime.device), lengths, len(writing))
        for progress in writing:
            progress.num_held += 1
        return self._draw(writing, logits[: len(writing), : self.tokenizer.vocab_size])

    def _next_logits(self, ids: Tensor, lengths: Sequence[int], num_real: int) -> Tensor:
        """(R,) ids, one more for each of the first rows, which hold `lengths` tokens -> (R, V)."""
        if self.recordings is None:
            with self.runtime.autocast():
                return self._read_one(ids, self.rows.view(0, lengths, 1, num_real))
        self.rows.expect(0, lengths, 1)
        num_keys = min(num_recorded_keys(max(lengths) + 1), self.rows.capacity)

        def step(ids: Tensor, held: Tensor) -> Tensor:  # torch's alone: nothing else can be recorded
            with self.runtime.autocast():
                logits: Tensor = self.model(ids[:, None], cache=self.rows.fixed_view(held, num_keys))[:, 0]
            return logits

        held = torch.tensor(lengths, device=self.runtime.device)
        return self.recordings.run(self.rows.edition, (len(lengths), num_keys), step, ids, held)

    def _draw(self, group: Sequence[Progress], logits: Tensor) -> list[Delta]:
        """The next token of each of `group`, by its row of logits (R, V)."""
        deltas = draw(group, logits)
        self._counts["new_tokens"] += sum(len(delta.tokens) for delta in deltas)
        ended = {delta.request: delta.finish_reason for delta in deltas if delta.finish_reason is not None}
        for row in reversed(range(len(self._writing))):
            if self._writing[row].number in ended:
                self._retire(row, keep=ended[self._writing[row].number] != "error")
        return deltas

    def _retire(self, row: int, keep: bool = True) -> None:
        """Take a row out, and let the last one move to its place. keep: put what it holds into the prefix cache."""
        if keep:
            self._give_back(self._writing[row], row)
        else:
            self.rows.release(row)
        last = self._writing.pop()
        if row < len(self._writing):
            self.rows.move(len(self._writing), row, last.num_held)
            self._writing[row] = last
        if self._reading is not None:
            self.rows.move(len(self._writing) + 1, len(self._writing), self._reading.num_held)


def _check_size(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} is {value!r}; it must be a whole number, {least} or more")
