"""Layers computed in parts: each of several processes has some heads and some of the feed-forward, for the same rows.

The matrices into a sublayer are cut by their rows, the one out of it by its columns, so that a sublayer costs one sum
over the processes on the way forward and one on the way back. Norms, embeddings and head are computed by all alike.
Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3. The work is done by torch's parallelize_module.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from jielong.errors import UsageError
from jielong.model.attention import NormedAttention
from jielong.model.config import ModelConfig
from jielong.model.transformer import Layer, Transformer
from jielong.train.lora import adapted_layers
from jielong.train.parallel import check_divisible

_FUSED = re.compile(r"(attention\.qkv|cross\.kv)\.(weight|bias)$")


def split(model: Transformer, mesh: DeviceMesh) -> None:
    """Cut the layers into as many parts as the mesh has processes, in place; all of them hold the same weights before.

    Raises UsageError as check_divisible, and for a model with an adapter.
    """
    parts = mesh.size()
    check_divisible(model.config, parts)
    if adapted_layers(model):
        raise UsageError(
            f"[run] tensor_parallel = {parts}: layers with an adapter are not cut into parts; leave lora out, or set "
            "run.tensor_parallel = 1"
        )
    _reorder(model, parts)
    for layer in (*model.encoder, *model.layers):
        assert isinstance(layer, Layer)
        plan: dict[str, ParallelStyle] = {
            name: RowwiseParallel() if name.endswith(("out", "down")) else ColwiseParallel()
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear)
        }
        parallelize_module(layer, mesh, plan, src_data_rank=None)
        for name, module in layer.named_children():
            if name in ("attention", "cross"):
                _take_heads(module, mesh)


def _take_heads(attention: Any, mesh: DeviceMesh) -> None:
    """Let an attention know that it has a part of the heads alone."""
    heads, parts = attention.heads, mesh.size()
    attention.heads = replace(heads, num_heads=heads.num_heads // parts, num_kv_heads=heads.num_kv_heads // parts)
    if isinstance(attention, NormedAttention):
        for norm in (attention.q_norm, attention.k_norm):
            norm.shared = _Shared(mesh.get_group())


class _Shared:
    """A weight that every process has whole and uses for its own heads: its gradient is the sum over all of them."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def __call__(self, weight: Tensor) -> Tensor:
        same: Tensor = _SumOnTheWayBack.apply(weight, self.group)
        return same


class _SumOnTheWayBack(torch.autograd.Function):
    """x itself, whose gradient is summed over a group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def row_order(name: str, config: ModelConfig, parts: int) -> Tensor | None:
    """For a matrix that holds q, k and v (or k and v) one below the other: its rows in the order of the parts.

    name: the parameter's. Each part is then the same matrix of fewer heads. None for all other parameters.
    """
    found = _FUSED.search(name)
    if found is None:
        return None
    kinds = (config.num_heads, config.num_kv_heads, config.num_kv_heads)[0 if "qkv" in found[1] else 1 :]
    rows = torch.arange(sum(kinds) * config.head_size).split([heads * config.head_size for heads in kinds])
    pieces = [kind.chunk(parts) for kind in rows]
    return torch.cat([kind[part] for part in range(parts) for kind in pieces])


@torch.no_grad()
def _reorder(model: Transformer, parts: int) -> None:
    for name, parameter in model.named_parameters():
        order = row_order(name, model.config, parts)
        if order is not None:
            parameter.copy_(parameter[order.to(parameter.device)])


def in_own_order(name: str, whole: Tensor, config: ModelConfig, parts: int) -> Tensor:
    """A parameter of a model that was cut into parts, all of it, with its rows where they were before."""
    order = row_order(name, config, parts)
    return whole if order is None else whole[order.argsort().to(whole.device)]


def split_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of which this process has a part of its own because layers are cut."""
    return [
        parameter
        for parameter in model.parameters()
        if isinstance(parameter, DTensor) and "tensor" in (parameter.device_mesh.mesh_dim_names or ())
    ]
