"""A run in two processes is the run in one: the same rows, the same losses, and either goes on with the other's."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from jielong.errors import JielongError, TrainingError
from jielong.runtime import Runtime
from jielong.stages import pipeline
from jielong.stages.pipeline import run_recipe
from jielong.train.parallel import Layout

from .conftest import CURATE, RUN

PRETRAINED = f"""{RUN}
name = "micro"
seed = 7
[data.world]
megabytes = 0.1
heldout_megabytes = 0.02
{CURATE}[tokenizer]
vocab_size = 400
[pretrain]
model = {{preset = "jie-xs", width = 32, decoder_layers = 1}}
context_tokens = 128
batch_rows = 4
num_steps = 30
learning_rate = 5e-3
evaluate_every = 10
checkpoint_every = 2
[sft]
sources = ["world"]
num_conversations = 40
num_steps = 6
batch_rows = 4
learning_rate = 3e-3
[reward]
sources = ["world"]
num_prompts = 12
replies_per_prompt = 2
num_steps = 3
batch_rows = 4
learning_rate = 1e-3
max_new_tokens = 16
[ppo]
num_iterations = 2
rollout_rows = 5
minibatch_rows = 5
micro_batch_rows = 2
inner_epochs = 2
max_new_tokens = 16
kl_coefficient = 0.05
ptx_coefficient = 0.1
ptx_source = "sft"
ptx_rows = 2
learning_rate = 1e-3
critic_learning_rate = 1e-3
judged_prompts = 4
[dpo]
comparisons = "reward"
beta = 0.1
num_steps = 3
batch_rows = 4
learning_rate = 1e-3
max_new_tokens = 16
judged_prompts = 4
"""
STEPS = 30


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parallel") / "micro.toml"
    path.write_text(PRETRAINED, encoding="utf-8")
    return path


def start(recipe: Path, out: Path, world_size: int, *more: str) -> list[subprocess.Popen[bytes]]:
    """The processes of a run, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world_size)}
    command = [sys.executable, "-m", "jielong", "run", str(recipe), "--out", str(out), "--quiet", *more]
    return [
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        for rank in range(world_size)
    ]


def ended(children: list[subprocess.Popen[bytes]]) -> list[str]:
    told = [child.communicate(timeout=500)[1].decode() for child in children]
    assert [child.returncode for child in children] == [0] * len(children), told
    return told


def losses(out: Path, stage: str, name: str = "loss_nats") -> list[float]:
    lines = (out / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record[name] for record in records]


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    ended(start(recipe, out, 1))
    return out


@pytest.mark.parametrize("how", ["run.sharding=none", "run.sharding=full", "run.tensor_parallel=2"])
def test_two_processes_take_the_same_steps_as_one(recipe: Path, alone: Path, tmp_path: Path, how: str) -> None:
    out = tmp_path / "two"
    ended(start(recipe, out, 2, "--set", how))
    assert losses(out, "03-pretrain") == pytest.approx(losses(alone, "03-pretrain"), abs=1e-5)
    assert losses(out, "04-sft") == pytest.approx(losses(alone, "04-sft"), abs=1e-4)
    assert losses(out, "05-reward") == pytest.approx(losses(alone, "05-reward"), abs=1e-4)
    assert losses(out, "07-dpo") == pytest.approx(losses(alone, "07-dpo"), abs=1e-4)
    for name in ("proxy_reward", "kl_nats_per_reply", "policy_loss", "critic_loss", "ptx_loss_nats", "reply_tokens"):
        mine, theirs = (losses(folder, "06-ppo", name) for folder in (out, alone))
        assert len(mine) == 2 and mine == pytest.approx(theirs, abs=2e-3), name
    figures, own = (
        json.loads((folder / "report.json").read_text())["stages"]["sft"]["figures"] for folder in (alone, out)
    )
    assert own["heldout_loss_nats"] == pytest.approx(figures["heldout_loss_nats"], abs=1e-3)
    assert own["scored_tokens"] == figures["scored_tokens"]
    assert not list(out.glob("*/.process-*"))  # what the other process wrote is gone


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_it_goes_on_with_another_number_of_processes(recipe: Path, alone: Path, tmp_path: Path, sharding: str) -> None:
    out, how = tmp_path / "changing", ("--until", "pretrain", "--set", f"run.sharding={sharding}")
    for world_size, step in ((2, 8), (1, 18)):
        children = start(recipe, out, world_size, *how)
        deadline = time.monotonic() + 120
        while not any((out / "03-pretrain" / "checkpoints").glob(f"*{step}")):
            assert time.monotonic() < deadline and all(child.poll() is None for child in children)
            time.sleep(0.02)
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.communicate()
    ended(start(recipe, out, 2, *how))
    assert losses(out, "03-pretrain") == pytest.approx(losses(alone, "03-pretrain"), abs=1e-5)


def test_rows_that_cannot_be_shared_are_told_before_training(recipe: Path, tmp_path: Path) -> None:
    children = start(recipe, tmp_path / "odd", 2, "--set", "pretrain.batch_rows=3", "--until", "pretrain")
    told = [child.communicate(timeout=200)[1].decode() for child in children]
    assert all(child.returncode == 2 for child in children), told
    assert (
        "[pretrain] batch_rows = 3 cannot be shared equally by 2 processes; nearest: [pretrain] batch_rows = 2"
        in told[0]
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["run.tensor_parallel=3"], "[run] tensor_parallel = 3 must divide"),
        (["run.sharding=hybird"], "sharding"),
        (["run.tensor_parallel=2", 'pretrain.model={preset="jie-xs",num_heads=3,num_kv_heads=1}'], "num_heads = 3"),
    ],
)
def test_layouts_that_do_not_fit_are_told_before_anything_runs(
    recipe: Path, tmp_path: Path, settings: list[str], told: str
) -> None:
    with pytest.raises(JielongError) as caught:
        run_recipe(recipe, tmp_path / "not", overrides=settings, quiet=True)
    assert told in str(caught.value) and not (tmp_path / "not").exists()


def test_a_process_that_is_gone_is_told_wherever_the_others_talk(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In PPO's rollouts and between stages, too, not in training alone."""

    def lost(what: str, text: str, runtime: Runtime) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")

    @contextmanager
    def two(runtime: Runtime, layout: Layout) -> Iterator[Runtime]:
        yield replace(runtime, world_size=2)

    monkeypatch.setattr(pipeline, "joined", two)
    monkeypatch.setattr(pipeline, "check_agreement", lost)
    with pytest.raises(TrainingError, match="process 0 of 2 has lost another one"):
        run_recipe(recipe, tmp_path / "lost", quiet=True)
