"""A start that already copies: weights with an induction circuit in them, for small models and short training.

A model that starts from plain random weights finds late that what followed a token before is likely to follow it again.
At 128 wide that takes more tokens than a laptop reads in ten minutes, and every reply needs it: a name, a word or a
line is taken out of the question. Two kinds of head do it together (Olsson et al. 2022): one in the first layer writes
each token's predecessor beside it, one in the next looks for places whose predecessor is the present token and copies
what stands there. Both can be written down; training then has something to refine instead of something to find.

    x            = embedding + u                    u: one shared vector, by which every position can be recognised
    layer 0      q = p(1) u.x, k = p(0) u.x         p(d): a fast rotary pattern turned back by d tokens: q matches the
                                                    key one token before it and no other
    layer 1      q = R V0 x, k = R O0^+ x           V0, O0 of layer 0's head: reads the token here and the predecessor
                                                    there, on slow rotary pairs, which distance hardly turns
                 v = P x, output P^T                P: orthonormal, so that the copied token is written as it was read

The rest of the model starts quiet (its projections into the residual stream at a tenth), or layer 1 could not read
what it needs. u shifts all logits of a tied model alike, which changes no probability. The result is an ordinary
decoder: nothing of this outlives the initialisation.
Source: Olsson et al. 2022, arXiv:2209.11895 (the circuit); Trockman and Kolter 2023, arXiv:2305.09828 (starting
attention from the structure that training would give it). The construction for rotary positions is ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jielong.errors import ModelError
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer

QUIET = 0.1  # of the usual scale, for all other projections into the residual stream
STEP_NATS = 6.0  # by which the previous-token head prefers its neighbour to the token before that
MATCH_SCALE = 3.0  # of the induction heads' queries and keys, per slow dimension
COPY_SCALE = 4.0  # of what they copy
FAST = 0.25  # radians a token: rotary pairs faster than this tell neighbours apart
SLOW = 0.02  # radians a token: pairs slower than this hardly notice a distance of some dozen tokens
NUM_HEADS = 2  # induction heads; each copies H of the D dimensions


@torch.no_grad()
def plant_induction(model: Transformer, generator: torch.Generator) -> None:
    """Write the circuit into a freshly initialised decoder; the random numbers come from `generator`.

    Raises ModelError as `check_induction` does.
    """
    config = model.config
    check_induction(config)
    width, size = config.width, config.head_size
    shared = torch.randn(width, generator=generator)
    shared *= model.embed.weight.norm(dim=1).mean().cpu() / shared.norm()
    direction = shared / shared.norm()
    model.embed.weight.add_(shared.to(model.embed.weight.device))
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.out.weight", "ffn.down.weight")):
            parameter.mul_(QUIET)
    speeds = config.rope_base ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)  # radians a token, (H/2,)
    first, second = _Views(model, 0), _Views(model, 1)
    _plant_previous(first, speeds, direction)
    slow = (speeds < SLOW).repeat(2)  # (H,), the pairs stand as (i, i + H/2)
    for number in range(min(NUM_HEADS, config.num_kv_heads)):
        _plant_match(second, number, first, slow, generator)
        _remove(second.keys[number], direction)
        _remove(second.queries[number * second.group], direction)
        copied = torch.linalg.qr(torch.randn(width, width, generator=generator))[0][:size]  # (H, D), orthonormal rows
        second.values[number].copy_(copied / math.sqrt(width))
        _remove(second.values[number], direction)
        second.outputs[:, number * second.group].copy_(COPY_SCALE * copied.T)


class _Views:
    """One attention's weights by head, as views: queries (N, H, D), keys and values (K, H, D), outputs (D, N, H)."""

    def __init__(self, model: Transformer, layer: int) -> None:
        config = model.config
        heads, kv, size, width = config.num_heads, config.num_kv_heads, config.head_size, config.width
        self.group = heads // kv
        qkv = model.get_parameter(f"layers.{layer}.attention.qkv.weight")
        queries, keys, values = qkv.split([heads * size, kv * size, kv * size])
        self.queries = queries.view(heads, size, width)
        self.keys = keys.view(kv, size, width)
        self.values = values.view(kv, size, width)
        self.outputs = model.get_parameter(f"layers.{layer}.attention.out.weight").view(width, heads, size)


def _plant_previous(views: _Views, speeds: Tensor, direction: Tensor) -> None:
    """Head 0 looks one token back, wherever it is; what it writes is free of the shared vector."""
    fast = (speeds > FAST).float()
    # Turning p(0) by t and p(1) by t' leaves the mean of cos(speed (t' - 1 - t)) over the fast pairs.
    still = torch.cat((fast, torch.zeros_like(fast)))
    turned = torch.cat((fast * speeds.cos(), -fast * speeds.sin()))
    size, width = len(still), len(direction)
    step = float(((1 - speeds.cos()) * fast).sum() / fast.sum())  # from distance 1 to 2, before scaling
    component = math.sqrt(width / 2)  # of a normed input along the shared vector, which is as long as an embedding
    scale = math.sqrt(STEP_NATS * math.sqrt(size) / step) / component / math.sqrt(float(fast.sum()))
    for weight, pattern in ((views.queries[0], turned), (views.keys[0], still)):
        weight.mul_(QUIET).add_(scale * torch.outer(pattern, direction))
    _remove(views.values[0], direction)
    views.outputs[:, 0].div_(QUIET)


def _plant_match(views: _Views, number: int, first: _Views, slow: Tensor, generator: torch.Generator) -> None:
    """An induction head: its query is the token here, its key the predecessor that layer 0 wrote there."""
    size, num_slow = len(slow), int(slow.sum())
    mixed = torch.linalg.qr(torch.randn(size, size, generator=generator))[0][:num_slow]
    read = mixed @ first.values[0]  # (slow, D)
    written = mixed @ torch.linalg.pinv(first.outputs[:, 0])
    for weight, rows in ((views.queries[number * views.group], read), (views.keys[number], written)):
        weight.zero_()
        weight[slow] = MATCH_SCALE * math.sqrt(num_slow) * rows / rows.norm()


def _remove(weight: Tensor, direction: Tensor) -> None:
    """Make the rows of weight (H, D) blind to `direction`, in place."""
    weight.sub_(torch.outer(weight @ direction, direction))


def check_induction(config: ModelConfig) -> None:
    """Raise ModelError, naming the field, unless `plant_induction` has a place in such a model."""
    for name, value, legal in (
        ("decoder_layers", config.decoder_layers, config.decoder_layers >= 2),
        ("encoder_layers", config.encoder_layers, config.encoder_layers == 0),
        ("positions", config.positions, config.positions == "rotary"),
        ("norm", config.norm, config.norm == "rms"),
        ("norm_at", config.norm_at, config.norm_at == "pre"),
        ("num_experts", config.num_experts, config.num_experts == 0),
    ):
        if not legal:
            raise ModelError(
                f"{name} is {value!r}: an induction circuit can be planted in a decoder of two layers or more with "
                "rotary positions, an RMSNorm before each sublayer and no experts"
            )
    slowest = config.rope_base ** (-(config.head_size - 2) / config.head_size)
    if slowest >= SLOW:
        raise ModelError(
            f"rope_base is {config.rope_base} with head_size {config.head_size}: no rotary pair turns slower than "
            f"{SLOW} radians a token, which an induction circuit needs; raise either"
        )
