"""The optimizers, AdamW and Muon, and their parameter groups."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from jielong.errors import UsageError
from jielong.train.stacked_muon import StackedMuon

_IN_LAYER = re.compile(r"(^|\.)(layers|encoder)\.\d+\.")  # of either stack


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of AdamW. `learning_rate` is the peak; a schedule multiplies it.

    matrix_learning_rate: the peak of Muon, which then trains the matrices inside the layers; None for AdamW alone.
    """

    learning_rate: float
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    matrix_learning_rate: float | None = None

    def __post_init__(self) -> None:
        matrix = self.matrix_learning_rate
        for name, value, legal, ok in (
            ("learning_rate", self.learning_rate, "above 0", self.learning_rate > 0),
            ("weight_decay", self.weight_decay, "0 or more", self.weight_decay >= 0),
            ("beta1", self.beta1, "in [0, 1)", 0 <= self.beta1 < 1),
            ("beta2", self.beta2, "in [0, 1)", 0 <= self.beta2 < 1),
            ("eps", self.eps, "above 0", self.eps > 0),
            ("matrix_learning_rate", self.matrix_learning_rate, "above 0", matrix is None or matrix > 0),
        ):
            if not ok:
                raise UsageError(f"optimizer: {name} = {value} must be {legal}")


def decay_groups(
    parameters: list[nn.Parameter], weight_decay: float, apart: Collection[nn.Parameter] = ()
) -> list[dict[str, object]]:
    """Two parameter groups: matrices (two or more dimensions) with decay, vectors (norms, biases) without.

    Those in `apart` make two groups of their own, before the others: a fused optimizer takes no group of tensors that
    are spread differently over processes.

    Embeddings are matrices and are decayed like the rest: tied to the output they are the unembedding as well, and
    decay bounds logits whose training tokens are few. GPT-2's and Llama's recipes do it too, so figures compare. Frozen
    parameters are left out.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    chosen = {id(parameter) for parameter in apart}
    groups: list[dict[str, object]] = []
    for alike in ([p for p in trained if id(p) in chosen], [p for p in trained if id(p) not in chosen]):
        groups += [
            {"params": [parameter for parameter in alike if parameter.ndim >= 2], "weight_decay": weight_decay},
            {"params": [parameter for parameter in alike if parameter.ndim < 2], "weight_decay": 0.0},
        ]
    return [group for group in groups if group["params"]]


def layer_matrices(model: nn.Module) -> list[nn.Parameter]:
    """What Muon may train: the two-dimensional weights inside layers, but for a router's.

    Embeddings, heads and routers choose among rows; to make their updates orthogonal would let rare rows move as far as
    frequent ones.
    """
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and parameter.requires_grad and _IN_LAYER.search(name) and "router" not in name
    ]


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the matrices inside the layers and AdamW for everything else, as one optimizer with one state.

    Muon's step is the momentum made orthogonal: all directions of a matrix move equally far, times sqrt(rows / columns)
    where there are more rows. Its groups come first in param_groups.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", as torch.optim.Muon has it.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self._muon, self._adamw = muon, adamw
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The two inner optimizers work on this one's groups and state, so that whatever is set here holds there."""
        num_muon = len(self._muon.param_groups)
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:num_muon], self.param_groups[num_muon:]
        self._muon.state = self._adamw.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of both. A closure is not taken: nothing here evaluates the loss again."""
        assert closure is None
        self._muon.step()
        self._adamw.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


def _adamw(
    parameters: list[nn.Parameter], config: OptimizerConfig, apart: Collection[nn.Parameter] = ()
) -> torch.optim.AdamW:
    groups = decay_groups(parameters, config.weight_decay, apart)
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def build_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    apart: Collection[nn.Parameter] = (),
    muon: type[torch.optim.Muon] = StackedMuon,
) -> torch.optim.Optimizer:
    """Fused AdamW over the trainable parameters of `model`, with Muon for its layers' matrices where config says so.

    Each group remembers its peak as `initial_lr`. A tied matrix is trained once. apart: as for decay_groups.
    muon: ShardedMuon where matrices are shared out. A model without layers, as two LSTMs, is AdamW's alone; one of
    which nothing but such matrices learns, as with LoRA, is Muon's.
    Raises UsageError when nothing is trainable.
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101 (decoupled decay: it is scaled by the learning rate).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UsageError("optimizer: the model has no trainable parameter (all have requires_grad = False)")
    optimizer: torch.optim.Optimizer
    rate = config.matrix_learning_rate
    matrices = [] if rate is None else layer_matrices(model)
    if rate is not None and matrices:
        of_matrices = muon(matrices, lr=rate, weight_decay=config.weight_decay, momentum=0.95, nesterov=True)
        chosen = {id(parameter) for parameter in matrices}
        rest = [parameter for parameter in trained if id(parameter) not in chosen]
        optimizer = MuonAdamW(of_matrices, _adamw(rest, config, apart)) if rest else of_matrices
    else:
        optimizer = _adamw(trained, config, apart)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, multiplier: float) -> float:
    """Set every group to its peak times `multiplier`; returns the rate of the last group: AdamW's, if it has any."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * multiplier
    return float(optimizer.param_groups[-1]["lr"])
