"""A start that already copies: weights with an induction circuit in them, for small models and short training.

A model that starts from plain random weights finds late that what followed a token before is likely to follow it again.
At 128 wide that takes more tokens than a laptop reads in ten minutes, and every reply needs it: a name, a word or a
line is taken out of the question. Two kinds of head do it together (Olsson et al. 2022): one in the first layer writes
each token's predecessor beside it, one in the next looks for places whose predecessor is the present token and copies
what stands there. Both can be written down; training then has something to refine instead of something to find.

    layer 0      a head that looks one token back     (how: planting.py for rotary positions, waves.py for learned ones)
    layer 1      q = R V0 x, k = R O0^+ x             V0, O0 of layer 0's head: reads the token here and the predecessor
                                                      there, on slow rotary pairs, which distance hardly turns
                 v = P x, output P^T                  P: orthonormal: the copied token is written as it was read

With norms behind the sublayers the stream that layer 1 reads is sqrt(D) long, and what is written is scaled to that.
Source: Olsson et al. 2022, arXiv:2209.11895 (the circuit). The constructions for both kinds of positions are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jielong.errors import ModelError
from jielong.model.config import ModelConfig
from jielong.model.planting import (
    HeadViews,
    first_wrong,
    make_blind,
    mark_positions,
    misfit,
    plant_offset,
    quieten,
    rotary_speeds,
)
from jielong.model.transformer import Transformer
from jielong.model.waves import plant_offset_by_waves, plant_waves

QUIET = 0.1  # of the usual scale, for all other projections into the residual stream
MATCH_SCALE = 3.0  # of the induction heads' queries and keys, per slow dimension
COPY_SCALE = 4.0  # of what they copy
SLOW = 0.02  # radians a token: rotary pairs slower than this hardly notice a distance of some dozen tokens
NUM_HEADS = 2  # induction heads; each copies H of the D dimensions


@dataclass(frozen=True)
class Places:
    """What the circuit must know of how a model tells places apart.

    directions: what all positions share, (D,), or in what they differ, (D, m). matching: (H,) bool, the dimensions of a
    head that distance does not turn. read: by which what is copied is divided when it is read, write: multiplied when
    it is written.
    """

    directions: Tensor
    matching: Tensor
    read: float
    write: float


@torch.no_grad()
def plant_induction(model: Transformer, generator: torch.Generator) -> None:
    """Write the circuit into a freshly initialised decoder; the random numbers come from `generator`.

    Raises ModelError as `check_induction` does.
    """
    config = model.config
    check_induction(config)
    width, size = config.width, config.head_size
    first, second = HeadViews(model, "layers.0"), HeadViews(model, "layers.1")
    places = (_look_back_by_waves if config.positions == "learned" else _look_back_by_rotation)(model, first, generator)
    for number in range(min(NUM_HEADS, config.num_kv_heads)):
        _plant_match(second, number, first, places.matching, generator)
        make_blind(second.keys[number], places.directions)
        make_blind(second.queries[number * second.group], places.directions)
        copied = torch.linalg.qr(torch.randn(width, width, generator=generator))[0][:size]  # (H, D), orthonormal rows
        second.values[number].copy_(copied / places.read)
        make_blind(second.values[number], places.directions)
        second.outputs[:, number * second.group].copy_(places.write * copied.T)


def _look_back_by_rotation(model: Transformer, first: HeadViews, generator: torch.Generator) -> Places:
    """Layer 0's first head looks one token back, in a model with rotary positions."""
    direction = mark_positions(model, generator)
    quieten(model, QUIET)
    speeds = rotary_speeds(model.config)
    plant_offset(first, 0, -1, speeds, direction)
    first.outputs[:, 0].div_(QUIET)
    slow = (speeds < SLOW).repeat(2)  # (H,), the pairs stand as (i, i + H/2)
    return Places(direction, slow, math.sqrt(model.config.width), COPY_SCALE)


def _look_back_by_waves(model: Transformer, first: HeadViews, generator: torch.Generator) -> Places:
    """The same with learned positions, norms before the sublayers or behind them."""
    config = model.config
    waves = plant_waves(model, generator)
    quieten(model, QUIET)
    behind = config.norm_at == "post"
    # A norm before layer 0 makes token and position together sqrt(D) long; without it they are as they were embedded.
    plant_offset_by_waves(first, 0, -1, waves, waves.length if behind else math.sqrt(config.width / 2))
    first.outputs[:, 0].div_(QUIET)
    copy = COPY_SCALE / math.sqrt(config.width)  # of what a norm gives, written into a stream that is about 2 long
    if behind:
        # The predecessor is written as long as a token is, and what is copied into a stream that is sqrt(D) long.
        first.outputs[:, 0].div_((first.outputs[:, 0] @ first.values[0]).norm() / math.sqrt(config.width))
        copy *= math.sqrt(config.width) / 2
    everything = torch.ones(config.head_size, dtype=torch.bool)
    return Places(waves.basis, everything, 1 / math.sqrt(copy), math.sqrt(copy))


def _plant_match(views: HeadViews, number: int, first: HeadViews, slow: Tensor, generator: torch.Generator) -> None:
    """An induction head: its query is the token here, its key the predecessor that layer 0 wrote there."""
    size, num_slow = len(slow), int(slow.sum())
    mixed = torch.linalg.qr(torch.randn(size, size, generator=generator))[0][:num_slow]
    read = mixed @ first.values[0]  # (slow, D)
    written = mixed @ torch.linalg.pinv(first.outputs[:, 0])
    for weight, rows in ((views.queries[number * views.group], read), (views.keys[number], written)):
        weight.zero_()
        weight[slow] = MATCH_SCALE * math.sqrt(num_slow) * rows / rows.norm()


def check_induction(config: ModelConfig) -> None:
    """Raise ModelError, naming the field, unless `plant_induction` has a place in such a model."""
    layers = (
        ("decoder_layers", config.decoder_layers, config.decoder_layers >= 2),
        ("encoder_layers", config.encoder_layers, config.encoder_layers == 0),
    )
    if config.positions == "learned":
        wrong = first_wrong(
            *layers,
            ("norm_at", config.norm_at, config.norm_at in ("pre", "post")),
            ("num_experts", config.num_experts, config.num_experts == 0),
            ("embedding_norm", config.embedding_norm, not config.embedding_norm),
            ("embedding_scale", config.embedding_scale, config.embedding_scale == 1.0),
            ("qk_norm", config.qk_norm, not config.qk_norm),
            ("head_size", config.head_size, config.head_size >= 4),  # two waves, each a cosine and a sine
        )
    else:
        wrong = misfit(config, *layers)
    if wrong:
        raise ModelError(
            f"{wrong}: an induction circuit can be planted in a decoder of two layers or more without experts, with "
            "rotary positions and an RMSNorm before each sublayer, or with learned positions, norms before or behind, "
            "and heads of 4 or more"
        )
    slowest = config.rope_base ** (-(config.head_size - 2) / config.head_size)
    if config.positions == "rotary" and slowest >= SLOW:
        raise ModelError(
            f"rope_base is {config.rope_base} with head_size {config.head_size}: no rotary pair turns slower than "
            f"{SLOW} radians a token, which an induction circuit needs; raise either"
        )
