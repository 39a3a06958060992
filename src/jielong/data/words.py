"""Documents as words and characters, measured many at a time.

One definition of a token serves the repetition rules, near-duplicate search and decontamination: a run of letters and
digits (case-folded), a single Chinese or kana character, or an arithmetic sign (so that "37 + 45" and "37 - 45"
differ). Python touches every document once to find the tokens; all the rest is numpy over a whole batch of documents
laid end to end.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import chain

import numpy as np
from numpy.typing import NDArray

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_RUN = rf"[^\W_{_IDEOGRAPHS}]+"
_TOKEN = re.compile(rf"{_RUN}(?:'{_RUN})*|[{_IDEOGRAPHS}]|[+*/=×÷]|[-−](?=\s?\d)")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MAX_CACHED_WORDS = 1 << 20

# Classes of characters, the columns of TextBatch.classes.
OTHER, SPACE, ASCII_LETTER, LATIN_LETTER, HAN, KANA, HANGUL, OTHER_LETTER, DIGIT, PUNCTUATION, SYMBOL = range(11)
NUM_CLASSES = 11
_SYMBOLS = frozenset("#@$%&\\^_`{|}~<>\ufffd")


# Flags of tokens. FUNCTION_WORD: one of the commonest English words. ENGLISH_STOP, CHINESE_STOP: what prose cannot do
# without.
HAS_LETTER, ALL_LETTERS, FUNCTION_WORD, ENGLISH_STOP, CHINESE_STOP, FOREIGN_WORD = 1, 2, 4, 8, 16, 32
_FUNCTION_WORDS = frozenset(
    "the of and to a in that it is was he for on with his as i at by you her be not had she have from but are they "
    "this which him or an my one all were we would there their so what if when them will who me been has "
    "no out up do".split()
)
_FOREIGN_WORDS = frozenset(  # of the larger languages in Latin letters; none is an English word
    "der das und nicht ein eine einen ist mit zu auf dem von sich auch wir ich er sie weil nach wird el los las una "
    "por que y es con para del se su le les et est une dans pour pas nous vous qui sur avec il di che è per sono nella "
    "della het een van niet dat não uma com em och det att som är på inte og w się nie że jest na ve bir için yang dan "
    "dengan tidak và của".split()
)
_ENGLISH_STOPS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))  # Gopher's eight
_CHINESE_STOPS = frozenset(  # the most frequent characters of modern and of classical Chinese, in both scripts
    "的一是不了在有人我他这中大来上个们之也而以于为者其曰无何知自相月日天山水风花春心年時时來無為個們這"
    "到说国和地出道得里后小么多作可生会过学对能下子那要就她你看起好与與還还說風"
)


def tokenize(text: str) -> list[str]:
    """The tokens of a text, as the rules see it: "Don't! 37+45 好的" gives don't 37 + 45 好 的."""
    return _TOKEN.findall(text.casefold().replace("\u2019", "'"))


class Vocabulary(dict[str, int]):
    """What is known of each token met so far: its number here, and by that number the entries of three arrays.

    hashes uint64: the same in every process. sizes int64: characters. flags uint8: HAS_LETTER ... FOREIGN_WORD, added
    up. Forgets everything after a million words, which bounds its memory and changes no result.
    """

    def __init__(self) -> None:
        self._hashes = np.zeros(4096, dtype=np.uint64)
        self._sizes = np.zeros(4096, dtype=np.int64)
        self._flags = np.zeros(4096, dtype=np.uint8)

    def __missing__(self, word: str) -> int:
        number = len(self)
        if number == len(self._hashes):
            self._hashes, self._sizes, self._flags = (
                np.concatenate([known, np.zeros_like(known)]) for known in (self._hashes, self._sizes, self._flags)
            )
        self._hashes[number] = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")
        self._sizes[number] = len(word)
        self._flags[number] = _flags_of(word)
        self[word] = number
        return number

    def look_up(self, words: list[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint8]]:
        """(hashes, sizes, flags), each (N,)."""
        if len(self) > _MAX_CACHED_WORDS:
            self.clear()
        numbers = np.fromiter(map(self.__getitem__, words), dtype=np.int64, count=len(words))
        return self._hashes[numbers], self._sizes[numbers], self._flags[numbers]


def _flags_of(word: str) -> int:
    flags = HAS_LETTER if any(map(str.isalpha, word)) else 0
    flags |= ALL_LETTERS if word.isalpha() else 0
    flags |= FUNCTION_WORD if word in _FUNCTION_WORDS else 0
    flags |= FOREIGN_WORD if word in _FOREIGN_WORDS else 0
    flags |= ENGLISH_STOP if word in _ENGLISH_STOPS else 0
    return flags | (CHINESE_STOP if word in _CHINESE_STOPS else 0)


def gram_hashes(words: NDArray[np.uint64], shorter: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Hashes of all runs of n tokens, (N - n + 1,), from those of n - 1 tokens; for n = 1 the words themselves."""
    return words if n == 1 else shorter[: max(len(words) - n + 1, 0)] * _MULTIPLIER + words[n - 1 :]


class TextBatch:
    """D documents laid end to end, N tokens in all.

    texts: the documents.
    tokens: the tokens of each.
    hashes (N,) uint64, sizes (N,) int64, flags (N,) uint8: of each token, see Vocabulary.
    starts, ends (D,) int64: each document's first token and one past its last. owner (N,) int64: the document of each
    token. points (C,) uint32: all code points, each document followed by a line end. point_starts, point_ends (D,)
    int64: where. classes (D, NUM_CLASSES) int64: how many characters of each class a document has.
    """

    def __init__(self, texts: Sequence[str], vocabulary: Vocabulary) -> None:
        self.texts = texts
        self.tokens = [tokenize(text) for text in texts]
        self.hashes, self.sizes, self.flags = vocabulary.look_up(list(chain.from_iterable(self.tokens)))
        lengths = np.array([len(tokens) for tokens in self.tokens], dtype=np.int64)
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths
        self.owner = np.repeat(np.arange(len(texts)), lengths)
        self.points = np.frombuffer("".join(text + "\n" for text in texts).encode("utf-32-le"), dtype=np.uint32)
        sizes = np.array([len(text) + 1 for text in texts], dtype=np.int64)
        self.point_ends = np.cumsum(sizes)
        self.point_starts = self.point_ends - sizes
        self.classes = self._count_classes(sizes)
        self._grams: dict[int, NDArray[np.uint64]] = {}

    def count(self, flag: int) -> NDArray[np.int64]:
        """(D,): how many tokens of each document have this flag."""
        return self.sum((self.flags & flag) != 0)

    def sum(self, values: NDArray[np.generic]) -> NDArray[np.int64]:
        """(D,): the sum of one whole number for each token, (N,), over each document."""
        totals = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        sums: NDArray[np.int64] = totals[self.ends] - totals[self.starts]
        return sums

    def _count_classes(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        kinds = character_classes()[self.points].astype(np.int64)
        owner = np.repeat(np.arange(len(self.texts)), sizes)
        counts = np.bincount(owner * NUM_CLASSES + kinds, minlength=len(self.texts) * NUM_CLASSES)
        counts = counts.reshape(len(self.texts), NUM_CLASSES)
        counts[:, SPACE] -= 1  # the line end that divides the documents is not theirs
        return counts

    def grams(self, n: int) -> NDArray[np.uint64]:
        """Hashes of the runs of n tokens starting at each position, (N - n + 1,); see `inside` for those that are
        real.
        """
        if n not in self._grams:
            self._grams[n] = gram_hashes(self.hashes, self.hashes if n == 1 else self.grams(n - 1), n)
        return self._grams[n]

    def inside(self, n: int) -> NDArray[np.int64]:
        """Positions whose run of n tokens ends within its own document, ascending."""
        positions = np.arange(max(len(self.hashes) - n + 1, 0))
        return positions[positions + n <= self.ends[self.owner[: len(positions)]]]


@lru_cache(maxsize=1)
def character_classes() -> NDArray[np.uint8]:
    """(0x110000,) uint8: the class of every code point."""
    table = np.full(0x110000, OTHER, dtype=np.uint8)
    for block in (range(0x3400), range(0xA000, 0xAC00), range(0xD7A4, 0x20000)):  # the rest is set below
        for point in block:
            table[point] = _class_of(chr(point))
    for first, last in ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)):
        table[first : last + 1] = HAN
    for first, last in ((0x3041, 0x3096), (0x30A1, 0x30FA)):
        table[first : last + 1] = KANA
    for first, last in ((0x1100, 0x11FF), (0xAC00, 0xD7A3)):
        table[first : last + 1] = HANGUL
    table[ord("々")] = HAN
    return table


def _class_of(character: str) -> int:
    category = unicodedata.category(character)
    if character.isspace():
        return SPACE
    if character in _SYMBOLS or category in ("So", "Sk", "Co", "Cn"):
        return SYMBOL
    if category[0] == "L":
        if character.isascii():
            return ASCII_LETTER
        return LATIN_LETTER if unicodedata.name(character, "").startswith("LATIN") else OTHER_LETTER
    return {"M": OTHER_LETTER, "N": DIGIT, "P": PUNCTUATION, "S": PUNCTUATION}.get(category[0], OTHER)
