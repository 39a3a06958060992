"""Keys and values of the requests that run: one row each, in one buffer that is used again and again.

Why rows and not pages: attention here is a few torch calls over keys and values that lie together, so pages would have
to be gathered, that is copied, for every layer of every step. A row costs one copy when it is begun from the prefix
cache and one when it changes its place. What pages would save is memory behind short rows beside a long one; the buffer
is only as long as the longest row that has run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jielong.errors import ModelError
from jielong.model.config import ModelConfig
from jielong.model.kernels import STEADY_KEYS, steady_keys


class RowCache:
    """A buffer (2 L, rows, K, capacity, H): keys of all layers, then values. It grows as it is needed.

    max_rows: most rows. wiped_with: tests write NaN into what is given back, to see that nothing ever reads it. A row
    holds zeros beyond its tokens from `claim` on, for attention gives those places the weight 0, and 0 * NaN is NaN.
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
        self.flat: Sequence[Tensor] = ()  # a layer's buffer as (rows * K * capacity, H), one for each of 2 L
        self._used: list[int] = []  # how many places of a row may hold something other than 0

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
        self.buffer[:, : old.shape[1], :, : old.shape[3]] = old
        self.flat = self.buffer.view(layers, -1, size).unbind(0)
        self._used += [0] * (rows - len(self._used))

    def claim(self, row: int) -> None:
        """Begin a row: nothing of an earlier one is left in it."""
        self.buffer[:, row, :, : self._used[row]] = 0
        self._used[row] = 0

    def release(self, row: int) -> None:
        """Give a row back."""
        if self.wiped_with is not None:
            self.buffer[:, row] = self.wiped_with
            self._used[row] = self.capacity

    def move(self, source: int, target: int, num_tokens: int) -> None:
        """Put the tokens of one row into another, which is free; the first is then free."""
        self.claim(target)
        self.write(target, 0, self.buffer[:, source, :, :num_tokens])
        self.release(source)

    def write(self, row: int, start: int, block: Tensor) -> None:
        """Put keys and values (2 L, K, T, H) of tokens start .. start + T - 1 into a row."""
        end = start + block.shape[2]
        self.buffer[:, row, :, start:end] = block
        self._used[row] = max(self._used[row], end)

    def read(self, row: int, start: int, end: int) -> Tensor:
        """A copy of the keys and values of a row's tokens, (2 L, K, end - start, H)."""
        return self.buffer[:, row, :, start:end].clone()

    def view(self, first: int, lengths: Sequence[int], num_new: int) -> RowsView:
        """The rows first, first + 1, ... which hold `lengths` tokens and are about to read num_new more each.

        Raises ModelError when the buffer is too small.
        """
        rows = range(first, first + len(lengths))
        longest = max(lengths) + num_new
        if longest > self.capacity or rows[-1] >= self.buffer.shape[1]:
            raise ModelError(f"{len(lengths)} rows of {longest} tokens do not fit; reserve room first")
        for row, length in zip(rows, lengths, strict=True):
            self._used[row] = max(self._used[row], length + num_new)
        return RowsView(self, rows, lengths, num_new)


class RowsView:
    """Implements `model.context.Cache` for one forward over some rows of a `RowCache`, one beside the other."""

    def __init__(self, cache: RowCache, rows: range, lengths: Sequence[int], num_new: int) -> None:
        device = cache.buffer.device
        self.lengths = torch.tensor(lengths, device=device)  # (B,)
        heads, capacity = cache.buffer.shape[2], cache.capacity
        num_keys = steady_keys(max(lengths) + num_new)
        self._flat = cache.flat
        # All layers at once: 2 L views (B, K, S, H) cost one call.
        self._seen = cache.buffer[:, rows[0] : rows[-1] + 1, :, :num_keys].unbind(0)
        self._num_layers = len(self._flat) // 2
        first = torch.arange(rows[0] * heads, (rows[-1] + 1) * heads, device=device).view(-1, heads, 1) * capacity
        new = torch.arange(num_new, device=device)
        self._places = (first + self.lengths[:, None, None] + new).reshape(-1)  # (B K T,)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values (B, K, T, H); all of the rows', (B, K, S, H)."""
        size, behind = keys.shape[-1], layer + self._num_layers
        self._flat[layer].index_copy_(0, self._places, keys.reshape(-1, size))
        self._flat[behind].index_copy_(0, self._places, values.reshape(-1, size))
        return self._seen[layer], self._seen[behind]

    def source(self, layer: int, project: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Rows here have no source; an encoder-decoder is decoded by `beam`."""
        raise ModelError("a batch of requests is for decoders that read no source")
