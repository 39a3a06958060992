"""Which language a document is in: "en", "zh", "other", or "" for one without letters.

Scripts decide most of it. Among documents in Latin letters English is told from the others by two things: how much more
usual its letter pairs are in English than in other languages, and its share of English function words. The table below
was computed by us from English prose (web, encyclopaedia, novels) against the Universal Declaration of Human Rights in
307 other languages that are written in Latin letters.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from jielong.data.words import (
    ALL_LETTERS,
    ASCII_LETTER,
    FOREIGN_WORD,
    FUNCTION_WORD,
    HAN,
    HANGUL,
    KANA,
    LATIN_LETTER,
    OTHER_LETTER,
    TextBatch,
)

LANGUAGES = ("en", "zh", "other")

_CHARACTERS_PER_WORD = 1.6  # Chinese text takes about so many characters for one English word

# Row: first character of the pair, column: second; a to z, then any non-letter, then any letter with a mark. One letter
# a pair: # ln(p in English / p elsewhere) in steps of 0.2 above or below M, which is 0; clipped at 12 steps.
_PAIRS = """
AKOMCMKALADMILAKAMNNKNJGLBDA GOUKNHGGHQARNEMNMRVQLFAASAFA QQTLUXXLKAYRJDRJRUSULKADPAOA FLRMKSVBJEALQHMHPLQCJPIPPAWA
TEPUPRIGIAAKMLQPLPPKIRQTPAPA MAYFRTLARAAYVATUIRLTMAASMJYA FAAAMMJTKAAQQNLAAQNHGAAAJANA NMEIWMABQAAFIJPABQOOFAIATAPA
JHQMLSLAAACMLOPJGKOPCPAJAHDA BAAACGFAACAAAAJAGGAAGAACABAA AGCAJQEAGAACHUAACALAAAAAGAJA IQPUNVBALAJQLMNRAVONIPGAWBNA
JHPAOKAAKAAHNENQASQAGAAEYAMA EGSQLOLAGCIOGINDFLNNFMFIJAMA KJMLLYIILAIMOPPPARMPXOUMPAKA ISKQNCQPKAKTTANUMMQQLAAJPGOA
ALAAAIAAAAAAAAAAAAAAIIAEAAAA KGUQPPPILAMPQPPQAORMJOLYWAQA HPPMOLLPLAFMSLNPGJRPMANJMASA HJUNNOJYMAAQOFRGAPMMIAQARAQA
IKQLKGQAJAALGIBNAONOAAABAAEA FAPGRAAAMAAADAHUABFBAAAKFAAA LMQTNVGYSAJOGVOJAXRMAEIKIATA HAVALYAYJAAAFAEWQCARBAAELMJA
AHKEJAAAEAAKMIPOAJRJAAIOAJUA AACAGHAAAAAFAACADAFAAAAMAIAA OOPJJQMPOFBLLGPLGNORIHSAKAMA AAAAAAAAAAAAAAAAAAAAAAAAAAAA
"""


def detect(batch: TextBatch) -> list[str]:
    """One of LANGUAGES or "" for each document.

    Japanese (kana) and Korean count as "other". A document with both Chinese and Latin letters is what most of it is, a
    Chinese character weighing 1 / 1.6 of a word. Latin text of under about 50 letters is taken for English unless it
    clearly is not.
    """
    latin = batch.classes[:, ASCII_LETTER] + batch.classes[:, LATIN_LETTER]
    han, kana = batch.classes[:, HAN], batch.classes[:, KANA]
    foreign = batch.classes[:, OTHER_LETTER] + batch.classes[:, HANGUL] + kana
    evidence, num_pairs = _english_evidence(batch)
    found = []
    num_words = np.maximum(batch.count(ALL_LETTERS) - han, 1)
    score = evidence + 2.0 * (batch.count(FUNCTION_WORD) - batch.count(FOREIGN_WORD)) / num_words
    limit = np.maximum(0.2 - 2.0 / np.sqrt(np.maximum(num_pairs, 1)), -0.3)
    for i in range(len(batch.texts)):
        if latin[i] + han[i] + foreign[i] == 0:
            found.append("")
        elif foreign[i] > latin[i] + han[i] or (han[i] > latin[i] and kana[i] > 0.1 * han[i]):
            found.append("other")
        elif han[i] / _CHARACTERS_PER_WORD >= num_words[i] or han[i] > latin[i]:
            found.append("zh")
        else:
            found.append("en" if score[i] > limit[i] else "other")
    return found


def _english_evidence(batch: TextBatch) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean log-odds of the letter pairs of each document, (D,) in nats, and how many pairs there are, (D,)."""
    letters = _letters()[batch.points]
    odds = _odds()[letters[:-1], letters[1:]]
    counted = (letters[:-1] != 26) | (letters[1:] != 26)
    # A document's last pair goes with the line end that divides the documents, so every pair belongs to its first
    # character.
    owner = np.repeat(np.arange(len(batch.texts)), batch.point_ends - batch.point_starts)[:-1]
    num_pairs = np.bincount(owner, weights=counted, minlength=len(batch.texts))
    sums = np.bincount(owner, weights=np.where(counted, odds, 0.0), minlength=len(batch.texts))
    return sums / np.maximum(num_pairs, 1), num_pairs.astype(np.int64)


@lru_cache(maxsize=1)
def _odds() -> NDArray[np.float32]:
    """(28, 28) float32, nats."""
    rows = [[(ord(sign) - ord("M")) * 0.2 for sign in row] for row in _PAIRS.split()]
    return np.array(rows, dtype=np.float32)


@lru_cache(maxsize=1)
def _letters() -> NDArray[np.int8]:
    """(0x110000,) int8: 0..25 for a to z of either case, 27 for other letters outside the Chinese planes, 26 for all
    else.
    """
    table = np.full(0x110000, 26, dtype=np.int8)
    for point in range(128, 0x2000):
        if chr(point).isalpha():
            table[point] = 27
    for i in range(26):
        table[ord("a") + i] = table[ord("A") + i] = i
    return table
