"""Weights shared out: each process holds a part of every tensor, and a whole layer only while it computes with it.

Gradients and the optimizer's state are shared out alike. A sharded model is the same object with the same methods; its
parameters are DTensors, of which a process has its own rows. Importing this costs as much as half of torch does, so
it is done where a run shares its weights out and nowhere else.
Source: Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO, stage 3); Zhao et al. 2023, arXiv:2304.11277, for replicas of
the shares on several machines. The work is done by torch.distributed.fsdp.fully_shard.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from jielong.errors import UsageError
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.train.lora import Adapter
from jielong.train.parallel import sum_tensors, total, total_of_all
from jielong.train.tensor_parallel import in_own_order, row_order, split
from jielong.train.tensor_parallel import split_parameters as split_parameters

ENTRANCES = ("hidden", "encode")  # methods that objectives call in place of `forward`


def skeleton_of(model: Transformer) -> Transformer:
    """The same modules around tensors without memory: what the model is made of again when it is not sharded."""
    empty = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in model.parameters()
    }
    twin: Transformer = copy.deepcopy(model, empty)
    return twin


def shardable(model: nn.Module) -> Transformer:
    """The model. Raises UsageError for what cannot be shared out: models without layers of their own."""
    if not isinstance(model, Transformer):
        raise UsageError(
            f"[run] sharding and tensor_parallel share out a Transformer, not a {type(model).__name__}; leave them out"
        )
    return model


def shard(model: Transformer, runtime: Runtime) -> None:
    """Share the weights out, in place: each layer on its own, and all else (embeddings, norm, head) together.

    Before that, layers are cut into parts where the runtime says so (see tensor_parallel).

    With bfloat16 the layers are gathered, and compute, in it; gradients are summed in float32, and what is learned
    stays float32. Embeddings and head are gathered in float32, since the residual stream begins with them.
    """
    assert runtime.mesh is not None
    if runtime.tensor_size > 1:
        split(model, runtime.mesh["tensor"])
    mesh = _weights_mesh(runtime.mesh)
    if runtime.mesh["shard"].size() == 1:
        if not model.embed.weight.is_meta:  # else `fill` sees to it
            model.to(runtime.device)
        return
    narrow = None if runtime.dtype == torch.float32 else runtime.dtype
    # Inputs stay as they are: the residual stream is float32, and its norms read it so.
    summed_in = None if narrow is None else torch.float32  # None: as the weights are
    policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=summed_in, cast_forward_inputs=False)
    for layer in (*model.encoder, *model.layers):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for module in sharded_modules(model):
        module.set_gradient_divide_factor(1.0)  # train_step divides, by units
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    for name in ENTRANCES:
        register_fsdp_forward_method(model, name)


@torch.no_grad()
def fill(model: Transformer, runtime: Runtime, generator: torch.Generator) -> None:
    """Give a sharded model that was made on the meta device its memory, and the very weights of `init_weights`.

    A process holds its own parts, and for a moment one whole tensor after the other.
    """
    model.to_empty(device=runtime.device)
    model.build_tables()
    for name, parameter in model.named_parameters():
        whole = model.start_of(name, parameter.shape, generator)
        order = row_order(name, model.config, runtime.tensor_size)
        placed = placed_like(parameter, whole if order is None else whole[order])
        own_part(parameter).copy_(own_part(placed))


def _weights_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Whom the weights are shared out to: ("shard",), or ("replicate", "shard") where there are several replicas."""
    return mesh["shard"] if mesh["replicate"].size() == 1 else mesh["replicate", "shard"]


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
    """The modules whose parameters are gathered together, outermost first."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@torch.no_grad()
def whole_weights(model: Transformer, runtime: Runtime) -> Iterator[tuple[str, Tensor]]:
    """(name, all of it) of one parameter after the other, with the rows that it had before layers were cut.

    All processes take all of them, in step: each is gathered when it is asked for.
    """
    for name, parameter in model.named_parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
        yield name, in_own_order(name, whole, model.config, runtime.tensor_size)


@torch.no_grad()
def whole_copy(model: Transformer, runtime: Runtime) -> Transformer:
    """A second model, all of it in every process, with the weights that the sharded one has now; to read with alone.

    For what calls a model so often, or so differently in each process, that layers cannot be gathered for each call:
    decoding. It costs the whole weights, in float32, beside the shares, until it is let go. All processes call this.
    """
    with torch.device("meta"):
        copied = Transformer(model.config)
    copied.to_empty(device=runtime.device)
    copied.build_tables()
    places = dict(copied.named_parameters())
    for name, whole in whole_weights(model, runtime):
        places[name].copy_(whole)
    return copied.eval().requires_grad_(False)


@torch.no_grad()
def unshard(model: Transformer, skeleton: Transformer, runtime: Runtime) -> None:
    """Make the model what it was before `shard`, in place, with what it has learned; every process has all of it.

    skeleton: `skeleton_of` the model as it was. All processes call this.
    """
    places: dict[int, Tensor] = {}
    empty = dict(skeleton.named_parameters())
    for name, whole in whole_weights(model, runtime):
        places[id(empty[name])] = nn.Parameter(whole, model.get_parameter(name).requires_grad)
    for module in skeleton.modules():
        for name, place in module.named_parameters(recurse=False):
            module.register_parameter(name, places[id(place)])  # type: ignore[arg-type]
    model.__class__ = skeleton.__class__
    model.__dict__ = skeleton.__dict__
    model.build_tables()  # which a model from the meta device had not


def rebind(adapter: nn.Module, model: nn.Module) -> None:
    """Let an adapter hold the parameters that the model has now, under the names it had."""
    if isinstance(adapter, Adapter):
        for name in list(dict(adapter.named_parameters())):
            adapter.register_parameter(name, model.get_parameter(name.replace("/", ".")))


@torch.no_grad()
def sum_parts(parameters: Iterable[nn.Parameter], runtime: Runtime) -> None:
    """Sum over processes the gradients of what is not shared out, each its own part; `fully_shard` sums the rest.

    As in gradient_sums.py a process without a gradient counts as zero, and where none has one there is none.
    """
    if runtime.world_size == 1:
        return
    own = [parameter for parameter in parameters if not is_shared_out(parameter)]
    for parameter, num_there in zip(own, total([float(p.grad is not None) for p in own], runtime), strict=True):
        if num_there and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sum_tensors((own_part(parameter.grad) for parameter in own if parameter.grad is not None), runtime)


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], clip: float, runtime: Runtime) -> float:
    """Scale gradients to a global norm of at most `clip`; returns the norm they had, over all processes' parts."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    own = [own_part(grad) for grad in grads]
    if not own:
        own_sum = 0.0
    else:
        norms = torch.stack(torch._foreach_norm(own)).double()
        copies = torch.tensor([_num_copies(grad, runtime) for grad in grads], device=norms.device)
        own_sum = float((norms.square() / copies).sum())
    norm = math.sqrt(total_of_all([own_sum], runtime)[0])
    scale = clip / (norm + 1e-6)  # as nn.utils.clip_grad_norm_
    if scale < 1:
        torch._foreach_mul_(own, scale)
    return norm


def _num_copies(tensor: Tensor, runtime: Runtime) -> int:
    """How many processes hold the same numbers as this one does."""
    if not isinstance(tensor, DTensor):
        return runtime.num_processes
    sizes = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    parts = math.prod(size for placement, size in sizes if not placement.is_replicate())
    return runtime.num_processes // parts


def is_in_parts(model: nn.Module) -> bool:
    """Whether a process holds less than all of the model: its weights are shared out, or its layers are cut."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def release(models: Iterable[nn.Module]) -> None:
    """Let go of what stays gathered when a sharded model was only read: its embeddings, last norm and head."""
    for model in models:
        for module in sharded_modules(model):
            module.reshard()


def is_shared_out(tensor: Tensor) -> bool:
    """Whether `fully_shard` manages it, which sums its gradient over processes on its own."""
    return isinstance(tensor, DTensor) and "shard" in (tensor.device_mesh.mesh_dim_names or ())


def placed_like(live: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor as this process holds `live`: its own part, as a DTensor, where that is one."""
    if not isinstance(live, DTensor):
        return whole
    return distribute_tensor(whole.to(live.device), live.device_mesh, live.placements, src_data_rank=None)
