"""What the routers of a mixture of experts did in one forward pass, and the losses that keep them in balance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jielong.errors import ModelError


@dataclass(frozen=True)
class RouterStats:
    """Means over one layer's real tokens. share: (E,), the part of all choices that fell on each expert, sum 1.

    probability: (E,), mean softmax over all experts. log_square: mean of logsumexp(logits)^2. All float32; the last
    two carry gradients.
    """

    share: Tensor
    probability: Tensor
    log_square: Tensor


class Routing:
    """Collects router statistics: make one, pass it to the model's `hidden` or `forward`, then ask it.

    Nothing is kept in the model. A layer writes under its own number, so a layer that is run again for activation
    checkpointing (the kind that keeps the graph, use_reentrant=False) counts once.
    """

    def __init__(self) -> None:
        self.layers: dict[int, RouterStats] = {}

    def record(self, layer: int, logits: Tensor, chosen: Tensor, real: Tensor | None) -> None:
        """logits: (M, E) float32. chosen: (M, k) int64. real: bool, False at padding, M in all, or None."""
        num_tokens, num_experts = logits.shape
        weights = torch.ones(num_tokens, device=logits.device) if real is None else real.flatten().float()
        weights = weights / weights.sum().clamp(min=1)  # (M,)
        share = torch.zeros(num_experts, device=logits.device)
        share.index_add_(0, chosen.flatten(), weights.repeat_interleave(chosen.shape[1]) / chosen.shape[1])
        with torch.autocast(logits.device.type, enabled=False):
            probability = weights @ logits.softmax(dim=-1)
            log_square = weights @ logits.logsumexp(dim=-1).square()
        self.layers[layer] = RouterStats(share, probability, log_square)

    def balance_loss(self) -> Tensor:
        """E * sum over experts of share * probability, the mean over layers: 1 when all experts are used alike.

        Each layer is balanced by itself; Hugging Face's Mixtral takes the means over all layers together first, where
        one layer's favourite can hide another's, and counts k choices a token instead of 1, so its number is k times
        this one for a single layer.
        Source: Fedus et al. 2021, arXiv:2101.03961, eq. 4 to 6.
        """
        each = [len(stats.share) * (stats.share * stats.probability).sum() for stats in self._stats()]
        return torch.stack(each).mean()

    def z_loss(self) -> Tensor:
        """Mean of logsumexp(router logits)^2 over tokens and layers: keeps them small, where float32 is exact.

        Source: Zoph et al. 2022, arXiv:2202.08906, eq. 5.
        """
        return torch.stack([stats.log_square for stats in self._stats()]).mean()

    def shares(self) -> Tensor:
        """(layers, E): the part of a layer's choices that fell on each expert; 1 / E when they are balanced."""
        return torch.stack([stats.share for stats in self._stats()])

    def _stats(self) -> list[RouterStats]:
        if not self.layers:
            raise ModelError("no router has written here: the model has no experts, or did not get this Routing")
        return [self.layers[layer] for layer in sorted(self.layers)]
