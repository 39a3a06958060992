"""What a correct PPO must keep, by the numbers of the project's list: rollout, reward, GAE, update (19-43)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from jielong.align.advantages import gae, whiten
from jielong.align.kl import k1
from jielong.align.learner import (
    Learner,
    assemble,
    build_learner,
    check_frozen,
    checkpoint_state,
    restore,
    weights_hash,
)
from jielong.align.ppo import optimise, policy_loss, policy_terms, update, value_loss, value_terms
from jielong.align.reward import RewardModel
from jielong.align.rollout import check_gap, collect, final_scores, rollout_figures, trim
from jielong.align.settings import PPOConfig
from jielong.data.batch import Rollout
from jielong.errors import CheckpointError, TrainingError
from jielong.model.logprobs import scored_logprobs
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime, derive_seed
from jielong.train.loop import train_step
from jielong.train.parallel import own_share

MakeLearner = Callable[..., Learner]
CONFIG = PPOConfig(
    num_iterations=4,
    rollout_rows=12,
    max_new_tokens=10,
    temperature=0.7,
    minibatch_rows=6,
    micro_batch_rows=4,
    inner_epochs=2,
    learning_rate=3e-3,
    critic_learning_rate=3e-3,
    warmup_iterations=0,
    inner_kl_limit=None,
)


def gather(
    learner: Learner, prompts: list[list[int]], runtime: Runtime, config: PPOConfig = CONFIG
) -> tuple[Rollout, dict[str, float]]:
    """Two replies to every prompt."""
    rollout, figures, _ = collect(learner.actors, prompts * 2, config, config.kl_coefficient, 3, runtime)
    return rollout, figures


def widen(rollout: Rollout, columns: int) -> Rollout:
    """More padding, and garbage in every per-token number that stands there."""
    tensors = {name: value for name, value in rollout.__dict__.items() if name != "num_units"}
    wide = {
        name: nn.functional.pad(value, (0, columns), value=7.0 if value.is_floating_point() else 0)
        for name, value in tensors.items()
    }
    return Rollout(**wide, num_units=rollout.num_units)


def hand_made(advantages: list[float], old_logprobs: list[float], **more: list[float]) -> Rollout:
    """One row whose token 0 is a prompt."""

    def row(values: list[float]) -> torch.Tensor:
        return torch.tensor([[0.0, *values]])

    size = len(advantages)
    zeros = [0.0] * size
    return Rollout(
        tokens=torch.zeros(1, size + 1, dtype=torch.int64),
        mask=torch.tensor([[False, *[True] * size]]),
        segments=torch.ones(1, size + 1, dtype=torch.int32),
        logprobs=row(old_logprobs),
        ref_logprobs=row(zeros),
        values=row(more.get("values", zeros)),
        rewards=row(zeros),
        advantages=row(advantages),
        returns=row(more.get("returns", zeros)),
        num_units=size,
    )


# C. Rollout


def test_19_no_dropout_and_two_forwards_are_bit_equal(make_model: Callable[..., Transformer]) -> None:
    model = make_model(scale=8.0).train()
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(model(tokens), model(tokens))


def test_20_ratio_is_one_at_any_temperature(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    learner = make_learner(CONFIG)
    rollout, _ = gather(learner, prompts, runtime)
    with torch.no_grad():
        now, _ = scored_logprobs(learner.actors.policy, rollout.tokens, None, rollout.mask, 0.7)
        plain, _ = scored_logprobs(learner.actors.policy, rollout.tokens, None, rollout.mask, 1.0)
    assert torch.allclose(now, rollout.logprobs, atol=1e-5)
    assert float((plain - rollout.logprobs).abs().max()) > 0.1, "a temperature of .7 must make a difference"


def test_21_22_no_setting_can_cut_or_bend_the_sampling_distribution() -> None:
    names = {field.name for field in dataclasses.fields(PPOConfig)}
    assert not names & {"top_p", "top_k", "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "bad_words"}
    with pytest.raises(TypeError):
        PPOConfig(num_iterations=1, top_p=0.9)  # type: ignore[call-arg]


def test_23_engine_and_trainer_agree(make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime) -> None:
    _, figures = gather(make_learner(CONFIG), prompts, runtime)
    assert figures["engine_gap_mean_nats"] <= figures["engine_gap_largest_nats"] < 1e-4


def test_23_holds_for_a_model_with_more_rows_than_there_are_tokens(
    make_learner: MakeLearner, make_model: Callable[..., Transformer], prompts: list[list[int]], runtime: Runtime
) -> None:
    """Embeddings of others are padded: the engine never chooses the spare rows, and the trainer gives them nothing."""
    policy, reference = (make_model(seed=1, scale=8.0, vocab_size=20) for _ in range(2))
    critic = make_model("scalar", seed=3, vocab_size=20)
    actors = dataclasses.replace(make_learner(CONFIG).actors, policy=policy, critic=critic, reference=reference)
    config = dataclasses.replace(CONFIG, num_iterations=2)
    for stats in optimise(assemble(actors, config, {}), prompts, config, runtime):
        assert stats.figures["engine_gap_largest_nats"] < 1e-4


def test_23_a_gap_fails_the_run() -> None:
    check_gap(9e-5, 1e-6, torch.float32)
    with pytest.raises(TrainingError, match="differ by 0.0002 nats"):
        check_gap(2e-4, 1e-6, torch.float32)
    check_gap(0.3, 0.01, torch.bfloat16)
    with pytest.raises(TrainingError, match=r"differ by 0.06 nats \(mean\)"):
        check_gap(0.3, 0.06, torch.bfloat16)
    with pytest.raises(TrainingError):
        check_gap(math.nan, math.nan, torch.float32)


def test_24_the_engine_samples_with_the_weights_of_this_step(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    """There is one set of weights, read at each forward: what the engine says it sampled from is what is there now."""
    config = dataclasses.replace(CONFIG, num_iterations=3, learning_rate=3e-2)
    learner = make_learner(config)
    before = None
    for stats in optimise(learner, prompts, config, runtime):
        assert stats.figures["engine_gap_largest_nats"] < 1e-4
        now = weights_hash(learner.actors.policy)
        assert now != before, "and they have changed since the rollout before"
        before = now


@pytest.mark.parametrize("world_size", [2, 3])
def test_25_ranks_have_prompts_and_seeds_of_their_own(runtime: Runtime, world_size: int) -> None:
    """The shares of all ranks are the epoch, none twice. A row's seed is the row's, so no two ranks share one.

    That two processes sample, learn and report what one does is tests/stages/test_parallel.py.
    """
    ranks = [dataclasses.replace(runtime, rank=rank, world_size=world_size) for rank in range(world_size)]
    shares = [own_share(range(11), rank) for rank in ranks]
    assert sorted(row for share in shares for row in share) == list(range(11))
    seeds = [derive_seed(5, row) for share in shares for row in share]
    assert len(set(seeds)) == 11


def test_46_the_critic_is_a_model_of_its_own_and_starts_as_the_reward_model(
    make_model: Callable[..., Transformer], make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    policy, reward = make_model(seed=1, scale=8.0), RewardModel(make_model("scalar", seed=2, scale=8.0), 2.0, -0.5)
    learner = build_learner(policy, reward, make_learner(CONFIG).actors.tokenizer, CONFIG)
    rollout, _, _ = collect(learner.actors, prompts, CONFIG, 0.0, 3, runtime)
    critic, ends = learner.actors.critic, (rollout.segments > 0).sum(dim=1) - 1
    assert critic is not None
    with torch.no_grad():
        values = critic(rollout.tokens)[torch.arange(len(ends)), ends]
    scores = reward.score(rollout.tokens, None, ends)
    assert torch.allclose(values, scores + 0.5, atol=1e-4), "the score but for its bias, which is soon learned"
    loss, _ = value_loss(CONFIG)(critic, rollout)
    loss.backward()
    assert all(weight.grad is None for weight in policy.parameters()), "its loss does not pull at the policy"
    places = {weight.data_ptr() for model in (policy, reward.model) for weight in model.parameters()}
    assert not places & {weight.data_ptr() for weight in critic.parameters()}


def test_26_reference_is_frozen_and_equal_at_the_start(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    learner = make_learner(CONFIG)
    learner = dataclasses.replace(learner, frozen_hashes={"reference": weights_hash(learner.actors.reference)})
    rollout, figures = gather(learner, prompts, runtime)
    assert torch.equal(rollout.logprobs, rollout.ref_logprobs) and figures["kl_nats_per_reply"] == 0.0
    before = weights_hash(learner.actors.policy)
    for _ in optimise(learner, prompts, CONFIG, runtime):
        check_frozen(learner)
    assert weights_hash(learner.actors.policy) != before
    assert not any(weight.requires_grad for weight in learner.actors.reference.parameters())
    with torch.no_grad():
        learner.actors.reference.norm.weight[0] += 1e-6
    with pytest.raises(TrainingError, match="weights of the reference changed"):
        checkpoint_state(learner, 1)


# D. Reward, KL, GAE


def test_27_28_rewards_sum_to_score_minus_priced_kl(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    config = dataclasses.replace(CONFIG, kl_coefficient=0.3, missing_eos_score=None)
    learner = make_learner(config, same_reference=False)
    rollout, _ = gather(learner, prompts, runtime, config)
    kl = k1(rollout.logprobs, rollout.ref_logprobs)
    assert float(kl.abs().max()) > 0.1 and not kl[~rollout.mask].any()
    ends = (rollout.segments > 0).sum(dim=1) - 1
    scores = learner.actors.reward.score(rollout.tokens, None, ends)
    assert torch.allclose(rollout.rewards.sum(dim=1), scores - 0.3 * kl.sum(dim=1), atol=1e-4)
    without = rollout.rewards + 0.3 * kl  # what is left is the score, on the last token and nowhere else
    rows = torch.arange(len(ends))
    assert torch.allclose(without[rows, ends], scores, atol=1e-5)
    without[rows, ends] = 0
    assert float(without.abs().max()) < 1e-5
    assert not rollout.rewards.requires_grad and not rollout.logprobs.requires_grad


def test_29_reported_kl_is_a_sum_over_the_reply_and_k1_meets_k3(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    learner = make_learner(CONFIG, same_reference=False)
    rollout, figures, _ = collect(learner.actors, prompts * 100, CONFIG, 0.0, 5, runtime)
    per_reply = (rollout.logprobs - rollout.ref_logprobs).sum(dim=1)
    assert figures["kl_nats_per_reply"] == pytest.approx(float(per_reply.mean()), rel=1e-4)
    tokens = float(rollout.mask.sum()) / len(per_reply)
    assert figures["kl_nats_per_token"] * tokens == pytest.approx(figures["kl_nats_per_reply"], rel=1e-4)
    log_ratio = rollout.ref_logprobs - rollout.logprobs
    spread = (per_reply - (torch.expm1(log_ratio) - log_ratio).sum(dim=1)).std() / math.sqrt(len(per_reply))
    assert abs(figures["kl_nats_per_reply"] - figures["kl_k3_nats_per_reply"]) < 4 * float(spread)
    assert figures["kl_nats_per_reply"] > 0.1 and figures["kl_alarm"] == 0.0


def test_30_a_reply_that_does_not_end_has_its_score_replaced(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    scores, ended = torch.tensor([5.0, 5.0]), torch.tensor([True, False])
    assert final_scores(scores, ended, -1.0).tolist() == [5.0, -1.0]
    assert final_scores(scores, ended, None).tolist() == [5.0, 5.0]
    config = dataclasses.replace(CONFIG, max_new_tokens=8, missing_eos_score=-2.0)
    learner = make_learner(config)
    # Prompts that hold an end token of their own: only the reply's last token counts.
    rollout, figures = gather(learner, [[11, *prompt] for prompt in prompts] * 4, runtime, config)
    ends = (rollout.segments > 0).sum(dim=1) - 1
    last = rollout.tokens[torch.arange(len(ends)), ends]
    assert 0 < figures["ended_rate"] < 1 and figures["ended_rate"] == float((last == 11).float().mean())
    assert rollout.rewards.sum(dim=1)[last != 11].tolist() == [-2.0] * int((last != 11).sum())
    assert (rollout.rewards.sum(dim=1)[last == 11] >= 0).all()


def test_33_34_returns_come_before_whitening_and_whitening_is_masked(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    config = dataclasses.replace(CONFIG, discount=0.9, smoothing=0.5)
    rollout, _ = gather(make_learner(config), prompts, runtime, config)
    _, returns = gae(rollout.rewards, rollout.values, rollout.mask, discount=0.9, smoothing=0.5)
    assert torch.equal(rollout.returns, returns)
    plain = torch.where(rollout.mask, rollout.returns - rollout.values, 0.0)
    assert torch.allclose(whiten(plain, rollout.mask), rollout.advantages, atol=1e-5)
    chosen = rollout.advantages[rollout.mask]
    assert abs(float(chosen.mean())) < 1e-5 and float(chosen.var(correction=0)) == pytest.approx(1.0, abs=1e-3)
    assert abs(float(plain[rollout.mask].mean())) > 0.01
    assert not rollout.values[~rollout.mask].any() and not rollout.advantages[~rollout.mask].any()


def test_35_the_coefficient_moves_and_is_part_of_the_state(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    config = dataclasses.replace(CONFIG, target_kl=1e-4, kl_horizon_episodes=100)
    learner = make_learner(config, same_reference=False)
    for _ in optimise(learner, prompts, config, runtime):
        pass
    assert learner.kl.coefficient == pytest.approx(0.05 * (1 + 0.2 * 12 / 100) ** 4)
    fresh = make_learner(config, same_reference=False)
    assert restore(fresh, checkpoint_state(learner, 4)) == 4 and fresh.kl.coefficient == learner.kl.coefficient


# E. Update


def test_36_37_ratio_is_one_in_the_first_minibatch_of_every_rollout(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    config = dataclasses.replace(CONFIG, minibatch_rows=12, inner_epochs=1)
    learner = make_learner(config)
    for stats in optimise(learner, prompts, config, runtime):  # one minibatch an iteration: its means are the first's
        assert stats.figures["approx_kl"] == 0.0 and stats.figures["clip_fraction"] == 0.0
        assert stats.figures["update_steps"] == 1


def test_36_a_rollout_of_other_weights_is_refused(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    learner = make_learner(CONFIG)
    rollout, _ = gather(learner, prompts, runtime)
    update(learner, rollout, CONFIG, runtime, 0)
    with pytest.raises(TrainingError, match="probability ratio other than 1"):
        update(learner, rollout, CONFIG, runtime, 1)


def test_38_policy_loss_by_hand() -> None:
    batch = hand_made([2.0, 2.0, -1.0, -1.0, 3.0], [math.log(0.5)] * 5)
    now = torch.tensor([[0.0, *map(math.log, (0.55, 0.9, 0.3, 0.9, 0.1))]], requires_grad=True)
    # ratios 1.1, 1.8, .6, 1.8, .2 -> -2.2, -2*1.2, 1*.8, 1.8, -3*.2
    loss, metrics = policy_terms(now, batch, 0.2)
    assert float(loss.detach()) == pytest.approx(-2.2 - 2.4 + 0.8 + 1.8 - 0.6)
    assert float(metrics["clip_fraction"]) == 4.0
    expected_kl = sum(ratio - 1 - math.log(ratio) for ratio in (1.1, 1.8, 0.6, 1.8, 0.2))
    assert float(metrics["approx_kl"]) == pytest.approx(expected_kl, rel=1e-5)
    loss.backward()
    assert now.grad is not None
    # d(-A r)/d log p = -A r; none where the clip holds back a move that has gone far enough (tokens 2 and 3)
    assert now.grad[0].tolist() == pytest.approx([0.0, -2.2, 0.0, 0.0, 1.8, -0.6])


def test_39_value_loss_by_hand() -> None:
    batch = hand_made([0.0] * 3, [0.0] * 3, values=[1.0, 1.0, 1.0], returns=[2.0, 0.0, 1.5])
    now = torch.tensor([[9.0, 1.5, 1.5, 1.1]])
    # clipped to 1.2, 1.2, 1.1: max(.25, .64), max(2.25, 1.44), .16
    loss, metrics = value_terms(now, batch, 0.2)
    assert float(loss) == pytest.approx(0.5 * (0.64 + 2.25 + 0.16))
    assert float(metrics["value_clip_fraction"]) == 2.0
    assert float(value_terms(now, batch, math.inf)[0]) == pytest.approx(0.5 * (0.25 + 2.25 + 0.16))


def test_39_critic_learns_to_explain_the_returns(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    class OddStart:
        """A reward that the prompt alone decides, so that a critic can know it beforehand."""

        def score(self, tokens: torch.Tensor, segments: object, ends: torch.Tensor) -> torch.Tensor:
            return (tokens[:, 0] % 2).float()

    sizes = dict(rollout_rows=24, minibatch_rows=12, micro_batch_rows=12, missing_eos_score=None)
    config = dataclasses.replace(CONFIG, num_iterations=15, critic_warmup_iterations=15, **sizes)
    learner = make_learner(config, reward=OddStart())
    policy = weights_hash(learner.actors.policy)
    runs = list(optimise(learner, prompts, config, runtime))
    assert weights_hash(learner.actors.policy) == policy, "only the critic learns in the warm-up"
    explained = [stats.figures["explained_variance"] for stats in runs]
    assert explained[0] < 0.1 and explained[-1] > 0.8, explained


def gradient(model: nn.Module, objective: object, micro_batches: list[Rollout], runtime: Runtime) -> torch.Tensor:
    """The gradient that train_step steps along, read off plain SGD."""
    before = [weight.detach().clone() for weight in model.parameters()]
    train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), micro_batches, objective, runtime, math.inf)
    moved = [old - new.detach() for old, new in zip(before, model.parameters(), strict=True)]
    with torch.no_grad():
        for weight, old in zip(model.parameters(), before, strict=True):
            weight.copy_(old)
    return torch.cat([each.flatten() for each in moved])


def test_40_gradient_does_not_depend_on_micro_batches(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    learner = make_learner(CONFIG, same_reference=False)
    rollout, _ = gather(learner, prompts, runtime)
    index = torch.arange(12)
    for model, objective in ((learner.actors.policy, policy_loss(CONFIG)), (learner.actors.critic, value_loss(CONFIG))):
        whole = gradient(model, objective, [rollout], runtime)
        assert float(whole.norm()) > 1e-3
        for cuts in ((1, 11), (5, 4, 3), (1,) * 12):
            parts = [trim(rollout.rows(part)) for part in index.split(cuts)]
            assert torch.allclose(gradient(model, objective, parts, runtime), whole, atol=2e-6), cuts


def test_41_padding_is_in_no_statistic_and_no_loss(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    learner = make_learner(CONFIG, same_reference=False)
    rollout, _ = gather(learner, prompts, runtime)
    wide = widen(rollout, 6)
    assert rollout_figures(wide) == pytest.approx(rollout_figures(rollout), rel=1e-5, abs=1e-6)
    for model, objective in ((learner.actors.policy, policy_loss(CONFIG)), (learner.actors.critic, value_loss(CONFIG))):
        with torch.no_grad():
            (loss, metrics), (wide_loss, wide_metrics) = objective(model, rollout), objective(model, wide)
        assert float(wide_loss) == pytest.approx(float(loss), rel=1e-4, abs=1e-4)
        for name in metrics.keys() - {"moved"}:  # that one counts rounding errors
            assert float(wide_metrics[name]) == pytest.approx(float(metrics[name]), abs=1e-4), name
    assert torch.equal(trim(wide).tokens, rollout.tokens)


def test_42_entropy_is_of_the_distribution_that_is_sampled(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    learner = make_learner(CONFIG)
    rollout, figures = gather(learner, prompts, runtime)
    with torch.no_grad():
        steps = (learner.actors.policy(rollout.tokens)[:, :-1] / 0.7).log_softmax(-1)
    entropy = -(steps.exp() * steps).sum(-1)[rollout.mask[:, 1:]]
    assert 0 < figures["entropy_nats"] < math.log(12)
    assert figures["entropy_nats"] == pytest.approx(float(entropy.mean()), rel=1e-5)


def test_43_optimiser_settings_and_schedule(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    config = dataclasses.replace(CONFIG, num_iterations=6, warmup_iterations=2, final_fraction=0.0)
    learner = make_learner(config)
    for optimizer in learner.optimizers.values():
        assert all(group["eps"] == 1e-5 and group["weight_decay"] == 0.0 for group in optimizer.param_groups)
    runs = list(optimise(learner, prompts, config, runtime))
    rates = [stats.figures["learning_rate"] / config.learning_rate for stats in runs]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25])
    assert all(stats.figures["policy_gradient_norm"] > 0 for stats in runs)


def test_43_a_loss_that_is_not_finite_changes_nothing(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    learner = make_learner(CONFIG)
    rollout, _ = gather(learner, prompts, runtime)
    broken = dataclasses.replace(rollout, advantages=torch.where(rollout.mask, math.nan, 0.0))
    before = weights_hash(learner.actors.policy)
    with pytest.raises(TrainingError, match="step 5"):
        update(learner, broken, CONFIG, runtime, 5)
    assert weights_hash(learner.actors.policy) == before


def test_31_a_score_that_is_not_finite_stops_the_run(
    make_learner: MakeLearner, prompts: list[list[int]], runtime: Runtime
) -> None:
    class Broken:
        def score(self, tokens: torch.Tensor, segments: object, ends: torch.Tensor) -> torch.Tensor:
            return torch.full((len(ends),), math.nan)

    config = dataclasses.replace(CONFIG, missing_eos_score=None)
    with pytest.raises(TrainingError, match="reward is not finite"):
        gather(make_learner(config, reward=Broken()), prompts, runtime, config)


def test_a_checkpoint_of_other_models_is_refused(make_learner: MakeLearner) -> None:
    state = checkpoint_state(make_learner(CONFIG), 2)
    assert state["iteration"] == 2
    with pytest.raises(CheckpointError, match="other reference and reward weights"):
        restore(make_learner(CONFIG), {**state, "hashes": {"reference": "0"}})
