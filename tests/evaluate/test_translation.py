"""BLEU and chrF: sacrebleu's figures with its signatures, by length as well."""

from __future__ import annotations

import pytest

from jielong.errors import DataError
from jielong.evaluate.translation import bleu_by_length, corpus_scores, length_in_words

REFERENCES = ["The cat sits on the mat .", "A dog runs through the deep snow ."]


def test_perfect_and_signed() -> None:
    found = corpus_scores(REFERENCES, REFERENCES, "en")
    assert found["bleu"] == pytest.approx(100) and found["chrf"] == pytest.approx(100)
    assert "tok:13a" in found["bleu_signature"] and "case:mixed" in found["bleu_signature"]
    assert found["chrf_signature"].startswith("nrefs:1|case:mixed|eff:yes|nc:6")


def test_by_hand() -> None:
    # 4 of 5 words, 2 of 4 pairs, 1 of 3 triples, and no four of 2, which counts as half of one; no shorter
    found = corpus_scores(["the cat sits here now"], ["the cat sits there now"], "en")
    assert found["bleu"] == pytest.approx(100 * (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25)


def test_chinese_counts_characters() -> None:
    assert "tok:zh" in corpus_scores(["我爱你"], ["我爱他"], "zh")["bleu_signature"]
    assert corpus_scores(["我非常爱你们"], ["我非常爱你们"], "zh")["bleu"] == pytest.approx(100)


def test_lengths() -> None:
    assert length_in_words("two words") == 2 and length_in_words("One") == 1
    assert length_in_words("我爱你们大家") == 3
    sources = ["a " * 5, "b " * 12, "c " * 40]
    found = bleu_by_length(sources, [*REFERENCES, "no"], [*REFERENCES, "The end of the whole story"], "en")
    assert list(found) == ["1-10", "11-15", "31+"]
    assert found["1-10"] == {"bleu": pytest.approx(100), "sentences": 1} and found["31+"]["bleu"] < 10


def test_numbers_must_agree() -> None:
    with pytest.raises(DataError, match="1 translations for 2 references"):
        corpus_scores(["x"], REFERENCES, "en")
