"""Objectives of fine-tuning: a label, a number, the right one of several, or a piece of text, off a row's states."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.data.task_rows import LabelledBatch
from jielong.model.logprobs import hidden_logprobs
from jielong.model.transformer import Transformer
from jielong.train.objectives import Objective

HEADS = {"classification": "classes", "pairs": "classes", "similarity": "classes", "choice": "choice", "span": "span"}


def row_states(model: Transformer, batch: LabelledBatch) -> Tensor:
    """Hidden states (N, T, D) of the rows."""
    types = batch.token_types if model.config.token_types else None
    return model.hidden(batch.tokens, batch.segments, token_types=types)


def read_answers(model: Transformer, hidden: Tensor, batch: LabelledBatch, task: str) -> Tensor:
    """What the model says of each example, float32.

    classification, pairs: (E, num_labels) logits. similarity: (E,) numbers. choice: (E, K) logits, -inf where an
    example has fewer than K candidates. span: (N, T, 2) logits that an answer begins or ends there, -inf elsewhere than
    in the context.
    """
    if task == "span":
        assert batch.contexts is not None
        scores = model.unembed(hidden).float()
        return scores.masked_fill(~batch.contexts[:, :, None], float("-inf"))
    pooled = model.pooled(hidden, batch.segments)  # (N, D)
    if task == "choice":
        return _beside(model.classify(pooled).float()[:, 0], batch)
    # Two orders of one pair are one example: their states are added before the linear map (GPT-1, section 3.3).
    summed = torch.zeros(batch.num_units, pooled.shape[1], dtype=pooled.dtype, device=pooled.device)
    answers = model.classify(summed.index_add(0, batch.owners, pooled)).float()
    return answers[:, 0] if task == "similarity" else answers


def _beside(scores: Tensor, batch: LabelledBatch) -> Tensor:
    """(N,) scores of the candidates' rows -> (E, K), those of one example side by side, -inf where there is none."""
    counts = torch.bincount(batch.owners, minlength=batch.num_units)
    firsts = counts.cumsum(0) - counts
    places = torch.arange(len(scores), device=scores.device) - firsts[batch.owners]
    table = scores.new_full((batch.num_units, int(counts.max())), float("-inf"))
    return table.index_put((batch.owners, places), scores)


def answer_nats(answers: Tensor, batch: LabelledBatch, task: str) -> Tensor:
    """The loss of each example, (E,) float32: nats, of span the mean of begin and end; squared error for numbers."""
    if task == "similarity":
        return (answers - batch.labels) ** 2
    if task == "span":  # one row an example
        begin, end = (F.cross_entropy(answers[:, :, side], batch.labels[:, side], reduction="none") for side in (0, 1))
        return (begin + end) / 2
    return F.cross_entropy(answers, batch.labels, reduction="none")


def language_nats(model: Transformer, hidden: Tensor, batch: LabelledBatch) -> Tensor:
    """The language model's loss of each example, (E,) float32: nats a token, a mean over a row and then over the rows.

    All tokens but a row's first count, those around the texts too, as in openai/finetune-transformer-lm.
    """
    logprobs, _ = hidden_logprobs(model, hidden, batch.tokens, batch.mask, entropy=False)
    of_rows = -logprobs.sum(dim=1) / batch.mask.sum(dim=1).clamp(min=1)  # (N,)
    sums = of_rows.new_zeros(batch.num_units).index_add(0, batch.owners, of_rows)
    return sums / torch.bincount(batch.owners, minlength=batch.num_units)


def answer(task: str, language_weight: float = 0.0) -> Objective[Transformer, LabelledBatch]:
    """The task's loss, plus language_weight times that of the language model; a sum over examples, whose unit is one.

    metrics: task_nats (task_error for numbers), with a language_weight language_nats, and accuracy where there are
    labels.
    Source: Radford et al. 2018 (GPT-1), equation 5: L3 = L2 + lambda L1, with lambda = 0.5.
    """

    def objective(model: Transformer, batch: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = row_states(model, batch)
        answers = read_answers(model, hidden, batch, task)
        loss_sum = answer_nats(answers, batch, task).sum()
        metrics = {"task_error" if task == "similarity" else "task_nats": loss_sum.detach()}
        if task in ("classification", "pairs", "choice"):
            metrics["accuracy"] = (answers.detach().argmax(dim=1) == batch.labels).sum()
        if language_weight:
            language = language_nats(model, hidden, batch).sum()
            metrics["language_nats"] = language.detach()
            loss_sum = loss_sum + language_weight * language
        return loss_sum, metrics

    return objective
