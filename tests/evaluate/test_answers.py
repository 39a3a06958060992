"""The number in a reply."""

from __future__ import annotations

import pytest

from jielong.evaluate.answers import cut_at, final_number, plain_number


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("He has 2+3=5 cats.\n#### 5", "5"),
        (" #### $1,250.00\n\nQuestion: 7", "1250"),
        ("####-3", "-3"),
        ("The answer is 42.", "42"),
        ("It costs $3.50, not 4", "4"),
        ("so 1,234,567 in all.", "1234567"),
        ("7 - 3 = 4", "4"),
        ("it fell to -12 degrees", "-12"),
        ("#### 5\n#### 6", "5"),
        ("0.50", "0.5"),
        ("#### 007", "7"),
        ("no number at all", None),
        ("", None),
    ],
)
def test_final_number(reply: str, number: str | None) -> None:
    assert final_number(reply) == number


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("1,000", "1000"),
        ("$5", "5"),
        ("5.", "5"),
        ("-0", "0"),
        ("0", "0"),
        (".5", "0.5"),
        ("-2.50", "-2.5"),
        ("x", "x"),
    ],
)
def test_plain_number(text: str, plain: str) -> None:
    assert plain_number(text) == plain


def test_cut_at_the_first_stop() -> None:
    assert cut_at("    return 1\n\ndef two():\nclass", ("\nclass", "\ndef")) == "    return 1\n"
    assert cut_at("no stop", ("\ndef",)) == "no stop"
