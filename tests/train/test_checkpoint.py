"""Checkpoints are whole or not there, and going on from one is bit-equal to never having stopped."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jielong.errors import CheckpointError
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.train import checkpoint, checkpoint_folder
from jielong.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from jielong.train.loop import FitConfig, fit
from jielong.train.objectives import next_token
from jielong.train.optim import OptimizerConfig, build_optimizer
from jielong.train.schedule import multiplier

NUM_STEPS = 20


def tiny(tie: bool = True, width: int = 32) -> tuple[Transformer, torch.optim.AdamW]:
    config = ModelConfig(
        vocab_size=40, max_length=16, width=width, decoder_layers=2, num_heads=2, num_kv_heads=1, head_size=16,
        ffn_width=48, tie_embeddings=tie,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    return model, build_optimizer(model, OptimizerConfig(learning_rate=0.01))


def batches(step: int) -> list[Any]:
    from jielong.data.batch import Batch

    tokens = torch.randint(0, 40, (4, 16), generator=torch.Generator().manual_seed(step))
    mask = torch.ones(4, 16, dtype=torch.bool)
    mask[:, 0] = False
    return [Batch(tokens, mask, mask.new_ones(4, 16).int(), 60)]


def train(folder: Path, num_steps: int = NUM_STEPS, wait: bool = False) -> dict[str, Tensor]:
    """What a stage does: go on from the newest checkpoint, if there is one, and save every few steps."""
    runtime = Runtime(device=torch.device("cpu"), dtype=torch.float32)
    model, optimizer = tiny()
    done, losses = 0, [0.0]
    found = latest_checkpoint(folder)
    if found:
        done, state = load_checkpoint(found, {"model": model}, {"optimizer": optimizer})
        losses = state["losses"]

    def rate(step: int) -> float:
        return multiplier(step, kind="cosine", warmup_steps=3, num_steps=NUM_STEPS)

    config = FitConfig(num_steps=num_steps, start=done)
    for stats in fit(model, optimizer, batches, next_token, rate, runtime, config):
        losses.append(stats.loss)
        if stats.step % 4 == 0:
            save_checkpoint(folder, stats.step, {"model": model}, {"optimizer": optimizer}, {"losses": losses})
        if wait:
            print(stats.step, flush=True)
            sys.stdin.readline()
    states = optimizer.state_dict()["state"].items()
    moments = {f"{number}.{key}": value for number, state in states for key, value in state.items()}
    return {**model.state_dict(), **moments, "losses": torch.tensor(losses)}


def assert_bit_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return train(tmp_path_factory.mktemp("uninterrupted"))


# ---- resumed equals uninterrupted ----


@pytest.mark.parametrize("stop", [4, 11, 19])
def test_stopping_and_going_on_is_bit_equal(tmp_path: Path, uninterrupted: dict[str, Tensor], stop: int) -> None:
    train(tmp_path, num_steps=stop)
    assert_bit_equal(train(tmp_path), uninterrupted)


def start_child(folder: Path, kill_at_flush: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, str(folder), str(kill_at_flush)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def test_killed_between_steps_and_going_on_is_bit_equal(tmp_path: Path, uninterrupted: dict[str, Tensor]) -> None:
    child = start_child(tmp_path, kill_at_flush=0)
    assert child.stdin is not None and child.stdout is not None
    for step in range(1, 11):
        assert int(child.stdout.readline()) == step
        if step < 10:
            child.stdin.write("go on\n")
            child.stdin.flush()
    child.kill()  # SIGKILL after step 10; the last checkpoint is of step 8
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000008"
    assert_bit_equal(train(tmp_path), uninterrupted)


def test_killed_while_saving_and_going_on_is_bit_equal(tmp_path: Path, uninterrupted: dict[str, Tensor]) -> None:
    # A save flushes its description, its folder and the parent: the 8th flush is in the midst of the third checkpoint.
    child = start_child(tmp_path, kill_at_flush=8)
    child.communicate("go on\n" * NUM_STEPS)
    assert child.returncode == -signal.SIGKILL
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".unfinished-step-000012", "step-000004", "step-000008"]
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.name == "step-000008"
    assert not (tmp_path / names[0]).exists()
    assert_bit_equal(train(tmp_path), uninterrupted)


# ---- what is kept, what is found ----


def test_keeps_the_last_ones(tmp_path: Path) -> None:
    model, optimizer = tiny()
    for step in (1, 5, 9, 1000000):
        path = save_checkpoint(tmp_path / "new", step, {"model": model}, {"optimizer": optimizer}, {}, keep=2)
        assert latest_checkpoint(tmp_path / "new") == path
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["step-000009", "step-1000000"]


def test_nothing_to_find(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent") is None
    (tmp_path / "step-notes.txt").write_text("mine")
    assert latest_checkpoint(tmp_path) is None
    assert (tmp_path / "step-notes.txt").exists()


def test_same_step_again_replaces(tmp_path: Path) -> None:
    model, _ = tiny()
    for value in (1, 2):
        save_checkpoint(tmp_path, 3, {"model": model}, {}, {"value": value})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]
    assert load_checkpoint(tmp_path / "step-000003", {"model": model}, {}) == (3, {"value": 2})


# ---- content ----


def test_several_models_and_optimizers_before_and_after_their_first_step(tmp_path: Path) -> None:
    policy, critic = tiny()[0], nn.Linear(3, 2)
    first, second = (build_optimizer(model, OptimizerConfig(learning_rate=0.1)) for model in (policy, critic))
    critic(torch.ones(1, 3)).sum().backward()
    second.step()  # the policy's optimizer has no state yet
    models, optimizers = {"policy": policy, "critic": critic}, {"policy": first, "critic": second}
    path = save_checkpoint(tmp_path, 7, models, optimizers, {"kl": {"coefficient": 0.1}, "seen": [1, 2]})
    wanted = {name: value.clone() for name, value in second.state[critic.weight].items()}
    assert wanted["step"].item() == 1.0

    fresh = {"policy": tiny()[0], "critic": nn.Linear(3, 2)}
    config = OptimizerConfig(learning_rate=0.1)
    fresh_optimizers = {name: build_optimizer(model, config) for name, model in fresh.items()}
    assert load_checkpoint(path, fresh, fresh_optimizers) == (7, {"kl": {"coefficient": 0.1}, "seen": [1, 2]})
    found = fresh_optimizers["critic"].state[fresh["critic"].weight]
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not fresh_optimizers["policy"].state
    assert fresh_optimizers["critic"].param_groups[0]["betas"] == (0.9, 0.95)
    assert torch.equal(fresh["critic"].weight, critic.weight)

    only = nn.Linear(3, 2)
    load_checkpoint(path, {"critic": only}, {})
    assert torch.equal(only.weight, critic.weight)


@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path, tie: bool) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(6, 4)
            self.out = nn.Linear(4, 6, bias=False)
            if tie:
                self.out.weight = self.embed.weight

    saved, loaded = Both(), Both()
    path = save_checkpoint(tmp_path, 1, {"model": saved}, {}, {})
    assert len(load_file(path / "model.safetensors")) == (1 if tie else 2)
    load_checkpoint(path, {"model": loaded}, {})
    assert torch.equal(loaded.embed.weight, saved.embed.weight) and torch.equal(loaded.out.weight, saved.out.weight)
    assert (loaded.out.weight is loaded.embed.weight) is tie


def test_random_state_of_torch_goes_on(tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.rand(3)
    path = save_checkpoint(tmp_path, 1, {}, {}, {})
    wanted = torch.rand(4)
    torch.manual_seed(99)
    load_checkpoint(path, {}, {})
    assert torch.equal(torch.rand(4), wanted)


def test_only_safetensors_and_json(tmp_path: Path) -> None:
    model, optimizer = tiny()
    path = save_checkpoint(tmp_path, 1, {"model": model}, {"optimizer": optimizer}, {})
    names = sorted(file.name for file in path.iterdir())
    assert names == ["model.safetensors", "optimizer.optimizer.safetensors", "state.json"]
    json.loads((path / "state.json").read_text())


# ---- a disk that is full ----


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """Writes beyond this size fail, as on a full disk (EFBIG in place of ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_leaves_the_one_before(tmp_path: Path) -> None:
    model, optimizer = tiny()
    first = save_checkpoint(tmp_path, 10, {"model": model}, {"optimizer": optimizer}, {"at": 10})
    contents = {file.name: file.read_bytes() for file in first.iterdir()}
    with files_limited_to(20_000), pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path, 20, {"model": model}, {"optimizer": optimizer}, {"at": 20}, keep=1)
    message = str(caught.value)
    assert "step-000020" in message and "step-000010, is intact" in message
    assert "MB free" in message and "it needs 0." in message and "File too large" in message
    assert [path.name for path in tmp_path.iterdir()] == ["step-000010"]
    assert {file.name: file.read_bytes() for file in first.iterdir()} == contents
    assert load_checkpoint(first, {"model": model}, {"optimizer": optimizer}) == (10, {"at": 10})


def test_disk_full_at_the_last_file_of_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        if path.name == checkpoint.STATE_FILE:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_folder, "flush", full)
    with pytest.raises(CheckpointError, match="No space left on device.*there was no checkpoint before it"):
        save_checkpoint(tmp_path / "deep" / "checkpoints", 1, {"model": nn.Linear(2, 2)}, {}, {})
    assert not list((tmp_path / "deep" / "checkpoints").iterdir())


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        save_checkpoint(tmp_path / "file" / "checkpoints", 1, {}, {}, {})


def test_interrupt_while_writing_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_folder, "flush", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 1, {"model": nn.Linear(2, 2)}, {}, {})
    assert not list(tmp_path.iterdir())


# ---- what does not fit ----


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, optimizer = tiny()
    sum(parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return save_checkpoint(tmp_path, 3, {"model": model}, {"model": optimizer}, {})


def fails(path: Path, model: nn.Module, *words: str) -> None:
    """Loading raises CheckpointError with these words and changes nothing."""
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.01))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, {"model": model}, {"model": optimizer})
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True)) and not optimizer.state


def test_model_of_another_size(saved: Path) -> None:
    fails(saved, tiny(width=16)[0], "model.safetensors", "(40, 32)", "(40, 16)", "was the recipe changed")


def test_model_with_other_tensors(saved: Path) -> None:
    fails(saved, nn.Linear(3, 3), "fits another model", "missing ['bias', 'weight']", "unknown [")


def test_model_of_another_dtype(saved: Path) -> None:
    fails(saved, tiny()[0].double(), "torch.float32", "torch.float64")


def test_model_that_was_not_saved(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="saved without critic.safetensors"):
        load_checkpoint(saved, {"critic": tiny()[0]}, {})


@pytest.mark.parametrize("file", ["model.safetensors", "model.optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_missing_and_truncated_files_are_named(saved: Path, file: str, damage: str) -> None:
    content = (saved / file).read_bytes()
    if damage == "missing":
        (saved / file).unlink()
    else:
        (saved / file).write_bytes(content[: len(content) // 2])
    fails(saved, tiny()[0], file, f"Delete {saved}")


def rewrite(file: Path, key: str, tensor: Tensor | None) -> None:
    tensors = load_file(file)
    del tensors[key]
    save_file({**tensors, **({key: tensor} if tensor is not None else {})}, file)


def test_optimizer_tensor_gone(saved: Path) -> None:
    rewrite(saved / "model.optimizer.safetensors", "2.exp_avg", None)
    fails(saved, tiny()[0], "model.optimizer.safetensors", "saved were")


def test_optimizer_tensor_of_another_shape(saved: Path) -> None:
    rewrite(saved / "model.optimizer.safetensors", "0.exp_avg", torch.zeros(7))
    fails(saved, tiny()[0], "'0.exp_avg' has shape (7,)", "(40, 32)")


def test_optimizer_of_another_grouping(saved: Path) -> None:
    model = tiny()[0]
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with pytest.raises(CheckpointError, match="parameter groups of"):
        load_checkpoint(saved, {"model": model}, {"model": optimizer})


def test_other_version(saved: Path) -> None:
    state = saved / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "version": 99}))
    fails(saved, tiny()[0], "version 99", "reads 1")


def test_state_that_is_not_json_is_our_bug_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 1, {}, {}, {"path": tmp_path})
    assert not list(tmp_path.iterdir())


def test_half_removed_checkpoint_is_cleaned(saved: Path) -> None:
    shutil.copytree(saved, saved.with_name(".discarded-step-000001"))
    assert latest_checkpoint(saved.parent) == saved
    assert [path.name for path in saved.parent.iterdir()] == ["step-000003"]


def child_main(folder: Path, kill_at_flush: int) -> None:
    """Train in a process of its own; with kill_at_flush = n it dies at its n-th flush, a file being on its way."""
    count, flush = 0, checkpoint_folder.flush

    def deadly(path: Path) -> None:
        nonlocal count
        count += 1
        if count == kill_at_flush:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(path)

    checkpoint_folder.flush = deadly
    train(folder, wait=True)


if __name__ == "__main__":
    child_main(Path(sys.argv[1]), int(sys.argv[2]))
