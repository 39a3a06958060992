"""Parallel text: side by side or in columns, and what is wrong with it told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from jielong.data.pairs import PairLedger, couples, read_pairs, read_sentences, without
from jielong.data.sources import Source
from jielong.errors import DataError, UsageError

EN = Source("a-en", "a.en", language="en", format="txt")
DE = Source("a-de", "a.de", language="de", format="txt")


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")


def test_two_files_side_by_side(tmp_path: Path) -> None:
    write(tmp_path, a_en="one\n two \n\nfour\n", a_de="eins\nzwei\ndrei\n  \n")
    ledger = PairLedger()
    assert list(read_pairs([DE, EN], tmp_path, ("en", "de"), ledger)) == [("one", "eins"), ("two", "zwei")]
    assert (ledger.pairs_in, ledger.empty) == (4, 2)
    assert list(read_pairs([EN, DE], tmp_path, ("de", "en"), PairLedger()))[0] == ("eins", "one")


def test_columns_have_no_header_and_quotes_are_text(tmp_path: Path) -> None:
    path = tmp_path / "p.tsv.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write('"Go."\t走。\twhose\nHi\t嗨\tx\n')
    source = Source("p", "p.tsv", languages=("en", "zh"))
    assert list(read_pairs([source], tmp_path, ("zh", "en"), PairLedger())) == [("走。", '"Go."'), ("嗨", "Hi")]
    assert list(read_sentences(source, tmp_path))[:2] == [('"Go."', "en"), ("走。", "zh")]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("Go.\t \nHi\t嗨\n")
    assert list(read_sentences(source, tmp_path)) == [("Go.", "en"), ("Hi", "en"), ("嗨", "zh")]


def test_records(tmp_path: Path) -> None:
    rows = [{"en": "one", "fr": "un"}, {"en": "two", "fr": "deux"}]
    write(tmp_path, p_jsonl="".join(json.dumps(row) + "\n" for row in rows))
    source = Source("p", "p.jsonl", languages=("en", "fr"))
    assert list(read_pairs([source], tmp_path, ("en", "fr"), PairLedger())) == [("one", "un"), ("two", "deux")]
    write(tmp_path, p_jsonl='{"en": "one"}\n')
    with pytest.raises(DataError, match=r"p\.jsonl:1.*'en', 'fr'"):
        list(read_pairs([source], tmp_path, ("en", "fr"), PairLedger()))


@pytest.mark.parametrize(("one", "other"), [("1\n2\n3\n", "1\n2\n"), ("1\n", "1\n2\n3\n4\n")])
def test_unequal_length_names_both_files_and_counts(one: str, other: str, tmp_path: Path) -> None:
    write(tmp_path, a_en=one, a_de=other)
    counts = f"a.en has {one.count(chr(10))} lines and .*a.de {other.count(chr(10))}"
    with pytest.raises(DataError, match=counts):
        list(read_pairs([EN, DE], tmp_path, ("en", "de"), PairLedger()))


def test_too_few_columns(tmp_path: Path) -> None:
    write(tmp_path, p_tsv="a\tb\nonly one\n")
    with pytest.raises(DataError, match=r"p\.tsv:2: 1 columns where source 'p' has languages en, zh"):
        list(read_pairs([Source("p", "p.tsv", languages=("en", "zh"))], tmp_path, ("en", "zh"), PairLedger()))


def test_unknown_language_pair() -> None:
    with pytest.raises(UsageError, match=r"en-dd is not in the sources: none is in 'dd' \(there: de, en\)"):
        couples([EN, DE], ("en", "dd"))
    with pytest.raises(UsageError, match="1 sources are in 'en' and 2 in 'de'"):
        couples([EN, DE, Source("b-de", "b.de", language="de")], ("en", "de"))


def test_couples_go_by_order() -> None:
    second = Source("b-en", "b.en", language="en"), Source("b-de", "b.de", language="de")
    both = Source("c", "c.tsv", languages=("de", "en"))
    assert couples([second[1], EN, both, second[0], DE], ("en", "de")) == [
        (both, both),
        (EN, second[1]),
        (second[0], DE),
    ]


def test_a_source_of_pairs_has_two_languages() -> None:
    with pytest.raises(UsageError, match="two or more languages"):
        Source("p", "p.tsv", languages=("en",))
    with pytest.raises(UsageError, match="no single one"):
        Source("p", "p.tsv", languages=("en", "zh"), language="en")


def test_validation_found_in_training_is_named_and_counted() -> None:
    ledger = PairLedger()
    training = [("A dog  runs.", "x"), ("b", "Ein Hund"), ("c", "d")]
    kept = list(without(training, [("a dog runs.", "y"), ("z", "ein hund")], ledger))
    assert kept == [("c", "d")]
    assert ledger.contaminated == 2 and ledger.named == training[:2]
