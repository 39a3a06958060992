"""Objectives: pure functions (model, batch) -> (sum over the batch's units, metrics as detached sums).

Nothing here divides. A mean taken per micro-batch depends on how a batch was cut; `train_step` divides the sums
once, by the units of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from jielong.data.batch import Batch
from jielong.model.logprobs import scored_logprobs
from jielong.model.transformer import Transformer

ModelT = TypeVar("ModelT", bound=nn.Module)
BatchT = TypeVar("BatchT")
Objective = Callable[[ModelT, BatchT], tuple[Tensor, dict[str, Tensor]]]


def next_token(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the scored tokens: pre-training and instruction tuning.

    Returns the sum over `batch.mask` of -log p(token | earlier tokens of its segment), a float32 scalar in nats, and
    no metrics. Its unit is one scored token.
    """
    logprobs, _ = scored_logprobs(model, batch.tokens, batch.segments, batch.mask, entropy=False)
    return -logprobs.sum(), {}
