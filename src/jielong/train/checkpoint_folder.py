"""Folders of checkpoints: a checkpoint has its name when it is whole, and not before.

It is written under a hidden name, flushed, then renamed and its parent flushed. A kill at any moment leaves those
before it as they were.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jielong.errors import CheckpointError, StorageError

UNFINISHED = ".unfinished-"
DISCARDED = ".discarded-"


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder`, None when there is none. Half-written leftovers are removed."""
    if not folder.is_dir():
        return None
    _clean(folder)
    found = complete(folder)
    return found[-1] if found else None


@contextmanager
def appearing(target: Path, num_bytes: int) -> Iterator[Path]:
    """A folder to write into, which gets the target's name when the block is done; else nothing is left of it.

    Raises CheckpointError, saying that num_bytes are needed, when something cannot be written.
    """
    unfinished = unfinished_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean(target.parent)
        unfinished.mkdir()
        yield unfinished
        # Whoever writes a safetensors file flushes it; folders and all else are flushed here.
        for path in (*(path for path in unfinished.iterdir() if path.suffix != ".safetensors"), unfinished):
            flush(path)
        _replace(unfinished, target)
    except (OSError, StorageError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)  # before the free space is measured
        raise _not_written(target, num_bytes, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def unfinished_of(target: Path) -> Path:
    return target.with_name(f"{UNFINISHED}{target.name}")


def _replace(unfinished: Path, target: Path) -> None:
    """Give the finished folder its name; the rename is what makes the checkpoint exist."""
    replaced = target.with_name(f"{DISCARDED}{target.name}")
    if target.exists():
        target.rename(replaced)
    unfinished.rename(target)
    flush(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_written(target: Path, num_bytes: int, error: Exception) -> CheckpointError:
    folder = next(parent for parent in target.parents if parent.is_dir())
    earlier = complete(folder) if folder == target.parent else []
    safe = f"the one before it, {earlier[-1].name}, is intact" if earlier else "there was no checkpoint before it"
    free = shutil.disk_usage(folder).free
    reason = error.__cause__ or error
    return CheckpointError(
        f"{target} could not be written ({reason}): it needs {num_bytes / 1e6:.1f} MB, the disk has "
        f"{free / 1e6:.1f} MB free; {safe}. Make room there and run the same command again: it goes on from the last "
        "checkpoint."
    )


def complete(folder: Path) -> list[Path]:
    """Checkpoints by rising step."""
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d{6,}", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint; renamed first, so that a kill half-way does not leave one that looks whole."""
    hidden = checkpoint.with_name(f"{DISCARDED}{checkpoint.name}")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _clean(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name.startswith((UNFINISHED, DISCARDED)):
            shutil.rmtree(path, ignore_errors=True)
