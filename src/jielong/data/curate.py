"""From raw documents to a corpus: normalise, judge, remove duplicates and evaluation prompts, mask personal data, keep
the books.

The order is fixed: normalise, strip page furniture, language, quality rules, exact duplicates, near-duplicates,
    contamination,
masking. Every document that comes in is kept or counted under exactly one rule. The same documents in the same order
give the same corpus on every machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from jielong.data.decontaminate import Decontaminator
from jielong.data.dedup import ExactIndex, MinHash, NearIndex
from jielong.data.language import LANGUAGES, detect
from jielong.data.normalise import normalise, strip_furniture
from jielong.data.pii import mask_pii
from jielong.data.quality import QualityLimits, judge
from jielong.data.sources import Document
from jielong.data.words import TextBatch, Vocabulary
from jielong.errors import RecipeError, nearest

_BATCH_DOCUMENTS = 512
_BATCH_CHARACTERS = 1 << 19
_EXAMPLE_CHARACTERS = 120


@dataclass(frozen=True)
class CurateConfig:
    """What is kept. The defaults are those of the literature (see quality.py, dedup.py, decontaminate.py); fractions
    are of 1.

    languages: those kept, of "en", "zh", "other"; a document without letters is never removed for its language. A
        document that comes with its language is believed.
    squeeze_spaces: blanks in a row become one; off for code and tables. strip_furniture: cut cookie notices, menus,
        footers.
    min_characters: Gopher's least is 50 words; 40 characters here, because single facts and sums are lessons for small
        models.
    max_symbol_word_ratio: "#" and "..." for each word. max_symbol_fraction: marks such as # { | ~ of all characters
        (ours).
    min_alphabetic_fraction: of words with a letter. max_digit_fraction: of digits in them, against tables of numbers
        (ours).
    max_bullet_lines, max_ellipsis_lines, max_duplicate_lines, max_duplicate_line_characters, max_duplicate_paragraphs:
        fractions.
    min_stop_words: how often the, be, to, of, and, that, have, with (的, 一, 是 ... in Chinese) must stand there.
    max_top_grams: part that the commonest run of 2, 3, 4 tokens may take; max_duplicate_grams: that all repeated runs
        of 5, 6, ... tokens may take. min_words_for_word_rules: shorter documents are not asked for stop words and word
        length.
    exact_duplicates, near_duplicates: remove them. minhash_bands, minhash_rows, minhash_shingle_tokens: where to look
        for near ones. minhash_threshold: estimated Jaccard similarity from which two documents are near-duplicates.
    contamination_gram_tokens, contamination_min_tokens: runs that give an evaluation prompt away; shorter prompts are
        skipped.
    mask_pii: put <EMAIL>, <PHONE> and <IP> for personal data.
    examples_per_rule: removed documents of each rule shown in the ledger.
    """

    languages: tuple[str, ...] = ("en", "zh")
    squeeze_spaces: bool = True
    strip_furniture: bool = True
    min_characters: int = 40
    max_characters: int = 5_000_000
    max_symbol_word_ratio: float = 0.1
    max_symbol_fraction: float = 0.2
    min_alphabetic_fraction: float = 0.8
    max_digit_fraction: float = 0.3
    min_mean_word_characters: float = 3.0
    max_mean_word_characters: float = 10.0
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_stop_words: int = 2
    max_duplicate_lines: float = 0.3
    max_duplicate_line_characters: float = 0.2
    max_duplicate_paragraphs: float = 0.3
    max_top_grams: tuple[float, ...] = (0.2, 0.18, 0.16)
    max_duplicate_grams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    min_words_for_word_rules: int = 50
    exact_duplicates: bool = True
    near_duplicates: bool = True
    minhash_bands: int = 14
    minhash_rows: int = 8
    minhash_shingle_tokens: int = 5
    minhash_threshold: float = 0.8
    contamination_gram_tokens: int = 13
    contamination_min_tokens: int = 4
    mask_pii: bool = True
    examples_per_rule: int = 3

    def __post_init__(self) -> None:
        for language in self.languages:
            if language not in LANGUAGES:
                hint = nearest(language, LANGUAGES)
                close = f"; did you mean {hint!r}?" if hint else ""
                raise RecipeError(f"languages: {language!r} is not one of {', '.join(LANGUAGES)}{close}")
        if self.min_characters > self.max_characters:
            raise RecipeError(f"min_characters = {self.min_characters} is above max_characters = {self.max_characters}")
        for name in (
            "minhash_bands", "minhash_rows", "minhash_shingle_tokens",
            "contamination_gram_tokens", "contamination_min_tokens",
        ):  # fmt: skip
            value = self.__dict__[name]
            if value < 1:
                raise RecipeError(f"{name} = {value} must be at least 1")
        if not 0.0 < self.minhash_threshold <= 1.0:
            raise RecipeError(f"minhash_threshold = {self.minhash_threshold} must be above 0 and at most 1")

    def quality_limits(self) -> QualityLimits:
        """The part of the settings that quality.py works with."""
        names = [name for name in QualityLimits.__dataclass_fields__ if name != "mean_word_characters"]
        return QualityLimits(
            mean_word_characters=(self.min_mean_word_characters, self.max_mean_word_characters),
            **{name: self.__dict__[name] for name in names},
        )


@dataclass
class Ledger:
    """What became of the documents: documents_in == documents_kept + sum(removed.values()) at every moment.

    removed: documents by rule. masked: placeholders by kind. kept_by_language: documents. furniture_lines: lines cut
        from kept documents. prompts_searched, prompts_skipped: evaluation prompts looked for, and those too short to be
        recognised.
    characters_in, characters_kept: code points before any rule and after all. examples: for each rule the first 120
        characters of
    its first victims, after masking. documents_per_second: the curation alone, without reading and writing.
    """

    documents_in: int = 0
    documents_kept: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    masked: dict[str, int] = field(default_factory=dict)
    kept_by_language: dict[str, int] = field(default_factory=dict)
    furniture_lines: int = 0
    prompts_searched: int = 0
    prompts_skipped: int = 0
    characters_in: int = 0
    characters_kept: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)
    documents_per_second: float = 0.0
    seconds: float = 0.0


def curate(
    documents: Iterable[Document], settings: CurateConfig, evaluation_prompts: Sequence[str] = ()
) -> tuple[Ledger, Iterator[Document]]:
    """(ledger, kept documents). The documents come in their order as the iterator is drawn, and the ledger fills with
    them.

    Kept documents carry the normalised, masked text and their language. Nothing is removed in silence: see Ledger.
    """
    ledger = Ledger()
    return ledger, _Curation(settings, evaluation_prompts, ledger).run(documents)


class _Curation:
    """What one pass over a corpus has to remember."""

    def __init__(self, settings: CurateConfig, prompts: Sequence[str], ledger: Ledger) -> None:
        self._settings, self._ledger = settings, ledger
        self._limits = settings.quality_limits()
        self._vocabulary = Vocabulary()
        self._exact = ExactIndex()
        self._minhash = MinHash(settings.minhash_bands * settings.minhash_rows, settings.minhash_shingle_tokens)
        self._near = NearIndex(settings.minhash_bands, settings.minhash_rows, settings.minhash_threshold)
        self._prompts = Decontaminator(
            prompts, self._vocabulary, settings.contamination_gram_tokens, settings.contamination_min_tokens
        )
        ledger.prompts_searched, ledger.prompts_skipped = self._prompts.num_prompts, self._prompts.num_skipped

    def run(self, documents: Iterable[Document]) -> Iterator[Document]:
        for batch in _batches(documents):
            started = time.perf_counter()
            kept = self._curate_batch(batch)
            self._ledger.seconds += time.perf_counter() - started
            self._ledger.documents_per_second = self._ledger.documents_in / max(self._ledger.seconds, 1e-9)
            yield from kept

    def _curate_batch(self, documents: list[Document]) -> list[Document]:
        whole = [normalise(document.text, self._settings.squeeze_spaces) for document in documents]
        cut = [strip_furniture(text) if self._settings.strip_furniture else (text, 0) for text in whole]
        texts = [text for text, _ in cut]
        batch = TextBatch(texts, self._vocabulary)
        languages = [document.language or found for document, found in zip(documents, detect(batch), strict=True)]
        verdicts = judge(batch, languages, self._limits)
        contaminated = self._prompts.find(batch)
        if self._settings.near_duplicates:
            signatures = self._minhash.signatures(batch)
            keys = self._near.band_keys(signatures)
        kept = []
        for i, document in enumerate(documents):
            rule = verdicts[i] if self._speaks(languages[i]) else "language"
            if cut[i][1] > 0.5 * (whole[i].count("\n") + 1):
                rule = "boilerplate"
            if rule is None and self._settings.exact_duplicates and self._exact.seen(texts[i]):
                rule = "exact_duplicate"
            if (
                rule is None
                and self._settings.near_duplicates
                and batch.tokens[i]
                and self._near.seen(signatures[i], keys[i])
            ):
                rule = "near_duplicate"
            if rule is None and contaminated[i]:
                rule = "contamination"
            self._ledger.documents_in += 1
            self._ledger.characters_in += len(document.text)
            if rule is None:
                self._ledger.furniture_lines += cut[i][1]
                kept.append(self._keep(replace(document, text=texts[i], language=languages[i])))
            else:
                self._remove(rule, whole[i])
        return kept

    def _speaks(self, language: str) -> bool:
        return language == "" or language in self._settings.languages

    def _keep(self, document: Document) -> Document:
        if self._settings.mask_pii:
            document.text, found = mask_pii(document.text)
            for kind, count in found.items():
                self._ledger.masked[kind] = self._ledger.masked.get(kind, 0) + count
        language = document.language or "unknown"
        self._ledger.kept_by_language[language] = self._ledger.kept_by_language.get(language, 0) + 1
        self._ledger.documents_kept += 1
        self._ledger.characters_kept += len(document.text)
        return document

    def _remove(self, rule: str, text: str) -> None:
        self._ledger.removed[rule] = self._ledger.removed.get(rule, 0) + 1
        examples = self._ledger.examples.setdefault(rule, [])
        if len(examples) < self._settings.examples_per_rule:
            # masked before it is cut, so that half an address at the edge is not shown
            examples.append(mask_pii(text[: 2 * _EXAMPLE_CHARACTERS])[0][:_EXAMPLE_CHARACTERS])


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Lists of up to 512 documents and about half a million characters: what fits a processor's cache."""
    batch: list[Document] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        num_characters += len(document.text)
        if len(batch) >= _BATCH_DOCUMENTS or num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
