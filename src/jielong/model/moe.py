"""Mixture of experts: a router sends each token to k of E feed-forwards and adds up what they say.

No expert has a capacity, so no token is dropped: tokens are sorted by expert and each expert multiplies its own.
Notation: M tokens of all rows, D width, F ffn width of one expert, E experts, k experts a token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jielong.model.config import ModelConfig
from jielong.model.context import Context
from jielong.model.layers import NONLINEARITIES

# rows (m, D), and one expert's gate (F, D) or None, up (F, D), down (D, F) -> (m, D)
Expert = Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]


class Experts(nn.Module):
    """sum over the k chosen experts e of w_e * down_e(f(gate_e(x)) * up_e(x)), or down_e(f(up_e(x))) when not gated.

    number: the layer's, counted over both stacks, under which it tells a `Routing` what its router did.
    Source: Jiang et al. 2024, arXiv:2401.04088, section 2.1 (Mixtral, weights normalised over the chosen);
    xai-org/grok-1, model.py (softmax over all experts, not normalised again).
    """

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        shape = (config.num_experts, config.ffn_width, config.width)
        self.router = nn.Linear(config.width, config.num_experts, bias=False)
        self.gate = nn.Parameter(torch.empty(shape)) if config.gated else None
        self.up = nn.Parameter(torch.empty(shape))
        self.down = nn.Parameter(torch.empty(config.num_experts, config.width, config.ffn_width))
        self.num_chosen = config.experts_per_token
        self.number = number
        self.weigh = _chosen_sum_to_one if config.normalise_experts else _all_sum_to_one
        self.expert: Expert = partial(_gated if config.gated else _ungated, NONLINEARITIES[config.activation])

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        rows = x.flatten(0, -2)  # (M, D)
        logits = self.route(rows)
        weights, chosen = self.weigh(logits, self.num_chosen)
        if context is not None and context.routing is not None:
            context.routing.record(
                self.number, logits, chosen, None if context.real is None else context.real.flatten()
            )
        return grouped_experts(self, rows, weights.to(x.dtype), chosen).view(x.shape)

    def route(self, rows: Tensor) -> Tensor:
        """Router logits (M, E) in float32, whatever the compute dtype: near ties would flip otherwise."""
        with torch.autocast(rows.device.type, enabled=False):
            return F.linear(rows.float(), self.router.weight.float())


def _gated(f: Callable[[Tensor], Tensor], rows: Tensor, gate: Tensor | None, up: Tensor, down: Tensor) -> Tensor:
    assert gate is not None
    return F.linear(f(F.linear(rows, gate)) * F.linear(rows, up), down)


def _ungated(f: Callable[[Tensor], Tensor], rows: Tensor, gate: Tensor | None, up: Tensor, down: Tensor) -> Tensor:
    return F.linear(f(F.linear(rows, up)), down)


def _chosen_sum_to_one(logits: Tensor, num_chosen: int) -> tuple[Tensor, Tensor]:
    """Weights (M, k) float32 and experts (M, k) int64: softmax over the chosen logits alone."""
    best, chosen = logits.topk(num_chosen, dim=-1)
    return best.softmax(dim=-1), chosen


def _all_sum_to_one(logits: Tensor, num_chosen: int) -> tuple[Tensor, Tensor]:
    """Weights (M, k) float32 and experts (M, k) int64: softmax over all logits, so the chosen sum to less than 1."""
    return logits.softmax(dim=-1).topk(num_chosen, dim=-1)


def grouped_experts(experts: Experts, rows: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """One group of products an expert, over the tokens that chose it. rows (M, D), weights, chosen (M, k) -> (M, D)."""
    num_chosen = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)  # (M k,), choices sorted by expert
    counts = chosen.flatten().bincount(minlength=len(experts.up)).tolist()
    # unbind, not indexing: the gradient of experts.up[e] alone would be as large as all experts.
    gates = [None] * len(counts) if experts.gate is None else experts.gate.unbind()
    parts = zip(rows[order // num_chosen].split(counts), gates, experts.up.unbind(), experts.down.unbind(), strict=True)
    said = torch.cat([experts.expert(*part) for part in parts if len(part[0])])  # (M k, D)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    said = said[back].unflatten(0, (-1, num_chosen))  # (M, k, D)
    return (said * weights[..., None]).sum(dim=1).to(rows.dtype)


def explicit_experts(experts: Experts, rows: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """The same, token by token: the oracle that `grouped_experts` is tested against."""
    output = []
    for row, row_weights, row_chosen in zip(rows, weights, chosen, strict=True):
        said = torch.zeros_like(row)
        for weight, expert in zip(row_weights, row_chosen.tolist(), strict=True):
            gate = None if experts.gate is None else experts.gate[expert]
            said = said + weight * experts.expert(row[None], gate, experts.up[expert], experts.down[expert])[0]
        output.append(said)
    return torch.stack(output)
