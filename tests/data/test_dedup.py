"""MinHash against exact Jaccard similarity, and the buckets against the banding formula."""

from __future__ import annotations

import random

import numpy as np

from jielong.data.dedup import ExactIndex, MinHash, NearIndex
from jielong.data.words import TextBatch, Vocabulary, tokenize


def shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    tokens = tokenize(text)
    return {tuple(tokens[i : i + n]) for i in range(max(len(tokens) - n + 1, 1))}


def jaccard(a: str, b: str) -> float:
    x, y = shingles(a), shingles(b)
    return len(x & y) / len(x | y)


def pair(rng: random.Random, num_changes: int, words: list[str]) -> tuple[str, str]:
    tokens = [rng.choice(words) for _ in range(120)]
    other = list(tokens)
    for place in rng.sample(range(len(other)), num_changes):
        other[place] = rng.choice(words)
    joiner = "" if len(words[0]) == 1 else " "
    return joiner.join(tokens), joiner.join(other)


def test_agreement_estimates_jaccard_in_words_and_in_chinese_characters() -> None:
    """Unbiased, with the spread of a mean of 112 draws: sqrt(s (1 - s) / 112) <= 0.047."""
    rng = random.Random(1)
    english = [f"word{i}" for i in range(2000)]
    chinese = [chr(0x4E00 + i) for i in range(3000)]
    pairs = [pair(rng, changes, words) for words in (english, chinese) for changes in range(0, 25) for _ in range(8)]
    minhash = MinHash(112, 5)
    vocabulary = Vocabulary()
    left, right = (minhash.signatures(TextBatch([p[side] for p in pairs], vocabulary)) for side in (0, 1))
    exact = np.array([jaccard(a, b) for a, b in pairs])
    error = (left == right).mean(axis=1) - exact
    assert exact.min() < 0.2 and exact.max() == 1.0
    assert abs(error.mean()) < 0.01
    assert np.abs(error).max() < 0.2
    spread = np.sqrt(exact * (1 - exact) / 112)
    assert 0.8 < np.sqrt((error**2).sum() / (spread**2).sum()) < 1.25


def test_buckets_are_met_as_often_as_the_formula_says() -> None:
    rng = random.Random(2)
    words = [f"word{i}" for i in range(2000)]
    pairs = [pair(rng, changes, words) for changes in range(1, 14) for _ in range(40)]
    minhash, index, vocabulary = MinHash(112, 5), NearIndex(14, 8, 0.0), Vocabulary()
    left, right = (
        index.band_keys(minhash.signatures(TextBatch([p[side] for p in pairs], vocabulary))) for side in (0, 1)
    )
    met = np.array([any(a == b for a, b in zip(x, y, strict=True)) for x, y in zip(left, right, strict=True)])
    similarity = np.array([jaccard(a, b) for a, b in pairs])
    expected = 1 - (1 - similarity**8) ** 14
    assert 0.2 < expected.mean() < 0.9
    assert abs(met.mean() - expected.mean()) < 0.05


def seen(texts: list[str], threshold: float = 0.8) -> list[bool]:
    minhash, index = MinHash(112, 5), NearIndex(14, 8, threshold)
    signatures = minhash.signatures(TextBatch(texts, Vocabulary()))
    return [index.seen(row, keys) for row, keys in zip(signatures, index.band_keys(signatures), strict=True)]


def test_copies_are_found_and_look_alikes_are_kept() -> None:
    rng = random.Random(3)
    words = [f"word{i}" for i in range(500)]
    base = " ".join(rng.choice(words) for _ in range(200))
    copy = base.replace(" word", ", WORD", 3) + " the end"
    alike = " ".join(token if i % 12 else "other" for i, token in enumerate(base.split()))  # Jaccard about 0.4
    assert jaccard(base, copy) > 0.95 and jaccard(base, alike) < 0.5
    assert seen([base, copy, alike, base]) == [False, True, False, True]
    assert seen(["one two", "one two", "one three", "好", "好"]) == [False, True, False, False, True]


def test_one_template_with_other_names_is_not_a_copy() -> None:
    names = [f"{a}{b}" for a in ("An", "Bo", "Ce", "Di") for b in ("ra", "lin", "mas", "to")]
    texts = [f"{name} lives in {name[::-1]} and works as a baker. Every day {name} eats plums." for name in names]
    assert not any(seen(texts))


def test_signatures_do_not_depend_on_the_batch() -> None:
    texts = ["a b c d e f g", "one two", "", "五个 字 的 一句话 就够了", "37 + 45 = 82"]
    minhash = MinHash(16, 5)
    together = minhash.signatures(TextBatch(texts, Vocabulary()))
    for i, text in enumerate(texts):
        if text:
            assert (minhash.signatures(TextBatch([text], Vocabulary()))[0] == together[i]).all()


def test_template_heavy_buckets_stay_bounded_and_keep_finding_copies() -> None:
    """Below the threshold but in one bucket by force (a band of one row): the index still says no, quickly."""
    index = NearIndex(1, 1, 1.0)
    assert not index.seen(np.array([7], dtype=np.uint32), [99])
    for value in range(100):
        assert not index.seen(np.array([value + 1000], dtype=np.uint32), [99])
    assert index.seen(np.array([7], dtype=np.uint32), [99])


def test_exact_duplicates_disregard_case_and_blanks() -> None:
    index = ExactIndex()
    assert [index.seen(text) for text in ("A  b\nc", "a b c", "a b d", "ab c")] == [False, True, False, False]
