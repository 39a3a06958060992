"""A copy of a model whose matrices have the dtype of the products already, for a decoding that lasts.

Weights are float32, and autocast rounds every matrix anew in every forward. A batch that is learned from hardly
notices. A step of decoding, which is over when it has read each weight, then moves eight bytes a weight where two would
do.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from jielong.generate.packed import PackedHead, copy_sharing
from jielong.model.moe import Experts
from jielong.model.transformer import Transformer


def cast_copy(model: Transformer, dtype: torch.dtype) -> Transformer:
    """What computes under autocast to `dtype` what the model computes, to the bit, with its matrices cast once.

    Embeddings, norms and experts are the model's own tensors; what the matrices learn later the copy does not see.
    """
    cast = copy_sharing(model)
    for linear in _linear_layers(cast):
        linear.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
    bias = None if cast.logit_bias is None else cast.logit_bias.detach().to(dtype)
    cast._read = PackedHead(partial(F.linear, weight=cast.unembed_weight.detach().to(dtype), bias=bias))
    return cast


def _linear_layers(module: nn.Module) -> Iterator[nn.Linear]:
    """All whose products autocast rounds: not the routers of experts, which stay in float32."""
    for child in module.children():
        if isinstance(child, nn.Linear):
            yield child
        elif not isinstance(child, Experts):
            yield from _linear_layers(child)
