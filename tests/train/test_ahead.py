"""Batches made ahead by a thread are those that would be made at once, one step ahead and no more."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jielong.data.batch import Batch, OnDevice, PairBatch, Rollout
from jielong.data.masking import MaskedBatch
from jielong.data.task_rows import LabelledBatch
from jielong.train.ahead import made_ahead


def test_all_steps_in_order_and_made_ready() -> None:
    assert list(made_ahead(lambda step: [step, 10 * step], 2, 6, lambda one: -one)) == [
        [-2, -20], [-3, -30], [-4, -40], [-5, -50]
    ]  # fmt: skip
    assert list(made_ahead(lambda step: [step], 4, 4, lambda one: one)) == []


def test_the_next_one_is_made_meanwhile_and_not_the_one_behind_it() -> None:
    made: list[tuple[int, str]] = []

    def batches(step: int) -> list[int]:
        made.append((step, threading.current_thread().name))
        return [step]

    ahead = made_ahead(batches, 0, 4, lambda one: one)
    assert next(ahead) == [0]
    deadline = time.monotonic() + 10
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert [step for step, _ in made] == [0, 1]
    assert all(name != threading.current_thread().name for _, name in made)
    ahead.close()  # type: ignore[attr-defined]


def test_what_goes_wrong_is_told_at_its_step() -> None:
    def batches(step: int) -> list[int]:
        if step == 1:
            raise KeyError("row 7")
        return [step]

    ahead = made_ahead(batches, 0, 3, lambda one: one)
    assert next(ahead) == [0]
    with pytest.raises(KeyError, match="row 7"):
        next(ahead)


@dataclass(frozen=True)
class Some(OnDevice):
    a: Tensor
    b: Tensor | None
    num_units: int


def test_a_batch_moves_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    some = Some(torch.ones(2, 3), None, 5)
    moved = some.to("meta")
    assert type(moved) is Some and moved.a.is_meta and moved.b is None and moved.num_units == 5
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor + 1)  # a machine without a GPU pins nothing
    assert torch.equal(some.pinned().a, torch.full((2, 3), 2.0))


@pytest.mark.parametrize("pinned", [True, False])
def test_only_pinned_memory_is_copied_while_the_host_goes_on(pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that is not waited for may be read before it is there, or what it is made of be gone."""
    seen: list[bool] = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default:
                seen.append(bool((kwargs or {}).get("non_blocking")))
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: pinned)
    with Copies():
        Some(torch.ones(2, 3), torch.ones(4), 5).to("meta")
    assert seen == [pinned, pinned]


def test_every_batch_of_the_house_does() -> None:
    assert all(issubclass(kind, OnDevice) for kind in (Batch, PairBatch, Rollout, MaskedBatch, LabelledBatch))
