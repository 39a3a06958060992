"""What a checkpoint holds of a model and an optimizer: tensors by name, an optimizer's scalars, and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from jielong.errors import CheckpointError

VERSION = 1
STATE_FILE = "state.json"
SHARDS = "shards"  # instead of the .safetensors: a folder with a file of each process that saved, see shards.py


def weights_file(name: str) -> str:
    return f"{name}.safetensors"


def moments_file(name: str) -> str:
    return f"{name}.optimizer.safetensors"


def tied_keys(model: nn.Module) -> dict[str, str]:
    """Every key of the state dict -> the first key with the same memory, under which it is saved (once)."""
    firsts: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    tied = {}
    for key, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        tied[key] = firsts.setdefault(place, key) if tensor.numel() else key
    return tied


def weights_of(model: nn.Module, copied: bool = False) -> dict[str, Tensor]:
    """{key: tensor on the CPU}, each memory once. copied: none of it is the model's own memory."""
    state = model.state_dict()
    return {key: _plain(state[key], copied) for key, first in tied_keys(model).items() if key == first}


def moments_of(optimizer: Optimizer, copied: bool = False) -> dict[str, Tensor]:
    """{"PARAMETER.NAME": tensor on the CPU}; parameters are numbered through the groups, as torch does.

    copied: as for weights_of.
    """
    states = optimizer.state_dict()["state"]
    named = {f"{number}.{name}": value for number, state in states.items() for name, value in state.items()}
    return {name: _plain(value, copied) for name, value in named.items()}


def _plain(tensor: Tensor, copied: bool) -> Tensor:
    """Off a GPU it comes as a copy in any case, and only as one."""
    return tensor.detach().to("cpu", copy=copied).contiguous()


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All parameters in the order of their numbers."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def groups_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The scalars of each parameter group; JSON keeps every bit of a float."""
    return [dict(group) for group in optimizer.state_dict()["param_groups"]]


def optimizer_state(
    file: Path, tensors: dict[str, Tensor], groups: list[dict[str, Any]] | None, optimizer: Optimizer
) -> dict[str, Any]:
    """What Optimizer.load_state_dict takes, checked against the optimizer's own groups and parameters."""
    live = optimizer.state_dict()["param_groups"]
    sizes = [len(group["params"]) for group in groups or []]
    if groups is None or sizes != [len(group["params"]) for group in live]:
        wanted = [len(group["params"]) for group in live]
        raise CheckpointError(f"{file}: the optimizer had parameter groups of {sizes} tensors, now they are {wanted}")
    parameters = parameters_of(optimizer)
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        if not number.isdecimal() or int(number) >= len(parameters):
            raise CheckpointError(f"{file}: tensor {key!r} belongs to none of the {len(parameters)} parameters")
        parameter = parameters[int(number)]
        if tensor.ndim > 0 and tensor.shape != parameter.shape:
            raise CheckpointError(
                f"{file}: tensor {key!r} has shape {tuple(tensor.shape)}, its parameter {tuple(parameter.shape)}"
            )
        states.setdefault(int(number), {})[name] = tensor
    first = 0
    for size in sizes:  # the groups of Muon keep other moments than those of AdamW
        names = {frozenset(states[number]) for number in range(first, first + size) if number in states}
        if len(names) > 1:
            raise CheckpointError(f"{file}: some parameters lack a part of {sorted(frozenset.union(*names))}")
        first += size
    for group in groups:
        # JSON has no tuples; torch's betas are one.
        group.update({key: tuple(value) for key, value in group.items() if isinstance(value, list) and key != "params"})
    return {"state": states, "param_groups": groups}
