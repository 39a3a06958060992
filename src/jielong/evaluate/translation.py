"""How good translations are: BLEU and chrF by sacrebleu, with the signatures that make such figures comparable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jielong.errors import DataError

# Languages that are not written with blanks between words: BLEU counts their characters, or words found by other means.
TOKENIZERS = {"zh": "zh", "ja": "char", "th": "char"}
BUCKETS = (10, 15, 20, 30)  # words of the source, or characters / 2 where there are no blanks


def corpus_scores(hypotheses: Sequence[str], references: Sequence[str], language: str) -> dict[str, Any]:
    """BLEU and chrF2 of a corpus, each from 0 to 100, and their signatures; cased, one reference a sentence.

    language: of the references, by which BLEU cuts words: "zh" by characters, others by the 13a rules of WMT.
    Raises DataError when the numbers of sentences differ or are 0.
    Source: Papineni et al. 2002 (BLEU); Popović 2015 (chrF); Post 2018, arXiv:1804.08771 (why signatures).
    """
    import sacrebleu  # here: it brings a locking library that wants more of the system than we do

    if len(hypotheses) != len(references) or not references:
        raise DataError(f"{len(hypotheses)} translations for {len(references)} references; each needs the other")
    bleu = sacrebleu.metrics.BLEU(tokenize=TOKENIZERS.get(language, "13a"))
    chrf = sacrebleu.metrics.CHRF()
    return {
        "bleu": bleu.corpus_score(list(hypotheses), [list(references)]).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf": chrf.corpus_score(list(hypotheses), [list(references)]).score,
        "chrf_signature": str(chrf.get_signature()),
    }


def length_in_words(text: str) -> int:
    """Words between blanks; of a text without blanks, half its characters, which is about its words in Chinese."""
    words = len(text.split())
    return words if words > 1 or text.isascii() else max(1, len(text) // 2)


def bleu_by_length(
    sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str], language: str
) -> dict[str, dict[str, float]]:
    """BLEU of the sentences whose source has so many words: {"1-10": {"bleu": ..., "sentences": ...}, ...}."""
    groups: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        groups.setdefault(_bucket(length_in_words(source)), []).append(index)
    order = sorted(groups, key=lambda name: int(name.rstrip("+").partition("-")[0]))
    return {
        name: {
            "bleu": corpus_scores(
                [hypotheses[index] for index in groups[name]], [references[index] for index in groups[name]], language
            )["bleu"],
            "sentences": len(groups[name]),
        }
        for name in order
    }


def _bucket(num_words: int) -> str:
    low = 1
    for high in BUCKETS:
        if num_words <= high:
            return f"{low}-{high}"
        low = high + 1
    return f"{low}+"
