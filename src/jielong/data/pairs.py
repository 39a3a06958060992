"""Parallel text: sentences and their translations, from two files side by side or from one file of columns.

Two files are two sources, each with its `language`; line n of the one translates line n of the other. One file of pairs
is a source with `languages`: of a tsv its columns in order, without a header; of a jsonl the keys of its records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path

from jielong.data.formats import format_of, jsonl_rows, lines
from jielong.data.sources import Source, files
from jielong.errors import DataError, UsageError, nearest

Pair = tuple[str, str]  # the text and its translation
Couple = tuple[Source, Source]  # where the two sides stand; the same source twice for a file of pairs
NUM_NAMED = 20  # pairs of the validation text found in the training text, named in the figures' folder


@dataclass
class PairLedger:
    """What became of the pairs read: kept = pairs_in - empty - contaminated - too_long.

    contaminated: pairs of the training text with a sentence of the validation text; named: the first of them.
    """

    pairs_in: int = 0
    empty: int = 0
    contaminated: int = 0
    too_long: int = 0
    named: list[Pair] = field(default_factory=list)


def couples(sources: Sequence[Source], languages: tuple[str, str]) -> list[Couple]:
    """The sources that belong together for translating languages[0] into languages[1].

    The k-th source of the one language stands beside the k-th of the other. Raises UsageError for a language that no
    source has, naming those there are, and for a source without its partner.
    """
    found: list[Couple] = [(source, source) for source in sources if set(languages) <= set(source.languages)]
    sides = [[source for source in sources if source.language == language] for language in languages]
    there = sorted({name for source in sources for name in (source.language, *source.languages) if name})
    for language, side in zip(languages, sides, strict=True):
        if not found and not side:
            near = nearest(language, there)
            hint = f"; did you mean {near!r}?" if near else ""
            raise UsageError(
                f"the language pair {languages[0]}-{languages[1]} is not in the sources: none is in {language!r} "
                f"(there: {', '.join(there) or 'none says its language'}){hint}"
            )
    first, second = sides
    if len(first) != len(second):
        names = [source.name for side in sides for source in side]
        raise UsageError(
            f"{len(first)} sources are in {languages[0]!r} and {len(second)} in {languages[1]!r} ({', '.join(names)}); "
            "each needs the file that translates it beside it"
        )
    return found + list(zip(first, second, strict=True))


def read_pairs(sources: Sequence[Source], root: Path, languages: tuple[str, str], ledger: PairLedger) -> Iterator[Pair]:
    """Stream the pairs of all sources, couple after couple, blanks at the ends removed.

    Pairs of which a side is empty are skipped and counted in the ledger.
    Raises DataError naming files and numbers of lines where two files differ in length, and as `read_documents` does.
    """
    for first, second in couples(sources, languages):
        if first is second:
            pairs: Iterable[Pair] = _columns(first, root, languages)
        else:
            pairs = _side_by_side(first, second, root)
        for one, other in islice(pairs, first.limit_documents):
            ledger.pairs_in += 1
            text, translation = one.strip(), other.strip()
            if text and translation:
                yield text, translation
            else:
                ledger.empty += 1


def read_sentences(source: Source, root: Path) -> Iterator[tuple[str, str]]:
    """(sentence, language) of every line or column of a source of parallel text: what a vocabulary is learned from."""
    if source.languages:
        for row in islice(_rows(source, root), source.limit_documents):
            for text, language in zip(row, source.languages, strict=True):
                if text.strip():
                    yield text.strip(), language
        return
    for _, line in islice(_lines(source, root), source.limit_documents):
        if line.strip():
            yield line.strip(), source.language


def without(pairs: Iterable[Pair], kept_aside: Iterable[Pair], ledger: PairLedger) -> Iterator[Pair]:
    """The pairs but for those that have a sentence of kept_aside on either side; these are counted and some named.

    Compared without regard to case and blanks. A translator must not have read what it is measured by.
    """
    aside = list(kept_aside)
    texts, translations = ({_same(pair[side]) for pair in aside} for side in (0, 1))
    for pair in pairs:
        if _same(pair[0]) in texts or _same(pair[1]) in translations:
            ledger.contaminated += 1
            if len(ledger.named) < NUM_NAMED:
                ledger.named.append(pair)
        else:
            yield pair


def _same(text: str) -> str:
    return " ".join(text.casefold().split())


def _lines(source: Source, root: Path) -> Iterator[tuple[str, str]]:
    """(where, line) of all files of a source."""
    for path in files(source, root):
        for number, line in lines(path):
            yield f"{path}:{number}", line


def _side_by_side(first: Source, second: Source, root: Path) -> Iterator[Pair]:
    sides = [files(source, root) for source in (first, second)]
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"sources {first.name!r} and {second.name!r}: {len(sides[0])} files stand beside {len(sides[1])}; "
            "each file needs its translation"
        )
    for one, other in zip(*sides, strict=True):
        for left, right in zip_longest(lines(one), lines(other)):
            if left is None or right is None:
                counts = [sum(1 for _ in lines(path)) for path in (one, other)]
                raise DataError(
                    f"{one} has {counts[0]} lines and {other} {counts[1]}; line n of the one must translate line n of "
                    "the other, so from somewhere on all pairs would be wrong"
                )
            yield left[1], right[1]


def _columns(source: Source, root: Path, languages: tuple[str, str]) -> Iterator[Pair]:
    first, second = (source.languages.index(language) for language in languages)
    return ((row[first], row[second]) for row in _rows(source, root))


def _rows(source: Source, root: Path) -> Iterator[list[str]]:
    """The sentences of a file of pairs, one a language of the source."""
    for path in files(source, root):
        kind = format_of(path) if source.format == "auto" else source.format
        if kind == "jsonl":
            for where, record in jsonl_rows(path):
                texts = [record.get(language) for language in source.languages]
                if not all(isinstance(text, str) for text in texts):
                    raise DataError(
                        f"{where}: source {source.name!r} needs texts under {', '.join(map(repr, source.languages))}; "
                        f"the record has {', '.join(map(repr, record))}"
                    )
                yield [str(text) for text in texts]
        elif kind in ("tsv", "txt"):
            for number, line in lines(path):
                cells = line.rstrip("\r\n").split("\t")
                if len(cells) < len(source.languages):
                    raise DataError(
                        f"{path}:{number}: {len(cells)} columns where source {source.name!r} has languages "
                        f"{', '.join(source.languages)}; columns are parted by tabs: {line[:60].strip()!r}"
                    )
                yield cells[: len(source.languages)]
        else:
            raise DataError(f"source {source.name!r}: {path} is {kind or 'of no known format'}; pairs are tsv or jsonl")
