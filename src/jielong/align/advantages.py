"""From scores to advantages: rewards of tokens, generalised advantage estimates, whitening. All of it under the mask.

Entry t of every (B, T) tensor speaks about token t; `mask` marks the tokens that the policy chose.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_rewards(scores: Tensor, ends: Tensor, kl: Tensor, mask: Tensor, coefficient: float) -> Tensor:
    """Reward of each token: minus the price of its KL, plus the reply's score on its last token.

    scores: (B,) float32. ends: (B,) int64, index of each reply's last token (its end token, if it has one).
    kl: (B, T) nats, from the rollout's own log-probabilities, detached. coefficient: beta, reward a nat.
    Returns (B, T) float32, zero where mask is False; each row sums to score - coefficient * sum of its kl.
    Source: Ziegler et al. 2019, arXiv:1909.08593, equation 2; Ouyang et al. 2022, arXiv:2203.02155, equation 2.
    """
    rewards = torch.where(mask, -coefficient * kl, torch.zeros_like(kl))
    rows = torch.arange(len(ends), device=ends.device)
    if not bool(mask[rows, ends].all()):
        raise ValueError("ends must point at tokens that the policy chose (mask is False there)")
    rewards[rows, ends] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, smoothing: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates over scored tokens only.

    rewards, values: (B, T) float32. values[:, t] is the critic's view of the state before token t was chosen.
    discount, smoothing: gamma and lambda, both in [0, 1].
    Returns (advantages, returns), each (B, T) float32, zero where mask is False; returns = advantages + values, so they
    must be taken from here, before any whitening. Unscored tokens (prompt, padding) are stepped over: they carry no
    reward and cost no discount. After the last scored token the value is 0, also when the reply was cut off: its score
    (see missing_eos_score) is meant to be final.
    Source: Schulman et al. 2016, arXiv:1506.02438, equations 11-16; differs in skipping unscored tokens.
    """
    advantages = torch.zeros_like(rewards)
    next_value = torch.zeros_like(rewards[:, 0])
    next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        chosen = mask[:, t]
        error = rewards[:, t] + discount * next_value - values[:, t]
        advantage = error + discount * smoothing * next_advantage
        next_value = torch.where(chosen, values[:, t], next_value)
        next_advantage = torch.where(chosen, advantage, next_advantage)
        advantages[:, t] = torch.where(chosen, advantage, advantages[:, t])
    returns = torch.where(mask, advantages + values, advantages)
    return advantages, returns


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Biased variance of the entries where mask is True; 0 when there is none. Scalar."""
    count = mask.sum().clamp(min=1)
    mean = torch.where(mask, values, 0.0).sum() / count
    return torch.where(mask, (values - mean) ** 2, 0.0).sum() / count


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale the masked entries to variance 1 and, with shift_mean, to mean 0; the others become 0.

    values, mask: (B, T), a whole rollout, so that no minibatch has a scale of its own. Variance is the biased one.
    With fewer than two masked entries there is no variance: they are returned as they are.
    """
    count = mask.sum()
    if int(count) < 2:
        return torch.where(mask, values, 0.0)
    mean = torch.where(mask, values, 0.0).sum() / count
    whitened = (values - mean) * torch.rsqrt(masked_variance(values, mask) + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, 0.0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over masked tokens: 1 is a perfect critic, 0 one that knows nothing.

    0 when the returns do not vary.
    """
    variance = float(masked_variance(returns, mask))
    return 0.0 if variance == 0 else 1.0 - float(masked_variance(returns - values, mask)) / variance
