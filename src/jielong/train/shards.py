"""The part of a checkpoint that every process writes: its own pieces of all tensors, in one safetensors file each.

    shards/shard-00001-model-00001-of-00001.safetensors    of the first process, and so on

A file's header says where in the whole tensors its pieces belong, so that any number of processes, or a single one,
can read what any other number has written. This is torch.distributed.checkpoint with its safetensors storage; its usual
one describes the pieces in a pickle. Nothing but tensors goes in: numbers and settings are in the checkpoint's JSON.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.optim import Optimizer

from jielong.errors import CheckpointError, StorageError

# What torch makes of a broken file or a full disk, in one process or in another that tells of it.
BROKEN = (OSError, SafetensorError, CheckpointException, KeyError, ValueError, RuntimeError, AssertionError)


def named_tensors(models: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    """{"MODEL/KEY": weights} and {"OPTIMIZER.optimizer/PARAMETER.NAME": moments}, as this process holds them."""
    tensors = {f"{name}/{key}": value for name, model in models.items() for key, value in model.state_dict().items()}
    for name, optimizer in optimizers.items():
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.optimizer/{number}.{key}": value for key, value in state.items()}
    return tensors


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this process's pieces into the folder, on the disk before this returns. All processes call it.

    Raises StorageError, in every process, when one of them cannot.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(dict(tensors), storage_writer=writer)
    except BROKEN as error:
        raise StorageError(_reason(error)) from error


def begin_shards(folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup) -> Callable[[], None]:
    """`write_shards` beside what goes on: the pieces are copied now, and written by a thread that talks in `group`.

    Returns what waits until they are on the disk, and raises StorageError as write_shards does.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    writing = dcp.async_save(dict(tensors), storage_writer=writer, process_group=group)
    assert isinstance(writing, Future)

    def wait() -> None:
        try:
            writing.result()
        except BROKEN as error:
            raise StorageError(_reason(error)) from error

    return wait


def stored_shapes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Name -> (shape, dtype) of every whole tensor whose pieces are there.

    Raises CheckpointError for broken files and for a tensor of which a piece is missing: torch would leave that part of
    it as it was.
    """
    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except BROKEN as error:
        raise _unreadable(folder, error) from error
    shapes = {}
    for name, entry in found.items():
        assert isinstance(entry, TensorStorageMetadata)  # nothing else goes in
        num_held = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
        if num_held < math.prod(entry.size):
            raise _unreadable(folder, ValueError(f"of {name} {num_held} of {math.prod(entry.size)} numbers are there"))
        shapes[name] = (entry.size, entry.properties.dtype)
    return shapes


def read_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, or this process's pieces of them, with what the folder holds under their names.

    All processes of a run with several call it. Raises CheckpointError when pieces are missing or broken.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that there is a single process, if so
            reader = HuggingFaceStorageReader(str(folder))
            dcp.load(dict(tensors), storage_reader=reader, no_dist=not dist.is_initialized())
    except BROKEN as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"{folder} lacks a file or has a damaged one: {_reason(error)}. Delete {folder.parent} to go on from the one "
        "before it"
    )


def _reason(error: BaseException) -> str:
    """The first process's own words, where torch has collected those of several."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
