"""Learned positions that start as waves, and heads that look a given number of tokens away by them.

    P[t] = |e| A (cos w t, sin w t) / sqrt(n)     A (D, 2n): orthonormal, and no embedding e begins with a share of it
    q    = s turn(d) A^T x,  k = s A^T x          q matches the key d tokens from it and no other

Drawn at random, as usual, the position of each token is one more thing to be learned by heart. Of waves one matrix
turns every position into the one before it, so a head that looks one token back can be written down, and others can be
learned from all places at once. Every weight is trained as it would be otherwise; the result is an ordinary model.
Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5 (waves, and that a linear map shifts them); planting.py for
starting attention from a structure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jielong.model.planting import BEFORE, STEP_NATS, HeadViews, make_blind
from jielong.model.transformer import Transformer

FASTEST = 2.5  # radians a token; under pi, or a step forth would look like a step back
TELLING = 0.25  # radians a token: slower waves say little about which neighbour it is, and heads leave them out


@dataclass(frozen=True)
class Waves:
    """basis: (D, 2n) orthonormal, the n cosines before the n sines. speeds: (n,) radians a token, falling.

    length: of a position's vector. num_places: positions there are.
    """

    basis: Tensor
    speeds: Tensor
    length: float
    num_places: int


@torch.no_grad()
def plant_waves(model: Transformer, generator: torch.Generator) -> Waves:
    """Make the learned positions of a freshly initialised model waves, in directions that its embeddings are freed of.

    A quarter of the D dimensions at most, and no more than a head has; from FASTEST to half a wave over all positions.
    """
    config, embed, positions = model.config, model.embed.weight, model.get_parameter("positions.weight")
    num = max(2, min(config.head_size, config.width // 4) // 2)
    slowest = math.pi / config.max_length
    speeds = FASTEST * (slowest / FASTEST) ** (torch.arange(num, dtype=torch.float32) / (num - 1))
    basis = torch.linalg.qr(torch.randn(config.width, 2 * num, generator=generator))[0]
    make_blind(embed, basis)
    length = float(embed.norm(dim=1).mean())
    angles = torch.outer(torch.arange(config.max_length, dtype=torch.float32), speeds)  # (T, n)
    waves = torch.cat((angles.cos(), angles.sin()), dim=1) @ basis.T
    positions.copy_(length / math.sqrt(num) * waves)
    return Waves(basis, speeds, length, config.max_length)


@torch.no_grad()
def plant_offset_by_waves(views: HeadViews, number: int, distance: int, waves: Waves, length: float) -> None:
    """The first query head of kv head `number` looks `distance` tokens away, back where it is negative.

    length: of a position's vector in what the head reads. What the head writes is free of positions.
    """
    telling = (waves.speeds > TELLING).float()  # (n,)
    distances = torch.arange(1, waves.num_places, dtype=torch.float32)
    apart = ((1 - torch.outer(distances, waves.speeds).cos()) * telling).sum(dim=1)  # (T - 1,), in waves
    size, num = views.keys.shape[1], len(waves.speeds)
    scale = math.sqrt(STEP_NATS * math.sqrt(size) * num / float(apart.min())) / length
    cos, sin = (telling * (distance * waves.speeds).cos()).diag(), (telling * (distance * waves.speeds).sin()).diag()
    still = torch.cat((telling, telling)).diag()
    turned = torch.cat((torch.cat((cos, -sin), dim=1), torch.cat((sin, cos), dim=1)))  # (2n, 2n): t becomes t + d
    for weight, pattern in ((views.queries[number * views.group], turned), (views.keys[number], still)):
        weight.mul_(BEFORE)
        weight[: 2 * num].add_(scale * pattern @ waves.basis.T)
    make_blind(views.values[number], waves.basis)
