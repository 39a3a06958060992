"""Rows out of token shards, made when they are asked for: what `pack.pack_stream` would make of the same documents.

Row r of a source is its tokens r · T to (r + 1) · T, its last row is padded, and rows never hold two sources' text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jielong.data.batch import Batch
from jielong.data.pack import Rows
from jielong.data.shards import Stream
from jielong.errors import DataError, UsageError

Ints = NDArray[np.int64]


class StreamRows:
    """The rows of one or several sources, those of a source together.

    streams: each source's tokens. row_tokens: T. vocab_size: all tokens are below it, or a shard is damaged.
    sizes: rows of each source. num_tokens: without padding.
    Raises UsageError when row_tokens is below 2.
    """

    def __init__(self, streams: Sequence[Stream], row_tokens: int, vocab_size: int) -> None:
        if row_tokens < 2:
            raise UsageError(f"row_tokens is {row_tokens}, must be at least 2: one token to see and one to predict")
        self._streams, self._vocab_size = streams, vocab_size
        self.row_tokens: int = row_tokens
        self.sizes: tuple[int, ...] = tuple(-(-stream.num_tokens // row_tokens) for stream in streams)
        self.num_tokens: int = sum(stream.num_tokens for stream in streams)
        self._firsts: list[int] = np.cumsum([0, *self.sizes]).tolist()

    def __len__(self) -> int:
        return self._firsts[-1]

    @property
    def num_scored(self) -> int:
        """Tokens that are scored: all but the first of each row and of each document. Looks at each row's first."""
        num_both = sum(stream.num_starts_at(self.row_tokens) for stream in self._streams)
        return self.num_tokens - len(self) - sum(stream.num_documents for stream in self._streams) + num_both

    def batch(self, indices: Tensor | Sequence[int]) -> Batch:
        """These rows, in this order, as a batch whose num_units is the number of scored tokens.

        Raises DataError naming the place of a token that the vocabulary does not have.
        """
        tokens, mask, segments = self._rows(torch.as_tensor(indices, dtype=torch.int64).tolist())
        num_units = int(np.count_nonzero(mask))
        return Batch(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(segments), num_units=num_units)

    def sample(self, max_tokens: int) -> Rows:
        """All rows in memory, or every n-th so that they hold about max_tokens at most."""
        every = max(1, -(-self.num_tokens // max_tokens))
        tokens, mask, segments = self._rows(list(range(0, len(self), every)))
        return Rows(torch.from_numpy(tokens).int(), torch.from_numpy(mask), torch.from_numpy(segments))

    def _rows(self, rows: list[int]) -> tuple[Ints, NDArray[np.bool_], NDArray[np.int32]]:
        """(tokens, mask, segments), (B, T) each, as `pack.Rows` explains them."""
        shape = len(rows), self.row_tokens
        tokens, is_start = np.empty(shape, np.int64), np.zeros(shape, bool)
        padded = []
        for index, row in enumerate(rows):
            number = bisect_right(self._firsts, row) - 1
            first = (row - self._firsts[number]) * self.row_tokens
            filled = self._streams[number].read(first, tokens[index], is_start[index])
            if filled < self.row_tokens:
                tokens[index, filled:] = 0
                padded.append((index, filled))
        is_start[:, 0] = True  # a document that goes on from the row before is a segment of its own here
        segments = np.cumsum(is_start, axis=1, dtype=np.int32)
        mask = ~is_start
        for index, filled in padded:
            segments[index, filled:] = 0
            mask[index, filled:] = False
        if tokens.size and tokens.max() >= self._vocab_size:
            self._refuse(rows, tokens)
        return tokens, mask, segments

    def _refuse(self, rows: list[int], tokens: Ints) -> None:
        index, column = np.argwhere(tokens >= self._vocab_size)[0].tolist()
        number = bisect_right(self._firsts, rows[index]) - 1
        place = self._streams[number].place((rows[index] - self._firsts[number]) * self.row_tokens + column)
        raise DataError(
            f"{place}: the token there is {tokens[index, column]}, legal are 0 to {self._vocab_size - 1}: the shard is "
            "damaged; remove its folder to encode the text anew"
        )
