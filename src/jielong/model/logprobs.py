"""Log-probabilities of tokens: the only place where the shift by one happens.

Entry t of every result speaks about token t: log p(tokens[t] | tokens[< t]). The logits at position t - 1 tell it.
M is the number of scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from jielong.model.transformer import Transformer

CHUNK_BYTES = 8 * 2**20  # float32 logits made at once: on a CPU what stays in its caches
CHUNK_BYTES_ELSEWHERE = 256 * 2**20
KEPT_BYTES = 512 * 2**20  # probabilities kept for the backward pass; beyond this they are computed again
STEADY_ROWS = 64  # see `_steady`

TensorT = TypeVar("TensorT", Tensor, Tensor | None)


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log p of each token given those before it, in nats. logits (B, T, V), tokens (B, T) -> (B, T) float32.

    Entry 0 of each row is 0, for nothing tells of the first token.
    """
    steps = torch.log_softmax(logits[:, :-1].float() / temperature, dim=-1)
    told = steps.gather(-1, tokens[:, 1:, None]).squeeze(-1)  # (B, T - 1)
    return F.pad(told, (1, 0))


def token_ranks(logits: Tensor, tokens: Tensor) -> Tensor:
    """Rank of each token among all that might have stood there, 1 = the likeliest. logits (B, T, V) -> (B, T) int64.

    Entry 0 of each row is 0, for nothing tells of the first token.
    """
    own = logits[:, :-1].gather(-1, tokens[:, 1:, None])  # (B, T - 1, 1)
    return F.pad((logits[:, :-1] > own).sum(dim=-1) + 1, (1, 0))


def scored_logprobs(
    model: Transformer,
    tokens: Tensor,
    segments: Tensor | None,
    mask: Tensor,
    temperature: float = 1.0,
    entropy: bool = True,
    vocab_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(log-probabilities, entropies) in nats at the scored tokens, each (B, T) float32, zero where mask is False.

    tokens, segments: as for Transformer. mask: (B, T) bool, True at tokens to score; never at the first token of a
    segment nor at padding. Logits are made at scored positions alone, a chunk at a time. Gradients flow through both
    results. entropy=False saves its cost and gives None. vocab_size: tokens that there are, where the model has rows
    beyond them, as embeddings of others are padded to round numbers; those then have no probability, as in the engine.
    """
    check_mask(mask, segments)
    return hidden_logprobs(model, model.hidden(tokens, segments), tokens, mask, temperature, entropy, vocab_size)


def hidden_logprobs(
    model: Transformer,
    hidden: Tensor,
    tokens: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    entropy: bool = True,
    vocab_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`scored_logprobs` of hidden states (B, T, D) that the caller made: with a source, or with router statistics.

    The model's head is "lm"; its logit_scale and logit_bias count. check_mask is the caller's.
    """
    told = mask[:, 1:]
    tellers = _tellers(hidden, mask)
    divisor = temperature / model.config.logit_scale
    if divisor != 1.0:
        tellers = tellers / divisor
    bias = model.logit_bias if model.logit_bias is None else model.logit_bias / temperature
    weight = model.unembed_weight
    if vocab_size is not None and vocab_size < len(weight):
        weight, bias = weight[:vocab_size], bias if bias is None else bias[:vocab_size]
    autocast = torch.is_autocast_enabled(hidden.device.type)
    dtype = torch.get_autocast_dtype(hidden.device.type) if autocast else hidden.dtype
    weight, bias = _where_learning(weight), _where_learning(bias)
    chosen, spread = _LinearLogprobs.apply(tellers.to(dtype), weight.to(dtype), bias, tokens[:, 1:][told], entropy)
    zeros = torch.zeros(mask.shape, device=mask.device)
    return zeros.masked_scatter(mask, chosen), zeros.masked_scatter(mask, spread) if entropy else None


def summed_nats(
    model: HasHead, hidden: Tensor, tokens: Tensor, mask: Tensor, smoothing: float = 0.0, z_weight: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(loss, nats) of the scored tokens, both summed: what is trained on, and -log p alone, which has no gradient.

    loss is nats with two things added where asked for. smoothing: of each label so much is spread over the whole
    vocabulary, its own token included: F.cross_entropy's label_smoothing. z_weight: so much times (log Z)^2 for each
    token, Z the sum of exp(logit): logits that drift away lose precision in bfloat16. hidden (B, T, D); tokens, mask
    (B, T) as for `hidden_logprobs`, which this equals summed up, and is faster and smaller, for a sum's gradient is
    known with it.
    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7 (smoothing; tensor2tensor spreads over the other tokens
    alone); Chowdhery et al. 2022, arXiv:2204.02311, section 5 (z-loss, 1e-4).
    """
    tellers = _tellers(hidden, mask)
    if model.logit_scale != 1.0:
        tellers = tellers * model.logit_scale
    autocast = torch.is_autocast_enabled(hidden.device.type)
    dtype = torch.get_autocast_dtype(hidden.device.type) if autocast else hidden.dtype
    weight, bias = _where_learning(model.unembed_weight), _where_learning(model.logit_bias)
    targets = tokens[:, 1:][mask[:, 1:]]
    loss, nats = _SummedNats.apply(tellers.to(dtype), weight, bias, targets, smoothing, z_weight)
    return loss, nats


def _tellers(hidden: Tensor, mask: Tensor) -> Tensor:
    """The states that tell of the scored tokens: hidden (B, T, D), mask (B, T) bool -> (M, D)."""
    places = F.pad(mask[:, 1:], (0, 1)).flatten().nonzero().squeeze(1)
    tellers: Tensor = _Gathered.apply(hidden, places)
    return tellers


class _Gathered(torch.autograd.Function):
    """Rows of (B, T, D) at places (M,) of (B T,), each at most once. -> (M, D).

    hidden[:, :-1][mask] says the same. Its gradient, which must allow for a place named twice and is then copied into
    zeros, takes 15 ms of a step of 64 rows on two threads, this one 3.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = hidden.shape
        return hidden.flatten(0, 1).index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        d_hidden = gradient.new_zeros(ctx.shape)
        d_hidden.view(-1, ctx.shape[-1]).index_copy_(0, places, gradient)
        return d_hidden, None


def _where_learning(tensor: TensorT) -> TensorT:
    """The tensor; detached where no gradients are recorded.

    An autograd function is told whether its inputs may have gradients, not whether anyone wants them: under no_grad it
    would make, or keep what makes, those of the weights.
    """
    return tensor if tensor is None or torch.is_grad_enabled() else tensor.detach()


class HasHead(Protocol):
    """What gives logits: h W^T * scale + b."""

    @property
    def unembed_weight(self) -> Tensor: ...  # (V, D)

    @property
    def logit_bias(self) -> Tensor | None: ...  # (V,)

    @property
    def logit_scale(self) -> float: ...


class _SummedNats(torch.autograd.Function):
    """The sums of `summed_nats`; hidden (M, D), weight (V, D), bias (V,) or None, targets (M,) int64.

    With p = softmax(z), Z the sum of exp(z), e the smoothing and w the weight of (log Z)^2: dloss / dz =
    p (1 + 2 w log Z) - (1 - e) onehot(y) - e / V is at hand with the loss, and a sum scales all of it alike, so the
    gradients are made on the way forward, a chunk at a time: neither logits nor probabilities are kept, in any dtype.
    The products run in hidden's dtype; the weight's gradient is summed, and given, in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, e: float, w: float
    ) -> tuple[Tensor, Tensor]:
        vocab_size = len(weight)
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        loss, nats = torch.zeros((), device=hidden.device), torch.zeros((), device=hidden.device)
        d_hidden = torch.empty_like(hidden) if of_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if of_weight else None
        d_bias = torch.zeros(vocab_size, device=weight.device) if of_bias else None
        narrow_weight = weight.to(hidden.dtype)
        for rows in _chunks(hidden.shape[0], vocab_size, hidden.device):
            logits, probabilities, normaliser = _distribution(hidden[rows], narrow_weight, bias)
            chosen = targets[rows, None]
            own = normaliser - logits.gather(1, chosen)  # (m, 1), -log p of the label
            nats += own.sum()
            loss += (1 - e) * own.sum() + w * normaliser.square().sum()
            if e:
                loss += e * (normaliser.sum() - logits.sum() / vocab_size)
            if not (of_hidden or of_weight or of_bias):
                continue
            # p - 1 from the log-probability, which in bfloat16 would be 0 for a p near 1
            at_label = torch.expm1(-own) + e * (1 - 1 / vocab_size) + (2 * w) * normaliser * torch.exp(-own)
            d_logits = probabilities.mul_(1 + 2 * w * normaliser) if w else probabilities
            d_logits = (d_logits.sub_(e / vocab_size) if e else d_logits).scatter_(1, chosen, at_label)
            if d_bias is not None:
                d_bias += d_logits.sum(dim=0)
            narrow = _steady(d_logits.to(hidden.dtype))
            if d_hidden is not None:
                d_hidden[rows] = (narrow @ narrow_weight)[: len(d_logits)]
            if d_weight is not None:
                d_weight += narrow.t() @ _steady(hidden[rows])
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(nats)
        return loss, nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        of_weight, of_bias = ctx.dtypes
        d_hidden = None if d_hidden is None else (d_hidden * gradient).to(d_hidden.dtype)
        d_weight = None if d_weight is None else (d_weight * gradient).to(of_weight)
        return d_hidden, d_weight, None if d_bias is None else (d_bias * gradient).to(of_bias), None, None, None


class _LinearLogprobs(torch.autograd.Function):
    """log softmax(h W^T + b) at one target a row, and the entropy, never holding all logits in float32.

    hidden (M, D) and weight (V, D) in the compute dtype, bias (V,) or None, targets (M,) int64 -> (M,) float32, (M,)
    float32 or None. With z = h W^T + b and p = softmax(z): d log p[y] / dz = onehot(y) - p, and d entropy / dz =
    -p (log p + entropy).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        num_rows, vocab_size = hidden.shape[0], weight.shape[0]
        logprobs = torch.empty(num_rows, dtype=torch.float32, device=hidden.device)
        spread = torch.empty_like(logprobs) if entropy else None
        keep = any(ctx.needs_input_grad) and num_rows * vocab_size * hidden.element_size() <= KEPT_BYTES
        kept = hidden.new_empty(num_rows, vocab_size) if keep else None
        for rows in _chunks(num_rows, vocab_size, hidden.device):
            logits, probabilities, normaliser = _distribution(hidden[rows], weight, bias)
            logprobs[rows] = (logits.gather(1, targets[rows, None]) - normaliser).squeeze(1)
            if kept is not None:
                kept[rows] = probabilities
            if spread is not None:
                spread[rows] = normaliser.squeeze(1) - (probabilities * logits).sum(dim=1)
        ctx.save_for_backward(hidden, weight, bias, targets, logprobs, spread, kept)
        ctx.set_materialize_grads(False)
        return logprobs, spread

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_logprobs: Tensor | None, d_spread: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight, bias, targets, logprobs, spread, kept = ctx.saved_tensors
        d_logprobs = torch.zeros_like(logprobs) if d_logprobs is None else d_logprobs
        # What is frozen gets no gradient, and none is computed: with LoRA the unembedding's would be most of the work.
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if of_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if of_weight else None
        d_bias = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device) if of_bias else None
        for rows in _chunks(hidden.shape[0], weight.shape[0], hidden.device):
            outer, chosen = d_logprobs[rows, None], targets[rows, None]
            if kept is not None and d_spread is None:
                d_logits = kept[rows] * -outer.to(hidden.dtype)
            else:
                logits, probabilities, normaliser = _distribution(hidden[rows], weight, bias)
                factor = -outer
                if d_spread is not None:
                    factor = factor - d_spread[rows, None] * (logits - normaliser + spread[rows, None])
                d_logits = probabilities.mul_(factor).to(hidden.dtype)
            # 1 - p from the log-probability: in bfloat16 a p near 1 is 1, and the token would teach nothing more.
            at_target = -torch.expm1(logprobs[rows, None]) * outer
            if d_spread is not None:
                at_target -= logprobs[rows, None].exp() * d_spread[rows, None] * (logprobs + spread)[rows, None]
            d_logits.scatter_(1, chosen, at_target.to(hidden.dtype))
            if d_bias is not None:
                d_bias += d_logits.sum(dim=0)
            steady = _steady(d_logits)
            if d_hidden is not None:
                d_hidden[rows] = (steady @ weight)[: len(d_logits)]
            if d_weight is not None:
                d_weight += steady.t() @ _steady(hidden[rows])
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        return d_hidden, d_weight, None if d_bias is None else d_bias.to(bias.dtype), None, None


def _distribution(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (m, V), probabilities (m, V) and log-normaliser (m, 1) of a chunk, all float32."""
    logits = F.linear(_steady(hidden), weight)[: len(hidden)].float()
    if bias is not None:
        logits = logits + bias.float()
    probabilities = torch.softmax(logits, dim=1)
    # logsumexp z = max z - log max p. torch.logsumexp would take twice as long as the softmax did.
    return logits, probabilities, logits.amax(dim=1, keepdim=True) - probabilities.amax(dim=1, keepdim=True).log()


def _steady(rows: Tensor) -> Tensor:
    """The rows (m, n); in bfloat16 on a CPU with zeros below them, up to a multiple of STEADY_ROWS.

    The number of scored tokens is another one at every step, and oneDNN, which multiplies in bfloat16, keeps what it
    has made for each number of rows: nearly 2 MB for the three products with a vocabulary of 2048, half of it for good.
    """
    missing = -len(rows) % STEADY_ROWS if rows.device.type == "cpu" and rows.dtype == torch.bfloat16 else 0
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


def _chunks(num_rows: int, vocab_size: int, device: torch.device) -> Iterator[slice]:
    step = max(1, (CHUNK_BYTES if device.type == "cpu" else CHUNK_BYTES_ELSEWHERE) // (4 * vocab_size))
    return (slice(start, start + step) for start in range(0, num_rows, step))


def check_mask(mask: Tensor, segments: Tensor | None) -> None:
    """Assert that no first token of a row or segment and no padding is scored: nothing tells of those."""
    assert not bool(mask[:, 0].any()), "the mask scores the first token of a row"
    if segments is not None:
        unscorable = (segments[:, 1:] != segments[:, :-1]) | (segments[:, 1:] == 0)
        assert not bool((mask[:, 1:] & unscorable).any()), "the mask scores the first token of a segment, or padding"


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values where mask is True, a scalar; 0 when it is True nowhere. Both (B, T)."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
