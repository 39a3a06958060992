"""Rows of equal length out of documents and conversations of any length.

Both packers mark what is scored and which segment each token belongs to, so that attention, positions and loss treat a
packed document exactly as they would treat it alone. Padding is on the right: segment 0, not scored, token 0 (which
nothing reads: masks come from segments, never from comparing ids).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jielong.data.batch import Batch
from jielong.errors import DataError, UsageError
from jielong.tensors import write_tensors


@dataclass(frozen=True)
class Rows:
    """Packed rows. tokens: (R, T) int32. mask: (R, T) bool, scored tokens. segments: (R, T) int32, 0 = padding.

    num_dropped: examples left out because they were longer than a row.
    Raises ValueError when shapes or dtypes are wrong, or a token is scored that has no earlier token in its segment.
    """

    tokens: Tensor
    mask: Tensor
    segments: Tensor
    num_dropped: int = 0

    def __post_init__(self) -> None:
        if not self.tokens.dim() == 2 or not self.tokens.shape == self.mask.shape == self.segments.shape:
            shapes = [tuple(tensor.shape) for tensor in (self.tokens, self.mask, self.segments)]
            raise ValueError(f"tokens, mask, segments have shapes {shapes}, must be the same (rows, tokens)")
        if (self.tokens.dtype, self.mask.dtype, self.segments.dtype) != (torch.int32, torch.bool, torch.int32):
            raise ValueError("tokens, mask, segments must be int32, bool, int32")
        mask, segments = self.mask.numpy(), self.segments.numpy()
        unscorable = segments == 0
        unscorable[:, :1] = True
        unscorable[:, 1:] |= segments[:, 1:] != segments[:, :-1]
        if (mask & unscorable).any():
            raise ValueError("the first token of a segment, or padding, is scored: nothing predicts it")

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def row_tokens(self) -> int:
        """T, padding included."""
        return self.tokens.shape[1]

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.segments > 0).sum())

    @property
    def num_scored(self) -> int:
        """Tokens that are scored."""
        return int(self.mask.sum())

    def batch(self, indices: Tensor | Sequence[int]) -> Batch:
        """These rows, in this order, as a batch whose num_units is the number of scored tokens."""
        picked = torch.as_tensor(indices, dtype=torch.int64)
        mask = self.mask[picked]
        return Batch(self.tokens[picked].long(), mask, self.segments[picked], num_units=int(mask.sum()))

    def save(self, path: str | Path) -> None:
        """Writes the rows to one safetensors file, whole or not at all. Raises StorageError when there is no room."""
        tensors = {"tokens": self.tokens, "mask": self.mask, "segments": self.segments}
        write_tensors(path, tensors, {"num_dropped": str(self.num_dropped)})

    @classmethod
    def load(cls, path: str | Path) -> Rows:
        """Rows that `save` wrote. Raises DataError naming the file when it is missing, cut off or of another kind."""
        path = Path(path)
        if not path.is_file():
            raise DataError(
                f"{path} is missing: it should hold packed rows; delete its stage's folder to make it again"
            )
        try:
            with safe_open(path, framework="pt") as file:
                num_dropped = int((file.metadata() or {})["num_dropped"])
                tokens, mask, segments = (file.get_tensor(name) for name in ("tokens", "mask", "segments"))
            return cls(tokens, mask, segments, num_dropped)
        except (SafetensorError, KeyError, ValueError) as error:
            raise DataError(f"{path} does not hold packed rows, it may be cut off: {error}") from error


def pack_stream(documents: Iterable[Sequence[int]], row_tokens: int) -> Rows:
    """Pre-training rows: documents laid end to end and cut every row_tokens; nothing is dropped.

    documents: ids of each, [bos] ... [eos]; empty ones are passed over. A document cut by the end of a row goes on in
    the next, where its first token is context and not scored. Segments count 1, 2, ... within a row; the last row is
    padded. Raises UsageError when row_tokens is below 2.
    """
    _check_row_tokens(row_tokens)
    flat = array("i")
    lengths = array("q")
    for document in documents:
        if document:
            flat.extend(document)
            lengths.append(len(document))
    num_rows = -(-len(flat) // row_tokens)
    shape = (num_rows, row_tokens)
    tokens = _padded(np.frombuffer(flat, dtype=np.int32) if flat else np.zeros(0, np.int32), num_rows * row_tokens)
    if num_rows == 0:
        return _rows(tokens, np.zeros(0, bool), np.zeros(0, np.int32), shape)
    ends = np.cumsum(np.frombuffer(lengths, dtype=np.int64))
    is_start = np.zeros(num_rows * row_tokens, bool)
    is_start[0] = True
    is_start[ends[:-1]] = True
    document_numbers = np.cumsum(is_start, dtype=np.int32).reshape(shape)
    segments = (document_numbers - document_numbers[:, :1] + 1).reshape(-1)
    segments[len(flat) :] = 0
    mask = ~is_start
    mask[::row_tokens] = False
    mask[len(flat) :] = False
    return _rows(tokens, mask, segments, shape)


def pack_examples(
    examples: Iterable[tuple[Sequence[int], Sequence[bool]]], row_tokens: int, *, packed: bool = True
) -> Rows:
    """Chat rows: examples are never cut; one longer than a row is dropped and counted.

    examples: (ids, scored) as `chat.render` gives them. packed=True puts several into a row, each its own segment,
    longest first, each where it leaves the least room (best-fit decreasing); packed=False one to a row, in order.
    Raises UsageError when row_tokens is below 2; ValueError when an example's two lists differ in length.
    """
    _check_row_tokens(row_tokens)
    tokens, scored = array("i"), bytearray()
    lengths: list[int] = []
    num_dropped = 0
    for ids, flags in examples:
        if len(ids) != len(flags):
            raise ValueError(f"an example has {len(ids)} ids but {len(flags)} scored flags")
        if len(ids) > row_tokens:
            num_dropped += 1
        elif ids:
            tokens.extend(ids)
            scored.extend(flags)
            lengths.append(len(ids))
    if packed:
        rows, columns, numbers = _best_fit(lengths, row_tokens)
    else:
        rows, columns, numbers = list(range(len(lengths))), [0] * len(lengths), [1] * len(lengths)
    num_rows = max(rows, default=-1) + 1
    size = np.asarray(lengths, dtype=np.int64)
    first = np.cumsum(size) - size  # where each example begins in the flat arrays
    begin = np.asarray(rows, dtype=np.int64) * row_tokens + np.asarray(columns, dtype=np.int64)
    place = np.repeat(begin - first, size) + np.arange(len(tokens))
    laid_tokens = np.zeros(num_rows * row_tokens, np.int32)
    laid_mask = np.zeros(num_rows * row_tokens, bool)
    segments = np.zeros(num_rows * row_tokens, np.int32)
    laid_tokens[place] = np.asarray(tokens, dtype=np.int32)
    laid_mask[place] = np.frombuffer(bytes(scored), dtype=np.uint8) != 0
    segments[place] = np.repeat(np.asarray(numbers, dtype=np.int32), size)
    return _rows(laid_tokens, laid_mask, segments, (num_rows, row_tokens), num_dropped)


def _best_fit(lengths: Sequence[int], row_tokens: int) -> tuple[list[int], list[int], list[int]]:
    """Row, first column and segment number of each example, in the order given.

    Longest first (ties in order), each into the row with the least room that still takes it. Rows are kept in one list
    per amount of room, and the amounts in use sorted: finding the row is a bisection, whatever the number of rows.
    """
    rows, columns, numbers = [0] * len(lengths), [0] * len(lengths), [0] * len(lengths)
    rows_with_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # sorted keys of rows_with_room
    counts: list[int] = []  # examples in each row
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        found = bisect_left(rooms, lengths[index])
        if found == len(rooms):
            row, room = len(counts), row_tokens
            counts.append(0)
        else:
            room = rooms[found]
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                del rows_with_room[room]
                rooms.pop(found)
        counts[row] += 1
        rows[index], columns[index], numbers[index] = row, row_tokens - room, counts[row]
        left = room - lengths[index]
        if left not in rows_with_room:
            rows_with_room[left] = []
            insort(rooms, left)
        rows_with_room[left].append(row)
    return rows, columns, numbers


def _check_row_tokens(row_tokens: int) -> None:
    if row_tokens < 2:
        raise UsageError(f"row_tokens is {row_tokens}, must be at least 2: one token to see and one to predict")


def _padded(values: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    padded = np.zeros(size, np.int32)
    padded[: len(values)] = values
    return padded


def _rows(
    tokens: NDArray[np.int32],
    mask: NDArray[np.bool_],
    segments: NDArray[np.int32],
    shape: tuple[int, int],
    num_dropped: int = 0,
) -> Rows:
    return Rows(
        torch.from_numpy(tokens.reshape(shape)),
        torch.from_numpy(mask.reshape(shape)),
        torch.from_numpy(segments.reshape(shape)),
        num_dropped,
    )
