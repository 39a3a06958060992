"""Keys and values of the requests that run: one row each, in one buffer that is used again and again.

Why rows and not pages: attention here is a few torch calls over keys and values that lie together, so pages would have
to be gathered, that is copied, for every layer of every step. A row costs one copy when it is begun from the prefix
cache and one when it changes its place. What pages would save is memory behind short rows beside a long one; the buffer
is only as long as the longest row that has run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jielong.errors import ModelError
from jielong.model.config import ModelConfig
from jielong.model.kernels import STEADY_KEYS, steady_keys

_MOST_SEEN = 16  # sets of views kept


class RowCache:
    """A buffer (2 L, rows, K, capacity, H): keys of all layers, then values. It grows as it is needed.

    max_rows: most rows. wiped_with: tests write NaN into what is given back, to see that nothing ever reads it. A row
    holds zeros beyond its tokens from `claim` on, for attention gives those places the weight 0, and 0 * NaN is NaN.
    A row that was given back may be remembered: whoever begins in it with the same tokens, in the same partition, finds
    their keys and values in place.
    """

    def __init__(
        self,
        config: ModelConfig,
        max_rows: int,
        dtype: torch.dtype,
        device: torch.device,
        wiped_with: float | None = None,
    ) -> None:
        self.max_rows, self.max_length = max_rows, config.max_length
        self.wiped_with = wiped_with
        shape = (2 * config.decoder_layers, 0, config.num_kv_heads, 0, config.head_size)
        self.buffer = torch.zeros(shape, dtype=dtype, device=device)
        self.edition = 0  # another number means another buffer
        self.flat: Sequence[Tensor] = ()  # a layer's buffer as (rows * K * capacity, H), one for each of 2 L
        self._seen: dict[tuple[int, int, int], Seen] = {}  # by first row, number of rows, number of keys
        self._used: list[int] = []  # how many places of a row may hold something other than 0
        self._left: dict[int, tuple[str, Sequence[int]]] = {}  # free row -> the partition and tokens of what it holds

    @property
    def capacity(self) -> int:
        return self.buffer.shape[3]

    @property
    def num_bytes(self) -> int:
        return self.buffer.nbytes

    @property
    def bytes_per_token(self) -> int:
        layers, _, heads, _, size = self.buffer.shape
        return layers * heads * size * self.buffer.element_size()

    def reserve(self, num_rows: int, num_tokens: int) -> None:
        """Make room for so many rows of so many tokens."""
        layers, rows, heads, capacity, size = self.buffer.shape
        if num_rows > rows:
            rows = min(self.max_rows, max(num_rows, 2 * rows))
        if num_tokens > capacity:
            most = self.max_length + STEADY_KEYS  # places to spare, see `Batcher._read`
            capacity = steady_keys(min(most, max(num_tokens, 3 * capacity // 2, 64)))
        if (rows, capacity) == (self.buffer.shape[1], self.buffer.shape[3]):
            return
        old = self.buffer
        self.buffer = old.new_zeros(layers, rows, heads, capacity, size)
        self.edition += 1
        self.buffer[:, : old.shape[1], :, : old.shape[3]] = old
        self.flat = self.buffer.view(layers, -1, size).unbind(0)
        self._seen.clear()
        self._used += [0] * (rows - len(self._used))

    def num_left(self, row: int, partition: str, tokens: Sequence[int]) -> int:
        """How many of the first `tokens` a free row still holds."""
        whose, held = self._left.get(row, ("", ()))
        if whose != partition:
            return 0
        most = min(len(held), len(tokens))
        return next((place for place in range(most) if held[place] != tokens[place]), most)

    def claim(self, row: int, num_kept: int = 0) -> None:
        """Begin a row with what it holds of num_kept tokens: nothing else of an earlier one is left in it."""
        self._left.pop(row, None)
        self.buffer[:, row, :, num_kept : self._used[row]] = 0
        self._used[row] = num_kept

    def release(self, row: int, partition: str = "", tokens: Sequence[int] = ()) -> None:
        """Give a row back. tokens: those of its beginning that may be found in it, by the same partition alone."""
        self._left.pop(row, None)
        if tokens:
            self._left[row] = (partition, tuple(tokens))
        if self.wiped_with is not None:
            self.buffer[:, row, :, len(tokens) :] = self.wiped_with
            self._used[row] = self.capacity

    def move(self, source: int, target: int, num_tokens: int) -> None:
        """Put the tokens of one row into another, which is free; the first is then free."""
        self.claim(target)
        self.write(target, 0, self.buffer[:, source, :, :num_tokens])
        self.release(source)

    def arrange(self, rows: Sequence[int], num_before: int) -> None:
        """Put what rows[i] holds into row i, for all i; of the num_before rows in use the others are then free."""
        changed = [place for place, row in enumerate(rows) if place != row]
        if changed:
            longest = max(self._used[row] for place in changed for row in (place, rows[place]))
            device = self.buffer.device
            held = self.buffer[:, :, :, :longest]
            moved = held.index_select(1, torch.tensor([rows[place] for place in changed], device=device))
            held.index_copy_(1, torch.tensor(changed, device=device), moved)
            used = [self._used[row] for row in rows]
            self._used[: len(rows)] = used
        for row in range(len(rows), num_before):
            self.release(row)

    def write(self, row: int, start: int, block: Tensor) -> None:
        """Put keys and values (2 L, K, T, H) of tokens start .. start + T - 1 into a row."""
        end = start + block.shape[2]
        self.buffer[:, row, :, start:end] = block
        self.mark(row, end)

    def read(self, row: int, start: int, end: int) -> Tensor:
        """A copy of the keys and values of a row's tokens, (2 L, K, end - start, H)."""
        return self.buffer[:, row, :, start:end].clone()

    def view(self, first: int, lengths: Sequence[int], num_new: int, num_real: int | None = None) -> RowsView:
        """The rows first, first + 1, ... which hold `lengths` tokens and are about to read num_new more each.

        num_real: how many of them are anybody's, None for all; the others stand in for rows that a product must have.
        Raises ModelError when the buffer is too small.
        """
        rows = self.expect(first, lengths, num_new)
        held = torch.tensor(lengths, device=self.buffer.device)
        return RowsView(self, rows, held, num_new, steady_keys(max(lengths) + num_new), num_real)

    def expect(self, first: int, lengths: Sequence[int], num_new: int) -> range:
        """The rows of `view`, noted as those that are about to be written to. Raises ModelError as that does."""
        rows = range(first, first + len(lengths))
        longest = max(lengths) + num_new
        if longest > self.capacity or rows[-1] >= self.buffer.shape[1]:
            raise ModelError(f"{len(lengths)} rows of {longest} tokens do not fit; reserve room first")
        for row, length in zip(rows, lengths, strict=True):
            self.mark(row, length + num_new)
        return rows

    def fixed_view(self, lengths: Tensor, num_keys: int) -> RowsView:
        """Rows 0, 1, ... which hold `lengths` (R,) tokens, `expect` one more each and see num_keys places.

        Only the device reads lengths: what is recorded with them is the same step when they are others.
        """
        return RowsView(self, range(len(lengths)), lengths, 1, num_keys)

    def seen(self, rows: range, num_keys: int) -> Seen:
        """Views of some rows, made once for many steps."""
        key = (rows.start, len(rows), num_keys)
        found = self._seen.get(key)
        if found is None:
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            found = self._seen[key] = Seen(self.buffer, rows, num_keys)
        return found

    def mark(self, row: int, num_places: int) -> None:
        """Note that so many places of a row are written to; also of a free one that stands in for another."""
        self._used[row] = max(self._used[row], num_places)
        self._left.pop(row, None)


class Seen:
    """Some rows that lie one beside the other, as one new token a row sees them: what does not change with the step.

    keys: of each layer, (B K, H, S). values: of each layer, in blocks of STEADY_KEYS, (B K, s, H). first: (L, B, 2K)
    where in the whole buffer, seen as (..., H), each row's keys and values begin. slots: (S,).
    """

    def __init__(self, buffer: Tensor, rows: range, num_keys: int) -> None:
        parts, num_rows, heads, capacity, size = buffer.shape
        layers = parts // 2
        held = buffer[:, rows.start : rows.stop, :, :num_keys].flatten(1, 2)  # (2 L, B K, S, H)
        self.keys = held[:layers].transpose(2, 3).unbind(0)
        blocks = [block.unbind(0) for block in held[layers:].split(STEADY_KEYS, dim=2)]
        self.values = list(zip(*blocks, strict=True))
        device = buffer.device
        part = torch.arange(parts, device=device).view(2, layers, 1, 1)
        row = torch.arange(rows.start, rows.stop, device=device).view(-1, 1)
        head = torch.arange(heads, device=device)
        first = ((part * num_rows + row) * heads + head) * capacity  # (2, L, B, K)
        self.first = first.permute(1, 2, 0, 3).flatten(2)
        self.slots = torch.arange(num_keys, device=device)
        self.flat = buffer.view(-1, size)
        self.num_heads = heads


class RowsView:
    """Implements `model.context.Cache` for one forward over some rows of a `RowCache`, one beside the other.

    lengths: (B,) int64. num_keys: of so many places is seen what each row holds. num_real: only so many of its rows
    are anybody's. turns: where layers keep what they turn by, see `quick`.
    """

    def __init__(
        self, cache: RowCache, rows: range, lengths: Tensor, num_new: int, num_keys: int, num_real: int | None = None
    ) -> None:
        self.num_real = len(rows) if num_real is None else num_real
        self.lengths = lengths
        self.turns: tuple[Tensor, ...] | None = None
        self._cache, self._rows, self._num_new = cache, rows, num_new
        self._num_keys = num_keys
        self._num_layers = len(cache.flat) // 2
        self._places: Tensor | None = None
        self._all: Sequence[Tensor] = ()
        self._biases: dict[int, Tensor] = {}
        self._seen: Seen | None = None
        self._targets: Sequence[Tensor] = ()

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values (B, K, T, H); all of the rows', (B, K, S, H)."""
        if self._places is None:
            self._places = self._find_places()
            # All layers at once: 2 L views (B, K, S, H) cost one call.
            self._all = self._cache.buffer[:, self._rows.start : self._rows.stop, :, : self._num_keys].unbind(0)
        size, behind, flat = keys.shape[-1], layer + self._num_layers, self._cache.flat
        flat[layer].index_copy_(0, self._places, keys.reshape(-1, size))
        flat[behind].index_copy_(0, self._places, values.reshape(-1, size))
        return self._all[layer], self._all[behind]

    def put(self, layer: int, new: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Write one new token's keys and values, (B, 2K, H), of the real rows; all of theirs, as `Seen` has them."""
        seen = self.seen()
        if not self._targets:
            self._targets = (seen.first + self.lengths[: self.num_real, None]).flatten(1).unbind(0)  # L of (B 2K,)
        seen.flat.index_copy_(0, self._targets[layer], new.reshape(-1, new.shape[-1]))
        return seen.keys[layer], seen.values[layer]

    def seen(self) -> Seen:
        """What one new token of each real row sees, the same object for as long as that is the same memory."""
        if self._seen is None:
            self._seen = self._cache.seen(self._rows[: self.num_real], self._num_keys)
        return self._seen

    def bias(self, window: int) -> Tensor:
        """(B K, 1, S): 0 at the keys that a new token of each real row sees, -inf elsewhere."""
        if window not in self._biases:
            seen = self.seen()
            slots, ends = seen.slots, self.lengths[: self.num_real, None]
            hidden = slots > ends  # (B, S)
            if window:
                hidden |= slots <= ends - window
            bias = seen.flat.new_zeros(hidden.shape).masked_fill_(hidden, -math.inf)
            heads = seen.num_heads
            self._biases[window] = bias[:, None].expand(-1, heads, -1).reshape(len(bias) * heads, 1, -1)
        return self._biases[window]

    def source(self, layer: int, project: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Rows here have no source; an encoder-decoder is decoded by `beam` or in a `pool`."""
        raise ModelError("a batch of requests is for decoders that read no source")

    def _find_places(self) -> Tensor:
        """(B K T,) where in a layer's buffer, seen as (..., H), the new tokens go."""
        device, heads, capacity = self.lengths.device, self._cache.buffer.shape[2], self._cache.capacity
        first = torch.arange(self._rows.start * heads, self._rows.stop * heads, device=device) * capacity
        new = torch.arange(self._num_new, device=device)
        return (first.view(-1, heads, 1) + self.lengths[:, None, None] + new).reshape(-1)


class BatchRows:
    """The rows of one batch that is decoded as a whole, as `Engine` does: a `RowCache` of its own."""

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._cache = RowCache(config, batch, dtype, device)
        self._cache.reserve(batch, capacity)
        self._lengths = [0] * batch

    def view(self, num_new: int) -> RowsView:
        """To be read by num_new tokens more of each row."""
        return self._cache.view(0, self._lengths, num_new)

    def advance(self, num_new: Tensor) -> None:
        """Count num_new[b] (B,) int64 of the tokens just written as read by row b; the rest were padding."""
        self._lengths = [length + more for length, more in zip(self._lengths, num_new.tolist(), strict=True)]

    def select(self, rows: Tensor) -> None:
        """Keep only these rows (B',) int64, in this order."""
        kept = rows.tolist()
        self._cache.arrange(kept, len(self._lengths))
        self._lengths = [self._lengths[row] for row in kept]
