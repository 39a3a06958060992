"""One form for every text, reached in one step."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jielong.data.normalise import normalise, strip_furniture


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\u2028d\x85e", "a\nb\nc\nd\ne"),
        ("  a \t b\u3000c\xa0d \n  e  ", "a b c d\ne"),
        ("a\n\n\n\n\nb", "a\n\nb"),
        ("cafe\u0301", "café"),
        ("\ufeffzero\u200bwidth\x00\x07 soft\xadhyphen \ud800", "zerowidth softhyphen"),
        ("👩\u200d🌾 stays", "👩\u200d🌾 stays"),
        ("donâ€™t â€œquoteâ€\x9d caf\xc3\xa9", "don’t “quote” café"),
        ("ä½\xa0å¥½", "你好"),
        ("voilà… fatigué…»", "voilà… fatigué…»"),
        ("Ärger à la carte, naïve façade, 你好", "Ärger à la carte, naïve façade, 你好"),
    ],
)
def test_examples(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_columns_may_stay() -> None:
    assert normalise("\n  a  b \t\n    c\n\n\n\nd", squeeze_spaces=False) == "  a  b\n    c\n\nd"


@given(st.text(st.characters(codec=None), max_size=60), st.booleans())
def test_twice_is_once(text: str, squeeze_spaces: bool) -> None:
    once = normalise(text, squeeze_spaces)
    assert unicodedata.is_normalized("NFC", once)
    assert normalise(once, squeeze_spaces) == once


@example(["Ã", "â", "€", "©", "Ã"])  # misread from a paragraph separator, which is a line end
@example(["Ã", "\u200b", "©"])  # an invisible character keeps the halves apart
@example(["A", "\u0303", "©"])
@given(
    st.lists(
        st.sampled_from(["Ã", "©", "â", "€", "™", "\x80", "é", "…", "»", "ä", "½", " ", "a", "\n", "\xa0"]), max_size=12
    )
)
def test_twice_is_once_for_broken_encodings(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert normalise(normalise(text)) == normalise(text)


def test_furniture_goes_and_sentences_about_it_stay() -> None:
    page = "Home | News | Shop\nThe storm reached the coast.\nAccept all cookies\n© 2021 The Paper.\n版权所有 违者必究"
    assert strip_furniture(page) == ("The storm reached the coast.", 4)
    prose = "She wanted to go home, so she read the menu again and asked for two cookies.\nAt home the script was lost."
    assert strip_furniture(prose) == (prose, 0)
    long = "The council discussed a new privacy policy for the city's libraries. " * 4
    assert strip_furniture(long) == (long, 0)
