"""A checkpoint that is written beside training is the one that would have been written at once."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jielong.errors import CheckpointError, TrainingError
from jielong.tensors import write_tensors
from jielong.train import checkpoint_writer
from jielong.train.checkpoint import load_checkpoint
from jielong.train.checkpoint_writer import CheckpointWriter


class Training:
    """A model that every step changes, weights and moments alike."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.models = {"model": nn.Linear(5, 3)}
        self.optimizers = {"optimizer": torch.optim.AdamW(self.models["model"].parameters(), lr=0.1)}

    def step(self) -> None:
        model, optimizer = self.models["model"], self.optimizers["optimizer"]
        optimizer.zero_grad()
        model(torch.ones(2, 5)).square().sum().backward()
        optimizer.step()

    def save(self, writer: CheckpointWriter, step: int) -> Path:
        return writer.save(step, self.models, self.optimizers, {"step": step})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train(folder: Path, beside: bool) -> dict[str, bytes]:
    training = Training()
    with CheckpointWriter(folder, beside=beside) as writer:
        for step in range(1, 6):
            training.step()
            training.save(writer, step)
    return files(folder)


def test_the_same_files_as_at_once(tmp_path: Path) -> None:
    found = train(tmp_path / "beside", beside=True)
    assert found == train(tmp_path / "at-once", beside=False)
    assert sorted({name.partition("/")[0] for name in found}) == ["step-000004", "step-000005"]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writing waits for it."""
    goes_on = threading.Event()

    def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
        assert goes_on.wait(30)
        write_tensors(path, tensors)

    monkeypatch.setattr(checkpoint_writer, "write_tensors", write)
    return goes_on


def test_training_goes_on_and_the_name_comes_last(tmp_path: Path, held: threading.Event) -> None:
    training = Training()
    training.step()
    wanted = {name: value.clone() for name, value in training.models["model"].state_dict().items()}
    with CheckpointWriter(tmp_path, beside=True) as writer:
        target = training.save(writer, 1)
        training.step()  # while nothing is written yet
        assert not target.exists()
        held.set()
    assert target.exists()
    fresh = Training()
    assert load_checkpoint(target, fresh.models, fresh.optimizers) == (1, {"step": 1})
    assert all(torch.equal(wanted[name], value) for name, value in fresh.models["model"].state_dict().items())


def test_what_went_wrong_is_told_at_the_next_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training()
    with (
        pytest.raises(CheckpointError, match="could not be written"),
        CheckpointWriter(tmp_path, beside=True) as writer,
    ):
        training.save(writer, 1)
        writer.finish()

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoint_writer, "write_tensors", full)
        training.save(writer, 2)
        training.save(writer, 3)
        pytest.fail("the second save has told nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_training_that_fails_has_its_last_checkpoint(tmp_path: Path, held: threading.Event) -> None:
    training = Training()
    with pytest.raises(ZeroDivisionError), CheckpointWriter(tmp_path, beside=True) as writer:
        training.save(writer, 7)
        threading.Timer(0.05, held.set).start()
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["step-000007"]


def test_why_training_ended_is_told_beside_a_checkpoint_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_writer, "write_tensors", full)
    told = r"(?s)could not be written.*training had ended: TrainingError: step 7: the loss is nan"
    with pytest.raises(CheckpointError, match=told) as caught, CheckpointWriter(tmp_path, beside=True) as writer:
        Training().save(writer, 6)
        raise TrainingError("step 7: the loss is nan")
    assert isinstance(caught.value.__cause__, TrainingError)
