"""Checkpoints: folders that are either whole or not there.

    checkpoints/step-000123/  NAME.safetensors            weights of model NAME
                              NAME.optimizer.safetensors  moments and step counts of optimizer NAME
                              state.json                  step, caller's state, optimizers' scalars, torch's RNG
                              shards/                     in place of the safetensors, where weights are shared out

A kill at any moment leaves the checkpoints before it as they were. Only safetensors and JSON, never pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from jielong.errors import CheckpointError
from jielong.runtime import Runtime
from jielong.train.checkpoint_folder import latest_checkpoint as latest_checkpoint  # whoever loads asks for it here
from jielong.train.checkpoint_state import (
    SHARDS,
    STATE_FILE,
    VERSION,
    moments_file,
    optimizer_state,
    parameters_of,
    tied_keys,
    weights_file,
)
from jielong.train.checkpoint_writer import CheckpointWriter

ValueT = TypeVar("ValueT")


def save_checkpoint(
    folder: Path,
    step: int,
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    state: Mapping[str, Any],
    keep: int = 2,
    runtime: Runtime | None = None,
) -> Path:
    """Write folder/step-000123 and then drop all but the newest `keep` checkpoints. Returns the new folder.

    step: steps done. state: the caller's own values, JSON. A checkpoint of the same step is replaced.
    runtime: of a run with several processes, which all call this. The first one writes everything, or, where weights
    are shared out, each its own pieces.
    Raises CheckpointError when it cannot be written (disk full, no permission); earlier ones are then intact.
    """
    with CheckpointWriter(folder, runtime, keep=keep) as writer:
        return writer.save(step, models, optimizers, state)


def load_checkpoint(
    path: Path,
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    runtime: Runtime | None = None,
) -> tuple[int, dict[str, Any]]:
    """Put the weights, optimizer states and torch's CPU random state back; returns (steps done, the caller's state).

    Models and optimizers must be built as they were when saved; the checkpoint may hold more of them than asked for.
    runtime: of a run with several processes, which all call this. A checkpoint may be of another number of processes,
    and of weights that were, or are now, shared out.
    Raises CheckpointError, before anything is changed, for a file that is missing, truncated or of another version, and
    for tensors whose names or shapes do not fit.
    """
    description = _read_description(path)
    _check_parts(path, description, 1 if runtime is None else runtime.tensor_size)
    if "shards" in description:
        restored = _load_shards(path, models, optimizers, description)
    else:
        restored = _load_whole(path, models, optimizers, description, runtime)
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(restored[name])
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(description["torch_rng"])), dtype=torch.uint8))
    return int(description["step"]), dict(description["state"])


def _check_parts(path: Path, description: dict[str, Any], parts: int) -> None:
    """Raises CheckpointError when layers were cut into another number of parts: the rows of their matrices differ."""
    saved = description.get("tensor_parallel", 1)
    if saved != parts:
        raise CheckpointError(
            f"{path} was saved with [run] tensor_parallel = {saved}, now it is {parts}. Go on with run.tensor_parallel "
            f"= {saved}; another number of processes, and another run.sharding, are fine"
        )


def _load_whole(
    path: Path,
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    description: dict[str, Any],
    runtime: Runtime | None,
) -> dict[str, dict[str, Any]]:
    """Fill the models; returns what each optimizer's load_state_dict takes. Each process reads everything."""
    place = _own_piece(runtime)
    weights = {name: _read_tensors(path / weights_file(name), description) for name in models}
    moments = {name: _read_tensors(path / moments_file(name), description) for name in optimizers}
    whole = runtime is None or runtime.mesh is None  # models that are shared out have no tensor under two names
    tied = {
        name: tied_keys(model) if whole else {key: key for key in model.state_dict()} for name, model in models.items()
    }
    for name, model in models.items():
        live = model.state_dict()
        firsts = {key: live[key] for key, first in tied[name].items() if key == first}
        _compare(path / weights_file(name), weights[name], firsts)
    restored = {}
    for name, optimizer in optimizers.items():
        groups = description["optimizers"].get(name)
        restored[name] = optimizer_state(path / moments_file(name), moments[name], groups, optimizer)
        for number, state in restored[name]["state"].items():
            parameter = parameters_of(optimizer)[number]
            state.update({key: place(parameter, value) for key, value in state.items() if value.ndim > 0})
    for name, model in models.items():
        live = model.state_dict()
        model.load_state_dict({key: place(live[key], weights[name][first]) for key, first in tied[name].items()})
    return restored


def _own_piece(runtime: Runtime | None) -> Callable[[Tensor, Tensor], Tensor]:
    """(a live tensor, all of it from a file) -> what load_state_dict takes: all of it, or this process's piece."""
    if runtime is None or runtime.mesh is None:
        return lambda live, whole: whole
    from jielong.train.sharding import placed_like  # here: it takes seconds to import

    return placed_like


def _load_shards(
    path: Path, models: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer], description: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """`_load_whole` of a checkpoint in pieces; each process reads what it needs of them."""
    from jielong.train.shards import named_tensors, read_shards, stored_shapes  # here: it takes seconds to import

    folder = path / SHARDS
    shapes = stored_shapes(folder)
    if len(shapes) != description["shards"]:
        raise CheckpointError(f"{folder} has {len(shapes)} tensors, saved were {description['shards']}: a file is gone")
    stored = {key: torch.empty(size, dtype=dtype, device="meta") for key, (size, dtype) in shapes.items()}
    wanted, restored = named_tensors(models, {}), {}
    for name in models:
        _compare(folder, _under(stored, f"{name}/"), _under(wanted, f"{name}/"))
    for name, optimizer in optimizers.items():
        prefix = f"{name}.optimizer/"
        found = optimizer_state(folder, _under(stored, prefix), description["optimizers"].get(name), optimizer)
        for number, state in found["state"].items():
            for key, value in state.items():
                like = parameters_of(optimizer)[number] if value.ndim else torch.zeros(())
                state[key] = wanted[f"{prefix}{number}.{key}"] = torch.zeros_like(like, dtype=value.dtype)
        restored[name] = found
    read_shards(folder, wanted)
    return restored


def _under(entries: Mapping[str, ValueT], prefix: str) -> dict[str, ValueT]:
    """The entries whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}


# ---- reading ----


def _read_description(path: Path) -> dict[str, Any]:
    file = path / STATE_FILE
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is missing or damaged: {error}. Delete {path} to go on from the one before it"
        ) from error
    version = description.get("version") if isinstance(description, dict) else None
    if version != VERSION:
        raise CheckpointError(f"{file} has version {version}, this jielong reads {VERSION}; start the stage anew")
    missing = {"step", "state", "optimizers", "tensors", "torch_rng"} - description.keys()
    if missing:
        raise CheckpointError(f"{file} lacks {sorted(missing)}. Delete {path} to go on from the one before it")
    return dict(description)


def _read_tensors(file: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    num_tensors = description["tensors"].get(file.name)
    if num_tensors is None:
        raise CheckpointError(f"{file.parent} was saved without {file.name}; it has {sorted(description['tensors'])}")
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} is missing or damaged: {error}. Delete {file.parent} to go on from the one before it"
        ) from error
    if len(tensors) != num_tensors:
        raise CheckpointError(f"{file} has {len(tensors)} tensors, saved were {num_tensors}")
    return tensors


def _compare(file: Path, tensors: dict[str, Tensor], live: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless the file has exactly the live model's tensors, in its shapes and dtypes."""
    missing, unknown = sorted(live.keys() - tensors.keys()), sorted(tensors.keys() - live.keys())
    if missing or unknown:
        raise CheckpointError(f"{file} fits another model: missing {missing[:3]}, unknown {unknown[:3]}")
    for key, tensor in live.items():
        found = tensors[key]
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise CheckpointError(
                f"{file}: {key} is {found.dtype} {tuple(found.shape)}, the model needs {tensor.dtype} "
                f"{tuple(tensor.shape)}; was the recipe changed since?"
            )
