"""Rows for an encoder: [CLS] A [SEP] B [SEP], where B follows A in its document, or comes from another one.

A and B are runs of whole sentences, as long as a row has room for; not single sentences. Without pairs a row is [CLS]
A [SEP], and further ones while there is room: short documents share a row, each a segment that sees no other. Padding
is on the right, segment 0.
Source: Devlin et al. 2018, arXiv:1810.04805, appendix A.2; google-research/bert, create_pretraining_data.py, whose
rules for choosing A and B these are.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jielong.errors import DataError, UsageError
from jielong.tensors import write_tensors

# Where a sentence ends: at a line's end, at a Chinese full stop, or at one of ours before a blank; quotes belong to it.
_END = re.compile(r"(?:[.!?]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』）]*|\n)+\s*")
_TENSORS = ("tokens", "token_types", "segments", "random")


@dataclass(frozen=True)
class SentenceRows:
    """tokens, token_types, segments: (R, T) int32; type 0 for [CLS] A [SEP], 1 for B [SEP]. random: (R,) bool.

    segments: 0 = padding, k = the k-th [CLS] A [SEP] of the row; with pairs there is one. random tells the rows whose B
    is from another document; all False in rows without B. num_lost: tokens of the text that stand in no row, because a
    pair was too long by its last sentence.
    """

    tokens: Tensor
    token_types: Tensor
    segments: Tensor
    random: Tensor
    num_lost: int = 0

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.segments > 0).sum())

    def save(self, path: Path) -> None:
        """One safetensors file, whole or not at all. Raises StorageError when there is no room."""
        write_tensors(path, {name: self.__dict__[name] for name in _TENSORS}, {"num_lost": str(self.num_lost)})

    @classmethod
    def load(cls, path: Path) -> SentenceRows:
        """Rows that `save` wrote. Raises DataError naming the file when it is cut off or of another kind."""
        try:
            with safe_open(path, framework="pt") as file:
                num_lost = int((file.metadata() or {})["num_lost"])
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
                return cls(**tensors, num_lost=num_lost)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise DataError(
                f"{path} does not hold rows of sentences, it may be cut off: {error}; delete its stage's folder to "
                "make it again"
            ) from error


@dataclass(frozen=True)
class Sentences:
    """Documents laid end to end. tokens: (N,) int32. starts: (S + 1,), where each sentence begins, and N.

    documents: (D + 1,), the number of the first sentence of each document, and S.
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    documents: NDArray[np.int64]

    @property
    def num_documents(self) -> int:
        return len(self.documents) - 1


@dataclass(frozen=True)
class Pairing:
    """How rows are made. cls_id, sep_id: control tokens. row_tokens: T. pairs: with B or without.

    short_fraction: of the rows are meant to be shorter than T, of a random length.
    """

    cls_id: int
    sep_id: int
    row_tokens: int
    pairs: bool = True
    short_fraction: float = 0.1

    @property
    def room(self) -> int:
        """Tokens of text in a row."""
        return self.row_tokens - (3 if self.pairs else 2)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text; joined they are the text. Blanks between two belong to the first."""
    cuts = [0, *(found.end() for found in _END.finditer(text)), len(text)]
    return [text[begin:end] for begin, end in zip(cuts, cuts[1:], strict=False) if begin < end]


def encode_sentences(texts: Iterable[str], encode: Callable[[str], Sequence[int]], longest: int) -> Sentences:
    """Documents as sentences of tokens; one longer than `longest` tokens is cut. Documents without tokens are left out.

    encode: text -> ids, without control tokens.
    """
    tokens, starts, documents = array("i"), array("q", [0]), array("q", [0])
    for text in texts:
        for sentence in split_sentences(text):
            ids = encode(sentence)
            for first in range(0, len(ids), longest):
                tokens.extend(ids[first : first + longest])
                starts.append(len(tokens))
        if len(starts) - 1 > documents[-1]:
            documents.append(len(starts) - 1)
    flat = np.frombuffer(tokens, dtype=np.int32) if tokens else np.zeros(0, np.int32)
    return Sentences(flat, np.asarray(starts, dtype=np.int64), np.asarray(documents, dtype=np.int64))


def make_rows(sentences: Sentences, pairing: Pairing, seed: int) -> SentenceRows:
    """All rows of the documents, in order; a function of the seed.

    Raises UsageError when a row has no room for text, DataError for pairs out of fewer than two documents: another one
    is needed to take a false B from.
    """
    if pairing.room < 2:
        raise UsageError(f"row_tokens is {pairing.row_tokens}; it leaves {pairing.room} tokens of text, needed are 2")
    if pairing.pairs and sentences.num_documents < 2:
        raise DataError(
            f"the text is {sentences.num_documents} document; to guess whether a sentence follows, false ones are "
            "taken from another document: give at least two, cut the text by split, or set next_sentence = false"
        )
    generator = np.random.default_rng(seed)
    drawer = _Drawer(sentences, pairing, generator)
    spans = [span for number in range(sentences.num_documents) for span in drawer.document(number)]
    return _laid_out(sentences, pairing, spans)


Span = tuple[int, int, int, int, bool]  # tokens of A: first, end; of B: first, end; whether B is from elsewhere


class _Drawer:
    """Chooses A and B, document by document."""

    def __init__(self, sentences: Sentences, pairing: Pairing, generator: np.random.Generator) -> None:
        self._text, self._pairing, self._generator = sentences, pairing, generator

    def document(self, number: int) -> list[Span]:
        """The rows of one document."""
        if not self._pairing.pairs:
            return self._single(number)
        first, end = int(self._text.documents[number]), int(self._text.documents[number + 1])
        spans = []
        while first < end:
            target = self._target()
            last = self._fill(first, end, target)
            spans.append(self._pair(number, first, last, target))
            # What A did not take goes back where B is from elsewhere: no sentence is lost for having been in the way.
            first = self._next(first, last, spans[-1])
        return spans

    def _single(self, number: int) -> list[Span]:
        """Rows without B: the document's tokens in order, none left out."""
        starts, bounds = self._text.starts, self._text.documents
        first, end = int(starts[bounds[number]]), int(starts[bounds[number + 1]])
        spans = []
        while first < end:
            stop = min(end, first + self._target())
            spans.append((first, stop, stop, stop, False))
            first = stop
        return spans

    def _target(self) -> int:
        """Tokens of text that the row is to have."""
        room = self._pairing.room
        if self._generator.random() < self._pairing.short_fraction:
            return int(self._generator.integers(2, room + 1))
        return room

    def _fill(self, first: int, end: int, target: int) -> int:
        """The sentence behind the last that is needed to reach `target` tokens from `first` on; at most `end`."""
        starts = self._text.starts
        found = int(np.searchsorted(starts, starts[first] + target, side="left"))
        return min(max(found, first + 1), end)

    def _pair(self, number: int, first: int, last: int, target: int) -> Span:
        """A and B of the sentences first .. last - 1, B random for half of them, and where there is but one."""
        starts, generator = self._text.starts, self._generator
        middle = first + 1 if last - first == 1 else int(generator.integers(first + 1, last))
        begin, split = int(starts[first]), int(starts[middle])
        if last - first > 1 and generator.random() < 0.5:
            return self._trim((begin, split, split, int(starts[last]), False))
        other = int(generator.integers(self._text.num_documents - 1))
        other += other >= number
        lower, upper = int(self._text.documents[other]), int(self._text.documents[other + 1])
        start = int(generator.integers(lower, upper))
        stop = self._fill(start, upper, max(1, target - (split - begin)))
        return self._trim((begin, split, int(starts[start]), int(starts[stop]), True))

    def _next(self, first: int, last: int, span: Span) -> int:
        """The sentence that the next row begins with."""
        if not span[4]:
            return last
        # A may have been cut at both ends: the sentence that it stopped in counts as used.
        return max(first + 1, int(np.searchsorted(self._text.starts, span[1], side="left")))

    def _trim(self, span: Span) -> Span:
        """Shorten the longer of the two, from its front and its end by chance, until both fit into the row."""
        first, end, begin, stop, random = span
        excess = max(0, (end - first) + (stop - begin) - self._pairing.room)
        longer = min(excess, abs((end - first) - (stop - begin)))
        from_a = longer if end - first > stop - begin else 0
        from_b = longer - from_a + -(-(excess - longer) // 2)
        from_a += (excess - longer) // 2
        front_a, front_b = (int(self._generator.binomial(count, 0.5)) for count in (from_a, from_b))
        return first + front_a, end - (from_a - front_a), begin + front_b, stop - (from_b - front_b), random


def _places(spans: Sequence[Span], pairing: Pairing) -> list[tuple[int, int, int]]:
    """(row, first column, segment) of each span, in order: a new row where the last one is full, always with pairs."""
    places, row, column, segment = [], -1, pairing.row_tokens, 0
    for first, end, _, _, _ in spans:
        if pairing.pairs or column + end - first + 2 > pairing.row_tokens:
            row, column, segment = row + 1, 0, 0
        segment += 1
        places.append((row, column, segment))
        column += end - first + 2
    return places


def _laid_out(sentences: Sentences, pairing: Pairing, spans: Sequence[Span]) -> SentenceRows:
    """The rows as tensors."""
    places = _places(spans, pairing)
    shape = (places[-1][0] + 1 if places else 0, pairing.row_tokens)
    tokens, types, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    used = np.zeros(len(sentences.tokens), bool)
    random = np.zeros(shape[0], bool)
    for (row, column, segment), (first, end, begin, stop, is_random) in zip(places, spans, strict=True):
        middle = column + end - first + 2
        tokens[row, column], tokens[row, middle - 1] = pairing.cls_id, pairing.sep_id
        tokens[row, column + 1 : middle - 1] = sentences.tokens[first:end]
        used[first:end] = True
        whole = middle
        if pairing.pairs:
            whole += stop - begin + 1
            tokens[row, middle : whole - 1] = sentences.tokens[begin:stop]
            tokens[row, whole - 1] = pairing.sep_id
            types[row, middle:whole] = 1
            used[begin:stop] |= not is_random
            random[row] = is_random
        segments[row, column:whole] = segment
    return SentenceRows(
        torch.from_numpy(tokens),
        torch.from_numpy(types),
        torch.from_numpy(segments),
        torch.from_numpy(random),
        num_lost=int((~used).sum()),
    )
