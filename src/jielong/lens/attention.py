"""Attention maps: the weights of every head of every layer for one text, recorded in an ordinary forward pass.

The kernel of a pass is a function that its Context carries. Here that function is `written_weights`, which the written
kernel itself is made of, followed by the weighted sum; so the map is what the layers above really got, and there is no
second formula. The model is not touched: a shallow copy of it, with the same weights, chooses the recording kernel.

Notation: L layers of a stack, N heads, T tokens, S tokens of the source, H head size.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jielong.errors import ModelError
from jielong.model.context import Context, Heads
from jielong.model.kernels import CrossKernel, SelfKernel, split_heads, written_weights
from jielong.model.transformer import Transformer

CROSS = "cross"


@dataclass(frozen=True)
class HeadFigures:
    """What each head of a stack does on the whole, each (L, N) float32, means over the queries.

    The first query is left out where there are others: in a decoder it sees itself alone.
    entropy_nats: of the weights of a query; 0 = it looks at one key. to_first, to_self, to_previous: the weight on the
    row's first token, on the query itself, on the token before it; None for cross-attention, where they mean nothing.
    elsewhere: the largest weight on any other token (cross-attention: on any token).
    """

    entropy_nats: Tensor
    elsewhere: Tensor
    to_first: Tensor | None = None
    to_self: Tensor | None = None
    to_previous: Tensor | None = None


def attention_maps(model: Transformer, tokens: Tensor | None, source: Tensor | None = None) -> dict[str, Tensor]:
    """Weights of attention by kind, float32; entry (l, n, t, s) is how much query t takes from key s; rows sum to 1.

    "decoder" (L, N, T, T) and "encoder" (L, N, S, S) are self-attention, "cross" (L, N, T, S) is the decoder's to the
    source; what the model does not have is left out. tokens: (T,) int64, for encoder-only models the text. source:
    (S,) int64, for encoder-decoders; with tokens None only the encoder is looked at.
    Raises ModelError for a model in training mode (dropout would show), for a source that the model cannot read, for
    one that is missing, for a row longer than max_length, and when weights are not finite.
    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1, and its figures 3 to 5 for such maps.
    """
    if model.training:
        raise ModelError("the model is in training mode, where dropout hides weights; call model.eval() first")
    recorder = _Recorder()
    watched = copy.copy(model)  # shares every weight with the model; only its choice of kernels is its own
    watched.choose_kernels = recorder.choose
    with torch.no_grad():
        memory = None if source is None else watched.encode(source[None])
        if tokens is not None:
            watched.hidden(tokens[None], memory=memory)
    maps = {kind: torch.stack(layers) for kind, layers in recorder.maps.items() if layers}
    for kind, weights in maps.items():
        if not bool(weights.isfinite().all()):
            raise ModelError(f"weights of {kind} attention are not finite: the model's weights are broken")
    return maps


@dataclass
class _Recorder:
    """Kernels of self- and cross-attention that keep the weights they use, (N, T, S) a layer, in layer order."""

    maps: dict[str, list[Tensor]] = field(default_factory=lambda: {"decoder": [], CROSS: [], "encoder": []})

    def choose(
        self, device: torch.device, dtype: torch.dtype, length: int, cached: bool, dropout: float
    ) -> tuple[SelfKernel, CrossKernel]:
        """In the place of `kernels.choose_kernels`."""
        return self.attend, self.weigh

    def attend(self, mixed: Tensor, context: Context, heads: Heads) -> Tensor:
        queries, keys, values = split_heads(mixed, context, heads)
        bias = context.mask.bias(heads.window, mixed.shape[1])
        kind = "decoder" if context.mask.causal else "encoder"
        return self._record(kind, queries, keys, values, bias, heads).transpose(1, 2).flatten(2)

    def weigh(
        self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, context: Context, heads: Heads
    ) -> Tensor:
        return self._record(CROSS, queries, keys, values, bias, heads)

    def _record(
        self, kind: str, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, heads: Heads
    ) -> Tensor:
        """The weighted sum of the values, (1, N, T, H)."""
        weights = written_weights(queries, keys, bias, heads)  # (K, G T, S), for one row
        self.maps[kind].append(weights.detach().float().view(heads.num_heads, queries.shape[2], -1))
        return torch.bmm(weights, values.flatten(0, 1)).view(queries.shape)


def head_figures(kind: str, weights: Tensor) -> HeadFigures:
    """Figures of the maps (L, N, T, S) of one kind."""
    later = slice(1, None) if weights.shape[2] > 1 else slice(None)
    entropies = torch.special.entr(weights).sum(dim=-1)  # (L, N, T)
    entropy = entropies[..., later].mean(dim=-1)
    if kind == CROSS:
        return HeadFigures(entropy, weights[:, :, later].amax(dim=-1).mean(dim=-1))
    others = weights.clone()
    others[..., 0] = 0.0
    others.diagonal(dim1=-2, dim2=-1).zero_()
    own, previous = weights.diagonal(dim1=-2, dim2=-1), weights.diagonal(-1, dim1=-2, dim2=-1)  # (L, N, T), (…, T - 1)
    return HeadFigures(
        entropy_nats=entropy,
        elsewhere=others[:, :, later].amax(dim=-1).mean(dim=-1),
        to_first=weights[:, :, later, 0].mean(dim=-1),
        to_self=own[..., later].mean(dim=-1),
        to_previous=previous.mean(dim=-1) if previous.shape[-1] else torch.zeros_like(entropy),
    )


def telling_head(elsewhere: Tensor) -> tuple[int, int]:
    """(layer, head), from 0: the head that looks hardest at tokens other than the first and the query's own.

    elsewhere: (L, N), as in HeadFigures.
    Many heads rest on the first token when they have nothing to say, and their maps show little.
    Source: Xiao et al. 2023, arXiv:2309.17453, section 3.1, on the first token as a sink.
    """
    layer, head = divmod(int(elsewhere.argmax()), elsewhere.shape[1])
    return layer, head
