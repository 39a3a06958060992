"""Keys and values of the tokens a batch has already read, in memory that grows with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jielong.generate.recording import Recorder, Recordings, num_recorded_keys
from jielong.model.config import ModelConfig

_LEAST_ROOM = 16  # tokens


class KeyValueCache:
    """Implements `model.context.Cache`: one buffer a layer for keys and one for values, (B, K, room, H).

    Row b holds `lengths[b]` tokens. What lies at or beyond that position is zero, or left over from padding: attention
    never looks there, and the next token of the row overwrites it. To read n tokens a row needs a capacity of n; the
    buffers have room for what was read, and for half as much more. Beside them lie the keys and values of the source,
    once cross-attention has made them.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (batch, config.num_kv_heads, 0, config.head_size)
        self.capacity, self._room = capacity, 0
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)  # (B,)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.decoder_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.decoder_layers)]
        self.sources: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> keys and values, (B, K, S, H)
        self._longest = 0  # no row holds more; kept on the host so that no step has to ask the device
        self._touched = 0  # beyond it all is zero
        self._num_written = 0  # T of the last update
        self._slots: Tensor | None = None  # where the tokens of this forward go; the same for all layers

    def view(self, num_new: int) -> KeyValueCache:
        """Itself, as it is to be read by num_new tokens more of each row."""
        return self

    def num_keys(self, num_new: int) -> int:
        """S, the number of key positions that `update` returns when each row adds num_new tokens."""
        return min(self._longest + num_new, self.capacity)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new tokens a row at lengths[b] .. lengths[b] + T - 1 and return what there is to attend to.

        keys, values: (B, K, T, H). Returns both as (B, K, S, H), S = num_keys(T), views into the buffers.
        lengths stay as they are until `advance`; every layer of one forward writes to the same places.
        """
        num_rows, num_heads, num_new, head_size = keys.shape
        if self._slots is None or self._num_written != num_new:
            self._reserve(self.num_keys(num_new))
            self._slots, self._num_written = self._places(num_rows, num_heads, num_new), num_new
        self.keys[layer].view(-1, head_size).index_copy_(0, self._slots, keys.reshape(-1, head_size))
        self.values[layer].view(-1, head_size).index_copy_(0, self._slots, values.reshape(-1, head_size))
        end = self.num_keys(num_new)
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def source(self, layer: int, project: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Keys and values of the source, (B, K, S, H): project() at the first call for this layer, then kept."""
        if layer not in self.sources:
            self.sources[layer] = project()
        return self.sources[layer]

    def _reserve(self, num_tokens: int) -> None:
        """Make room for so many tokens of each row, in all layers."""
        self._touched = max(self._touched, num_tokens)
        if num_tokens > self._room:
            self._room = min(self.capacity, max(num_tokens, 3 * self._room // 2, _LEAST_ROOM))
            for buffers in (self.keys, self.values):
                for layer, buffer in enumerate(buffers):
                    # Zeros, not empty: an unseen position has weight 0 in attention, and 0 * NaN would still be NaN.
                    rows, heads, held, size = buffer.shape
                    buffers[layer] = buffer.new_zeros(rows, heads, self._room, size)
                    buffers[layer][:, :, :held] = buffer

    def _places(self, num_rows: int, num_heads: int, num_new: int) -> Tensor:
        """(B * K * T,) rows of a buffer seen as (B * K * room, H)."""
        device = self.lengths.device
        first = torch.arange(num_rows * num_heads, device=device).view(num_rows, num_heads, 1) * self._room
        positions = self.lengths[:, None, None] + torch.arange(num_new, device=device)  # (B, 1, T)
        # Beyond the capacity lies the next row. Only padding may get there, and it may never reach another row's keys.
        positions.clamp_(max=self._room - 1)
        return (first + positions).reshape(-1)

    def advance(self, num_new: Tensor) -> None:
        """Count num_new[b] (B,) int64 of the tokens just written as read by row b; the rest were padding."""
        self.lengths = self.lengths + num_new
        self._longest = self.num_keys(self._num_written)
        self._slots = None

    def select_sources(self, kept: Tensor) -> None:
        """Keep only these sources, where they are fewer than the rows that read them."""
        self.sources = {layer: (keys[kept], values[kept]) for layer, (keys, values) in self.sources.items()}

    def select(self, rows: Tensor, same_sources: bool = False) -> None:
        """Keep only these rows (B',) int64, in this order.

        same_sources: row i of the new order has the source of row i of the old one, as where the beams of one sentence
        change places, so that what cross-attention reads may stay.
        """
        for buffers in (self.keys, self.values):
            for layer, buffer in enumerate(buffers):
                # only what is in use need move, and fewer rows stay in the same memory
                moved = buffer[:, :, : self._longest].index_select(0, rows)
                fits = len(rows) <= len(buffer)
                kept = buffer[: len(rows)] if fits else buffer.new_zeros(len(rows), *buffer.shape[1:])
                kept[:, :, : self._longest] = moved
                kept[:, :, self._longest : self._touched] = 0
                buffers[layer] = kept
        self._touched = self._longest
        self.lengths = self.lengths[rows]
        if not same_sources:
            self.select_sources(rows)
        self._longest = int(self.lengths.max()) if len(rows) else 0
        self._slots = None


class FixedCache(KeyValueCache):
    """The same for steps that are recorded and replayed (see `recording`): all lies where it lay at the step before.

    edition: another number means other addresses. A step of one new token a row sees num_recorded_keys: those that no
    row has yet are hidden from it like all others beyond a row's length. The buffers do not grow: there is room for the
    whole capacity from the first token on.
    """

    edition = 0

    def recorded(self, step: Callable[[Tensor], Tensor], recorder: Recorder) -> Callable[[Tensor], Tensor]:
        """step, which reads one token a row, (R,) ids, into this cache: recorded and replayed."""
        held = Recordings(recorder)
        return lambda ids: held.run(self.edition, (self.num_keys(1),), step, ids)

    def view(self, num_new: int) -> KeyValueCache:
        self._slots = None  # a step finds its places itself, so that this is part of what is recorded
        return self

    def num_keys(self, num_new: int) -> int:
        held = super().num_keys(num_new)
        return min(num_recorded_keys(held), self.capacity) if num_new == 1 else held

    def _reserve(self, num_tokens: int) -> None:
        super()._reserve(self.capacity)

    def advance(self, num_new: Tensor) -> None:
        self.lengths.add_(num_new)
        self._longest = super().num_keys(self._num_written)
        self._slots = None

    def select(self, rows: Tensor, same_sources: bool = False) -> None:
        super().select(rows, same_sources)
        self.edition += 1
