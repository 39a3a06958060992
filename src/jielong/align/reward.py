"""The reward model: the loss on comparisons, the normalised score, and its folder."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.align.judges import RewardEnsemble
from jielong.data.batch import PairBatch
from jielong.errors import ModelError, TrainingError
from jielong.folder import save
from jielong.model.hf import load_model, read_provenance
from jielong.model.transformer import Transformer
from jielong.tokenizer.tokenizer import Tokenizer


def read_scores(model: Transformer, tokens: Tensor, ends: Tensor) -> Tensor:
    """(R,) float32: the scalar head at each row's last real token, found by index and never by searching for padding.

    Rows hold one document each and padding is at the right, so causal attention alone hides it: no segments are needed.
    """
    return model(tokens)[torch.arange(len(ends), device=ends.device), ends].float()


def pair_loss(better: Tensor, worse: Tensor, margin: Tensor | float = 0.0, target: Tensor | float = 1.0) -> Tensor:
    """-log sigmoid(better - worse - margin), nats, of each pair (Bradley-Terry). Adding a constant to all is no change.

    target: chance that the better one is preferred; 1/2 for a tie, whose loss is least, ln 2, at equal scores.
    Source: margin: Touvron et al. 2023, arXiv:2307.09288, equation 2.
    """
    gap = better - worse - margin
    return target * F.softplus(-gap) + (1 - target) * F.softplus(gap)


def bradley_terry(model: Transformer, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Objective: (sum over prompts of the mean pair loss, nats; sums over prompts of accuracy and score margin).

    Source: Ouyang et al. 2022, arXiv:2203.02155, equation 1.
    """
    scores = read_scores(model, batch.tokens, batch.ends)
    better, worse = scores[batch.pairs[:, 0]], scores[batch.pairs[:, 1]]
    margin = (better - worse).detach()
    metrics = {"accuracy": (batch.weights * (margin > 0)).sum(), "margin": (batch.weights * margin).sum()}
    return (batch.weights * pair_loss(better, worse, batch.margins, batch.targets)).sum(), metrics


def scalar_from_policy(policy: Transformer, generator: torch.Generator) -> Transformer:
    """A model with a fresh scalar head, N(0, 1/sqrt(D+1)), on a copy of the policy's trunk."""
    model = Transformer(replace(policy.config, head="scalar"))
    model.init_weights(generator)
    trunk = {name: weight for name, weight in policy.state_dict().items() if name in model.state_dict()}
    missing = model.load_state_dict(trunk, strict=False).missing_keys
    assert missing == ["score.weight"], missing
    return model.to(next(policy.parameters()).device)


@dataclass
class RewardModel:
    """A scorer of replies: gain * model(reply) + bias, with mean 0 and variance 1 over the replies of `normalise`."""

    model: Transformer
    gain: float = 1.0
    bias: float = 0.0

    @torch.no_grad()
    def score(self, tokens: Tensor, segments: Tensor | None, ends: Tensor) -> Tensor:
        """(R,) float32, normalised. tokens (R, T) int64, padded at the right; ends (R,) int64, last real tokens.

        They may lie anywhere; the scores lie where the model does. segments is not read: a row is one document. Raises
        TrainingError when a score is not finite.
        """
        device = next(self.model.parameters()).device
        scores = self.gain * read_scores(self.model, tokens.to(device), ends.to(device)) + self.bias
        if not bool(torch.isfinite(scores).all()):
            rows = (~torch.isfinite(scores)).nonzero().flatten().tolist()
            raise TrainingError(
                f"the reward model gives scores that are not finite, for rows {rows[:8]} of {len(ends)}"
            )
        return scores

    def normalise(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Set gain and bias so that these replies score mean 0 and deviation 1; returns the raw (mean, deviation).

        batches: (tokens (R, T), ends (R,)) of replies of the SFT model, the score's zero for all that follows.
        Raises TrainingError when all replies score the same: such a model says nothing.
        """
        self.gain, self.bias = 1.0, 0.0
        scores = torch.cat([self.score(tokens, None, ends) for tokens, ends in batches]).double()
        mean, deviation = float(scores.mean()), float(scores.std(correction=0))
        if len(scores) < 2 or deviation < 1e-6:
            raise TrainingError(
                f"the reward model scores {len(scores)} SFT replies with standard deviation {deviation:.2g}; "
                "it has learned nothing, or the replies are all the same"
            )
        self.gain, self.bias = 1 / deviation, -mean / deviation
        return mean, deviation

    def critic(self) -> Transformer:
        """A critic to start PPO from: a trainable copy, its head scaled by gain (the bias is soon learned)."""
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            model.score.weight.mul_(self.gain)
        return model.requires_grad_(True)

    def save(self, tokenizer: Tokenizer, folder: Path, provenance: Mapping[str, object] | None = None) -> None:
        """Write a model folder with its tokenizer; gain and bias stand in its jielong.json."""
        normalisation = {"gain": self.gain, "bias": self.bias}
        save(self.model, tokenizer, folder, {**(provenance or {}), "reward": normalisation})

    @classmethod
    def load(cls, folder: Path) -> RewardModel:
        """Read it back, frozen. Raises ModelError when the folder has no scalar head or no normalisation."""
        model = load_model(folder)
        stored = read_provenance(folder).get("reward")
        if model.config.head != "scalar" or not isinstance(stored, dict):
            raise ModelError(f"{folder} is not a reward model: it needs a scalar head, and reward gain and bias")
        gain, bias = float(stored["gain"]), float(stored["bias"])
        if not (math.isfinite(gain) and math.isfinite(bias)):
            raise ModelError(f"{folder}/jielong.json: reward gain is {gain} and bias is {bias}; both must be finite")
        return cls(model.eval().requires_grad_(False), gain, bias)


def reward_models(reward: object) -> dict[str, RewardModel]:
    """The reward models among what judges, by name: "reward", or "reward-1", ... of an ensemble."""
    if isinstance(reward, RewardModel):
        return {"reward": reward}
    if not isinstance(reward, RewardEnsemble):
        return {}
    return {f"reward-{n}": model for n, model in enumerate(reward.models, start=1) if isinstance(model, RewardModel)}
