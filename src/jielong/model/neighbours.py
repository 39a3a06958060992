"""A start that already reads what stands beside a gap: an encoder whose first heads look at their neighbours.

Masked language models stay long at what frequency alone tells: a hidden token is read off its neighbours, and from
plain random weights it takes thousands of steps until a head looks at them, each step telling only of the 15 % that are
hidden. Here the heads of the first layer look one token back and one ahead, then two, one distance a kv head.
Source: as planting.py, which has the construction.
"""

from __future__ import annotations

import torch

from jielong.errors import ModelError
from jielong.model.config import ModelConfig
from jielong.model.planting import HeadViews, mark_positions, misfit, plant_offset, quieten, rotary_speeds
from jielong.model.transformer import Transformer

QUIET = 0.5  # of the usual scale, for all other projections into the residual stream
DISTANCES = (-1, 1, -2, 2)


@torch.no_grad()
def plant_neighbours(model: Transformer, generator: torch.Generator) -> None:
    """Write the heads into a freshly initialised encoder; the random numbers come from `generator`.

    Raises ModelError as `check_neighbours` does.
    """
    check_neighbours(model.config)
    direction = mark_positions(model, generator)
    quieten(model, QUIET)
    speeds, first = rotary_speeds(model.config), HeadViews(model, "encoder.0")
    for number, distance in enumerate(DISTANCES[: model.config.num_kv_heads]):
        plant_offset(first, number, distance, speeds, direction)
        first.outputs[:, number * first.group].div_(QUIET)


def check_neighbours(config: ModelConfig) -> None:
    """Raise ModelError, naming the field, unless `plant_neighbours` has a place in such a model."""
    wrong = misfit(
        config,
        ("encoder_layers", config.encoder_layers, config.encoder_layers >= 1),
        ("decoder_layers", config.decoder_layers, config.decoder_layers == 0),
    )
    if wrong:
        raise ModelError(
            f"{wrong}: heads that look at their neighbours can be planted in an encoder with rotary positions, an "
            "RMSNorm before each sublayer and no experts"
        )
