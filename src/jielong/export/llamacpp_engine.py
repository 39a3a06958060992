"""llama.cpp in the place of our decoding: the same methods as `Engine`, its kernels under them.

The model is written as a GGUF file into a temporary folder and read by llama.cpp in a process of its own (see
`llamacpp`), which ends with the engine. What is asked is checked, and prompts become ids, as they do in `Engine`.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jielong.errors import UsageError
from jielong.export.gguf import TYPES, need_gguf, write_gguf
from jielong.export.llamacpp import Listening, need_llamacpp
from jielong.export.vocabulary import read_vocabulary
from jielong.generate.engine import Engine, Job
from jielong.model.transformer import Transformer
from jielong.tokenizer.tokenizer import TextStream, Tokenizer

ROWS = 8


class LlamaCppEngine(Engine):
    """Generates with llama.cpp; `close` it, or leave its `with`, to end its process.

    folder: where the model and its tokenizer were loaded from. kind: how the weights are stored, F32, F16 or Q8_0.
    rows: texts decoded beside each other; llama.cpp sets aside the keys and values of a whole context for each.

    What is other than in `Engine`: random draws, so that texts at a temperature above 0 are others; log-probabilities
    are told at temperature 0 only, without a bias, and for texts of whole characters, else the list is empty; stop_ids
    are the model's own, and penalties are not for it (UsageError). `top_tokens` is still ours, so the model stays.
    Raises ModelError when llama.cpp does not take the model, UsageError when a package is not there.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        folder: Path,
        kind: str = "Q8_0",
        threads: int = 1,
        rows: int = ROWS,
    ) -> None:
        if kind not in TYPES:
            raise UsageError(f"llama.cpp stores weights as {', '.join(TYPES)}, not {kind!r}")
        need_gguf()
        need_llamacpp()
        super().__init__(model, tokenizer)
        vocabulary = read_vocabulary(folder, tokenizer)
        self._ends_at = frozenset(vocabulary.stop_ids)
        self._rows = rows
        # What is loaded needs no name any more, and a file without one cannot stay behind, however this process ends.
        with tempfile.TemporaryDirectory(prefix="jielong-gguf-", ignore_cleanup_errors=True) as scratch:
            path = Path(scratch) / f"{kind}.gguf"
            write_gguf(path, model, vocabulary, kind, folder.name)
            self._server = Listening(path, rows, model.config.max_length, threads)
        self._end = weakref.finalize(self, self._server.close)

    def close(self) -> None:
        """End llama.cpp's process; nothing can be generated any more."""
        self._end()

    def __enter__(self) -> LlamaCppEngine:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def _asked(self, job: Job, row: int) -> dict[str, Any]:
        """The body of llama.cpp's /completion for one row of a job."""
        sampling = job.sampling
        if job.stop_ids != self._ends_at:
            own, others = sorted(self._ends_at), sorted(job.stop_ids)
            raise UsageError(f"llama.cpp ends a text at the model's own stop tokens {own}, not at {others}")
        if sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty:
            raise UsageError("llama.cpp counts penalties over other tokens than we do; use our own engine for them")
        return {
            "prompt": job.prompts[row],
            "n_predict": job.limits[row],
            "seed": job.seeds[row] % (1 << 31),
            "samplers": ["temperature"] if sampling.temperature == 0 else ["temperature", "top_k", "top_p", "min_p"],
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "logit_bias": [[token, bias] for token, bias in sampling.logit_bias],
        }

    def _collect(self, job: Job) -> list[tuple[list[int], list[float]]]:
        """(ids, log-probabilities) of every row of the job."""
        told = job.sampling.temperature == 0 and not job.sampling.logit_bias
        more = {"return_tokens": True, "n_probs": int(told)}
        bodies = [self._asked(job, row) | more for row in range(len(job.seeds))]
        with ThreadPoolExecutor(self._rows) as pool:
            answers = list(pool.map(self._server.post, bodies))
        made = []
        for answer in answers:
            odds = [one["logprob"] for one in answer.get("completion_probabilities", [])]
            # It leaves out tokens that end inside a character, and does not say which.
            made.append((answer["tokens"], odds if len(odds) == len(answer["tokens"]) else []))
        return made

    def _pieces(self, job: Job, text: TextStream) -> Iterator[str]:
        """The one row's text as it comes. llama.cpp tells whole characters; ids inside one it does not tell."""
        return self._server.stream(self._asked(job, 0)) if job.limits[0] else iter(())
