"""Two real processes over gloo: equal to one, the same rows in the same order, and nobody waits for the dead."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jielong.errors import UsageError
from jielong.runtime import Runtime
from jielong.train import parallel
from jielong.train.parallel import check_equal_weights, joined, rows_each, total

CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32)
STEPS = """
import sys, dataclasses, torch
from jielong.data.batch import Batch
from jielong.errors import JielongError
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import detect
from jielong.train.loop import train_step
from jielong.train.objectives import next_token
from jielong.train.optim import OptimizerConfig, build_optimizer
from jielong.train.parallel import check_agreement, check_equal_weights, joined

torch.set_num_threads(1)
runtime = detect("cpu", "float32")
config = ModelConfig(vocab_size=40, max_length=16, width=32, decoder_layers=2, num_heads=2, num_kv_heads=1,
                     head_size=16, ffn_width=48)
model = Transformer(config)
model.init_weights(torch.Generator().manual_seed(0))
optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-2))

def rows(step):  # four rows that score 1, 3, 5 and 7 of their tokens, cut into micro-batches of one
    tokens = torch.randint(0, 40, (4, 16), generator=torch.Generator().manual_seed(step))
    for row in range(4):
        mask = torch.zeros(1, 16, dtype=torch.bool)
        mask[0, 1 : 2 + 2 * row] = True
        yield Batch(tokens[row : row + 1], mask, torch.ones(1, 16, dtype=torch.int32), int(mask.sum()))

what = sys.argv[1]
with joined(runtime):
    try:
        if what == "agree":
            check_agreement("recipe", f"hash {runtime.rank}", runtime)
        if what == "weights":
            if runtime.rank == 1:
                with torch.no_grad():
                    model.embed.weight[3, 5] += 1
            check_equal_weights(model, runtime)
        if what == "die" and runtime.rank == 1:
            sys.exit(3)
        for step in range(50 if what == "train" else 2):
            batches = list(rows(step))[runtime.rank :: runtime.world_size]
            def objective(model, batch):
                loss, metrics = next_token(model, batch)
                broken = what == "nan" and runtime.rank == 1 and step == 1
                return (loss * float("nan") if broken else loss), metrics
            stats = train_step(model, optimizer, batches, objective, runtime, 1.0, step + 1)
            print(f"{stats.loss:.9f} {stats.grad_norm:.9f} {stats.num_units} {stats.num_tokens}", flush=True)
    except JielongError as error:
        print(type(error).__name__, error, flush=True)
"""


def run(folder: Path, what: str, world_size: int = 2) -> list[list[str]]:
    """Lines that each process printed."""
    script = folder / "steps.py"
    script.write_text(STEPS, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world_size)}
    children = [
        subprocess.Popen(
            [sys.executable, str(script), what], env={**shared, "RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    return [child.communicate(timeout=120)[0].splitlines() for child in children]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    (one,) = run(tmp_path, "train", 1)
    first, second = run(tmp_path, "train")
    assert first == second and len(one) == len(first) == 50
    for alone, shared in zip(one, first, strict=True):
        loss, norm, *counts = alone.split()
        other_loss, other_norm, *other_counts = shared.split()
        assert counts == other_counts == ["16", "64"]
        assert float(loss) == pytest.approx(float(other_loss), abs=1e-6)
        assert float(norm) == pytest.approx(float(other_norm), rel=1e-4)


def test_a_loss_that_breaks_in_one_process_stops_both(tmp_path: Path) -> None:
    first, second = run(tmp_path, "nan")
    assert first[0] == second[0]
    assert "TrainingError step 2: the loss is nan in another process" in first[1]
    assert "TrainingError step 2: the loss of micro-batch 1 of 2 is nan" in second[1]


def test_processes_started_differently_are_told(tmp_path: Path) -> None:
    for line in (line for lines in run(tmp_path, "agree") for line in lines):
        assert line.startswith("UsageError process 1 of 2 has another recipe than process 0")
    for line in (line for lines in run(tmp_path, "weights") for line in lines):
        assert line.startswith("TrainingError embed.weight is not the same in all 2 processes")


def test_nobody_waits_for_the_dead(tmp_path: Path) -> None:
    first, second = run(tmp_path, "die")
    assert second == []
    assert first and first[0].startswith("TrainingError process 0 of 2 has lost another one")


@pytest.mark.parametrize(("device", "waits"), [("cuda", True), ("cpu", False)])
def test_who_fails_does_not_wait_for_those_who_wait_for_it(
    device: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL's leave-taking flushes what all have to sum together, so it is taken only where nothing went wrong."""
    left: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda backend, **more: left.append(backend))
    monkeypatch.setattr(parallel.dist, "destroy_process_group", lambda: left.append("destroyed"))
    runtime = Runtime(torch.device(device), torch.float32, world_size=2)
    with joined(runtime):
        pass
    with pytest.raises(ZeroDivisionError), joined(runtime):
        raise ZeroDivisionError
    backend = "nccl" if waits else "gloo"
    assert left == [backend, "destroyed", backend, *([] if waits else ["destroyed"])]


def test_rows_are_shared_equally_or_the_nearest_numbers_are_named() -> None:
    two = Runtime(CPU.device, CPU.dtype, rank=1, world_size=2)
    three = Runtime(CPU.device, CPU.dtype, rank=0, world_size=3)
    assert rows_each("batch_rows", 8, CPU) == 8 and rows_each("batch_rows", 8, two) == 4
    message = r"batch_rows = 8 cannot be shared equally by 3 processes; nearest: batch_rows = 6 or 9, or 2 processes"
    with pytest.raises(UsageError, match=message):
        rows_each("batch_rows", 8, three)
    with pytest.raises(UsageError, match=r"batch_rows = 2, or 1 process$"):
        rows_each("batch_rows", 1, two)


def test_one_process_alone_sums_to_itself() -> None:
    assert total([1.5, 2.0], CPU) == [1.5, 2.0]


def test_weights_are_compared_where_the_run_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are made on the CPU, and NCCL sends only what lies on a GPU."""
    there = Runtime(device=torch.device("meta"), dtype=torch.float32, world_size=2)
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(parallel.dist, "broadcast", lambda tensor, source: sent.append(tensor))
    monkeypatch.setattr(parallel, "total_of_all", lambda values, runtime: values)
    monkeypatch.setattr(torch, "equal", lambda one, other: one.device == other.device)
    check_equal_weights(torch.nn.Linear(2, 3), there)
    assert len(sent) == 2 and all(tensor.device == there.device for tensor in sent)
