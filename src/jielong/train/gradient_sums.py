"""Gradients summed over processes while the way back still makes others of them.

They are summed in buckets, from the last layer's to the first's, which is about the order in which they come. A bucket
begins when all its gradients are there and all buckets before it have begun, so that every process sums the same
buckets in the same order, whatever it has of its own. What comes never, or too late, is summed after the way back.
Source: Li et al. 2020, arXiv:2006.15704, section 3.2. Unlike there, buckets are not regrouped in the order in which
gradients came the first time: the order of the model's parameters does, and needs nothing told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jielong.runtime import Runtime
from jielong.train.parallel import begin_sum, buckets

BUCKET_BYTES = 16 << 20  # small enough that most of a model's gradients travel while the rest is computed


@dataclass
class _Begun:
    """A bucket that is on its way. flat: its gradients one after the other, then 1 or 0 for each: is there one here?"""

    bucket: list[nn.Parameter]
    flat: Tensor
    whole: bool  # whether this process has a gradient for each
    wait: Callable[[], None]


class GradientSums:
    """The sums of one step's gradients over the processes that read different rows.

    Where weights are shared out, who gathers them sums their gradients, and nothing is done here. model: its
    parameters, from the last to the first, give the order. parameters: those that are learned; any that the model does
    not have come last. `as_they_come` is held around the last way back of a step, when gradients are complete; it may
    be left out, which changes no bit. `finish` comes after it.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter], runtime: Runtime) -> None:
        self._runtime = runtime
        summed_here = runtime.world_size > 1 and runtime.mesh is None
        ordered = _last_first(model, parameters) if summed_here else []
        self._buckets = list(buckets(ordered, BUCKET_BYTES))
        self._number = {id(parameter): number for number, bucket in enumerate(self._buckets) for parameter in bucket}
        self._missing = [{id(parameter) for parameter in bucket} for bucket in self._buckets]
        self._begun: list[_Begun] = []

    @contextmanager
    def as_they_come(self) -> Iterator[None]:
        """Within the block, a gradient that is made is taken to be complete, and its bucket to be on its way."""
        learned = [parameter for bucket in self._buckets for parameter in bucket if parameter.requires_grad]
        hooks = [parameter.register_post_accumulate_grad_hook(self._came) for parameter in learned]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self) -> None:
        """Each gradient is now the sum; where no process has one, there is none, as with a single process.

        A process that has no gradient counts as zero. Raises TrainingError when another process is gone.
        """
        while len(self._begun) < len(self._buckets):
            self._begin()
        for begun in self._begun:
            begun.wait()
            if begun.whole:  # else it is to be seen who has one, which on a GPU is to wait for it
                continue
            for parameter, num_there in zip(begun.bucket, begun.flat[-len(begun.bucket) :].tolist(), strict=True):
                if not num_there:
                    parameter.grad = None

    def _came(self, parameter: Tensor) -> None:
        """A gradient is there."""
        number = self._number[id(parameter)]
        assert number >= len(self._begun), "a gradient was added to when its sum had begun"
        self._missing[number].discard(id(parameter))
        while len(self._begun) < len(self._buckets) and not self._missing[len(self._begun)]:
            self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        """Send the next bucket. Its gradients are from now on parts of what is sent: there is no other copy."""
        bucket = self._buckets[len(self._begun)]
        there = [parameter.grad is not None for parameter in bucket]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flags = grads[0].new_ones(len(bucket))  # made on the device: a copy to it would wait for the way back
        for index, here in enumerate(there):
            if not here:
                flags[index] = 0
        flat = torch.cat([*(grad.flatten() for grad in grads), flags])
        pieces = flat.split([*(grad.numel() for grad in grads), len(bucket)])
        for parameter, piece in zip(bucket, pieces[:-1], strict=True):
            parameter.grad = piece.view(parameter.shape)
        self._begun.append(_Begun(bucket, flat, all(there), begin_sum(flat, self._runtime, self._runtime.group)))


def _last_first(model: nn.Module, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters in the order of the model's, from its last to its first, and then those that are not its own."""
    place = {id(parameter): number for number, parameter in enumerate(model.parameters())}
    return sorted(parameters, key=lambda parameter: -place.get(id(parameter), -1))
