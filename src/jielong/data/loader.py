"""Which rows make up which training step: a pure function of the step, so that resuming needs no saved position."""

from __future__ import annotations

import torch
from torch import Tensor

from jielong.data.batch import Batch
from jielong.data.pack import Rows
from jielong.errors import DataError, UsageError
from jielong.runtime import derive_seed


class RowOrder:
    """Which of num_rows rows each step takes, group of them a step.

    The epochs' permutations, laid end to end, form one endless sequence of rows; step k takes the k-th group from it.
    Each epoch so visits each row exactly once, and no row is left out because the count does not divide; a step may
    hold the end of one epoch and the beginning of the next.
    """

    def __init__(self, num_rows: int, group: int, seed: int) -> None:
        self._num_rows, self._group, self._seed = num_rows, group, seed
        self._orders: dict[int, Tensor] = {}  # epoch -> permutation, the last two only
        self.num_steps_per_epoch: int = -(-num_rows // group)  # after which each row has been visited at least once

    def indices(self, step: int) -> Tensor:
        """Row numbers of a step, (group,) int64. Depends on the seed and the step only."""
        if step < 0:
            raise ValueError(f"step is {step}, must not be negative")
        positions = torch.arange(step * self._group, (step + 1) * self._group)
        epochs = positions // self._num_rows
        picked = [
            self._order(epoch)[positions[epochs == epoch] % self._num_rows]
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
        ]
        return torch.cat(picked)

    def _order(self, epoch: int) -> Tensor:
        """The epoch's permutation, kept while it is in use: making it anew each step would cost as much as a batch."""
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "rows", epoch))
            while len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[epoch] = torch.randperm(self._num_rows, generator=generator)
        return self._orders[epoch]


class RowLoader:
    """Shuffled rows, epoch after epoch, in the order of `RowOrder`.

    rows: the packed corpus. batch_rows: rows of one micro-batch. runtime_seed: the run's seed. accumulate:
    micro-batches of one step. num_steps_per_epoch: steps after which each row has been visited at least once.
    Raises DataError when there are fewer rows than batch_rows, UsageError when a count is below 1.
    """

    def __init__(self, rows: Rows, batch_rows: int, runtime_seed: int, accumulate: int = 1) -> None:
        if batch_rows < 1 or accumulate < 1:
            raise UsageError(f"batch_rows is {batch_rows} and accumulate is {accumulate}, both must be at least 1")
        if len(rows) < batch_rows:
            raise DataError(
                f"the corpus is smaller than one batch: {rows.num_tokens} tokens make {len(rows)} rows of "
                f"{rows.tokens.shape[1]} tokens, but batch_rows is {batch_rows}; lower batch_rows or the row length, "
                "or give more text"
            )
        self._rows = rows
        self._batch_rows = batch_rows
        self._order = RowOrder(len(rows), batch_rows * accumulate, runtime_seed)
        self.num_steps_per_epoch: int = self._order.num_steps_per_epoch

    def batches(self, step: int) -> list[Batch]:
        """The `accumulate` micro-batches of a step (from 0), each of batch_rows rows."""
        return [self._rows.batch(part) for part in self.indices(step).split(self._batch_rows)]

    def indices(self, step: int) -> Tensor:
        """Row numbers of a step, (batch_rows * accumulate,) int64."""
        return self._order.indices(step)
