"""The safetensors files of a model folder: what they hold, checked before it is believed, and tensors out of them.

Tensors are views of the mapped file where they are needed as they are, so that loading neither copies nor reads them
before they are used. What has to be copied (another dtype, a fused or a transposed matrix) is read through a mapping
that is given up again soon, because its pages count as this process's memory as long as it lives.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jielong.errors import ModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_HEADER_BYTES = 100_000_000  # the most that the format allows
_PASSING_BYTES = 64_000_000  # how much is read through one mapping before it is given up


class TensorFiles:
    """All tensors of a folder by the names in its files. Raises ModelError, from the start, for files that are broken.

    Nothing is read before it is asked for. Several threads may ask.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[Path, Any] = {}
        self._passing: tuple[Path, Any] | None = None
        self._passed_bytes = 0
        self._lock = threading.Lock()
        self._places: dict[str, Path] = {}
        index = _read_index(folder)
        for path in sorted(set(index.values())) or [folder / WEIGHTS]:
            self._files[path] = _open(path)
            self._places.update(dict.fromkeys(self._files[path].keys(), path))
        for name, path in index.items():
            if self._places.get(name) is None:
                raise ModelError(f"{folder / INDEX}: {name!r} should be in {path.name}, which lacks it")
            self._places[name] = path

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._places)

    def where(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._places[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, from the header."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Its dtype, from the header. Raises ModelError for anything but floating-point numbers of 16 bits or more."""
        found = str(self._slice(name).get_dtype())
        if found not in DTYPES:
            raise ModelError(
                f"{self._places[name]}: {name} holds numbers of type {found}; we read {', '.join(DTYPES)}. "
                "Weights that were quantised must be turned back first"
            )
        return DTYPES[found]

    def _slice(self, name: str) -> Any:
        return self._files[self._places[name]].get_slice(name)

    def mapped(self, name: str) -> Tensor:
        """The tensor as a view of the file. Writing to it changes this process's memory only, never the file."""
        tensor: Tensor = self._files[self._places[name]].get_tensor(name)
        return tensor

    def passing(self, name: str) -> Tensor:
        """The tensor, to be copied at once and not kept."""
        path = self._places[name]
        with self._lock:
            if self._passing is None or self._passing[0] != path or self._passed_bytes > _PASSING_BYTES:
                self._passing, self._passed_bytes = (path, _open(path)), 0
            tensor: Tensor = self._passing[1].get_tensor(name)
            self._passed_bytes += tensor.nbytes
        return tensor


def _read_index(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index of sharded weights; {} where there is a single file.

    Raises ModelError for an index that names anything but a file of this folder.
    """
    path = folder / INDEX
    if (folder / WEIGHTS).exists() or not path.exists():
        return {}
    entries = read_json(path).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise ModelError(f'{path}: it has no "weight_map" from tensor to file; copy the folder again')
    places = {}
    for name, file in entries.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or set(file) & set("/\\:\0"):
            raise ModelError(f"{path}: {name!r} should be in {file!r}; legal are .safetensors files of this folder")
        places[name] = folder / file
    return places


def _open(path: Path) -> Any:
    """The file, its header checked. Raises ModelError naming it when it is missing or damaged."""
    if not path.is_file():
        pickled = sorted(found.name for pattern in PICKLES for found in path.parent.glob(pattern))
        why = (
            f"; {pickled[0]} is pickle or another program's format, which can run code and is never read. Convert it: "
            "load it where you trust it with transformers and call save_pretrained, which writes safetensors"
            if pickled
            else ""
        )
        raise ModelError(f"{path}: the file is missing{why}")
    try:
        _check_header(path)
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: truncated or no safetensors file ({error}); copy the folder again") from None


def _check_header(path: Path) -> None:
    """Raises ValueError unless the header fits into the file, before anyone makes room for what it promises."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) < 9:
        raise ValueError(f"it has {size} bytes")
    (length,) = struct.unpack("<Q", start[:8])
    if length > min(size - 8, _HEADER_BYTES):
        raise ValueError(f"its header is said to have {length} bytes; the file has {size}, and legal are 100 million")
    if start[8:] != b"{":
        raise ValueError("its header is not JSON")


def shards(sizes: Mapping[str, int], most_bytes: int) -> Iterator[list[str]]:
    """Names in their order, as many together as fit into most_bytes; a larger tensor stands alone."""
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > most_bytes:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder. Raises ModelError naming the file when it is missing or damaged."""
    if not path.is_file():
        raise ModelError(f"{path}: the file is missing; a model folder must have it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error}); copy the folder again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: it holds a {type(content).__name__}; an object is needed")
    return content
