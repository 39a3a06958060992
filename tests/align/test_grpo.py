"""GRPO and RLOO: advantages by hand, rollouts in groups, and the same update as PPO's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from jielong.align.grpo import collect_groups, group_advantages
from jielong.align.learner import Learner, assemble, checkpoint_state, restore, weights_hash
from jielong.align.ppo import optimise
from jielong.align.settings import GRPOConfig
from jielong.errors import TrainingError, UsageError
from jielong.generate.engine import Completion
from jielong.runtime import Runtime
from jielong.train.checkpoint import load_checkpoint, save_checkpoint

MakeLearner = Callable[..., Learner]
CONFIG = GRPOConfig(
    num_iterations=4,
    rollout_rows=12,
    group_size=4,
    max_new_tokens=6,
    minibatch_rows=6,
    micro_batch_rows=6,
    learning_rate=1e-2,
    warmup_iterations=0,
    inner_kl_limit=None,
)


def without_critic(learner: Learner, config: GRPOConfig, reward: object = None) -> Learner:
    actors = dataclasses.replace(learner.actors, critic=None)
    return assemble(actors if reward is None else dataclasses.replace(actors, reward=reward), config, {})


def test_g_advantages_by_hand() -> None:
    rewards, groups = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 7.0]), torch.tensor([0, 0, 0, 1, 1, 2])
    rloo, told = group_advantages(rewards, groups, "rloo")
    assert rloo.tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0])
    assert told.tolist() == [True] * 3 + [False] * 3  # a group of equals, and a reply alone, say nothing
    grpo, _ = group_advantages(rewards, groups, "grpo")
    deviation = (14 / 3) ** 0.5  # mean 3: 4 + 1 + 9
    assert grpo.tolist() == pytest.approx([-2 / deviation, -1 / deviation, 3 / deviation, 0, 0, 0])


@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_g_advantages_of_a_group_sum_to_0_and_rounding_is_no_signal(estimator: str) -> None:
    rewards = torch.randn(40, generator=torch.Generator().manual_seed(0))
    groups = torch.arange(40) // 8
    advantages, _ = group_advantages(rewards, groups, estimator)
    assert torch.allclose(advantages.view(5, 8).sum(dim=1), torch.zeros(5), atol=1e-5)
    nearly = torch.full((7,), 0.1) * 3 + torch.tensor([0.0, 1e-8, -1e-8, 0, 0, 0, 0])
    found, told = group_advantages(nearly, torch.zeros(7, dtype=torch.int64), estimator)
    assert not found.any() and not told.any() and bool(torch.isfinite(found).all())


def test_replies_of_a_group_are_to_one_prompt_and_share_nothing_else(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    learner = without_critic(make_learner(CONFIG, same_reference=False), CONFIG)
    rollout, figures, completions = collect_groups(learner.actors, prompts[:3], CONFIG, 0.3, 5, runtime)
    assert [each.prompt for each in completions] == [prompt for prompt in prompts[:3] for _ in range(4)]
    assert len({tuple(each.tokens) for each in completions[:4]}) > 1
    kl = (rollout.logprobs - rollout.ref_logprobs).sum(dim=1)
    rewards = rollout.rewards.sum(dim=1)
    scores = learner.actors.reward.score(rollout.tokens, None, (rollout.segments > 0).sum(dim=1) - 1)
    ended = torch.tensor([each.tokens[-1] == 11 for each in completions])
    assert torch.allclose(rewards, torch.where(ended, scores, -1.0) - 0.3 * kl, atol=1e-4)
    expected, _ = group_advantages(rewards, torch.arange(12) // 4, "grpo")
    for row in range(12):
        chosen = rollout.advantages[row][rollout.mask[row]]
        assert torch.allclose(chosen, expected[row].expand(len(chosen))), "all tokens of a reply have its advantage"
    assert not rollout.values.any() and not rollout.advantages[~rollout.mask].any()
    assert 0 <= figures["groups_without_signal"] < 1 and "explained_variance" not in figures


@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_the_policy_learns_to_please(
    estimator: str, make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    sizes = dict(rollout_rows=48, minibatch_rows=24, micro_batch_rows=24, inner_epochs=2, missing_eos_score=-3.0)
    config = dataclasses.replace(CONFIG, num_iterations=15, kl_coefficient=0.01, estimator=estimator, **sizes)
    learner = without_critic(make_learner(config), config)
    assert set(learner.models) == {"policy"} == set(learner.optimizers)
    runs = [stats.figures for stats in optimise(learner, prompts, config, runtime)]
    assert runs[-1]["proxy_reward_final"] > runs[0]["proxy_reward_final"] + 1.0
    assert "critic_loss" not in runs[-1]


def test_resumed_is_bit_equal(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime, tmp_path: Path
) -> None:
    whole = without_critic(make_learner(CONFIG), CONFIG)
    for stats in optimise(whole, prompts, CONFIG, runtime):
        if stats.iteration == 2:
            save_checkpoint(tmp_path, 2, whole.models, whole.optimizers, checkpoint_state(whole, 2))
    second = without_critic(make_learner(CONFIG), CONFIG)
    _, state = load_checkpoint(tmp_path / "step-000002", second.models, second.optimizers)
    for _ in optimise(second, prompts, CONFIG, runtime, start=restore(second, state)):
        pass
    assert weights_hash(second.actors.policy) == weights_hash(whole.actors.policy)


class Moody:
    """Judges by length, and not at all every third reply (or every one, when it is down)."""

    def __init__(self, down: bool = False) -> None:
        self.down = down

    def score_replies(self, completions: Sequence[Completion]) -> list[float]:
        return [math.nan if self.down or n % 3 == 0 else float(len(c.tokens)) for n, c in enumerate(completions)]


def test_replies_that_nobody_judged_are_left_out_and_counted(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    config = dataclasses.replace(CONFIG, max_skipped_fraction=0.4, missing_eos_score=None)
    learner = without_critic(make_learner(config), config, Moody())
    rollout, figures, completions = collect_groups(learner.actors, prompts[:3], config, 0.0, 5, runtime)
    assert figures["skipped_rate"] == pytest.approx(1 / 3) and len(completions) == len(rollout.tokens) == 8
    lengths = torch.tensor([float(len(each.tokens)) for each in completions])
    groups = torch.tensor([n // 4 for n in range(12) if n % 3])
    expected, _ = group_advantages(lengths, groups, "grpo")
    first = rollout.mask.int().argmax(dim=1)
    assert torch.allclose(rollout.advantages[torch.arange(8), first], expected, atol=1e-5)
    for stats in optimise(learner, prompts, config, runtime):
        assert stats.figures["skipped_rate"] > 0.3


@pytest.mark.parametrize(("reward", "limit"), [(Moody(), 0.1), (Moody(down=True), 1.0)])
def test_too_many_of_them_stop_the_run(
    reward: Moody, limit: float, make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    config = dataclasses.replace(CONFIG, max_skipped_fraction=limit)
    learner = without_critic(make_learner(config), config, reward)
    with pytest.raises(TrainingError, match="could not judge .* of 12 replies; at most"):
        collect_groups(learner.actors, prompts[:3], config, 0.0, 5, runtime)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 1}, "GRPO setting group_size is 1; it must be 2 or more"),
        ({"group_size": 5}, "a divisor of rollout_rows = 12"),
        ({"estimator": "reinforce"}, "estimator is 'reinforce'; it must be one of grpo, rloo"),
        ({"max_skipped_fraction": 2.0}, "max_skipped_fraction is 2.0"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(CONFIG, **settings)
