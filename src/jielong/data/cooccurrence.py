"""Vectors of tokens by counting what stands near what: what `vectors = "counted"` puts into an encoder's embedding.

Tokens that stand among the same others get similar vectors. A masked language model learns that too, from a gradient
for each hidden token; to count every pair of the text once is cheaper by orders of magnitude, and a small text is soon
counted.
Source: Levy and Goldberg 2014, "Neural word embedding as implicit matrix factorization"; Levy, Goldberg and Dagan 2015,
"Improving distributional similarity with lessons learned from word embeddings", whose choices these are: positive
pointwise mutual information, contexts to the power 0.75, nearer ones counted more, U sqrt(S) of the factorisation.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jielong.data.sentence_pairs import SentenceRows
from jielong.errors import DataError

WINDOW = 10  # tokens to either side
SMOOTHING = 0.75
MOST_TOKENS = 16_384  # of a vocabulary: the counts are one dense matrix
_SPARE, _PASSES = 20, 3  # of the randomised factorisation: further directions, and passes over the matrix


def token_vectors(rows: SentenceRows, is_text: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """(V, D) float32, as long as `init_weights` makes embeddings: their mean square is 1 / D. Random rows where nothing
    is known: tokens that are no text, and such as never stand beside another.

    is_text: (V,) bool, ids that text can have. The directions are turned at random, so that no entry says more than
    another. Raises DataError when the vocabulary is too large, or smaller than the vectors are long.
    """
    num_tokens = len(is_text)
    if not width < num_tokens <= MOST_TOKENS:
        raise DataError(
            f"vectors = 'counted' counts all pairs of {num_tokens} tokens for vectors of {width} entries; legal are "
            f"{width + 1} to {MOST_TOKENS} tokens: set vocab_size so, or vectors = 'random'"
        )
    information = torch.from_numpy(_positive_information(_counts(rows, is_text.numpy())))
    with torch.random.fork_rng(devices=[]):  # the factorisation draws from the global generator
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        left, values, _ = torch.svd_lowrank(information, q=min(width + _SPARE, num_tokens), niter=_PASSES)
    vectors = left[:, :width] * values[:width].sqrt()
    vectors = vectors @ torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    known = information.any(dim=1) & is_text
    drawn = torch.randn(num_tokens, width, generator=generator) / math.sqrt(width)
    if known.any():
        vectors /= vectors[known].square().mean().sqrt() * math.sqrt(width)
    return torch.where(known[:, None], vectors, drawn)


def _counts(rows: SentenceRows, is_text: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(V, V), symmetric: how often two tokens stand within WINDOW of each other in one segment, by nearness."""
    num_tokens = len(is_text)
    tokens, segments = rows.tokens.numpy(), rows.segments.numpy()
    words = is_text[tokens] & (segments > 0)
    counts = np.zeros(num_tokens * num_tokens, np.float32)
    for distance in range(1, WINDOW + 1):
        together = words[:, :-distance] & words[:, distance:]
        together &= segments[:, :-distance] == segments[:, distance:]
        pairs = tokens[:, :-distance][together].astype(np.int64) * num_tokens + tokens[:, distance:][together]
        places, times = np.unique(pairs, return_counts=True)
        counts[places] += (WINDOW + 1 - distance) / WINDOW * times
    square = counts.reshape(num_tokens, num_tokens)
    return square + square.T


def _positive_information(counts: NDArray[np.float32]) -> NDArray[np.float32]:
    """max(0, log p(w, c) / (p(w) p(c)^0.75 / Z)) of each pair, in nats; 0 for a pair that never stands together."""
    words = counts.sum(axis=1, dtype=np.float64)
    contexts = words**SMOOTHING
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = (contexts.sum() / contexts).astype(np.float32)  # of columns
        counts /= words.astype(np.float32)[:, None]
        counts *= scale
        np.log(counts, out=counts)
    np.nan_to_num(counts, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return np.maximum(counts, 0, out=counts)
