"""End to end on bandits, where the best policy is known: sign, beta and direction of the KL, all at once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from jielong.align.learner import assemble
from jielong.align.ppo import optimise
from jielong.align.rollout import Actors
from jielong.align.settings import PPOConfig
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime

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


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_bandit_iii_reaches_the_optimum_of_theory(beta: float) -> None:
    """Item F (iii): pi* is proportional to pi_ref exp(r / beta), to 0.03 in total variation."""
    payout = torch.tensor([0.0, 1.0, -1.0, 0.5, 0.2])
    before, after, _, kl = train(settings(kl_coefficient=beta), payout)
    best = before * (payout / beta).exp()
    best = best / best.sum()
    assert float((before - best).abs().sum()) / 2 > 0.1, "the start must not be the answer"
    assert float((after - best).abs().sum()) / 2 < 0.03, (after, best)
    assert abs(kl - float((best * (best / before).log()).sum())) < 0.1
