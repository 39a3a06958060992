"""Tensors to a safetensors file, whole or not at all. Whatever writes one does it through here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from jielong.config import replacing
from jielong.errors import StorageError


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write {name: tensor}, contiguous and on the CPU, with text beside them, through a temporary file.

    Raises StorageError naming the file when there is no room or no permission; an older file is then untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(dict(tensors), temporary, metadata=dict(metadata or {}) or None)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise StorageError(
            f"{path} could not be written: {reason}. Make room there, or choose a folder that can be written; "
            "for a run, the same command goes on from its last checkpoint"
        ) from error
