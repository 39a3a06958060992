"""Matrices that are made orthogonal together move as torch.optim.Muon moves each alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jielong.train import stacked_muon
from jielong.train.stacked_muon import StackedMuon, orthogonal

SHAPES = [(48, 128), (128, 48), (64, 64), (48, 128), (48, 128), (64, 64), (128, 48)]  # wide, tall, square; mixed up


def matrices() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]


def trained(kind: type[torch.optim.Muon], nesterov: bool, steps: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    """The matrices after some steps, and their momenta; the second has no gradient in the first step."""
    moved = matrices()
    optimizer = kind(moved, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=nesterov)
    generator = torch.Generator().manual_seed(6)
    for step in range(steps):
        for index, matrix in enumerate(moved):
            gradient = torch.randn(matrix.shape, generator=generator)
            matrix.grad = None if step == 0 and index == 1 else gradient
        optimizer.step()
    return [matrix.detach() for matrix in moved], [optimizer.state[matrix]["momentum_buffer"] for matrix in moved]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("elements", [1, 2 * 48 * 128, 2**19])
def test_together_as_alone(nesterov: bool, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However high the stacks are. What rounding may differ in is a hundredth of what a step moves an entry by."""
    monkeypatch.setattr(stacked_muon, "STACK_ELEMENTS", elements)
    together, momenta = trained(StackedMuon, nesterov)
    alone, their_momenta = trained(torch.optim.Muon, nesterov)
    for mine, other, start in zip(together, alone, matrices(), strict=True):
        moved_by = float((other - start.detach()).square().mean().sqrt())
        assert moved_by > 0.001 and float((mine - other).abs().max()) <= 0.01 * moved_by
    assert all(torch.equal(mine, other) for mine, other in zip(momenta, their_momenta, strict=True))


def test_stacks_hold_matrices_of_one_shape_and_no_more_than_fit() -> None:
    shapes = matrices()
    assert list(stacked_muon._stacks(shapes)) == [[0, 3, 4], [1, 6], [2, 5]]
    many = [torch.empty(2**8, 2**9) for _ in range(9)]  # four of them fit
    assert list(stacked_muon._stacks(many)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert list(stacked_muon._stacks([torch.empty(2**10, 2**10)] * 2)) == [[0], [1]], "too large to go together"


@pytest.mark.parametrize("shape", [(48, 128), (128, 48), (64, 64)])
def test_all_directions_of_an_update_are_nearly_as_long(shape: tuple[int, int]) -> None:
    """Singular values of a random matrix, which spread widely, end between 0.6 and 1.3 (the post's own plot)."""
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(shape, generator=generator) * scale for scale in (1e-4, 1.0, 30.0)]
    for found in orthogonal(given, (3.4445, -4.7750, 2.0315), 5, 1e-7):
        assert found.dtype == torch.bfloat16 and found.shape == shape
        values = torch.linalg.svdvals(found.float())
        kept = values if shape[0] != shape[1] else values[:-4]  # a square one has some that were nearly zero
        assert float(kept.max()) < 1.3 and float(kept.min()) > 0.6


def test_a_matrix_without_gradient_stays_where_it_is() -> None:
    (still,) = matrices()[:1]
    before = still.detach().clone()
    StackedMuon([still], lr=0.02).step()
    assert torch.equal(still, before)
