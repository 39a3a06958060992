"""What planted starts are made of: heads that look a given number of tokens away before any training.

    x   = embedding + u                 u: one shared vector, by which every position can be recognised
    q   = p(d) u.x,  k = p(0) u.x       p(d): a fast rotary pattern turned by d tokens: q matches the key d tokens
                                        from it and no other

The rest of the model starts quieter (its projections into the residual stream), or later layers could not read what
such heads write. u shifts all logits of a tied model alike, which changes no probability. The result is an ordinary
model: nothing of this outlives the initialisation.
Source: Trockman and Kolter 2023, arXiv:2305.09828 (starting attention from the structure that training would give it).
The construction for rotary positions is ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer

STEP_NATS = 6.0  # by which a head that looks d tokens away prefers that place to the one next to it
FAST = 0.25  # radians a token: rotary pairs faster than this tell neighbours apart
BEFORE = 0.1  # of what was drawn, in queries and keys that are planted


class HeadViews:
    """One attention's weights by head, as views: queries (N, H, D), keys and values (K, H, D), outputs (D, N, H).

    layer: its name, such as "layers.0" or "encoder.0".
    """

    def __init__(self, model: Transformer, layer: str) -> None:
        config = model.config
        heads, kv, size, width = config.num_heads, config.num_kv_heads, config.head_size, config.width
        self.group = heads // kv
        qkv = model.get_parameter(f"{layer}.attention.qkv.weight")
        queries, keys, values = qkv.split([heads * size, kv * size, kv * size])
        self.queries = queries.view(heads, size, width)
        self.keys = keys.view(kv, size, width)
        self.values = values.view(kv, size, width)
        self.outputs = model.get_parameter(f"{layer}.attention.out.weight").view(width, heads, size)


@torch.no_grad()
def mark_positions(model: Transformer, generator: torch.Generator) -> Tensor:
    """Add one random vector, as long as an embedding, to all embeddings. Returns its direction (D,)."""
    shared = torch.randn(model.config.width, generator=generator)
    shared *= model.embed.weight.norm(dim=1).mean().cpu() / shared.norm()
    model.embed.weight.add_(shared.to(model.embed.weight.device))
    return shared / shared.norm()


@torch.no_grad()
def quieten(model: Transformer, factor: float) -> None:
    """Multiply all projections into the residual stream."""
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.out.weight", "ffn.down.weight")):
            parameter.mul_(factor)


def rotary_speeds(config: ModelConfig) -> Tensor:
    """(H/2,) radians a token."""
    return config.rope_base ** (-torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size)


@torch.no_grad()
def plant_offset(views: HeadViews, number: int, distance: int, speeds: Tensor, direction: Tensor) -> None:
    """The first query head of kv head `number` looks `distance` tokens away, back where it is negative.

    What it writes is free of the shared vector.
    """
    fast = (speeds > FAST).float()
    # Turning p(0) by t and p(d) by t' leaves the mean of cos(speed (t' + d - t)) over the fast pairs.
    still = torch.cat((fast, torch.zeros_like(fast)))
    turned = torch.cat((fast * (distance * speeds).cos(), fast * (distance * speeds).sin()))
    size, width = len(still), len(direction)
    step = float(((1 - speeds.cos()) * fast).sum() / fast.sum())  # from the place to the next, before scaling
    component = math.sqrt(width / 2)  # of a normed input along the shared vector, which is as long as an embedding
    scale = math.sqrt(STEP_NATS * math.sqrt(size) / step) / component / math.sqrt(float(fast.sum()))
    for weight, pattern in ((views.queries[number * views.group], turned), (views.keys[number], still)):
        weight.mul_(BEFORE).add_(scale * torch.outer(pattern, direction))
    make_blind(views.values[number], direction)


@torch.no_grad()
def make_blind(weight: Tensor, directions: Tensor) -> None:
    """Make the rows of weight (H, D) blind to one direction (D,), or to orthonormal ones (D, m), in place."""
    inside = weight @ directions
    weight.sub_(torch.outer(inside, directions) if directions.ndim == 1 else inside @ directions.T)


def misfit(config: ModelConfig, *layers: tuple[str, object, bool]) -> str | None:
    """The first field, with its value, for which a model of this shape has no place to plant in; None if it has.

    layers: what else is looked at, as (field, value, whether it is legal).
    """
    common = (
        ("positions", config.positions, config.positions == "rotary"),
        ("norm", config.norm, config.norm == "rms"),
        ("norm_at", config.norm_at, config.norm_at == "pre"),
        ("num_experts", config.num_experts, config.num_experts == 0),
    )
    return first_wrong(*layers, *common)


def first_wrong(*fields: tuple[str, object, bool]) -> str | None:
    """The first of (field, value, whether it is legal) that is not, as a message begins; None if all are."""
    return next((f"{name} is {value!r}" for name, value, legal in fields if not legal), None)
