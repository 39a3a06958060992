"""End to end on bandits, where the best policy is known: sign, beta and direction of the KL, all at once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch

from jielong.align.comparisons import Candidates, collate
from jielong.align.dpo import DPOConfig, dpo, with_reference
from jielong.align.learner import assemble
from jielong.align.ppo import optimise
from jielong.align.rollout import Actors
from jielong.align.settings import GRPOConfig, PPOConfig
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.train.loop import FitConfig, fit
from jielong.train.optim import OptimizerConfig, build_optimizer

ARMS = 5


@dataclass
class Arms:
    """A tokenizer of five arms that never end a turn, and a prompt token."""

    vocab_size: int = ARMS
    pad_id: int = 0
    end_id: int = ARMS
    stop_ids: tuple[int, ...] = ()

    def decode(self, ids: list[int]) -> str:
        return ""


@dataclass
class Payout:
    """Reward by arm pulled."""

    payout: torch.Tensor

    def score(self, tokens: torch.Tensor, segments: object, ends: torch.Tensor) -> torch.Tensor:
        return self.payout[tokens[torch.arange(len(ends)), ends]]


def bandit(seed: int, head: str = "lm") -> Transformer:
    config = ModelConfig(
        vocab_size=ARMS,
        max_length=8,
        width=16,
        decoder_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_size=16,
        ffn_width=16,
        tie_embeddings=False,
        head=head,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def odds(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[0]]))[0, -1].softmax(-1)


def settings(**changes: object) -> PPOConfig:
    base = dict(
        num_iterations=60,
        rollout_rows=256,
        max_new_tokens=1,
        minibatch_rows=256,
        micro_batch_rows=256,
        inner_epochs=2,
        learning_rate=1e-2,
        critic_learning_rate=2e-2,
        final_fraction=0.0,
        missing_eos_score=None,
        inner_kl_limit=None,
    )
    return PPOConfig(**{**base, **changes})


def train(config: PPOConfig, payout: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], float]:
    """(odds before, odds after, odds after every iteration, last KL)."""
    policy = bandit(0)
    reference = bandit(0).requires_grad_(False)
    learner = assemble(Actors(policy, bandit(1, "scalar"), reference, Payout(payout), Arms()), config, {})
    runtime = Runtime(torch.device("cpu"), torch.float32, seed=5)
    before, history, kl = odds(policy), [], 0.0
    for stats in optimise(learner, [[0]], config, runtime):
        history.append(odds(policy))
        kl = stats.figures["kl_nats_per_reply"]
    return before, odds(policy), history, kl


def test_bandit_i_without_kl_the_rewarded_arm_takes_over() -> None:
    """Item F (i): reward = count of token X, beta = 0."""
    arm = 2
    payout = torch.zeros(ARMS)
    payout[arm] = 1.0
    before, _, history, _ = train(settings(num_iterations=20, kl_coefficient=0.0, final_fraction=1.0), payout)
    chances = [float(before[arm]), *(float(each[arm]) for each in history)]
    assert all(later > earlier - 0.01 for earlier, later in zip(chances, chances[1:], strict=False)), chances
    assert chances[-1] > 0.95 > chances[0]


def test_bandit_ii_with_a_large_beta_the_policy_stays() -> None:
    """Item F (ii): the same reward, beta = 100."""
    payout = torch.zeros(ARMS)
    payout[2] = 1.0
    before, after, _, _ = train(settings(num_iterations=20, kl_coefficient=100.0), payout)
    kl = float((after * (after / before).log()).sum())
    assert kl < 0.01


PAYOUT = torch.tensor([0.0, 1.0, -1.0, 0.5, 0.2])


def optimum(before: torch.Tensor, beta: float) -> torch.Tensor:
    best = before * (PAYOUT / beta).exp()
    return best / best.sum()


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_bandit_iii_grpo_and_rloo_reach_it_too(estimator: str, beta: float) -> None:
    policy, reference = bandit(0), bandit(0).requires_grad_(False)
    before = odds(policy)
    config = GRPOConfig(
        num_iterations=60,
        rollout_rows=256,
        group_size=16,
        estimator=estimator,
        max_new_tokens=1,
        minibatch_rows=256,
        micro_batch_rows=256,
        inner_epochs=2,
        learning_rate=1e-2,
        final_fraction=0.0,
        missing_eos_score=None,
        inner_kl_limit=None,
        kl_coefficient=beta,
    )
    learner = assemble(Actors(policy, None, reference, Payout(PAYOUT), Arms()), config, {})
    for _ in optimise(learner, [[0]], config, Runtime(torch.device("cpu"), torch.float32, seed=5)):
        pass
    after, best = odds(policy), optimum(before, beta)
    assert float((before - best).abs().sum()) / 2 > 0.1
    assert float((after - best).abs().sum()) / 2 < 0.03, (after, best)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_bandit_iii_dpo_on_matching_preferences_reaches_it_too(beta: float) -> None:
    """Every pair of arms, each order as often as Bradley-Terry says of the payouts: infinite data in one batch."""
    policy = bandit(0)
    before, runtime = odds(policy), Runtime(torch.device("cpu"), torch.float32, seed=5)
    pairs = [(a, b) for a in range(ARMS) for b in range(ARMS) if a != b]
    item = Candidates([[0, arm] for arm in range(ARMS)], [1] * ARMS, pairs)
    known = with_reference(policy, [item], 0, runtime)
    chances = torch.tensor([float(torch.sigmoid(PAYOUT[a] - PAYOUT[b])) for a, b in pairs])
    batch = dataclasses.replace(collate(known, 0), weights=chances / chances.sum())
    optimizer = build_optimizer(policy, OptimizerConfig(1e-2, weight_decay=0.0))
    for _ in fit(policy, optimizer, lambda _: [batch], dpo(DPOConfig(beta)), falling, runtime, FitConfig(300)):
        pass
    after, best = odds(policy), optimum(before, beta)
    assert float((after - best).abs().sum()) / 2 < 0.03, (after, best)


def falling(step: int) -> float:
    return 1 - step / 300


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_bandit_iii_reaches_the_optimum_of_theory(beta: float) -> None:
    """Item F (iii): pi* is proportional to pi_ref exp(r / beta), to 0.03 in total variation."""
    before, after, _, kl = train(settings(kl_coefficient=beta), PAYOUT)
    best = optimum(before, beta)
    assert float((before - best).abs().sum()) / 2 > 0.1, "the start must not be the answer"
    assert float((after - best).abs().sum()) / 2 < 0.03, (after, best)
    assert abs(kl - float((best * (best / before).log()).sum())) < 0.1
