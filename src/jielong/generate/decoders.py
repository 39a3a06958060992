"""What beam search writes with: our translators, each with what it remembers of the rows it is writing."""

from __future__ import annotations

import torch
from torch import Tensor

from jielong.generate.beam import Decoder
from jielong.generate.cache import KeyValueCache
from jielong.generate.cast import cast_copy
from jielong.model.recurrent import Recurrent
from jielong.model.structure import Read, StructuredTransformer
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime

TranslationModel = Transformer | Recurrent


def begin_decoding(
    model: TranslationModel, source: Tensor, segments: Tensor, beam: int, capacity: int, runtime: Runtime
) -> Decoder:
    """A decoder of B * beam rows that has read the sources, (B, S) ids and segments; capacity: most tokens of a row."""
    source, segments = source.to(runtime.device), segments.to(runtime.device)
    if isinstance(model, StructuredTransformer):
        rows = torch.arange(len(source), device=source.device).repeat_interleave(beam)
        return _StructuredDecoder(model, source[rows], segments[rows], runtime)
    if isinstance(model, Transformer) and runtime.dtype != torch.float32:
        model = cast_copy(model, runtime.dtype)
    with runtime.autocast(), torch.inference_mode():
        memory = model.encode(source, segments)
        if isinstance(model, Recurrent):
            return _RecurrentDecoder(model, *(one.repeat_interleave(beam, dim=0) for one in (memory, segments)))
        cache = KeyValueCache(model.config, beam * len(memory), capacity, runtime.dtype, runtime.device)
        return _TransformerDecoder(model, memory, segments, cache, runtime)


class _TransformerDecoder:
    """Keys and values of what is written and of the sources stand in a cache; a sentence's beams share its source."""

    def __init__(
        self, model: Transformer, memory: Tensor, segments: Tensor, cache: KeyValueCache, runtime: Runtime
    ) -> None:
        self._model, self._segments, self._cache, self._runtime = model, segments, cache, runtime
        self._memory: Tensor | None = memory  # until the cache has read it

    def step(self, ids: Tensor) -> Tensor:
        ids = ids.to(self._runtime.device)
        with self._runtime.autocast():
            hidden = self._model.hidden(ids[:, None], None, self._cache, self._memory, self._segments)
            self._memory = None
            self._cache.advance(torch.ones_like(ids))
            return self._model.unembed(hidden[:, 0])

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        self._cache.select(rows.to(self._runtime.device), same_sources=True)
        if sentences is not None:
            sentences = sentences.to(self._runtime.device)
            self._cache.select_sources(sentences)
            self._segments = self._segments[sentences]


class _RecurrentDecoder:
    """The state of the LSTM, and the sources encoded."""

    def __init__(self, model: Recurrent, memory: Tensor, segments: Tensor) -> None:
        self._model, self._memory, self._segments = model, memory, segments
        self._state = model.begin(memory, segments)

    def step(self, ids: Tensor) -> Tensor:
        ids = ids.to(self._memory.device)
        hidden, self._state = self._model.step(ids[:, None], self._state, self._memory, self._segments)
        return self._model.unembed(hidden[:, 0])

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        rows = rows.to(self._memory.device)
        self._state = self._state[0][:, rows].contiguous(), self._state[1][:, rows].contiguous()
        if sentences is not None:
            self._memory, self._segments = self._memory[rows], self._segments[rows]


class _StructuredDecoder:
    """Of the structure lab: reads all that is written anew at each step, and the sources when their rows change."""

    def __init__(self, model: StructuredTransformer, source: Tensor, segments: Tensor, runtime: Runtime) -> None:
        self._model, self._source, self._segments, self._runtime = model, source, segments, runtime
        self._tokens = source.new_empty((len(source), 0))
        self._read: Read | None = None

    def step(self, ids: Tensor) -> Tensor:
        self._tokens = torch.cat((self._tokens, ids.to(self._tokens.device)[:, None]), dim=1)
        with self._runtime.autocast(), torch.inference_mode():
            if self._read is None:
                self._read = self._model.read(self._source, self._segments)
            return self._model.unembed(self._model.target_hidden(self._tokens, self._read)[:, -1])

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        rows = rows.to(self._tokens.device)
        self._tokens = self._tokens[rows]
        if sentences is not None:
            self._source, self._segments, self._read = self._source[rows], self._segments[rows], None
