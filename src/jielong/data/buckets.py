"""Batches of sentence pairs of like lengths, by a number of tokens: little padding, and a pure function of the step."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from jielong.data.batch import Batch
from jielong.errors import DataError, UsageError
from jielong.runtime import derive_seed


class PairLoader:
    """Length-bucketed batches of pairs, epoch after epoch.

    In each epoch the pairs are laid in the order of (target's length, source's length), equal ones shuffled, and cut
    into batches whose rows times the longest side are at most batch_tokens; the batches then come in random order. The
    lengths in that order are the same in every epoch, so the cuts are too, and step k is a function of k and the seed.

    sources, targets: ids, a target from its start token to its end. accumulate: batches of one step. parts: each batch
    is dealt out to so many processes, so that a step's pairs do not depend on their number.
    num_steps_per_epoch: steps after which every pair has been visited at least once. padding_share: of all places of
    the batches, both sides, how many hold no token.
    Raises UsageError when a count is below 1 or a pair is longer than batch_tokens, DataError without any pair.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        batch_tokens: int,
        seed: int,
        accumulate: int = 1,
        parts: int = 1,
    ) -> None:
        if batch_tokens < 1 or accumulate < 1:
            raise UsageError(f"batch_tokens is {batch_tokens} and accumulate is {accumulate}, both must be at least 1")
        if not sources:
            raise DataError("there is no pair to learn from")
        self._sources, self._targets = _Ragged(sources), _Ragged(targets)
        self._seed, self._accumulate, self._parts = seed, accumulate, parts
        lengths = self._targets.lengths * (int(self._sources.lengths.max()) + 1) + self._sources.lengths
        self._keys = lengths  # (N,), by which pairs are ordered
        order = lengths.argsort(stable=True)
        self._cuts = _cuts(self._sources.lengths[order], self._targets.lengths[order], batch_tokens)
        self._orders: dict[int, tuple[Tensor, Tensor]] = {}
        self.num_batches = len(self._cuts) - 1
        self.num_steps_per_epoch: int = -(-self.num_batches // accumulate)
        self.padding_share = self._padding(order)

    def batches(self, step: int) -> list[Batch]:
        """The `accumulate` batches of a step, counted from 0, each in `parts`: those of one batch follow each other."""
        if step < 0:
            raise ValueError(f"step is {step}, must not be negative")
        positions = range(step * self._accumulate, (step + 1) * self._accumulate)
        return [batch for position in positions for batch in self._dealt(position)]

    def _dealt(self, position: int) -> list[Batch]:
        rows, batches = self._epoch(position // self.num_batches)
        number = int(batches[position % self.num_batches])
        chosen = rows[self._cuts[number] : self._cuts[number + 1]]
        return [self._batch(chosen[part :: self._parts], chosen) for part in range(self._parts)]

    def _batch(self, part: Tensor, whole: Tensor) -> Batch:
        """The batch of some rows. Where there are fewer pairs than processes, one is read that nothing is scored of."""
        if len(part):
            return pair_batch(self._sources.rows(part), self._targets.rows(part))
        batch = pair_batch(self._sources.rows(whole[:1]), self._targets.rows(whole[:1]))
        return replace(batch, mask=torch.zeros_like(batch.mask), num_units=0)

    def _epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """(pairs in order of length, order of the batches); those of two epochs are kept."""
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "pairs", epoch))
            while len(self._orders) > 1:
                del self._orders[min(self._orders)]
            shuffled = torch.randperm(len(self._keys), generator=generator)
            rows = shuffled[self._keys[shuffled].argsort(stable=True)]
            self._orders[epoch] = rows, torch.randperm(self.num_batches, generator=generator)
        return self._orders[epoch]

    def _padding(self, order: Tensor) -> float:
        places = 0
        for start, end in zip(self._cuts[:-1], self._cuts[1:], strict=True):
            longest = [int(side.lengths[order[start:end]].max()) for side in (self._sources, self._targets)]
            places += (end - start) * sum(longest)
        return 1 - int(self._sources.lengths.sum() + self._targets.lengths.sum()) / places


class _Ragged:
    """Rows of different lengths in one piece of memory."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.lengths = torch.tensor([len(row) for row in rows])  # (N,)
        flat = array("i")
        for row in rows:
            flat.extend(row)
        self._ids = torch.frombuffer(flat, dtype=torch.int32) if flat else torch.zeros(0, dtype=torch.int32)
        self._starts = self.lengths.cumsum(0) - self.lengths

    def rows(self, chosen: Tensor) -> list[Tensor]:
        starts, lengths = self._starts[chosen].tolist(), self.lengths[chosen].tolist()
        return [self._ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def _cuts(sources: Tensor, targets: Tensor, batch_tokens: int) -> list[int]:
    """Where batches begin, and the end: lengths in their order, (N,) each."""
    cuts, longest = [0], 0
    for row, pair in enumerate(zip(sources.tolist(), targets.tolist(), strict=True)):
        if max(pair) > batch_tokens:
            raise UsageError(
                f"batch_tokens = {batch_tokens} has no room for a pair of {pair[0]} and {pair[1]} tokens; raise it, or "
                "lower context_tokens, beyond which pairs are left out"
            )
        longest = max(longest, *pair)
        if (row + 1 - cuts[-1]) * longest > batch_tokens:
            cuts.append(row)
            longest = max(pair)
    return [*cuts, len(sources)]


def pair_batch(sources: Sequence[Tensor | Sequence[int]], targets: Sequence[Tensor | Sequence[int]]) -> Batch:
    """A Batch of pairs: every token of a target but its first is scored."""
    source, source_segments = padded(sources)
    tokens, segments = padded(targets)
    mask = segments > 0
    mask[:, 0] = False
    return Batch(tokens, mask, segments, int(mask.sum()), source=source, source_segments=source_segments)


def padded(rows: Sequence[Tensor | Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(tokens (B, T) int64, 0 at padding; segments (B, T) int32, 1 where there is a token) of rows of ids."""
    tokens = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.int64)
    segments = torch.zeros(tokens.shape, dtype=torch.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.as_tensor(row)
        segments[index, : len(row)] = 1
    return tokens, segments
