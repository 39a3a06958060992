"""A start that already copies: weights with an induction circuit in them, for small models and short training.

A model that starts from plain random weights finds late that what followed a token before is likely to follow it again.
At 128 wide that takes more tokens than a laptop reads in ten minutes, and every reply needs it: a name, a word or a
line is taken out of the question. Two kinds of head do it together (Olsson et al. 2022): one in the first layer writes
each token's predecessor beside it, one in the next looks for places whose predecessor is the present token and copies
what stands there. Both can be written down; training then has something to refine instead of something to find.

    layer 0      a head that looks one token back     (how, and the vector u that all positions share: planting.py)
    layer 1      q = R V0 x, k = R O0^+ x             V0, O0 of layer 0's head: reads the token here and the predecessor
                                                      there, on slow rotary pairs, which distance hardly turns
                 v = P x, output P^T                  P: orthonormal: the copied token is written as it was read

Source: Olsson et al. 2022, arXiv:2209.11895 (the circuit). The construction for rotary positions is ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jielong.errors import ModelError
from jielong.model.config import ModelConfig
from jielong.model.planting import HeadViews, make_blind, mark_positions, misfit, plant_offset, quieten, rotary_speeds
from jielong.model.transformer import Transformer

QUIET = 0.1  # of the usual scale, for all other projections into the residual stream
MATCH_SCALE = 3.0  # of the induction heads' queries and keys, per slow dimension
COPY_SCALE = 4.0  # of what they copy
SLOW = 0.02  # radians a token: rotary pairs slower than this hardly notice a distance of some dozen tokens
NUM_HEADS = 2  # induction heads; each copies H of the D dimensions


@torch.no_grad()
def plant_induction(model: Transformer, generator: torch.Generator) -> None:
    """Write the circuit into a freshly initialised decoder; the random numbers come from `generator`.

    Raises ModelError as `check_induction` does.
    """
    config = model.config
    check_induction(config)
    width, size = config.width, config.head_size
    direction = mark_positions(model, generator)
    quieten(model, QUIET)
    speeds = rotary_speeds(config)
    first, second = HeadViews(model, "layers.0"), HeadViews(model, "layers.1")
    plant_offset(first, 0, -1, speeds, direction)
    first.outputs[:, 0].div_(QUIET)
    slow = (speeds < SLOW).repeat(2)  # (H,), the pairs stand as (i, i + H/2)
    for number in range(min(NUM_HEADS, config.num_kv_heads)):
        _plant_match(second, number, first, slow, generator)
        make_blind(second.keys[number], direction)
        make_blind(second.queries[number * second.group], direction)
        copied = torch.linalg.qr(torch.randn(width, width, generator=generator))[0][:size]  # (H, D), orthonormal rows
        second.values[number].copy_(copied / math.sqrt(width))
        make_blind(second.values[number], direction)
        second.outputs[:, number * second.group].copy_(COPY_SCALE * copied.T)


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
    wrong = misfit(
        config,
        ("decoder_layers", config.decoder_layers, config.decoder_layers >= 2),
        ("encoder_layers", config.encoder_layers, config.encoder_layers == 0),
    )
    if wrong:
        raise ModelError(
            f"{wrong}: an induction circuit can be planted in a decoder of two layers or more with rotary positions, "
            "an RMSNorm before each sublayer and no experts"
        )
    slowest = config.rope_base ** (-(config.head_size - 2) / config.head_size)
    if slowest >= SLOW:
        raise ModelError(
            f"rope_base is {config.rope_base} with head_size {config.head_size}: no rotary pair turns slower than "
            f"{SLOW} radians a token, which an induction circuit needs; raise either"
        )
