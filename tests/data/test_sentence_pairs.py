"""Rows of [CLS] A [SEP] B [SEP]: what is in them, where B is from, and that no text is lost without being counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.data.sentence_pairs import Pairing, SentenceRows, Sentences, encode_sentences, make_rows, split_sentences
from jielong.errors import DataError, UsageError

CLS, SEP = 900, 901


def numbered(*lengths: tuple[int, ...]) -> Sentences:
    """Documents of sentences of these lengths. A token is 100 * document + its place there."""
    texts = [";".join(",".join(["x"] * n) for n in document) for document in lengths]
    document = -1

    def encode(sentence: str) -> list[int]:
        nonlocal document, place
        if sentence.startswith("|"):
            document, place = document + 1, 0
        found = [100 * document + place + k for k in range(sentence.count("x"))]
        place += len(found)
        return found

    place = 0
    marked = ["|" + text.replace(";", ".\n") for text in texts]
    return encode_sentences(marked, encode, longest=50)


def test_sentences_by_hand() -> None:
    text = 'He said: "Go!" Then 3.5 km. “Yes.”\n\nNo… 他来了。她说：“好！”他走了'
    assert split_sentences(text) == [
        'He said: "Go!" ', "Then 3.5 km. ", "“Yes.”\n\n", "No… 他来了。", "她说：“好！”", "他走了",
    ]  # fmt: skip


@given(st.text(alphabet="ab .!?\n。”)", max_size=60))
def test_sentences_joined_are_the_text(text: str) -> None:
    assert "".join(split_sentences(text)) == text


def test_encoded_documents_by_hand() -> None:
    found = encode_sentences(["ab. cde\n", "", "fghijk"], lambda text: [ord(c) for c in text if c.isalpha()], longest=4)
    assert bytes(found.tokens.tolist()) == b"abcdefghijk"
    assert found.starts.tolist() == [0, 2, 5, 9, 11]  # the last sentence is cut at four
    assert found.documents.tolist() == [0, 2, 4] and found.num_documents == 2


def rows_of(sentences: Sentences, **changes: object) -> SentenceRows:
    pairing = Pairing(CLS, SEP, **{"row_tokens": 12, "short_fraction": 0.0, **changes})  # type: ignore[arg-type]
    return make_rows(sentences, pairing, seed=1)


def parts(rows: SentenceRows, row: int) -> tuple[list[int], list[int]]:
    """A and B of a row, after its frame has been looked at."""
    length = int((rows.segments[row] > 0).sum())
    ids, types = rows.tokens[row, :length].tolist(), rows.token_types[row, :length].tolist()
    assert ids[0] == CLS and ids[-1] == SEP and ids.count(SEP) == 2 and ids.count(CLS) == 1
    middle = ids.index(SEP)
    assert types == [0] * (middle + 1) + [1] * (length - middle - 1)
    assert not rows.tokens[row, length:].any() and not rows.token_types[row, length:].any()
    return ids[1:middle], ids[middle + 1 : -1]


def test_pairs_follow_or_are_from_another_document() -> None:
    rows = rows_of(numbered((3, 3, 3, 3, 3, 3), (4, 4, 4, 4), (2,) * 9))
    assert 0 < int(rows.random.sum()) < len(rows)
    for row in range(len(rows)):
        first, second = parts(rows, row)
        assert first and second and len(first) + len(second) <= 9
        assert first == list(range(first[0], first[0] + len(first)))  # a run of one document
        assert second == list(range(second[0], second[0] + len(second)))
        if rows.random[row]:
            assert second[0] // 100 != first[0] // 100
        else:
            assert second[0] // 100 == first[0] // 100 and first[-1] < second[0]


def test_half_of_many_pairs_are_random_and_all_text_is_read() -> None:
    lengths = tuple((2, 3) * 12 for _ in range(8))  # never over the room by more than a sentence
    rows = rows_of(numbered(*lengths), row_tokens=23)
    assert 0.3 < float(rows.random.float().mean()) < 0.75
    seen = set()
    for row in range(len(rows)):
        first, second = parts(rows, row)
        seen |= set(first) | (set() if rows.random[row] else set(second))
    everything = {100 * document + place for document in range(8) for place in range(60)}
    assert len(everything - seen) == rows.num_lost < 0.2 * len(everything)


def test_without_pairs_nothing_is_lost() -> None:
    rows = rows_of(numbered((3, 3, 3, 3), (4,)), pairs=False)
    assert rows.num_lost == 0 and not rows.random.any() and not rows.token_types.any()
    assert rows.tokens.tolist() == [
        [CLS, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, SEP], [CLS, 10, 11, SEP, CLS, 100, 101, 102, 103, SEP, 0, 0],
    ]  # fmt: skip
    assert rows.segments.tolist() == [[1] * 12, [1] * 4 + [2] * 6 + [0, 0]]
    assert rows.num_tokens == 22


@settings(max_examples=30)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_short_documents_share_rows_and_each_stays_whole(lengths: list[int]) -> None:
    rows = rows_of(numbered(*((length,) for length in lengths)), pairs=False)
    found: dict[int, list[int]] = {}
    for tokens, segments in zip(rows.tokens, rows.segments, strict=True):
        for segment in range(1, int(segments.max()) + 1):
            ids = tokens[segments == segment].tolist()
            assert ids[0] == CLS and ids[-1] == SEP and len(ids) > 2
            found.setdefault(ids[1] // 100, []).extend(ids[1:-1])
    assert found == {place: [100 * place + k for k in range(length)] for place, length in enumerate(lengths)}
    assert not rows.tokens[rows.segments == 0].any()


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=8), min_size=2, max_size=4), st.integers(0, 99))
def test_every_row_fits(lengths: list[list[int]], seed: int) -> None:
    rows = make_rows(numbered(*map(tuple, lengths)), Pairing(CLS, SEP, 12, short_fraction=0.3), seed)
    for row in range(len(rows)):
        first, second = parts(rows, row)
        assert first and second


def test_short_rows_are_short() -> None:
    whole = rows_of(numbered((1,) * 80, (1,) * 80))
    short = rows_of(numbered((1,) * 80, (1,) * 80), short_fraction=1.0)
    assert len(short) > 1.3 * len(whole)


def test_same_seed_same_rows_and_files_come_back(tmp_path: Path) -> None:
    first, again = (rows_of(numbered((3, 3, 3), (4, 4))) for _ in range(2))
    first.save(tmp_path / "rows.safetensors")
    loaded = SentenceRows.load(tmp_path / "rows.safetensors")
    for name in ("tokens", "token_types", "segments", "random"):
        assert getattr(first, name).equal(getattr(again, name)) and getattr(first, name).equal(getattr(loaded, name))
    assert loaded.num_lost == first.num_lost
    (tmp_path / "rows.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(DataError, match="rows.safetensors does not hold rows of sentences"):
        SentenceRows.load(tmp_path / "rows.safetensors")


def test_one_document_has_no_other() -> None:
    with pytest.raises(DataError, match="the text is 1 document.*set next_sentence = false"):
        rows_of(numbered((3, 3, 3)))
    with pytest.raises(UsageError, match="row_tokens is 4"):
        rows_of(numbered((3,), (3,)), row_tokens=4)
