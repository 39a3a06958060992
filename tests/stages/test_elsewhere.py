"""The chain on a device that is not the CPU: nothing is left behind on it. See elsewhere.py.

The stages of the classics have their tests of this beside their others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import jielong
from jielong.align.learner import Learner, build_optimizers
from jielong.runtime import Runtime
from jielong.stages import alignment, instruction

from .elsewhere import elsewhere, run_elsewhere

QUICK = (
    "data.world.megabytes=0.1", "pretrain.num_steps=3", "pretrain.evaluate_every=2", "pretrain.checkpoint_every=2",
    "sft.num_conversations=24", "sft.num_steps=3", "reward.num_prompts=8", "reward.replies_per_prompt=2",
    "reward.num_steps=2", "ppo.num_iterations=2", "ppo.rollout_rows=4", "ppo.watch_every=1", "ppo.checkpoint_every=1",
    "ppo.judged_prompts=2", "evaluate.questions_per_skill=1",
)  # fmt: skip
MORE = """
[dpo]
comparisons = "reward"
beta = 0.1
num_steps = 2
batch_rows = 2
learning_rate = 1e-3
max_new_tokens = 16
judged_prompts = 2

[best_of_n]
num_prompts = 4
replies_per_prompt = 2
num_steps = 1
batch_rows = 1
learning_rate = 1e-3
max_new_tokens = 16
judged_prompts = 2

[evaluate]"""


def test_tensors_of_two_devices_are_not_mixed() -> None:
    with elsewhere() as device:
        there, here = torch.ones(2, 3).to(device), torch.ones(2, 3)
        assert there.device == device and (there @ here.T.to(device)).tolist() == [[3.0, 3.0]] * 2
        with pytest.raises(RuntimeError, match="two devices"):
            there + here
        assert (there + torch.tensor(1.0)).cpu().equal(2 * here)
        assert there[torch.tensor([1])].device == device and here.copy_(2 * there).equal(2 * torch.ones(2, 3))
        linear = torch.nn.Linear(3, 1).to(device)
        linear(there).sum().backward()
        assert linear.weight.grad is not None and linear.weight.grad.tolist() == [[2.0, 2.0, 2.0]]


def test_the_chain_runs_there(recipe: Path, no_probe: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruction, "NUM_QUESTIONS", 1)
    path = tmp_path / "chain.toml"
    path.write_text(recipe.read_text(encoding="utf-8").replace("\n[evaluate]", MORE), encoding="utf-8")
    report = run_elsewhere(path, tmp_path / "run", QUICK)
    figures = {name: stage["figures"] for name, stage in report["stages"].items()}
    assert list(figures)[-3:] == ["dpo", "best_of_n", "evaluate"]
    for name in ("ppo", "dpo", "best_of_n"):
        assert math.isfinite(figures[name]["kl_nats_per_reply"])
    model, _ = jielong.load(tmp_path / "run" / "06-ppo" / "model")
    assert next(model.parameters()).device == torch.device("cpu")
    lines = (tmp_path / "run" / "03-pretrain" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and json.loads(lines[-1])["heldout_loss_nats"] > 0


def test_what_is_shared_out_waits_in_the_machines_memory() -> None:
    gpu = Runtime(torch.device("cuda", 1), torch.float32)
    shared: Any = replace(gpu, mesh=object())  # type: ignore[arg-type]

    def where(runtime: Runtime, lora: object = None) -> torch.device:
        context: Any = SimpleNamespace(runtime=runtime, settings=SimpleNamespace(lora=lora))
        return alignment.before_learning(context)

    assert where(shared) == torch.device("cpu")
    assert where(gpu) == gpu.device and where(shared, lora=object()) == gpu.device


def test_ppo_moves_nothing_before_it_is_shared_out(
    recipe: Path, no_probe: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the sharing: it moves each model as it is cut, and finds all of them on the CPU."""
    found: list[set[str]] = []

    @contextmanager
    def moved(learner: Learner, config: Any, runtime: Runtime) -> Iterator[Learner]:
        found.append({parameter.device.type for model in learner.actors.models for parameter in model.parameters()})
        for model in learner.actors.models:
            model.to(runtime.device)
        of_policy, of_critic = build_optimizers(learner.actors, config)
        yield replace(learner, policy_optimizer=of_policy, critic_optimizer=of_critic)

    monkeypatch.setattr(instruction, "NUM_QUESTIONS", 1)
    monkeypatch.setattr(alignment, "before_learning", lambda context: torch.device("cpu"))
    monkeypatch.setattr(alignment, "shared_out", moved)
    report = run_elsewhere(recipe, tmp_path / "run", QUICK)
    assert found == [{"cpu"}] and math.isfinite(report["stages"]["ppo"]["figures"]["kl_nats_per_reply"])
