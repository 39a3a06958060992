"""A device beside the CPU for machines that have none: it tells who mixes what lies there with what lies here.

Tensors on torch's device "lazy", which no backend serves, keep their numbers on the CPU and are computed there, but say
that they lie elsewhere. An operation on one of them and on a tensor of the CPU is refused, as a GPU refuses it: but for
copies, for indices, and for single numbers. What a GPU's kernels compute is not tested by this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from jielong.runtime import Runtime
from jielong.stages import pipeline

ELSEWHERE = torch.device("lazy")
COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


class Elsewhere(Tensor):
    """A tensor that says it lies elsewhere. here: its numbers."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=ELSEWHERE
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.here.data_ptr()

    def __setitem__(self, index: Any, value: Any) -> None:
        """Numbers and lists as tensors of the CPU: torch's own makes them where no mode sees it."""
        index = torch.tensor(index) if isinstance(index, list) else index
        super().__setitem__(index, value if isinstance(value, Tensor) else torch.tensor(value, dtype=self.dtype))

    def tolist(self) -> Any:
        return self.here.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"elsewhere: {self.here!r}"


class Everywhere(TorchDispatchMode):
    """Operations on tensors of either place, and such as make new ones."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU; what it gives lies where a GPU would have left it."""
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    there = [one for one in tensors if isinstance(one, Elsewhere)]
    refuse_mixed(func, args, tensors, bool(there))
    wanted = kwargs.get("device")
    if wanted is not None and torch.device(wanted).type == ELSEWHERE.type:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        goes = True
    else:
        goes = bool(there) and wanted is None
    known = {id(one.here): one for one in there}
    made = func(*(unwrapped(one) for one in args), **{name: unwrapped(one) for name, one in kwargs.items()})

    def placed(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        if id(one) in known:
            return known[id(one)]
        return Elsewhere(one) if goes else one

    if func in COPIES and not goes and any(made is one for one in tensors):
        return made  # copied into a tensor of the CPU
    return tree_map(placed, made)


def unwrapped(value: Any) -> Any:
    return tree_map(lambda one: one.here if isinstance(one, Elsewhere) else one, value)


def refuse_mixed(func: Any, args: Any, tensors: list[Tensor], any_there: bool) -> None:
    here = [one for one in tensors if not isinstance(one, Elsewhere) and one.dim() > 0]
    if not (any_there and here) or func in COPIES:
        return
    if func in INDEXED and isinstance(args[0], Elsewhere):
        indices = tree_leaves(args[1])
        here = [one for one in here if all(one is not index for index in indices)]
    if here:
        shapes = ", ".join(str(tuple(one.shape)) for one in tensors)
        raise RuntimeError(f"{func}: tensors lie on two devices (shapes {shapes})")


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Within the block tensors may be made on, and moved to, the device that is yielded."""
    tensor, autocast, adamw = torch.tensor, torch.is_autocast_enabled, torch.optim.AdamW

    def made(data: Any, **settings: Any) -> Tensor:  # torch's own fills such a tensor behind the back of the mode
        device = settings.pop("device", None)
        found = tensor(data, **settings)
        return found if device is None else found.to(device)

    with pytest.MonkeyPatch.context() as patch, Everywhere():
        patch.setattr(torch, "tensor", made)
        # Views of such tensors in a mode that they were not made in are more than torch can do.
        patch.setattr(torch._C, "_InferenceMode", lambda mode: torch.no_grad() if mode else nullcontext())
        patch.setattr(torch, "is_autocast_enabled", lambda kind: kind != ELSEWHERE.type and autocast(kind))
        patch.setattr(torch.optim, "AdamW", lambda groups, **more: adamw(groups, **{**more, "fused": False}))
        yield ELSEWHERE


def run_elsewhere(recipe: Path, out: Path, overrides: Sequence[str] = (), until: str | None = None) -> dict[str, Any]:
    """run_recipe on the device; the report."""
    with elsewhere() as device, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "detect", lambda *_: Runtime(device=device, dtype=torch.float32, seed=7))
        return pipeline.run_recipe(recipe, out, list(overrides), until, quiet=True)
