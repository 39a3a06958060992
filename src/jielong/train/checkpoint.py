"""Checkpoints: folders that are either whole or not there.

    checkpoints/step-000123/  NAME.safetensors            weights of model NAME
                              NAME.optimizer.safetensors  moments and step counts of optimizer NAME
                              state.json                  step, caller's state, optimizers' scalars, torch's RNG

A folder is written under a hidden name, every file is flushed to the disk, then the folder is renamed and its parent
flushed. A kill at any moment leaves the checkpoints before it as they were. Only safetensors and JSON, never pickle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from jielong.errors import CheckpointError, StorageError
from jielong.tensors import write_tensors

VERSION = 1
STATE_FILE = "state.json"
UNFINISHED = ".unfinished-"
DISCARDED = ".discarded-"


def save_checkpoint(
    folder: Path,
    step: int,
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write folder/step-000123 and then drop all but the newest `keep` checkpoints. Returns the new folder.

    step: steps done. state: the caller's own values, JSON. A checkpoint of the same step is replaced.
    Raises CheckpointError when it cannot be written (disk full, no permission); earlier ones are then intact.
    """
    assert keep >= 1 and step >= 0, (keep, step)
    tensors = {_weights_file(name): _weights(model) for name, model in models.items()}
    tensors |= {_moments_file(name): _moments(optimizer) for name, optimizer in optimizers.items()}
    description = {
        "version": VERSION,
        "step": step,
        "state": dict(state),
        "optimizers": {name: _groups(optimizer) for name, optimizer in optimizers.items()},
        "tensors": {file: len(content) for file, content in tensors.items()},
        "torch_rng": bytes(torch.get_rng_state().tolist()).hex(),
    }
    text = json.dumps(description, ensure_ascii=False, indent=1, allow_nan=False)
    num_bytes = sum(tensor.nbytes for content in tensors.values() for tensor in content.values()) + len(text.encode())
    target = folder / f"step-{step:06d}"
    unfinished = folder / f"{UNFINISHED}{target.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clean(folder)
        _write(unfinished, tensors, text)
        _replace(unfinished, target)
    except (OSError, StorageError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)  # before the free space is measured
        raise _not_written(target, num_bytes, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    for old in _complete(folder)[:-keep]:
        _discard(old)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder`, None when there is none. Half-written leftovers are removed."""
    if not folder.is_dir():
        return None
    _clean(folder)
    found = _complete(folder)
    return found[-1] if found else None


def load_checkpoint(
    path: Path, models: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> tuple[int, dict[str, Any]]:
    """Put the weights, optimizer states and torch's CPU random state back; returns (steps done, the caller's state).

    Models and optimizers must be built as they were when saved; the checkpoint may hold more of them than asked for.
    Raises CheckpointError, before anything is changed, for a file that is missing, truncated or of another version, and
    for tensors whose names or shapes do not fit.
    """
    description = _read_description(path)
    weights = {name: _read_tensors(path / _weights_file(name), description) for name in models}
    moments = {name: _read_tensors(path / _moments_file(name), description) for name in optimizers}
    for name, model in models.items():
        _compare(path / _weights_file(name), weights[name], _weights(model))
    restored = {}
    for name, optimizer in optimizers.items():
        groups = description["optimizers"].get(name)
        restored[name] = _optimizer_state(path / _moments_file(name), moments[name], groups, optimizer)
    for name, model in models.items():
        tied = _tied(model)
        model.load_state_dict({key: weights[name][first] for key, first in tied.items()})
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(restored[name])
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(description["torch_rng"])), dtype=torch.uint8))
    return int(description["step"]), dict(description["state"])


def _weights_file(name: str) -> str:
    return f"{name}.safetensors"


def _moments_file(name: str) -> str:
    return f"{name}.optimizer.safetensors"


# ---- what is in the files ----


def _tied(model: nn.Module) -> dict[str, str]:
    """Every key of the state dict -> the first key with the same memory, under which it is saved (once)."""
    firsts: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    tied = {}
    for key, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        tied[key] = firsts.setdefault(place, key) if tensor.numel() else key
    return tied


def _weights(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {key: _plain(state[key]) for key, first in _tied(model).items() if key == first}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _moments(optimizer: Optimizer) -> dict[str, Tensor]:
    """{"PARAMETER.NAME": tensor}; parameters are numbered through the groups, as torch does."""
    states = optimizer.state_dict()["state"]
    return {f"{number}.{name}": _plain(value) for number, state in states.items() for name, value in state.items()}


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The scalars of each parameter group; JSON keeps every bit of a float."""
    return [dict(group) for group in optimizer.state_dict()["param_groups"]]


def _optimizer_state(
    file: Path, tensors: dict[str, Tensor], groups: list[dict[str, Any]] | None, optimizer: Optimizer
) -> dict[str, Any]:
    """What Optimizer.load_state_dict takes, checked against the optimizer's own groups and parameters."""
    live = optimizer.state_dict()["param_groups"]
    sizes = [len(group["params"]) for group in groups or []]
    if groups is None or sizes != [len(group["params"]) for group in live]:
        wanted = [len(group["params"]) for group in live]
        raise CheckpointError(f"{file}: the optimizer had parameter groups of {sizes} tensors, now they are {wanted}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
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


# ---- writing ----


def _write(unfinished: Path, tensors: Mapping[str, dict[str, Tensor]], text: str) -> None:
    """All files of a checkpoint, each on the disk before this returns."""
    unfinished.mkdir()
    for file, content in tensors.items():
        write_tensors(unfinished / file, content)
    (unfinished / STATE_FILE).write_text(text, encoding="utf-8")
    _flush(unfinished / STATE_FILE)
    _flush(unfinished)


def _replace(unfinished: Path, target: Path) -> None:
    """Give the finished folder its name; the rename is what makes the checkpoint exist."""
    replaced = target.with_name(f"{DISCARDED}{target.name}")
    if target.exists():
        target.rename(replaced)
    unfinished.rename(target)
    _flush(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_written(target: Path, num_bytes: int, error: Exception) -> CheckpointError:
    folder = next(parent for parent in target.parents if parent.is_dir())
    earlier = _complete(folder) if folder == target.parent else []
    safe = f"the one before it, {earlier[-1].name}, is intact" if earlier else "there was no checkpoint before it"
    free = shutil.disk_usage(folder).free
    reason = error.__cause__ or error
    return CheckpointError(
        f"{target} could not be written ({reason}): it needs {num_bytes / 1e6:.1f} MB, the disk has "
        f"{free / 1e6:.1f} MB free; {safe}. Make room there and run the same command again: it goes on from the last "
        "checkpoint."
    )


# ---- finding and removing ----


def _complete(folder: Path) -> list[Path]:
    """Checkpoints by rising step."""
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d{6,}", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _discard(checkpoint: Path) -> None:
    """Remove a checkpoint; renamed first, so that a kill half-way does not leave one that looks whole."""
    hidden = checkpoint.with_name(f"{DISCARDED}{checkpoint.name}")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _clean(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name.startswith((UNFINISHED, DISCARDED)):
            shutil.rmtree(path, ignore_errors=True)


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
