"""Keep evaluation prompts out of the training text.

Source: Brown et al. 2020 (GPT-3), appendix C: 13-gram overlap of normalised words. Different here: prompts under 13
tokens are searched as a whole, one contiguous run; and of the 13-grams of longer prompts those that several prompts
share are not counted, because they are the template ("Write a short story with the words ...") and mark no particular
prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jielong.data.words import TextBatch, Vocabulary, gram_hashes, tokenize


class Decontaminator:
    """Looks for evaluation prompts in batches of documents.

    num_gram_tokens: n of the n-grams. min_prompt_tokens: shorter prompts say too little to be recognised and are
        skipped.
    max_shared: an n-gram that more prompts than this hold is taken for template text.
    num_prompts, num_skipped: prompts that are searched for, and those that are too short. Equal prompts count once.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        vocabulary: Vocabulary,
        num_gram_tokens: int,
        min_prompt_tokens: int,
        max_shared: int = 3,
    ) -> None:
        distinct = sorted({tuple(tokenize(prompt)) for prompt in prompts})
        searched = [tokens for tokens in distinct if len(tokens) >= min_prompt_tokens]
        self.num_prompts = len(searched)
        self.num_skipped = len(distinct) - len(searched)
        by_length: dict[int, list[NDArray[np.uint64]]] = {}
        for tokens in searched:
            length = min(len(tokens), num_gram_tokens)
            by_length.setdefault(length, []).append(np.unique(_grams(vocabulary.look_up(list(tokens))[0], length)))
        shorter = {
            length: np.unique(np.concatenate(found)) for length, found in by_length.items() if length < num_gram_tokens
        }
        self._wanted: dict[int, NDArray[np.uint64]] = shorter
        longer = by_length.get(num_gram_tokens, [])
        if longer:
            values, counts = np.unique(np.concatenate(longer), return_counts=True)
            template = values[counts > max_shared]
            # A prompt made of template text alone must still be found: by all it has.
            kept = [own if np.isin(own, template).all() else np.setdiff1d(own, template) for own in longer]
            self._wanted[num_gram_tokens] = np.unique(np.concatenate(kept))

    def find(self, batch: TextBatch) -> NDArray[np.bool_]:
        """(D,) bool: which documents hold (a telling part of) a prompt."""
        hit = np.zeros(len(batch.texts), dtype=np.bool_)
        for length, wanted in self._wanted.items():
            grams = batch.grams(length)
            if len(grams):
                place = np.minimum(np.searchsorted(wanted, grams), len(wanted) - 1)
                found = np.flatnonzero(wanted[place] == grams)
                found = found[found + length <= batch.ends[batch.owner[found]]]
                hit[batch.owner[found]] = True
        return hit


def _grams(hashes: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    grams = hashes
    for length in range(2, n + 1):
        grams = gram_hashes(hashes, grams, length)
    return grams
