"""Duplicates: exact ones by a hash of the text, near ones by MinHash signatures in locality-sensitive buckets.

Source: Broder 1997 (MinHash); Leskovec et al., Mining of Massive Datasets, §3.4 (banding: two documents with Jaccard
similarity s share a bucket with probability 1 - (1 - s^rows)^bands); Penedo et al. 2024 (FineWeb): 5-grams, 14 bands of
8 rows. Different here: a pair that meets in a bucket is a duplicate only if its signatures agree on a given share of
all their entries, which is an unbiased estimate of s, so that documents filled from one template are not taken for
copies by the luck of one band.

Memory is about 2 kB a kept document. Corpora beyond a few million documents belong in an engine made for that.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from jielong.data.words import TextBatch

_MAX_BUCKET = (
    16  # documents of a bucket that a newcomer is compared with: bounds the work on corpora made from templates
)


class ExactIndex:
    """Remembers every text it has been shown."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def seen(self, text: str) -> bool:
        """Whether this text, regardless of case and blanks, was shown before; from now on it was."""
        key = blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()
        if key in self._seen:
            return True
        self._seen.add(key)
        return False


class MinHash:
    """Signatures: num_hashes random permutations of the shingles' hashes, of each the least value in a document.

    num_hashes: entries of a signature. num_shingle_tokens: tokens of a shingle. seed: picks the permutations.
    """

    def __init__(self, num_hashes: int, num_shingle_tokens: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._factors = rng.integers(0, 1 << 32, num_hashes, dtype=np.uint32) | np.uint32(1)
        self._shifts = rng.integers(0, 1 << 32, num_hashes, dtype=np.uint32)
        self._num_shingle_tokens = num_shingle_tokens

    def signatures(self, batch: TextBatch) -> NDArray[np.uint32]:
        """(D, num_hashes) uint32; the rows of documents without tokens mean nothing.

        A document shorter than one shingle counts as one shingle.
        """
        values, starts, present = self._shingles(batch)
        signatures = np.zeros((len(batch.texts), len(self._factors)), dtype=np.uint32)
        if len(values):
            mixed = np.empty_like(values)
            for column, (factor, shift) in enumerate(zip(self._factors, self._shifts, strict=True)):
                np.multiply(values, factor, out=mixed)
                np.add(mixed, shift, out=mixed)
                np.bitwise_xor(mixed, mixed >> np.uint32(15), out=mixed)
                np.multiply(mixed, factor, out=mixed)
                signatures[present, column] = np.minimum.reduceat(mixed, starts)
        return signatures

    def _shingles(self, batch: TextBatch) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
        """(shingle hashes of all documents; where each document's begin; which documents have any)."""
        n = self._num_shingle_tokens
        lengths = batch.ends - batch.starts
        positions = [batch.inside(n)]
        grams = [batch.grams(n)[positions[0]]]
        for short in range(1, n):
            firsts = batch.starts[lengths == short]
            positions.append(firsts)
            grams.append(batch.grams(short)[firsts])
        where = np.concatenate(positions)
        order = np.argsort(where, kind="stable")
        owners = batch.owner[where[order]]
        present, starts = np.unique(owners, return_index=True)
        return _mix(np.concatenate(grams)[order]), starts, present


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """32 well-stirred bits of each hash."""
    values = (values ^ (values >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    mixed: NDArray[np.uint32] = ((values ^ (values >> np.uint64(29))) >> np.uint64(16)).astype(np.uint32)
    return mixed


class NearIndex:
    """Holds the signatures of the documents kept so far and says whether a new one is nearly one of them.

    bands x rows = entries of a signature; min_agreement: share of equal entries that makes two documents
    near-duplicates.
    """

    def __init__(self, bands: int, rows: int, min_agreement: float) -> None:
        self._bands, self._rows = bands, rows
        self._least = min_agreement * bands * rows
        self._signatures = np.zeros((1024, bands * rows), dtype=np.uint32)
        self._num_documents = 0
        self._buckets: dict[int, int | list[int]] = {}

    def band_keys(self, signatures: NDArray[np.uint32]) -> list[list[int]]:
        """(D, bands) keys of the buckets that each document falls in."""
        bands = signatures.reshape(len(signatures), self._bands, self._rows).astype(np.uint64)
        keys = np.broadcast_to(np.arange(1, self._bands + 1, dtype=np.uint64), bands.shape[:2]).copy()
        for row in range(self._rows):
            keys = (keys ^ bands[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        listed: list[list[int]] = keys.tolist()
        return listed

    def seen(self, signature: NDArray[np.uint32], keys: list[int]) -> bool:
        """Whether a kept document is a near-duplicate of this one; if none is, this one is kept from now on.

        signature (bands * rows,) uint32; keys: its row of `band_keys`.
        """
        compared: set[int] = set()
        for key in keys:
            found = self._buckets.get(key)
            if found is not None:
                compared.update([found] if isinstance(found, int) else found)
        if compared:
            others = self._signatures[sorted(compared)]
            if int((others == signature).sum(axis=1).max()) >= self._least:
                return True
        self._add(signature, keys)
        return False

    def _add(self, signature: NDArray[np.uint32], keys: list[int]) -> None:
        number = self._num_documents
        if number == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.zeros_like(self._signatures)])
        self._signatures[number] = signature
        self._num_documents += 1
        for key in keys:
            found = self._buckets.setdefault(key, number)
            if isinstance(found, list):
                if len(found) < _MAX_BUCKET:
                    found.append(number)
            elif found != number:
                self._buckets[key] = [found, number]
