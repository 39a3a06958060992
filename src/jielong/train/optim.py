"""AdamW and its parameter groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from jielong.errors import UsageError


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of AdamW. `learning_rate` is the peak; a schedule multiplies it."""

    learning_rate: float
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self) -> None:
        for name, value, legal, ok in (
            ("learning_rate", self.learning_rate, "above 0", self.learning_rate > 0),
            ("weight_decay", self.weight_decay, "0 or more", self.weight_decay >= 0),
            ("beta1", self.beta1, "in [0, 1)", 0 <= self.beta1 < 1),
            ("beta2", self.beta2, "in [0, 1)", 0 <= self.beta2 < 1),
            ("eps", self.eps, "above 0", self.eps > 0),
        ):
            if not ok:
                raise UsageError(f"optimizer: {name} = {value} must be {legal}")


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two parameter groups: matrices (two or more dimensions) with decay, vectors (norms, biases) without.

    Embeddings are matrices and are decayed like the rest: tied to the output they are the unembedding as well, and
    decay bounds logits whose training tokens are few. GPT-2's and
    Llama's recipes do it too, so figures compare. A tied matrix appears once. Frozen parameters are left out.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    groups: list[dict[str, object]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters of `model`; each group remembers its peak as `initial_lr`.

    Raises UsageError when nothing is trainable.
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101 (decoupled decay: it is scaled by the learning rate).
    """
    groups = decay_groups(model, config.weight_decay)
    if not groups:
        raise UsageError("optimizer: the model has no trainable parameter (all have requires_grad = False)")
    optimizer = torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = config.learning_rate
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, multiplier: float) -> float:
    """Set every group to its peak times `multiplier`; returns the rate of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * multiplier
    return float(optimizer.param_groups[0]["lr"])
