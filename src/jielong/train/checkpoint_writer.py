"""Checkpoints being written: at once, or beside training by a thread that has copies of what is to be saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from jielong.errors import CheckpointError
from jielong.runtime import Runtime
from jielong.tensors import write_tensors
from jielong.train.checkpoint_folder import appearing, complete, discard, unfinished_of
from jielong.train.checkpoint_state import (
    SHARDS,
    STATE_FILE,
    VERSION,
    groups_of,
    moments_file,
    moments_of,
    weights_file,
    weights_of,
)
from jielong.train.parallel import wait_for_all


class CheckpointWriter:
    """Saves the checkpoints of a training into `folder`, and keeps the newest `keep`.

    runtime: as for save_checkpoint; with weights that are shared out all processes make and leave the writer together.
    beside: `save` copies what is to be saved, and a thread writes it while training goes on; the checkpoint gets its
    name at the next `save`, at `finish` or at the end of the `with`, where what went wrong is raised, too. A training
    that ends by an error still gets its last checkpoint (where that fails as well, both are told), but where weights
    are shared out, for which all would have to agree: that one is then lost, and the one before it is there.
    """

    def __init__(self, folder: Path, runtime: Runtime | None = None, beside: bool = False, keep: int = 2) -> None:
        assert keep >= 1, keep
        self._folder, self._runtime, self._keep = folder, runtime, keep
        self._leads = runtime is None or runtime.process == 0
        self._shared_out = runtime is not None and runtime.mesh is not None
        self._thread = ThreadPoolExecutor(1, "jielong-checkpoint") if beside else None
        # A group of its own: the thread's talk must not get between that of the steps.
        self._group = dist.new_group(backend="gloo") if beside and self._shared_out else None
        self._pending: Callable[[], None] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        try:
            if kind is None or not self._shared_out:
                self.finish()
        except CheckpointError as lost:
            if kind is None:
                raise
            raise CheckpointError(f"{lost} Before that, training had ended: {kind.__name__}: {error}") from error
        finally:
            if self._thread is not None:
                self._thread.shutdown()

    def save(
        self,
        step: int,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        state: Mapping[str, Any],
    ) -> Path:
        """Begin, and unless it is written beside training end, a checkpoint; see save_checkpoint. Its folder."""
        assert step >= 0, step
        self.finish()
        target = self._folder / f"step-{step:06d}"
        description = {
            "version": VERSION,
            "step": step,
            "state": dict(state),
            "optimizers": {name: groups_of(optimizer) for name, optimizer in optimizers.items()},
            "torch_rng": bytes(torch.get_rng_state().tolist()).hex(),
        }
        if self._shared_out:
            self._pending = self._begin_shards(target, models, optimizers, description)
        elif self._leads:
            self._pending = self._begin_whole(target, models, optimizers, description)
        if self._thread is None:
            self.finish()
        return target

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one. Raises CheckpointError when it was not."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending()
            for old in complete(self._folder)[: -self._keep] if self._leads else ():
                discard(old)

    def _begin_whole(
        self,
        target: Path,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        description: dict[str, Any],
    ) -> Callable[[], None]:
        """A checkpoint by this process alone. Returns what waits for it."""
        beside = self._thread is not None
        tensors = {weights_file(name): weights_of(model, beside) for name, model in models.items()}
        tensors |= {moments_file(name): moments_of(optimizer, beside) for name, optimizer in optimizers.items()}
        description["tensors"] = {file: len(content) for file, content in tensors.items()}
        text = _as_text(description)
        if self._thread is None:
            return partial(_write_whole, target, tensors, text)
        return self._thread.submit(_write_whole, target, tensors, text).result

    def _begin_shards(
        self,
        target: Path,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        description: dict[str, Any],
    ) -> Callable[[], None]:
        """A checkpoint by all processes, each its own pieces; the first makes the folder and gives it its name.

        One that cannot go on raises, and the others, who wait for it, notice that it is gone.
        """
        from jielong.train.shards import begin_shards, named_tensors, write_shards  # here: it takes seconds to import

        runtime = self._runtime
        assert runtime is not None
        tensors = named_tensors(models, optimizers)
        text = _as_text({**description, "tensors": {}, "shards": len(tensors), "tensor_parallel": runtime.tensor_size})
        opened = ExitStack()
        with ExitStack() as stack:
            folder = unfinished_of(target)
            if self._leads:
                folder = stack.enter_context(appearing(target, sum(tensor.nbytes for tensor in tensors.values())))
            wait_for_all(runtime)
            if self._group is None:
                write_shards(folder / SHARDS, tensors)
                written: Callable[[], None] = _nothing
            else:
                written = begin_shards(folder / SHARDS, tensors, self._group)
            opened = stack.pop_all()

        def end() -> None:
            with opened:
                written()
                if self._leads:
                    (folder / STATE_FILE).write_text(text, encoding="utf-8")
            wait_for_all(runtime)

        return end


def _nothing() -> None:
    """All is done already."""


def _write_whole(target: Path, tensors: Mapping[str, dict[str, Tensor]], text: str) -> None:
    """file name -> its tensors, and state.json, as the folder `target`."""
    num_bytes = sum(tensor.nbytes for content in tensors.values() for tensor in content.values()) + len(text.encode())
    with appearing(target, num_bytes) as unfinished:
        for file, content in tensors.items():
            write_tensors(unfinished / file, content)
        (unfinished / STATE_FILE).write_text(text, encoding="utf-8")


def _as_text(description: dict[str, Any]) -> str:
    return json.dumps(description, ensure_ascii=False, indent=1, allow_nan=False)
