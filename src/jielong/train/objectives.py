"""Objectives: pure functions (model, batch) -> (sum over the batch's units, metrics as detached sums).

Nothing here divides. A mean taken per micro-batch depends on how a batch was cut; `train_step` divides the sums
once, by the units of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from jielong.data.batch import Batch
from jielong.model.logprobs import check_mask, summed_nats
from jielong.model.recurrent import Recurrent
from jielong.model.routing import Routing
from jielong.model.structure import StructuredTransformer
from jielong.model.transformer import Transformer

ModelT = TypeVar("ModelT", bound=nn.Module)
BatchT = TypeVar("BatchT")
Objective = Callable[[ModelT, BatchT], tuple[Tensor, dict[str, Tensor]]]


def next_token(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the scored tokens: pre-training and instruction tuning.

    Returns the sum over `batch.mask` of -log p(token | earlier tokens of its segment), a float32 scalar in nats, and
    no metrics. Its unit is one scored token.
    """
    check_mask(batch.mask, batch.segments)
    loss, _ = summed_nats(model, model.hidden(batch.tokens, batch.segments), batch.tokens, batch.mask)
    return loss, {}


def next_token_and_z(z_weight: float) -> Objective[Transformer, Batch]:
    """`next_token` plus z_weight * (log Z)^2 for each scored token, Z the sum over the vocabulary of exp(logit).

    metrics: label_nats, the negative log-likelihood alone, which is what `next_token` would have said.
    Source: Chowdhery et al. 2022, arXiv:2204.02311, section 5, with 1e-4.
    """

    def objective(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        check_mask(batch.mask, batch.segments)
        hidden = model.hidden(batch.tokens, batch.segments)
        loss, nats = summed_nats(model, hidden, batch.tokens, batch.mask, z_weight=z_weight)
        return loss, {"label_nats": nats}

    return objective


def next_token_of_experts(balance: float, router_z: float, z_weight: float = 0.0) -> Objective[Transformer, Batch]:
    """`next_token_and_z` for a mixture of experts, plus balance * load-balancing loss + router_z * router z-loss, per
    token.

    Both losses are means over the tokens of a micro-batch; weighted by its units they sum to a mean over micro-batches,
    which for the balance (a product of two means) depends a little on how the batch was cut, as it does everywhere.
    metrics: label_nats, the negative log-likelihood alone; router_balance and router_z, each weighted by the units, and
    router_peak, the largest share of choices that one expert of one layer got, likewise.
    Source: Fedus et al. 2021, arXiv:2101.03961, section 2.2 (balance; usual 0.01); Zoph et al. 2022, arXiv:2202.08906,
    section 3 (z-loss; usual 0.001).
    """

    def objective(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        check_mask(batch.mask, batch.segments)
        routing = Routing()
        hidden = model.hidden(batch.tokens, batch.segments, routing=routing)
        nats_sum, nats = summed_nats(model, hidden, batch.tokens, batch.mask, z_weight=z_weight)
        balance_loss, z_loss = routing.balance_loss(), routing.z_loss()
        loss_sum = nats_sum + batch.num_units * (balance * balance_loss + router_z * z_loss)
        metrics = {"router_balance": balance_loss, "router_z": z_loss, "router_peak": routing.shares().max()}
        weighted = {name: batch.num_units * value.detach() for name, value in metrics.items()}
        return loss_sum, {"label_nats": nats, **weighted}

    return objective


def translation(smoothing: float) -> Objective[Transformer | Recurrent, Batch]:
    """Cross-entropy of the target's tokens given the source, labels smoothed by `smoothing`; its unit is one of them.

    metrics: label_nats, the negative log-likelihood without smoothing, which the loss can never fall to.
    """

    def objective(model: Transformer | Recurrent, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.source is not None and batch.source_segments is not None
        check_mask(batch.mask, batch.segments)
        if isinstance(model, StructuredTransformer):
            hidden = model.target_hidden(batch.tokens, model.read(batch.source, batch.source_segments))
        else:
            memory = model.encode(batch.source, batch.source_segments)
            hidden = model.hidden_of(batch.tokens, batch.segments, memory, batch.source_segments)
        loss, nats = summed_nats(model, hidden, batch.tokens, batch.mask, smoothing)
        return loss, {"label_nats": nats}

    return objective
