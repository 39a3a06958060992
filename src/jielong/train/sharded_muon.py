"""Muon where no process has a whole matrix: it is gathered, made orthogonal by all alike, and each takes its own part.

Momentum stays shared out. One matrix after the other is whole, for a moment; every process computes the same, as it
does where weights are not shared out.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from jielong.train.sharding import own_part, placed_like
from jielong.train.stacked_muon import orthogonal


class ShardedMuon(torch.optim.Muon):
    """torch.optim.Muon for parameters that are DTensors; all processes take its steps together."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step. A closure is not taken: nothing here evaluates the loss again."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """torch.optim.Muon's step of one matrix, in its order of arithmetic."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(momentum, group["momentum"])
        whole = direction.full_tensor() if isinstance(direction, DTensor) else direction
        own_part(parameter).mul_(1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] * math.sqrt(max(1, parameter.shape[0] / parameter.shape[1]))
        (moved,) = orthogonal([whole], group["ns_coefficients"], group["ns_steps"], group["eps"])
        own_part(parameter).add_(own_part(placed_like(parameter, moved.to(parameter.dtype))), alpha=-rate)
