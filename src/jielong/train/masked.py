"""BERT's two objectives: guess the hidden tokens, and whether the second text follows the first."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from jielong.data.masking import MaskedBatch
from jielong.model.transformer import Transformer
from jielong.train.objectives import Objective


def read_rows(model: Transformer, batch: MaskedBatch) -> Tensor:
    """Hidden states (B, T, D) of what the model sees of the rows."""
    types = batch.token_types if model.config.token_types else None
    return model.hidden(batch.inputs, batch.segments, token_types=types)


def hidden_token(next_sentence: bool) -> Objective[Transformer, MaskedBatch]:
    """Negative log-likelihood of the hidden tokens; with next_sentence that of the pairs' labels added.

    The sum is over the hidden tokens, its unit is one of them. The pairs' loss is a mean over the rows of the
    micro-batch, weighted by its units, so that both means have equal weight as in BERT: of rows that are cut otherwise
    it depends on the cut as much as their numbers of hidden tokens differ.
    metrics: masked_accuracy; with next_sentence also next_sentence_nats and next_sentence_accuracy, weighted likewise.
    Source: Devlin et al. 2018, arXiv:1810.04805, section 3.1 and appendix A.2: "the training loss is the sum of the
    mean masked LM likelihood and the mean next sentence prediction likelihood".
    """

    def objective(model: Transformer, batch: MaskedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = read_rows(model, batch)
        logits, truth = model.unembed(hidden[batch.mask]).float(), batch.tokens[batch.mask]  # (M, V), (M,)
        loss_sum = F.cross_entropy(logits, truth, reduction="sum")
        metrics = {"masked_accuracy": (logits.detach().argmax(dim=1) == truth).sum()}
        if next_sentence:
            pairs = model.next_sentence_logits(hidden, batch.segments).float()  # (B, 2)
            nats = F.cross_entropy(pairs, batch.random)
            right = (pairs.detach().argmax(dim=1) == batch.random).float().mean()
            metrics |= {
                "next_sentence_nats": batch.num_units * nats.detach(),
                "next_sentence_accuracy": batch.num_units * right,
            }
            loss_sum = loss_sum + batch.num_units * nats
        return loss_sum, metrics

    return objective
