from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from jielong.align.learner import (
    Learner,
    assemble,
    build_learner,
    checkpoint_state,
    restore,
    take_average,
    weights_hash,
)
from jielong.align.ppo import optimise, policy_loss, text_batch, update, with_text
from jielong.align.reward import RewardModel
from jielong.align.rollout import Actors, collect, iteration_prompts, minibatch_rows, values_before
from jielong.align.settings import PPOConfig
from jielong.data.batch import Batch
from jielong.generate.engine import Completion
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from jielong.train.lora import LoraConfig
from jielong.train.objectives import next_token

MakeLearner = Callable[..., Learner]
CONFIG = PPOConfig(
    num_iterations=4,
    rollout_rows=8,
    max_new_tokens=6,
    target_kl=0.5,
    kl_horizon_episodes=50,
    minibatch_rows=4,
    micro_batch_rows=4,
    inner_epochs=2,
    learning_rate=1e-2,
    critic_learning_rate=1e-2,
    warmup_iterations=1,
    inner_kl_limit=None,
)


def test_prompts_of_an_iteration_cover_the_epochs() -> None:
    drawn = [iteration_prompts(10, 4, seed=3, iteration=i) for i in range(5)]
    flat = [index for each in drawn for index in each]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10)) and flat[:10] != flat[10:]
    assert iteration_prompts(10, 4, 3, 3) == drawn[3] != iteration_prompts(10, 4, 4, 3)
    assert len(iteration_prompts(3, 8, 0, 1)) == 8


def test_rollout_and_update_cut_rows_alike() -> None:
    config = dataclasses.replace(CONFIG, minibatch_rows=5, micro_batch_rows=2)
    cuts = [[(cut.start, cut.stop) for cut in cuts] for cuts in minibatch_rows(8, config)]
    assert cuts == [[(0, 2), (2, 4), (4, 5)], [(5, 7), (7, 8)]]


def test_a_value_speaks_about_the_state_before_its_token(make_model: Callable[..., Transformer]) -> None:
    critic = make_model("scalar", scale=8.0)
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        values = values_before(critic, tokens)[0]
        prefixes = [float(critic(tokens[:, :t])[0, -1]) for t in (1, 2, 3)]
    assert values.tolist() == pytest.approx([0.0, *prefixes], abs=1e-5)


def test_each_iteration_samples_anew(make_learner: MakeLearner, runtime: Runtime) -> None:
    config = dataclasses.replace(CONFIG, num_iterations=3, critic_warmup_iterations=3)
    runs = [stats.completions for stats in optimise(make_learner(config), [[1]], config, runtime)]
    replies = {tuple(tuple(each.tokens) for each in run) for run in runs}
    assert len(replies) == 3, "the same prompt and the same policy, and still other replies"


def test_resumed_is_bit_equal_to_uninterrupted(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime, tmp_path: Path
) -> None:
    whole = make_learner(CONFIG)
    figures = [stats.figures for stats in optimise(whole, prompts, CONFIG, runtime)]

    first = make_learner(CONFIG)
    for stats in optimise(first, prompts, CONFIG, runtime):
        if stats.iteration == 2:
            state = checkpoint_state(first, stats.iteration)
            save_checkpoint(tmp_path, stats.iteration, first.models, first.optimizers, state)
            break
    second = make_learner(CONFIG)
    torch.manual_seed(99)  # whatever state the new process is in
    found = latest_checkpoint(tmp_path)
    assert found is not None
    _, state = load_checkpoint(found, second.models, second.optimizers)
    start = restore(second, state)
    rest = [stats.figures for stats in optimise(second, prompts, CONFIG, runtime, start=start)]
    assert start == 2 and len(rest) == 2
    for name in ("policy", "critic"):
        assert weights_hash(second.models[name]) == weights_hash(whole.models[name])
    clock = ("seconds", "rollout_seconds", "episodes_per_second")
    for expected, got in zip(figures[2:], rest, strict=True):
        assert {k: v for k, v in got.items() if k not in clock} == {k: v for k, v in expected.items() if k not in clock}
    assert second.kl.coefficient == whole.kl.coefficient != 0.05


def test_another_seed_is_another_run(make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime) -> None:
    hashes = set()
    for seed in (1, 1, 2):
        learner = make_learner(CONFIG)
        for _ in optimise(learner, prompts, CONFIG, dataclasses.replace(runtime, seed=seed)):
            pass
        hashes.add(weights_hash(learner.actors.policy))
    assert len(hashes) == 2


@pytest.mark.parametrize(("limit", "steps"), [(1e-9, 2.0), (1e9, 6.0)])
def test_44_inner_epochs_end_when_the_policy_has_moved_too_far(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime, limit: float, steps: float
) -> None:
    config = dataclasses.replace(CONFIG, inner_kl_limit=limit, inner_epochs=3)
    learner = make_learner(config)
    rollout, _, _ = collect(learner.actors, (prompts * 2)[:8], config, 0.05, 3, runtime)
    figures = update(learner, rollout, config, runtime, 0)
    # The first minibatch never stops (its KL is 0); the second sees the move that the first made.
    assert figures["update_steps"] == steps and figures["stopped_early"] == float(limit < 1)


def test_45_pretraining_term_is_added_as_a_mean(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    learner = make_learner(CONFIG)
    rollout, _, _ = collect(learner.actors, prompts, CONFIG, 0.05, 3, runtime)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[:, 0] = False
    text = Batch(torch.randint(9, (2, 5)), mask, torch.ones(2, 5, dtype=torch.int32), 8)
    policy, plain = learner.actors.policy, policy_loss(CONFIG)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(policy.parameters()))])

    ppo = gradient(plain(policy, rollout)[0] / rollout.num_units)
    likelihood = gradient(next_token(policy, text)[0] / 8)
    beside = text_batch(text)
    parts = [rollout.rows(slice(0, 2)), rollout.rows(slice(2, 6)), beside]
    assert sum(part.num_units for part in parts) == rollout.num_units
    for coefficient in (0.0, 2.0):
        mixed = with_text(plain, coefficient, rollout.num_units)
        total = sum(gradient(mixed(policy, part)[0] / rollout.num_units) for part in parts)
        assert torch.allclose(total, ppo + coefficient * likelihood, atol=1e-5)
    asked: list[int] = []

    def rows(step: int) -> Batch:
        asked.append(step)
        return text

    with torch.no_grad():
        loss = float(next_token(policy, text)[0]) / 8
    config = dataclasses.replace(CONFIG, ptx_coefficient=2.0, inner_epochs=1, minibatch_rows=8)
    figures = update(learner, rollout, config, runtime, 0, rows)
    assert figures["ptx_loss_nats"] == pytest.approx(loss, rel=1e-4) and asked == [0]
    asked.clear()
    for coefficient, steps in ((2.0, [0, 1, 2, 3]), (0.0, [])):
        config = dataclasses.replace(CONFIG, ptx_coefficient=coefficient)
        fresh = make_learner(config)
        update(fresh, collect(fresh.actors, prompts, config, 0.05, 3, runtime)[0], config, runtime, 0, rows)
        assert asked == steps, "each step has rows of its own; with a coefficient of 0 it is plain PPO"
        asked.clear()


def test_45_text_keeps_what_it_says(make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime) -> None:
    """PPO towards token 3 forgets a text without it; with the text beside it does not."""
    tokens = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8]])
    mask = torch.ones(1, 8, dtype=torch.bool)
    mask[:, 0] = False
    text = Batch(tokens, mask, torch.ones(1, 8, dtype=torch.int32), 7)
    losses = []
    for coefficient in (0.0, 1.0):
        config = dataclasses.replace(CONFIG, ptx_coefficient=coefficient, target_kl=None, kl_coefficient=0.0)
        learner = make_learner(config)
        for _ in optimise(learner, prompts, config, runtime, text=lambda step: text):
            pass
        with torch.no_grad():
            losses.append(float(next_token(learner.actors.policy, text)[0]) / 7)
    assert losses[1] < losses[0] - 0.5


def test_47_the_average_is_a_third_model_and_is_kept(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, ema_decay=0.75, num_iterations=2)
    learner = make_learner(config)
    assert learner.average is not None and set(learner.models) == {"policy", "critic", "average"}
    expected = {name: weight.detach().clone() for name, weight in learner.actors.policy.named_parameters()}
    one = dataclasses.replace(config, num_iterations=1, inner_epochs=1, minibatch_rows=8)
    for _ in optimise(learner, prompts, one, runtime):
        pass
    for name, now in learner.actors.policy.named_parameters():
        assert torch.allclose(learner.average.get_parameter(name), 0.75 * expected[name] + 0.25 * now, atol=1e-6)
    save_checkpoint(tmp_path, 1, learner.models, learner.optimizers, checkpoint_state(learner, 1))
    again = make_learner(config)
    load_checkpoint(tmp_path / "step-000001", again.models, again.optimizers)
    assert again.average is not None and weights_hash(again.average) == weights_hash(learner.average)
    assert weights_hash(again.actors.policy) != weights_hash(again.average)
    take_average(again)
    assert weights_hash(again.actors.policy) == weights_hash(again.average)


def test_44_a_run_ends_when_its_kl_budget_is_spent(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    free = dataclasses.replace(CONFIG, num_iterations=6, target_kl=None, kl_coefficient=0.0)
    kls = [stats.figures["kl_nats_per_reply"] for stats in optimise(make_learner(free), prompts, free, runtime)]
    first = next(number for number, kl in enumerate(kls) if kl > 0.3)
    assert 0 < first < 5
    config = dataclasses.replace(free, kl_limit=0.3)
    learner = make_learner(config)
    runs = list(optimise(learner, prompts, config, runtime))
    assert [run.figures["kl_nats_per_reply"] for run in runs] == kls[: first + 1]
    assert [run.stopped for run in runs] == [False] * first + [True] and "policy_loss" not in runs[-1].figures


def test_bfloat16_keeps_ratios_at_one(make_learner: MakeLearner, prompts: list[list[int]]) -> None:
    """Item 37: the rollout's log-probabilities come from the very arithmetic of the update, in low precision too."""
    runtime = Runtime(torch.device("cpu"), torch.bfloat16, seed=7)
    config = dataclasses.replace(CONFIG, num_iterations=2, minibatch_rows=8, micro_batch_rows=3, inner_epochs=1)
    learner = make_learner(config)
    for stats in optimise(learner, prompts, config, runtime):
        assert stats.figures["approx_kl"] == 0.0
        assert 0 < stats.figures["engine_gap_mean_nats"] < 0.05


def test_build_learner_from_a_policy_and_a_reward_model(
    make_model: Callable[..., Transformer], make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    policy, reward = make_model(seed=1, scale=8.0), RewardModel(make_model("scalar", seed=2), gain=2.0, bias=-0.5)
    learner = build_learner(policy, reward, make_learner(CONFIG).actors.tokenizer, CONFIG)
    assert learner.actors.policy is policy and learner.actors.reference is not policy
    assert torch.equal(learner.actors.critic.score.weight, 2.0 * reward.model.score.weight)
    assert set(learner.frozen_hashes) == {"reference", "reward"}
    state = checkpoint_state(learner, 0)
    assert state["reward"] == {"gain": 2.0, "bias": -0.5}
    for _ in optimise(learner, prompts, CONFIG, runtime):
        pass
    assert not any(weight.requires_grad for weight in reward.model.parameters())


def test_26_with_lora_the_reference_is_the_policy_without_its_adapter(
    make_model: Callable[..., Transformer], make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    policy, reward = make_model(seed=1, scale=8.0), RewardModel(make_model("scalar", seed=2), gain=2.0)
    before, score = weights_hash(policy), weights_hash(reward.model)
    tokenizer, lora = make_learner(CONFIG).actors.tokenizer, LoraConfig(4, 8.0, ("q", "v", "up", "down"))
    learner = build_learner(policy, reward, tokenizer, CONFIG, lora, torch.Generator().manual_seed(0))
    actors = learner.actors
    assert learner.frozen_hashes["reference"] == before and weights_hash(actors.critic) != score
    for model, base in ((actors.policy, actors.reference), (actors.critic, reward.model)):
        own = {weight.data_ptr() for weight in base.parameters()}
        shared = sum(weight.data_ptr() in own for weight in model.parameters())
        assert shared >= len(own) - 1, "one trunk in memory; a critic has a head of its own"
    rollout, figures, _ = collect(actors, prompts, CONFIG, 0.05, 3, runtime)
    assert torch.equal(rollout.logprobs, rollout.ref_logprobs) and figures["kl_nats_per_reply"] == 0.0
    for _ in optimise(learner, prompts, CONFIG, runtime):
        pass  # the last iteration ends with a check that reference and reward model are what they were
    rollout, figures, _ = collect(actors, prompts, CONFIG, 0.05, 3, runtime)
    assert float((rollout.logprobs - rollout.ref_logprobs).abs().max()) > 0.01
    assert set(learner.models) == {"policy", "critic"} and learner.models["policy"] is learner.adapters["policy"]


@pytest.mark.parametrize("verified", [False, True])
def test_19_dropout_of_the_models_is_off(
    verified: bool, make_model: Callable[..., Transformer], make_learner: MakeLearner, prompts: list[list[int]],
    runtime: Runtime,
) -> None:  # fmt: skip
    """Whatever mode they come in; with a reward that is no model the critic is made here."""

    class Length:
        def score_replies(self, completions: Sequence[Completion]) -> list[float]:
            return [float(len(each.tokens)) for each in completions]

    def dropping(plain: Transformer) -> Transformer:
        model = Transformer(dataclasses.replace(plain.config, dropout=0.5, attention_dropout=0.5))
        model.load_state_dict(plain.state_dict())
        return model.train()

    reward = Length() if verified else RewardModel(dropping(make_model("scalar", seed=2)))
    generator = torch.Generator().manual_seed(0)
    policy, tokenizer = dropping(make_model(seed=1, scale=8.0)), make_learner(CONFIG).actors.tokenizer
    learner = build_learner(policy, reward, tokenizer, CONFIG, None, generator)
    config = dataclasses.replace(CONFIG, num_iterations=2, inner_epochs=1, minibatch_rows=8)
    for stats in optimise(learner, prompts, config, runtime):
        assert stats.figures["approx_kl"] == 0.0
    assert not any(module.training for model in learner.models.values() for module in model.modules())


def test_the_policy_learns_to_please(make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime) -> None:
    """Several tokens, ragged replies: more of token 3, and replies that end."""
    sizes = dict(rollout_rows=48, minibatch_rows=24, micro_batch_rows=24, inner_epochs=2)
    config = dataclasses.replace(
        CONFIG, num_iterations=15, target_kl=None, kl_coefficient=0.01, missing_eos_score=-3.0, **sizes
    )
    learner = assemble(make_learner(config).actors, config, {})
    assert isinstance(learner.actors, Actors)
    runs = [stats.figures for stats in optimise(learner, prompts, config, runtime)]
    assert runs[-1]["proxy_reward_final"] > runs[0]["proxy_reward_final"] + 1.0
    assert runs[-1]["kl_nats_per_reply"] > 0.1
