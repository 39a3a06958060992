"""GRPO and RLOO: several replies to each prompt, judged against each other, and no critic.

They differ from PPO in their rollouts alone; the update is PPO's (see `ppo.optimise`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jielong.align.advantages import token_rewards
from jielong.align.kl import k1
from jielong.align.rollout import Actors, as_rollout, rollout_figures, sample
from jielong.align.settings import GRPOConfig
from jielong.data.batch import Rollout
from jielong.generate.engine import Completion
from jielong.runtime import Runtime

SMALLEST_SPREAD = 1e-5  # of a group's rewards; a smaller one is rounding, and would be blown up to a signal


def group_advantages(rewards: Tensor, groups: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    """How much better each reply is than the others of its group.

    rewards: (B,) float32, of whole replies. groups: (B,) int64, the group of each. With m and s the mean and the biased
    deviation of a group of K:
      rloo  r - mean of the other K - 1 rewards = K / (K - 1) (r - m)
      grpo  (r - m) / s
    Returns (advantages (B,), group of each reply has a signal (B,) bool): without one, because all of its rewards are
    the same or it has one reply only, the advantages are 0.
    Source: rloo: Ahmadian et al. 2024, arXiv:2402.14740, section 3.3; grpo: Shao et al. 2024, arXiv:2402.03300,
    section 4.1.2.
    """
    num_groups = int(groups.max()) + 1
    zeros = torch.zeros(num_groups, device=rewards.device)
    count = zeros.index_add(0, groups, torch.ones_like(rewards)).clamp(min=1)
    centred = rewards - (zeros.index_add(0, groups, rewards) / count)[groups]
    spread = (zeros.index_add(0, groups, centred**2) / count).sqrt()[groups]
    told = spread > SMALLEST_SPREAD
    size = count[groups]
    scaled = centred / spread.clamp(min=SMALLEST_SPREAD) if estimator == "grpo" else centred * size / (size - 1)
    return torch.where(told, scaled, 0.0), told


def collect_groups(
    actors: Actors, prompts: Sequence[list[int]], config: GRPOConfig, kl_coefficient: float, seed: int, runtime: Runtime
) -> tuple[Rollout, dict[str, float], list[Completion]]:
    """The rollout of group_size replies to each prompt; see `rollout.sample`.

    A reply's reward is its score minus kl_coefficient (beta) a nat of its KL, and all its tokens have its advantage. In
    GRPO's paper the KL is a term of the loss instead, k3 in form; here it is in the reward as in PPO, so that both
    estimators come to rest where PPO does, at pi_ref exp(r / beta).
    Returns (rollout on the runtime's device, figures, completions).
    """
    asked = [prompt for prompt in prompts for _ in range(config.group_size)]
    found = sample(actors, asked, config, seed, runtime, config.group_size)
    kl = k1(found.logprobs, found.ref_logprobs)
    rewards = token_rewards(found.final, found.ends, kl, found.mask, kl_coefficient)
    advantages, told = group_advantages(rewards.sum(dim=1), found.groups, config.estimator)
    rollout = as_rollout(found, rewards, advantages[:, None] * found.mask, torch.zeros_like(rewards))
    figures = {**found.figures, **rollout_figures(rollout), "groups_without_signal": 1 - float(told.float().mean())}
    return rollout, figures, found.completions
