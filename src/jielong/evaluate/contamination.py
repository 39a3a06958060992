"""Was the test in the training text? Which items of a task have a run of words in common with a corpus.

Source: Brown et al. 2020, arXiv:2005.14165, appendix C (overlap of 13 words); here a word is what `data.words` takes
for one, an item shorter than that is looked for as a whole, and an item counts as found by its share of runs, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from jielong.data.words import TextBatch, Vocabulary, gram_hashes, tokenize

NUM_GRAM_TOKENS = 13
MIN_TOKENS = 6  # a shorter text may well stand in any corpus without being the test
_BATCH_DOCUMENTS = 256


@dataclass(frozen=True)
class Overlap:
    """What a corpus has in common with the items of a task.

    share: of each item's runs of words that stand in the corpus, 0 to 1; None for an item too short to be known again.
    num_documents: read.
    """

    share: tuple[float | None, ...]
    num_documents: int

    @property
    def found(self) -> list[int]:
        """The items with at least one run in the corpus."""
        return [index for index, share in enumerate(self.share) if share]

    @property
    def clean(self) -> list[int]:
        """The items that were looked for and have none."""
        return [index for index, share in enumerate(self.share) if share == 0.0]


def overlap(texts: Sequence[str], documents: Iterable[str], num_gram_tokens: int = NUM_GRAM_TOKENS) -> Overlap:
    """The overlap of each text with all documents, which are read once as a stream."""
    vocabulary = Vocabulary()
    own = [_own_grams(text, vocabulary, num_gram_tokens) for text in texts]
    lengths = sorted({length for length, grams in own if len(grams)})
    wanted = {n: np.unique(np.concatenate([grams for length, grams in own if length == n])) for n in lengths}
    seen = {n: np.zeros(len(grams), dtype=np.bool_) for n, grams in wanted.items()}
    num_documents = 0
    for batch in _batches(documents, vocabulary):
        num_documents += len(batch.texts)
        for n, grams in wanted.items():
            present = batch.grams(n)[batch.inside(n)]
            place = np.minimum(np.searchsorted(grams, present), len(grams) - 1)
            seen[n][place[grams[place] == present]] = True
    shares: list[float | None] = []
    for n, grams in own:
        shares.append(float(seen[n][np.searchsorted(wanted[n], grams)].mean()) if len(grams) else None)
    return Overlap(tuple(shares), num_documents)


def _own_grams(text: str, vocabulary: Vocabulary, num_gram_tokens: int) -> tuple[int, NDArray[np.uint64]]:
    """(n, hashes of the text's runs of n words); none for a text that is too short."""
    tokens = tokenize(text)
    length = min(len(tokens), num_gram_tokens)
    if length < MIN_TOKENS:
        return length, np.zeros(0, dtype=np.uint64)
    words = vocabulary.look_up(tokens)[0]
    grams = words
    for n in range(2, length + 1):
        grams = gram_hashes(words, grams, n)
    return length, np.unique(grams)


def _batches(documents: Iterable[str], vocabulary: Vocabulary) -> Iterator[TextBatch]:
    stream = iter(documents)
    while texts := list(islice(stream, _BATCH_DOCUMENTS)):
        yield TextBatch(texts, vocabulary)
