"""All of a model, where [run] may have it that no process has all: for decoding, for a hash.

Everything here is called by all processes together, and costs nothing where each of them has whole models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from torch import Tensor, nn

from jielong.runtime import Runtime

ModelT = TypeVar("ModelT", bound=nn.Module)


def whole_model(model: ModelT, runtime: Runtime) -> ModelT:
    """The model to decode with while it is trained: itself, or a copy of it as it is now, see sharding.whole_copy."""
    if runtime.mesh is None:
        return model
    from jielong.train import sharding  # here: it takes seconds to import, see there

    if not sharding.is_in_parts(model):
        return model
    return cast(ModelT, sharding.whole_copy(sharding.shardable(model), runtime))


def whole_weights(model: nn.Module, runtime: Runtime | None) -> Iterable[tuple[str, Tensor]]:
    """(name, all of it) of one weight after the other, as the whole model's state has them. runtime: None of one."""
    if runtime is not None and runtime.mesh is not None:
        from jielong.train import sharding

        if sharding.is_in_parts(model):
            return sharding.whole_weights(sharding.shardable(model), runtime)
    return model.state_dict().items()


@contextmanager
def released(models: Iterable[nn.Module], runtime: Runtime) -> Iterator[None]:
    """Within the block models are only read; after it no process keeps more of them than its share."""
    yield
    if runtime.mesh is not None:
        from jielong.train import sharding

        sharding.release(models)
