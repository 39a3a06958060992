"""Vectors by counting: the counts by hand, the information by its formula, and alike words come out alike."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from jielong.data.cooccurrence import MOST_TOKENS, WINDOW, _counts, _positive_information, token_vectors
from jielong.data.sentence_pairs import SentenceRows
from jielong.errors import DataError


def rows_of(tokens: list[list[int]], segments: list[list[int]] | None = None) -> SentenceRows:
    ids = torch.tensor(tokens, dtype=torch.int32)
    kinds = torch.ones_like(ids) if segments is None else torch.tensor(segments, dtype=torch.int32)
    return SentenceRows(ids, torch.zeros_like(ids), kinds, torch.zeros(len(ids), dtype=torch.bool))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_pairs_count_by_nearness_inside_their_segment() -> None:
    is_text = np.array([False, True, True, True, True])
    rows = rows_of([[0, 1, 2, 0, 1, 3], [4, 3, 3, 0, 0, 0]], [[1, 1, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0]])
    counts = _counts(rows, is_text)
    near, next_but_one = 1.0, (WINDOW - 1) / WINDOW
    expected = np.zeros((5, 5))
    expected[1, 2] = expected[1, 3] = near  # 2 and 3 of the first row are in other segments
    expected[3, 3] = 2 * near  # seen from both sides
    expected[3, 4] = near + next_but_one
    np.testing.assert_allclose(counts, np.maximum(expected, expected.T), rtol=1e-6)


def test_information_by_its_formula() -> None:
    counts = np.array([[0, 6, 1], [6, 0, 3], [1, 3, 8]], np.float32)
    sums = counts.sum(axis=1)
    contexts = sums**0.75 / (sums**0.75).sum()
    found = _positive_information(counts.copy())
    for word in range(3):
        for context in range(3):
            told = counts[word, context] / sums[word] / contexts[context]
            assert found[word, context] == pytest.approx(max(0.0, math.log(told)) if told else 0.0, abs=1e-6)


def alike(vectors: Tensor, one: int, other: int) -> float:
    return float(torch.cosine_similarity(vectors[one], vectors[other], dim=0))


def test_tokens_with_the_same_company_get_similar_vectors() -> None:
    """5 and 6 stand among 10 to 14 and never together; 7 stands among 15 to 19."""
    draw = random.Random(3)
    rows = []
    for word, company in ((5, range(10, 15)), (6, range(10, 15)), (7, range(15, 20))):
        rows += [[0, *draw.choices(company, k=3), word, *draw.choices(company, k=3), 0] for _ in range(60)]
    is_text = torch.arange(24) > 0
    vectors = token_vectors(rows_of(rows), is_text, 8, generator())
    assert vectors.shape == (24, 8) and vectors.dtype == torch.float32
    assert alike(vectors, 5, 6) > 0.8 > 0.4 > alike(vectors, 5, 7)
    known = [*range(5, 8), *range(10, 20)]
    assert vectors[known].square().mean().item() == pytest.approx(1 / 8)
    unseen = vectors[[1, 2, 3, 4, 8, 9, 20, 21, 22, 23]]  # drawn as ever
    assert 0.5 / 8 < unseen.square().mean().item() < 2 / 8
    torch.manual_seed(99)
    assert token_vectors(rows_of(rows), is_text, 8, generator()).equal(vectors)


@pytest.mark.parametrize("num_tokens", [8, MOST_TOKENS + 1])
def test_a_vocabulary_of_another_size_is_refused(num_tokens: int) -> None:
    with pytest.raises(DataError, match=f"all pairs of {num_tokens} tokens for vectors of 8 entries; legal are 9 to"):
        token_vectors(rows_of([[1, 2]]), torch.ones(num_tokens, dtype=torch.bool), 8, generator())
