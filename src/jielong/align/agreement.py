"""How often a reward model agrees with the people who compared, and with what right that may be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jielong.align.comparisons import Candidates, collate
from jielong.align.reward import pair_loss, read_scores
from jielong.errors import DataError
from jielong.intervals import wilson_ci95
from jielong.model.transformer import Transformer


def calibration_error(margins: Tensor, num_bins: int = 10) -> float:
    """Expected calibration error of sigmoid(score difference), in [0, 1]; 0 is calibrated.

    margins: (M,) score(better) - score(worse). The model's confidence is that of its own favourite, so 0.5 to 1.
    Source: Guo et al. 2017, arXiv:1706.04599, equation 5, equal-width bins.
    """
    if not len(margins):
        return 0.0
    confidence = torch.sigmoid(margins.abs().double())
    hit = _hits(margins)
    index = ((confidence - 0.5) * 2 * num_bins).long().clamp(max=num_bins - 1)
    gaps = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, index, hit - confidence)
    return float(gaps.abs().sum() / len(margins))


def _hits(margins: Tensor) -> Tensor:
    """(M,) float64: 1 where the better one scores higher, 1/2 where both score the same, else 0."""
    return (margins > 0).double() + 0.5 * (margins == 0).double()


@dataclass(frozen=True)
class Agreement:
    """Figures over decided pairs.

    accuracy: share of pairs in the labellers' order (equal scores count half). ci95: see `rate_ci95`.
    loss_nats: mean over prompts, as in training. calibration_error: of the stated confidence.
    """

    accuracy: float
    ci95: tuple[float, float]
    loss_nats: float
    calibration_error: float
    num_pairs: int
    num_prompts: int


def rate_ci95(hits: Tensor, prompts: Tensor) -> tuple[float, float]:
    """95 % interval of the mean of hits, Wilson's, with as many trials as the pairs are worth.

    hits: (M,) in [0, 1]. prompts: (M,) int64, the prompt of each pair. Pairs of one prompt share replies and are not
    independent: the effective number is rate (1 - rate) / (variance of the rate were prompts drawn anew), at most M.
    """
    rate = float(hits.mean())
    deviations = torch.zeros(int(prompts.max()) + 1, dtype=torch.float64).index_add_(0, prompts, hits.double() - rate)
    variance = float((deviations**2).sum()) / len(hits) ** 2
    trials = min(rate * (1 - rate) / variance, len(hits)) if variance > 0 else float(len(hits))
    return wilson_ci95(rate * trials, trials)


@torch.no_grad()
def measure_agreement(
    model: Transformer, items: Sequence[Candidates], pad_id: int, batch_prompts: int = 32
) -> Agreement:
    """Agreement of the model, in eval() for the time being, with held-out comparisons. Raises DataError without any."""
    if not items:
        raise DataError("there are no comparisons to measure the reward model on")
    device, training = next(model.parameters()).device, model.training
    model.eval()
    margins, losses, prompts = [], 0.0, []
    for first in range(0, len(items), batch_prompts):
        batch = collate(items[first : first + batch_prompts], pad_id).to(device)
        scores = read_scores(model, batch.tokens, batch.ends)
        better, worse = scores[batch.pairs[:, 0]], scores[batch.pairs[:, 1]]
        margins.append((better - worse).cpu())
        losses += float((batch.weights * pair_loss(better, worse)).sum())
    model.train(training)
    for index, item in enumerate(items):
        prompts.extend([index] * len(item.pairs))
    margin = torch.cat(margins)
    hits = _hits(margin)
    return Agreement(
        accuracy=float(hits.mean()),
        ci95=rate_ci95(hits, torch.tensor(prompts)),
        loss_nats=losses / len(items),
        calibration_error=calibration_error(margin),
        num_pairs=len(margin),
        num_prompts=len(items),
    )


def longer_wins(items: Sequence[Candidates]) -> float:
    """Share of pairs in which the better reply has more tokens; equal lengths count half. 0.5 without pairs."""
    lengths = [(item.reply_tokens[a], item.reply_tokens[b]) for item in items for a, b in item.pairs]
    if not lengths:
        return 0.5
    return sum(1.0 if better > worse else 0.5 if better == worse else 0.0 for better, worse in lengths) / len(lengths)


def length_baseline(training: Sequence[Candidates], heldout: Sequence[Candidates]) -> float:
    """Held-out accuracy of a judge that sees lengths only, and learned from the training pairs which way to lean."""
    share = longer_wins(heldout)
    return share if longer_wins(training) >= 0.5 else 1 - share


def position_baseline(items: Sequence[Candidates]) -> float:
    """Share of pairs in which the better reply stood first: far from 0.5 means labellers, or a log, lean to a side."""
    firsts = [better < worse for item in items for better, worse in item.pairs]
    return sum(firsts) / len(firsts) if firsts else 0.5
