"""PPO with its models shared out over two processes: the figures of one, and no process that has a whole model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from jielong.align import ppo
from jielong.align.learner import Learner, build_learner, check_frozen, checkpoint_state, restore, take_average
from jielong.align.ppo import even_share, optimise
from jielong.align.reward import RewardModel
from jielong.align.rollout import collect, weights_hash
from jielong.align.settings import GRPOConfig, PPOConfig
from jielong.align.shared import shared_out
from jielong.errors import TrainingError
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime, detect
from jielong.train.checkpoint import load_checkpoint, save_checkpoint
from jielong.train.lora import LoraConfig
from jielong.train.parallel import Layout, arranged, joined

PROMPTS = [[0, 1, 2], [4], [5, 6, 7, 8, 0], [2, 2], [1, 0, 1, 0], [8]]
SAVED = 2
# Seven rows in minibatches of five and forward passes of two: the processes' shares are uneven.
PPO = PPOConfig(
    num_iterations=4, rollout_rows=7, minibatch_rows=5, micro_batch_rows=2, inner_epochs=2, max_new_tokens=8,
    kl_coefficient=0.05, learning_rate=3e-3, critic_learning_rate=3e-3, inner_kl_limit=None, ema_decay=0.8,
)  # fmt: skip
GRPO = GRPOConfig(
    num_iterations=3, rollout_rows=8, minibatch_rows=4, micro_batch_rows=2, max_new_tokens=8, kl_coefficient=0.05,
    learning_rate=3e-3, group_size=4,
)  # fmt: skip
CASES: dict[str, tuple[PPOConfig | GRPOConfig, Layout]] = {
    "ppo": (PPO, Layout("full")),
    "grpo": (GRPO, Layout("full")),
    "tensor": (replace(PPO, num_iterations=2), Layout("none", 2)),
    "lora": (replace(PPO, num_iterations=2), Layout("full")),
}
FIGURES = ("proxy_reward", "kl_nats_per_reply", "policy_loss", "policy_gradient_norm", "entropy_nats", "reply_tokens")


def build(head: str, seed: int) -> Transformer:
    config = ModelConfig(
        vocab_size=12,
        max_length=48,
        width=32,
        decoder_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_size=16,
        ffn_width=48,
        head=head,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.eval()


def make(tokenizer: Any, config: PPOConfig | GRPOConfig, case: str) -> Learner:
    policy = build("lm", seed=1)
    reward = RewardModel(build("scalar", seed=3).requires_grad_(False), gain=1.0, bias=0.1)
    lora = LoraConfig(4, 8.0, ("q", "v")) if case == "lora" else None
    return build_learner(policy, reward, tokenizer, config, lora, torch.Generator().manual_seed(5))


def learn(tokenizer: Any, case: str, runtime: Runtime, saved: Path, start: Path | None = None) -> dict[str, Any]:
    """All iterations, or those after a checkpoint; one is saved on the way. Figures by name, and hashes of models."""
    config, _ = CASES[case]
    learner, first = make(tokenizer, config, case), 0
    found: dict[str, Any] = {"figures": []}
    with shared_out(learner, config, runtime) as learning:
        found["shares"] = [held(model) for model in learning.actors.models]
        if start is not None:
            _, state = load_checkpoint(start, learning.models, learning.optimizers, runtime)
            first = restore(learning, state)
        for stats in optimise(learning, PROMPTS, config, runtime, start=first):
            found["figures"].append({name: stats.figures[name] for name in FIGURES})
            found["figures"][-1] |= {name: stats.figures[name] for name in ("critic_loss",) if case != "grpo"}
            if stats.iteration == SAVED and start is None:
                state = checkpoint_state(learning, SAVED, runtime)
                save_checkpoint(saved, SAVED, learning.models, learning.optimizers, state, runtime=runtime)
        found["shares after"] = [held(model) for model in learning.actors.models]
        if case == "ppo":
            refuses_what_changed(learning, runtime)
    assert type(learner.actors.policy) is Transformer
    if config.ema_decay is not None and case != "lora":
        take_average(learner)
    found["hash"] = weights_hash(learner.actors.reward.model)
    with torch.no_grad():
        found["logits"] = learner.actors.policy(torch.tensor([[0, 1, 2, 3]])).flatten().tolist()
    return found


def held(model: Transformer) -> float:
    """The part of a model's weights that this process has memory for."""
    from torch.distributed.tensor import DTensor

    local = [each.to_local() if isinstance(each, DTensor) else each for each in model.parameters()]
    return sum(each.numel() for each in local) / sum(each.numel() for each in model.parameters())


def refuses_what_changed(learner: Learner, runtime: Runtime) -> None:
    check_frozen(learner, runtime)
    with torch.no_grad():
        learner.actors.reference.norm.weight.add_(1e-3)
    with pytest.raises(TrainingError, match="weights of the reference changed"):
        check_frozen(learner, runtime)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Callable[..., dict[str, Any]]:
    from .conftest import TinyTokenizer

    def find(case: str, start: Path | None = None) -> dict[str, Any]:
        runtime = Runtime(torch.device("cpu"), torch.float32, seed=7)
        return learn(TinyTokenizer(), case, runtime, folder / f"alone-{case}", start)

    return find


@pytest.fixture(scope="module")
def together(folder: Path, alone: Callable[..., dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Case -> what each of two processes found; "on" goes on from the checkpoint of one."""
    alone("ppo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tests.align.test_shared", str(folder)]
    place = Path(__file__).parents[2]
    children = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE, cwd=place)
        for rank in range(2)
    ]
    told = [child.communicate(timeout=300)[1].decode() for child in children]
    assert [child.returncode for child in children] == [0, 0], told
    names = (*CASES, "on", "limit")
    return {case: [json.loads((folder / f"{case}-{rank}.json").read_text()) for rank in range(2)] for case in names}


def near(found: list[dict[str, float]], wanted: list[dict[str, float]]) -> None:
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine == pytest.approx(theirs, abs=2e-3)


@pytest.mark.parametrize("case", list(CASES))
def test_two_processes_learn_what_one_does(
    case: str, alone: Callable[..., dict[str, Any]], together: dict[str, list[dict[str, Any]]]
) -> None:
    own = alone(case)
    for found in together[case]:
        near(found["figures"], own["figures"])
        assert found["logits"] == pytest.approx(own["logits"], abs=2e-3)
        assert found["hash"] == own["hash"]  # the reward model is whole again, to the bit


def test_no_process_has_a_whole_model(together: dict[str, list[dict[str, Any]]]) -> None:
    for found in together["ppo"]:
        assert len(found["shares"]) == 4 and max(found["shares"]) < 0.55  # of 12 rows each has 6, of 3 one has 2
        assert found["shares after"] == found["shares"]  # nothing stays gathered
    for found in together["tensor"]:
        assert max(found["shares"]) < 0.8  # embeddings and norms are whole
    for found in together["lora"]:
        assert min(found["shares"]) == 1.0


def test_one_process_goes_on_where_two_were(
    alone: Callable[..., dict[str, Any]], together: dict[str, list[dict[str, Any]]], folder: Path
) -> None:
    found = alone("ppo", folder / "together-ppo" / f"step-{SAVED:06d}")
    near(found["figures"], alone("ppo")["figures"][SAVED:])


def test_two_processes_go_on_where_one_was(
    alone: Callable[..., dict[str, Any]], together: dict[str, list[dict[str, Any]]]
) -> None:
    for found in together["on"]:
        near(found["figures"], alone("ppo")["figures"][SAVED:])


def test_processes_stop_together(together: dict[str, list[dict[str, Any]]]) -> None:
    """One that stops alone would leave the others waiting for its part of the next layer."""
    first, second = together["limit"]
    assert first == second == {"stopped": [False, True]}


def test_shares_are_evened_where_processes_compute_together() -> None:
    from jielong.data.batch import Rollout

    numbers = torch.rand(3, 4)
    mask = torch.tensor([[False, True, True, False]] * 3)
    rows = Rollout(numbers.long(), mask, mask.int(), *[numbers] * 6, num_units=6)
    batch = [rows.rows(slice(row, row + 1)) for row in range(3)]
    second = Runtime(torch.device("cpu"), torch.float32, rank=1, world_size=2)
    assert len(even_share(batch, second)) == 1
    in_mesh: Any = replace(second, mesh=object())  # type: ignore[arg-type]
    own = even_share(batch, in_mesh)
    assert [part.num_units for part in own] == [2, 0] and not bool(own[1].mask.any())
    assert [part.num_units for part in even_share(batch, replace(in_mesh, rank=0))] == [2, 2]
    assert len(even_share(batch[:1], in_mesh)) == 1  # fewer than processes: each reads all


# ---- in each of the two processes ----


def main(folder: Path) -> None:
    from .conftest import TinyTokenizer

    torch.set_num_threads(1)
    with joined(replace(detect("cpu", "float32"), seed=7)) as runtime:
        for case in (*CASES, "on"):
            which = "ppo" if case == "on" else case
            placed = arranged(replace(runtime, local_size=2), CASES[which][1])
            start = folder / "alone-ppo" / f"step-{SAVED:06d}" if case == "on" else None
            found = learn(TinyTokenizer(), which, placed, folder / f"together-{case}", start)
            (folder / f"{case}-{runtime.process}.json").write_text(json.dumps(found), encoding="utf-8")
        with mock.patch.object(ppo, "collect", off_by_rounding if runtime.process else ppo.collect):
            found = {"stopped": stops(TinyTokenizer(), arranged(replace(runtime, local_size=2), Layout("full")))}
        (folder / f"limit-{runtime.process}.json").write_text(json.dumps(found), encoding="utf-8")


def off_by_rounding(*given: Any) -> Any:
    rollout, figures, completions = collect(*given)
    return rollout, {**figures, "kl_nats_per_reply": figures["kl_nats_per_reply"] + 1e-6}, completions


def stops(tokenizer: Any, runtime: Runtime) -> list[bool]:
    """Of each iteration, whether it was the last because of a KL that is at the limit but for what one rounds."""
    config = replace(PPO, num_iterations=2, kl_limit=5e-7)  # the first rollout's KL is 0
    with shared_out(make(tokenizer, config, "limit"), config, runtime) as learning:
        return [stats.stopped for stats in optimise(learning, PROMPTS, config, runtime)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
