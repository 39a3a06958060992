"""DPO and IPO: the policy learns from comparisons directly, with no reward model and no sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.align.comparisons import Candidates, collate
from jielong.data.batch import PairBatch
from jielong.errors import UsageError
from jielong.model.logprobs import scored_logprobs
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.train.objectives import Objective

LOSSES = ("sigmoid", "ipo")


@dataclass(frozen=True)
class DPOConfig:
    """beta: price of a nat, as in PPO; the larger, the nearer the policy stays to the reference.

    label_smoothing: chance that a label is wrong, for "sigmoid". loss: see pair_terms.
    Raises UsageError naming the field, its value and what is legal.
    """

    beta: float
    loss: str = "sigmoid"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UsageError(f"DPO setting beta is {self.beta}; it must be above 0")
        if self.loss not in LOSSES:
            raise UsageError(f"DPO setting loss is {self.loss!r}; it must be one of {', '.join(LOSSES)}")
        if not 0 <= self.label_smoothing < 0.5:
            raise UsageError(f"DPO setting label_smoothing is {self.label_smoothing}; it must be from 0 to below 0.5")
        if self.label_smoothing and self.loss != "sigmoid":
            raise UsageError(f"DPO setting label_smoothing has no effect with loss = {self.loss!r}; delete it")


def pair_terms(better: Tensor, worse: Tensor, config: DPOConfig) -> Tensor:
    """Loss of each pair, from log(policy / reference) of the better and the worse reply, (M,) nats each.

    With h = better - worse and e = label_smoothing:
      sigmoid  -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h); ln 2 where the policy is the reference
      ipo      (h - 1 / (2 beta))^2, which does not ask for more once a pair is told apart
    Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7; smoothing: Mitchell 2023, "A note on DPO with noisy
    preferences"; ipo: Azar et al. 2023, arXiv:2310.12036, equation 17. All with sums over a reply's tokens, not means.
    """
    gap = better - worse
    if config.loss == "ipo":
        return (gap - 1 / (2 * config.beta)) ** 2
    logits = config.beta * gap
    return (1 - config.label_smoothing) * F.softplus(-logits) + config.label_smoothing * F.softplus(logits)


def reply_logprobs(model: Transformer, batch: PairBatch) -> Tensor:
    """(R,) float32: log-probability of each row's reply, its end token included, given its prompt; nats."""
    places = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    mask = (places >= batch.starts[:, None]) & (places <= batch.ends[:, None])
    return scored_logprobs(model, batch.tokens, None, mask, entropy=False)[0].sum(dim=1)


def dpo(config: DPOConfig) -> Objective[Transformer, PairBatch]:
    """Objective: (sum over prompts of the mean pair loss; sums over prompts of accuracy, margin, rewards).

    The batch's ref_logprobs must be those of the reference: see with_reference. It must hold decided pairs only.
    The metrics speak in rewards, beta log(policy / reference).
    """

    def objective(model: Transformer, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.ref_logprobs is not None, "the batch does not know what the reference says of it"
        model.eval()  # the reference was read without dropout, and so must be the policy
        log_ratio = reply_logprobs(model, batch) - batch.ref_logprobs
        better, worse = log_ratio[batch.pairs[:, 0]], log_ratio[batch.pairs[:, 1]]
        loss = (batch.weights * pair_terms(better, worse, config)).sum()
        good, bad = better.detach() * config.beta, worse.detach() * config.beta
        metrics = {
            "accuracy": (batch.weights * ((good > bad).float() + 0.5 * (good == bad))).sum(),
            "margin": (batch.weights * (good - bad)).sum(),
            "better_reward": (batch.weights * good).sum(),
            "worse_reward": (batch.weights * bad).sum(),
        }
        return loss, metrics

    return objective


@torch.no_grad()
def with_reference(
    reference: Transformer, items: Sequence[Candidates], pad_id: int, runtime: Runtime, batch_prompts: int = 16
) -> list[Candidates]:
    """The same comparisons, each row with its log-probability under the reference, read once and for all.

    The reference is so not needed while the policy learns; it may be that very model before its first step.
    """
    known: list[Candidates] = []
    for first in range(0, len(items), batch_prompts):
        part = items[first : first + batch_prompts]
        with runtime.autocast():
            found = reply_logprobs(reference, collate(part, pad_id).to(runtime.device)).tolist()
        for item in part:
            known.append(replace(item, ref_logprobs=found[: len(item.rows)]))
            found = found[len(item.rows) :]
    return known
