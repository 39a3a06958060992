"""Distance from the reference policy: two estimates of it, and what sets its price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Unbiased estimate of KL(policy || reference), nats a token; single tokens may be negative.

    logprobs, ref_logprobs: same shape, float32, of tokens that the policy sampled. This one goes into the reward.
    Source: Schulman 2020, "Approximating KL divergence" (k1).
    """
    return logprobs - ref_logprobs


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate of the same KL with less variance, never negative: a metric only, its gradient is another one's.

    Source: Schulman 2020, "Approximating KL divergence" (k3): r - 1 - log r with r = reference / policy.
    """
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


class KLController(Protocol):
    """Holds beta, the price of one nat."""

    coefficient: float

    def update(self, kl: float, num_episodes: int) -> None:
        """Learn that the last num_episodes replies were kl nats a reply away from the reference."""


@dataclass
class FixedKL:
    """A coefficient that stays as it is."""

    coefficient: float

    def update(self, kl: float, num_episodes: int) -> None:
        """Nothing: the coefficient is fixed."""


@dataclass
class AdaptiveKL:
    """A coefficient that drives the KL of a reply to `target` nats.

    horizon_episodes: episodes after which the coefficient has moved by up to a fifth.
    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2; the error is clipped to +-0.2.
    """

    coefficient: float
    target: float
    horizon_episodes: int

    def update(self, kl: float, num_episodes: int) -> None:
        """Raise the coefficient when kl (nats a reply) is above the target, lower it when below."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.coefficient *= 1.0 + error * num_episodes / self.horizon_episodes


def build_controller(coefficient: float, target: float | None, horizon_episodes: int) -> KLController:
    """AdaptiveKL where a target is given, else FixedKL."""
    if target is None:
        return FixedKL(coefficient)
    return AdaptiveKL(coefficient, target, horizon_episodes)
