"""Is this text worth learning from? Rules on length, symbols, letters and repetition.

Source: Rae et al. 2021 (Gopher), appendix A.1.1, whose numbers are the defaults unless a comment says otherwise.
Different here: words are the tokens of `words.tokenize`, so that Chinese, which has no blanks, is judged by its
    characters; arithmetic such as
"37 + 45 = 82" counts as text; rules that count words leave short documents alone, as Gopher dropped those under 50
words unseen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jielong.data.pii import mask_pii
from jielong.data.words import (
    ALL_LETTERS,
    CHINESE_STOP,
    DIGIT,
    ENGLISH_STOP,
    HAN,
    HAS_LETTER,
    SPACE,
    SYMBOL,
    TextBatch,
    tokenize,
)

_EXPRESSION = re.compile(r"(?<![\d.,])\d[\d.,]*(?:\s*[-+*/×÷=−]\s*\??[\d.,]*)+|^\s*\d{1,3}[.)、]\s", re.MULTILINE)
_BULLETS = ("- ", "* ", "• ", "· ", "● ", "‣ ")
_ELLIPSES = ("...", "…")
_MAX_WORD_CHARACTERS = 100  # no word of a language is longer; encoded data is
_GARBAGE = ("orem ipsum", "锟斤拷", "烫烫烫")  # filler text, and two well-known signs of a broken Chinese encoding


@dataclass(frozen=True)
class QualityLimits:
    """The limits of all rules; a document that passes them all is kept. Fractions are of 1. `CurateConfig` says them in
    full.
    """

    min_characters: int
    max_characters: int
    max_symbol_word_ratio: float
    max_symbol_fraction: float
    min_alphabetic_fraction: float
    max_digit_fraction: float
    mean_word_characters: tuple[float, float]
    max_bullet_lines: float
    max_ellipsis_lines: float
    min_stop_words: int
    max_duplicate_lines: float
    max_duplicate_line_characters: float
    max_duplicate_paragraphs: float
    max_top_grams: tuple[float, ...]
    max_duplicate_grams: tuple[float, ...]
    min_words_for_word_rules: int


def judge(batch: TextBatch, languages: list[str], limits: QualityLimits) -> list[str | None]:
    """For each document the name of the first rule it breaks, or None.

    Rules: too_short, too_long, garbage, symbols, not_alphabetic, word_length, bullet_lines, ellipsis_lines,
    no_stop_words, repeated_lines, repeated_paragraphs, repeated_phrases.
    """
    measures = _measure(batch)
    repeated = repeated_phrases(batch, limits)
    verdicts: list[str | None] = []
    for i, measure in enumerate(measures):
        broken = next(_broken_rules(batch.texts[i], measure, languages[i], limits), None)
        verdicts.append(broken or ("repeated_phrases" if repeated[i] else None))
    return verdicts


class _Measure(NamedTuple):
    """Counts of one document. *_characters: code points; in the tokens, for the last two."""

    num_tokens: int
    num_numeric: int  # tokens without a letter
    num_words: int  # tokens of letters alone
    num_long_words: int  # of these, those of two letters or more
    long_word_characters: int
    english_stops: int
    chinese_stops: int
    longest_token: int
    visible_characters: int
    symbol_characters: int
    chinese_characters: int
    token_characters: int
    token_digits: int


def _measure(batch: TextBatch) -> list[_Measure]:
    is_word = (batch.flags & ALL_LETTERS) != 0
    is_long_word = is_word & (batch.sizes > 1)
    lengths = batch.ends - batch.starts
    longest = np.zeros(len(lengths), dtype=np.int64)
    if len(batch.sizes):
        longest[lengths > 0] = np.maximum.reduceat(batch.sizes, batch.starts[lengths > 0])
    columns = (
        lengths,
        lengths - batch.count(HAS_LETTER),
        batch.sum(is_word),
        batch.sum(is_long_word),
        batch.sum(np.where(is_long_word, batch.sizes, 0)),
        batch.count(ENGLISH_STOP),
        batch.count(CHINESE_STOP),
        longest,
        np.maximum(batch.classes.sum(axis=1) - batch.classes[:, SPACE], 1),
        batch.classes[:, SYMBOL],
        batch.classes[:, HAN],
        batch.sum(batch.sizes),
        batch.classes[:, DIGIT],
    )
    return [_Measure(*row) for row in np.stack(columns, axis=1).tolist()]


def _broken_rules(text: str, measure: _Measure, language: str, limits: QualityLimits) -> Iterator[str]:
    """The rules that a document breaks, in order; lazy, so that only the first costs anything."""
    if len(text) + measure.chinese_characters < limits.min_characters:
        yield "too_short"
    if len(text) > limits.max_characters:
        yield "too_long"
    if any(sign in text for sign in _GARBAGE):
        yield "garbage"
    marks = text.count("#") + text.count("…") + text.count("...")
    if (
        measure.symbol_characters > limits.max_symbol_fraction * measure.visible_characters
        or marks > limits.max_symbol_word_ratio * max(measure.num_tokens, 1)
    ):  # fmt: skip
        yield "symbols"
    if _is_not_alphabetic(text, measure, limits):
        yield "not_alphabetic"
    if measure.longest_token > _MAX_WORD_CHARACTERS:
        yield "word_length"
    if measure.num_words >= limits.min_words_for_word_rules:
        yield from _broken_word_rules(measure, language, limits)
    yield from _broken_line_rules(text, limits)


def _broken_word_rules(measure: _Measure, language: str, limits: QualityLimits) -> Iterator[str]:
    # two in a long text may be chance: random characters have 0.7 % of them, verse 5 %, prose 15 % and more
    least_stops = max(limits.min_stop_words, 0.01 * measure.num_words) if limits.min_stop_words else 0
    if language == "en":
        shortest, longest = limits.mean_word_characters
        # single letters are spelling or initials, not words
        if not shortest <= measure.long_word_characters / max(measure.num_long_words, 1) <= longest:
            yield "word_length"
        if measure.english_stops < least_stops:
            yield "no_stop_words"
    elif language == "zh" and measure.chinese_stops < least_stops:
        yield "no_stop_words"


def _is_not_alphabetic(text: str, measure: _Measure, limits: QualityLimits) -> bool:
    """Mostly marks that no word holds, or too few words with a letter, or too many digits.

    Arithmetic, telephone numbers and the numbers of a list do not count, nor does one number for each sum:
    its result said again in words.
    """
    if measure.visible_characters > 4 * measure.token_characters + 8:
        return True
    least = limits.min_alphabetic_fraction
    if (
        measure.num_numeric <= (1.0 - least) * measure.num_tokens
        and measure.token_digits <= limits.max_digit_fraction * measure.token_characters
    ):  # fmt: skip
        return False
    rest, num_sums = _EXPRESSION.subn(" ", mask_pii(text)[0])
    tokens = tokenize(rest)
    together = "".join(tokens)
    num_numeric = sum(not any(map(str.isalpha, token)) for token in tokens)
    num_digits = sum(map(str.isdigit, together))
    return num_numeric - num_sums > (1.0 - least) * len(tokens) or num_digits > limits.max_digit_fraction * len(
        together
    )


def _broken_line_rules(text: str, limits: QualityLimits) -> Iterator[str]:
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    if len(lines) < 2:
        return
    if sum(line.startswith(_BULLETS) for line in lines) > limits.max_bullet_lines * len(lines):
        yield "bullet_lines"
    if sum(line.endswith(_ELLIPSES) for line in lines) > limits.max_ellipsis_lines * len(lines):
        yield "ellipsis_lines"
    num_repeated, num_characters = _repetition(lines)
    if (
        num_repeated > limits.max_duplicate_lines * len(lines)
        or num_characters > limits.max_duplicate_line_characters * max(sum(map(len, lines)), 1)
    ):  # fmt: skip
        yield "repeated_lines"
    paragraphs = [stripped for part in text.split("\n\n") if (stripped := part.strip())]
    if len(paragraphs) > 1 and _repetition(paragraphs)[0] > limits.max_duplicate_paragraphs * len(paragraphs):
        yield "repeated_paragraphs"


def _repetition(pieces: list[str]) -> tuple[int, int]:
    """(pieces that stood before, characters in them)."""
    if len(set(pieces)) == len(pieces):
        return 0, 0
    seen: set[str] = set()
    again = [piece for piece in pieces if piece in seen or seen.add(piece)]  # type: ignore[func-returns-value]
    return len(again), sum(map(len, again))


def repeated_phrases(batch: TextBatch, limits: QualityLimits) -> NDArray[np.bool_]:
    """(D,) bool: a phrase of 2, 3 or 4 tokens, or the phrases of 5 to 10 tokens that come again, take up too much of
    the document.

    Phrases of digits and arithmetic signs alone are not counted: times tables repeat themselves by nature. Documents
        under
    min_words_for_word_rules are held to a limit of a half, and a phrase of 2 to 4 tokens must stand there three times.
    """
    sizes, has_letter = batch.sizes, (batch.flags & HAS_LETTER) != 0
    offsets, letters = (np.concatenate([[0], np.cumsum(values)]) for values in (sizes, has_letter))
    totals = np.maximum(offsets[batch.ends] - offsets[batch.starts], 1)
    is_short = batch.ends - batch.starts < limits.min_words_for_word_rules
    broken = np.zeros(len(batch.texts), dtype=np.bool_)
    suspects = None  # documents in which some 5-gram comes twice; only they can repeat longer ones
    for n, limit in enumerate(limits.max_top_grams + limits.max_duplicate_grams, 2):
        positions = batch.inside(n)
        positions = positions[letters[positions + n] > letters[positions]]
        if suspects is not None:
            positions = positions[suspects[batch.owner[positions]]]
        if len(positions) == 0:
            continue
        is_top = n < 2 + len(limits.max_top_grams)
        again, counts = _repeats(batch.grams(n)[positions], batch.owner[positions], 3 if is_top else 2)
        owners, where = batch.owner[positions[again]], positions[again]
        limit_of = np.where(is_short, np.maximum(limit, 0.5), limit)
        if is_top:
            taken = np.zeros(len(broken), dtype=np.int64)
            np.maximum.at(taken, owners, counts * (offsets[where + n] - offsets[where]))
        else:
            taken = _covered(where, n, sizes, batch.owner, len(broken))
            suspects = np.zeros(len(broken), dtype=np.bool_)
            suspects[owners] = True
        broken |= taken > limit_of * totals
    return broken


def _repeats(
    grams: NDArray[np.uint64], owners: NDArray[np.int64], least: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of the grams that stand at least so often (2 or 3 times) in one document: the entries but the first, how often:
    (R,), (R,).
    """
    keys = grams + owners.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    ordered = np.sort(keys)
    frequent = ordered[least - 1 :][ordered[least - 1 :] == ordered[: len(ordered) - least + 1]]
    if len(frequent) == 0:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing
    # Few are, so the slower search for their places is over few.
    entries = np.flatnonzero(np.isin(keys, np.unique(frequent)))
    order = entries[np.argsort(keys[entries], kind="stable")]
    is_again = keys[order][1:] == keys[order][:-1]
    run = np.concatenate([[0], np.cumsum(~is_again)])
    counts = np.bincount(run)[run[1:][is_again]]
    return order[1:][is_again], counts


def _covered(
    where: NDArray[np.int64], n: int, sizes: NDArray[np.int64], owner: NDArray[np.int64], num_documents: int
) -> NDArray[np.int64]:
    """Characters of each document that lie in the runs of n tokens starting at `where`, each counted once: (D,)."""
    steps = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.add.at(steps, where, 1)
    np.add.at(steps, where + n, -1)
    inside = np.cumsum(steps[:-1]) > 0
    return np.bincount(owner[inside], weights=sizes[inside], minlength=num_documents).astype(np.int64)
