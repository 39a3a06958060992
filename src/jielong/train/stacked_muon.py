"""Muon whose matrices of one shape are made orthogonal together: fewer and larger operations, the same arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Elements of the matrices that go together. On a CPU larger stacks leave its caches, and a matrix of this size keeps
# its threads busy alone; elsewhere what counts is how many operations are started.
STACK_ELEMENTS, STACK_ELEMENTS_ELSEWHERE = 2**19, 2**25


class StackedMuon(torch.optim.Muon):
    """torch.optim.Muon with the same states and groups: to the bit its step, where this was looked at (x86 CPUs).

    benchmarks/muon_speed.py has both: the demo's model takes 11 ms instead of 18 on two threads.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step. A closure is not taken: nothing here evaluates the loss again."""
        assert closure is None
        for group in self.param_groups:
            trained: list[Tensor] = []
            gradients: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, trained, gradients, momenta)
            for chosen in _stacks(trained):
                stack, of_stack = [trained[index] for index in chosen], [gradients[index] for index in chosen]
                self._move(stack, of_stack, [momenta[index] for index in chosen], group)

    @staticmethod
    def _move(trained: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], group: dict[str, Any]) -> None:
        """torch.optim.Muon's step of matrices of one shape, in its order of arithmetic."""
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = momenta
        if group["nesterov"]:
            directions = list(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        updates = orthogonal(directions, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = trained[0].shape
        torch._foreach_mul_(trained, 1 - group["lr"] * group["weight_decay"])
        for parameter, update in zip(trained, updates, strict=True):
            parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def _stacks(matrices: list[Tensor]) -> Iterator[list[int]]:
    """Indexes of matrices of one shape on one device, so many that they have STACK_ELEMENTS at most; or one."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, matrix in enumerate(matrices):
        alike.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append(index)
    for indexes in alike.values():
        one = matrices[indexes[0]]
        most = STACK_ELEMENTS if one.device.type == "cpu" else STACK_ELEMENTS_ELSEWHERE
        num_stacks = math.ceil(len(indexes) / max(1, most // one.numel()))
        size = math.ceil(len(indexes) / num_stacks)  # all nearly as high
        yield from (indexes[start : start + size] for start in range(0, len(indexes), size))


def orthogonal(
    matrices: list[Tensor], coefficients: tuple[float, float, float], num_steps: int, eps: float
) -> tuple[Tensor, ...]:
    """U V^T, nearly, of each matrix U S V^T (m, n), all of one shape: bfloat16, S between 0.7 and 1.2.

    Newton and Schulz's iteration x <- a x + (b G + c G^2) x with G = x x^T, on the matrices' shorter side.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    a, b, c = coefficients
    narrow = [matrix.bfloat16() for matrix in matrices]
    norms = torch.stack(torch._foreach_norm(narrow)).clamp_(min=eps)
    stacked = torch.stack(narrow).div_(norms[:, None, None])  # (M, m, n)
    tall = stacked.shape[1] > stacked.shape[2]
    x = stacked.mT if tall else stacked
    for _ in range(num_steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).unbind()
