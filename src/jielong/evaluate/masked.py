"""How well an encoder guesses hidden tokens of held-out text, and which texts belong together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.data.masking import MaskedBatch
from jielong.data.sentence_pairs import SentenceRows
from jielong.errors import DataError
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.train.masked import read_rows


@dataclass(frozen=True)
class MaskedScores:
    """loss_nats: mean over the hidden tokens. accuracy: of the likeliest token. num_hidden: of these tokens.

    next_sentence_accuracy, num_rows: of the pairs; the former None for rows without a second text.
    """

    loss_nats: float
    accuracy: float
    num_hidden: int
    next_sentence_accuracy: float | None
    num_rows: int


@torch.no_grad()
def measure_masked(
    model: Transformer, batches: Iterable[MaskedBatch], runtime: Runtime, next_sentence: bool
) -> MaskedScores:
    """Scores over all batches, which the caller makes the same each time. The model's mode is restored.

    Raises DataError when there is nothing to guess.
    """
    training = model.training
    model.eval()
    nats, right, hidden, following, rows = 0.0, 0, 0, 0, 0
    for batch in batches:
        batch = batch.to(runtime.device)
        with runtime.autocast():
            states = read_rows(model, batch)
            logits, truth = model.unembed(states[batch.mask]).float(), batch.tokens[batch.mask]
            if next_sentence:
                pairs = model.next_sentence_logits(states, batch.segments)
                following += int((pairs.argmax(dim=1) == batch.random).sum())
        nats += float(F.cross_entropy(logits, truth, reduction="sum"))
        right += int((logits.argmax(dim=1) == truth).sum())
        hidden, rows = hidden + batch.num_units, rows + len(batch.random)
    model.train(training)
    if hidden == 0:
        raise DataError("held-out text: it has no token to hide; give longer held-out text")
    return MaskedScores(nats / hidden, right / hidden, hidden, following / rows if next_sentence else None, rows)


def frequency_baseline(rows: SentenceRows, is_text: Tensor, batches: Iterable[MaskedBatch]) -> tuple[float, float]:
    """(nats, accuracy) of guessing the hidden tokens by how often each stands in the training rows, one added to each.

    is_text: (V,) bool, ids that text can have.
    """
    counts = torch.bincount(rows.tokens[rows.segments > 0].long(), minlength=len(is_text)).double() + 1
    counts[~is_text] = 0
    logprobs = (counts / counts.sum()).log()
    told = [batch.tokens[batch.mask] for batch in batches]
    truth = torch.cat(told)
    return -float(logprobs[truth].mean()), float((truth == counts.argmax()).double().mean())
