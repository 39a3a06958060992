"""What many translations are written with, side by side: one forward for all of them at every step.

Each source is read alone when it comes, and its keys and values lie in a row of one buffer; those of what is written in
K rows of another. Sentences come and go at any step, and are each at a place of their own. With a packed float32 copy
of the model on a CPU a row has the same bits whatever is beside it, as in `batching`, for the same reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jielong.generate.quantize import LEAST_ROWS
from jielong.generate.rows import RowCache, RowsView
from jielong.model.kernels import steady_keys
from jielong.model.transformer import CrossLayer, Transformer
from jielong.runtime import Runtime


class TranslationPool:
    """Implements `beam.Decoder` for sentences that come and go.

    network: an encoder-decoder, packed where runtime is a CPU. beam: rows of a sentence, K. most: sentences at a time.
    num_tokens: ids from there on are no tokens and get no score.
    """

    def __init__(self, network: Transformer, runtime: Runtime, beam: int, most: int, num_tokens: int) -> None:
        self._network, self._runtime, self._beam, self.num_tokens = network, runtime, beam, num_tokens
        least = LEAST_ROWS["float32"] if runtime.device.type == "cpu" else 1
        self._least = -(-least // beam)  # sentences
        dtype = network.compute_dtype or runtime.dtype
        most = max(most, self._least)
        self._rows = RowCache(network.config, most * beam, dtype, runtime.device)
        self._sources = RowCache(network.config, most, dtype, runtime.device)
        self._source_lengths: list[int] = []  # of each sentence
        self._lengths: list[int] = []  # of what each of its rows holds

    def admit(self, source: Sequence[int]) -> None:
        """One more sentence, behind those there are: read its source (S,) ids."""
        number, beam = len(self._lengths), self._beam
        with self._runtime.autocast():
            memory = self._network.encode(torch.tensor([list(source)], device=self._runtime.device))  # (1, S, D)
            read = [layer.cross.keys_values(memory) for layer in self._network.layers if isinstance(layer, CrossLayer)]
        self._sources.reserve(number + 1, len(source))
        self._sources.claim(number)
        self._sources.write(number, 0, torch.cat([part for parts in zip(*read, strict=True) for part in parts]))
        self._rows.reserve((number + 1) * beam, 1)
        for row in range(number * beam, (number + 1) * beam):
            self._rows.claim(row)
        self._source_lengths.append(len(source))
        self._lengths.append(0)

    def step(self, ids: Tensor) -> Tensor:
        num, beam, device = len(self._lengths), self._beam, self._runtime.device
        num_none = max(self._least - num, 0)  # sentences that are no one's stand in for rows that a product must have
        held = [length for length in [*self._lengths, *[0] * num_none] for _ in range(beam)]
        self._rows.reserve(len(held), max(held) + 1)
        self._sources.reserve(num + num_none, 1)
        view = _View(self._rows, self._sources, held, [*self._source_lengths, *[1] * num_none])
        tokens = torch.zeros(len(held), 1, dtype=torch.int64, device=device)
        tokens[: num * beam, 0] = ids
        with self._runtime.autocast():
            hidden = self._network.hidden(tokens, None, view, None, view.segments)
            logits = self._network.unembed(hidden[:, 0])
        self._lengths = [length + 1 for length in self._lengths]
        return logits[: num * beam, : self.num_tokens]

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        num_rows = len(self._lengths) * self._beam
        if sentences is not None:
            kept = sentences.tolist()
            self._sources.arrange(kept, len(self._lengths))
            self._source_lengths = [self._source_lengths[sentence] for sentence in kept]
            self._lengths = [self._lengths[sentence] for sentence in kept]
        self._rows.arrange(rows.tolist(), num_rows)


class _View(RowsView):
    """One token more for each row, whose sources lie in another buffer."""

    def __init__(self, rows: RowCache, sources: RowCache, held: Sequence[int], source_lengths: Sequence[int]) -> None:
        lengths = torch.tensor(held, device=rows.buffer.device)
        super().__init__(rows, range(len(held)), lengths, 1, steady_keys(max(held) + 1))
        for row, length in enumerate(held):
            rows.mark(row, length + 1)
        num_keys, device = steady_keys(max(source_lengths)), rows.buffer.device
        self._read = sources.buffer[:, : len(source_lengths), :, :num_keys].unbind(0)  # 2 L views (B, K, S, H)
        ends = torch.tensor(source_lengths, device=device)
        self.segments = (torch.arange(num_keys, device=device) < ends[:, None]).int()  # (B, S)

    def source(self, layer: int, project: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return self._read[layer], self._read[layer + self._num_layers]
