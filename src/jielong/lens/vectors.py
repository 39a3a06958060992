"""The vectors that a model begins with: which tokens lie near each other, and how positions are told apart.

Notation: V vocabulary, P positions, C columns, R = L + 1 rows as in `logits`, T tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.errors import ModelError, UsageError
from jielong.model.positions import LearnedPositions, RotaryPositions
from jielong.model.transformer import Transformer


def neighbours(
    model: Transformer, token: int, num_nearest: int, num_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """(ids (k,) int64, cosines (k,) float32) of the tokens whose embeddings point most nearly the same way.

    Nearest first; the token itself is not among them. num_tokens: ids below it are looked at, None for the whole
    embedding. Raises UsageError for an id that is no token, or a count below 1.
    Source: Mikolov et al. 2013, arXiv:1301.3781, section 4, for nearness as cosine.
    """
    table = model.embed.weight.detach()[:num_tokens].float()  # (V, D)
    if not 0 <= token < len(table):
        raise UsageError(f"token id {token} is out of range: legal ids are 0 to {len(table) - 1}")
    if num_nearest < 1:
        raise UsageError(f"num_nearest is {num_nearest}; it must be 1 or more")
    cosines = F.cosine_similarity(table, table[token][None], dim=1)  # (V,)
    cosines[token] = -2.0  # below any cosine
    best = cosines.topk(min(num_nearest, len(table) - 1))
    return best.indices, best.values


def position_table(model: Transformer, num_positions: int, num_columns: int) -> Tensor:
    """(P, C) float32: how the first positions are written, at most so many of them, and so many numbers of each.

    learned: the vectors themselves. sinusoidal: the fixed ones, sine and cosine of each frequency side by side, from
    the fastest to the slowest, as the paper draws them. rotary: the cosine of the angle by which each pair of a head is
    turned. Raises UsageError when a count is below 1.
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5; Su et al. 2021, arXiv:2104.09864, eq. 34.
    """
    if num_positions < 1 or num_columns < 1:
        raise UsageError(f"num_positions is {num_positions}, num_columns {num_columns}; both must be 1 or more")
    kind = model.positions
    if isinstance(kind, LearnedPositions):
        table = kind.weight.detach()
    elif isinstance(kind, RotaryPositions):
        table = kind.cos[:, : kind.cos.shape[1] // 2]  # the angles stand twice, once for each half of a head
    else:
        sines, cosines = kind.table.chunk(2, dim=1)
        table = torch.stack((sines, cosines), dim=2).flatten(1)
    return table[:num_positions, :num_columns].float()


def residual_stream(model: Transformer, tokens: Tensor, source: Tensor | None = None) -> Tensor:
    """(R, T, D) float32: the vector of every token, embedded, then after each layer, before any final norm.

    tokens: (T,) int64. source: (S,) int64, what a translator reads. Raises ModelError for a model without a decoder,
    and for a source that is missing or out of place.
    """
    if not model.config.decoder_layers:
        raise ModelError("a decoder is wanted: only its vectors turn into the next token")
    if model.config.encoder_layers and source is None:
        raise ModelError("a translator's source is wanted: its vectors depend on what it reads")
    with torch.no_grad():
        memory = None if source is None else model.encode(source[None])
        return torch.stack([x[0].float() for x in model.residuals(tokens[None], memory)])


def likeness(table: Tensor) -> Tensor:
    """(P, P) float32: the cosine of every two rows of (P, C); 0 where a row is all zeros."""
    rows = F.normalize(table, dim=1)
    return rows @ rows.T
