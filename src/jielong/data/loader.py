"""Which rows make up which training step: a pure function of the step, so that resuming needs no saved position.

Nothing here grows with the corpus: an order is computed, row by row, and rows are made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jielong.data.batch import Batch
from jielong.data.mixture import Mixture
from jielong.data.permutation import Permutation
from jielong.errors import DataError, UsageError
from jielong.runtime import derive_seed

Ints = NDArray[np.int64]
ItemT = TypeVar("ItemT")


class RowSource(Protocol):
    """What a loader needs of rows; `pack.Rows` (in memory) and `stream.StreamRows` (on the disk) have it."""

    def __len__(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def row_tokens(self) -> int: ...

    def batch(self, indices: Tensor) -> Batch: ...


class Shuffled:
    """Row numbers without end: epoch after epoch, each a permutation of its own of all num_rows rows."""

    def __init__(self, num_rows: int, seed: int) -> None:
        self._num_rows, self._seed = num_rows, seed
        self._orders: dict[int, Permutation] = {}  # of the epochs in use: their keys are hashes, a step costs less

    def at(self, places: Ints) -> Ints:
        """The row numbers at these places of the sequence, (n,) int64 each; places rise."""
        epochs, within = np.divmod(places, self._num_rows)
        first, last = int(epochs[0]), int(epochs[-1])
        if first == last:
            return self._order(first).at(within)
        pieces = [self._order(epoch).at(within[epochs == epoch]) for epoch in range(first, last + 1)]
        return np.concatenate(pieces)

    def _order(self, epoch: int) -> Permutation:
        if epoch not in self._orders:
            while len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[epoch] = Permutation(self._num_rows, derive_seed(self._seed, "rows", epoch))
        return self._orders[epoch]


class RowOrder:
    """Which of num_rows rows each step takes, group of them a step.

    The epochs' permutations, laid end to end, form one endless sequence of rows; step k takes the k-th group from it.
    Each epoch so visits each row exactly once, and no row is left out because the count does not divide; a step may
    hold the end of one epoch and the beginning of the next.
    """

    def __init__(self, num_rows: int, group: int, seed: int) -> None:
        self._rows, self._group = Shuffled(num_rows, seed), group
        self.num_steps_per_epoch: int = -(-num_rows // group)  # after which each row has been visited at least once

    def indices(self, step: int) -> Tensor:
        """Row numbers of a step, (group,) int64. Depends on the seed and the step only."""
        return torch.from_numpy(self._rows.at(_places(step, self._group)))


class MixedOrder:
    """Which rows each step takes, of sources that are mixed by weight.

    sizes: rows of each source; the rows of all are numbered through, source after source. weights: what part of all
    rows read is the source's, in proportion. Each source has a sequence of its own, as in `RowOrder`: a small source
    with a large weight is read often, a large one with a small weight perhaps not to its end.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], group: int, seed: int) -> None:
        self._mixture, self._group = Mixture(weights), group
        self._rows = [Shuffled(size, derive_seed(seed, "source", number)) for number, size in enumerate(sizes)]
        self._firsts = np.cumsum([0, *sizes[:-1]])
        self.num_steps_per_epoch: int = -(-sum(sizes) // group)  # as many rows as there are, though not each once

    def indices(self, step: int) -> Tensor:
        """Row numbers of a step, (group,) int64. Depends on the seed and the step only."""
        sources, turns = self._mixture.at(_places(step, self._group))
        rows = np.empty(self._group, dtype=np.int64)
        for number, (shuffled, first) in enumerate(zip(self._rows, self._firsts, strict=True)):
            mine = sources == number
            if mine.any():
                rows[mine] = shuffled.at(turns[mine]) + first
        return torch.from_numpy(rows)


def _places(step: int, group: int) -> Ints:
    if step < 0:
        raise ValueError(f"step is {step}, must not be negative")
    return np.arange(step * group, (step + 1) * group)


class Lazy(Sequence[ItemT]):
    """Things that are made when they are asked for: a process that takes every n-th makes only those."""

    def __init__(self, num: int, make: Callable[[int], ItemT]) -> None:
        self._num, self._make = num, make

    def __len__(self) -> int:
        return self._num

    @overload
    def __getitem__(self, index: int) -> ItemT: ...
    @overload
    def __getitem__(self, index: slice) -> list[ItemT]: ...
    def __getitem__(self, index: int | slice) -> ItemT | list[ItemT]:
        found = range(self._num)[index]  # counts from the end, and refuses what lies beyond it
        return self._make(found) if isinstance(found, int) else [self._make(number) for number in found]


class RowLoader:
    """Shuffled rows, epoch after epoch, in the order of `RowOrder`; with weights, of `MixedOrder`.

    rows: the packed corpus. batch_rows: rows of one micro-batch. runtime_seed: the run's seed. accumulate:
    micro-batches of one step. mixed: the sources' rows and their weights, whose rows stand in `rows` one source after
    another. num_steps_per_epoch: steps after which as many rows have been visited as there are.
    Raises DataError when there are fewer rows than batch_rows, UsageError when a count is below 1.
    """

    def __init__(
        self,
        rows: RowSource,
        batch_rows: int,
        runtime_seed: int,
        accumulate: int = 1,
        mixed: tuple[Sequence[int], Sequence[float]] | None = None,
    ) -> None:
        if batch_rows < 1 or accumulate < 1:
            raise UsageError(f"batch_rows is {batch_rows} and accumulate is {accumulate}, both must be at least 1")
        if len(rows) < batch_rows:
            raise DataError(
                f"the corpus is smaller than one batch: {rows.num_tokens} tokens make {len(rows)} rows of "
                f"{rows.row_tokens} tokens, but batch_rows is {batch_rows}; lower batch_rows or the row length, "
                "or give more text"
            )
        self._rows, self._batch_rows, self._accumulate = rows, batch_rows, accumulate
        group = batch_rows * accumulate
        self._order: RowOrder | MixedOrder
        if mixed is None:
            self._order = RowOrder(len(rows), group, runtime_seed)
        else:
            self._order = MixedOrder(*mixed, group, runtime_seed)
        self.num_steps_per_epoch: int = self._order.num_steps_per_epoch

    def batches(self, step: int) -> Sequence[Batch]:
        """The `accumulate` micro-batches of a step (from 0), each of batch_rows rows, each made when it is taken."""
        parts = self.indices(step).split(self._batch_rows)
        return Lazy(len(parts), lambda number: self._rows.batch(parts[number]))

    def indices(self, step: int) -> Tensor:
        """Row numbers of a step, (batch_rows * accumulate,) int64."""
        return self._order.indices(step)
