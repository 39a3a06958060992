"""What changes the scores of one row before a token is drawn: bias, penalties, and stops that are not allowed yet.

In this order: logit_bias is added; the repetition penalty divides the positive scores of tokens in the prompt or the
reply, and multiplies the negative ones; frequency and presence penalties, of the reply's tokens alone, are subtracted;
stop tokens are ruled out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from jielong.generate.sampling import Sampling


class Penalties:
    """One row's changes to its scores, and the tokens it has said so far.

    Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1, for the repetition penalty; there negative scores are
    divided as well, which would reward them, and here they are multiplied as in Hugging Face. The other two are those
    of the OpenAI API: score - count * frequency - (count > 0) * presence.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], num_tokens: int, device: torch.device) -> None:
        self.sampling = sampling
        self.bias_ids = torch.tensor([token for token, _ in sampling.logit_bias], dtype=torch.int64, device=device)
        self.bias = torch.tensor([value for _, value in sampling.logit_bias], dtype=torch.float32, device=device)
        self.counts = torch.zeros(num_tokens, device=device)  # (V,) how often the reply has each token
        self.seen = torch.zeros(num_tokens, dtype=torch.bool, device=device)  # (V,) in the prompt or the reply
        self.seen[list(prompt)] = True

    def add(self, token: int) -> None:
        """Count a new token of the reply."""
        self.counts[token] += 1
        self.seen[token] = True

    def apply(self, scores: Tensor, barred: Collection[int] | Tensor = ()) -> None:
        """Change scores (V,) float32 in place. barred: ids that may not be drawn, or (V,) bool, True at those."""
        asked = self.sampling
        if len(self.bias):
            scores.index_add_(0, self.bias_ids, self.bias)
        if asked.repetition_penalty != 1:
            penalty = asked.repetition_penalty
            changed = torch.where(scores > 0, scores / penalty, scores * penalty)
            scores.copy_(torch.where(self.seen, changed, scores))
        if asked.frequency_penalty:
            scores.sub_(self.counts * asked.frequency_penalty)
        if asked.presence_penalty:
            scores.sub_((self.counts > 0) * asked.presence_penalty)
        if isinstance(barred, Tensor):
            scores.masked_fill_(barred.to(scores.device), -math.inf)
        elif barred:
            scores[list(barred)] = -math.inf


def penalised(logits: Tensor, rows: Sequence[Penalties]) -> Tensor:
    """The scores (R, V) float32 after each row's bias and penalties."""
    scores = logits.float().clone()
    for row, penalties in enumerate(rows):
        penalties.apply(scores[row])
    return scores
