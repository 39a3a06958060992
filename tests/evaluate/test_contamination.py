"""Whose test was in the training text."""

from __future__ import annotations

import pytest

from jielong.evaluate.contamination import overlap

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"  # 15 words, 3 runs


def test_a_copied_item_is_found_whole() -> None:
    found = overlap([LONG, LONG.replace("seven", "moon")], ["Before. " + LONG.upper() + "! After.", "nothing"])
    assert found.share == (1.0, 0.0) and found.num_documents == 2
    assert found.found == [0] and found.clean == [1]


def test_the_share_is_of_the_items_own_runs() -> None:
    fourteen = " ".join(LONG.split()[:14])
    assert overlap([LONG], [fourteen]).share == pytest.approx((2 / 3,))
    assert overlap([LONG], [" ".join(LONG.split()[:12])]).share == (0.0,)


def test_a_run_does_not_go_over_from_one_document_to_the_next() -> None:
    words = LONG.split()
    assert overlap([LONG], [" ".join(words[:8]), " ".join(words[8:])]).share == (0.0,)


def test_short_items_are_looked_for_as_a_whole_and_very_short_ones_not_at_all() -> None:
    eight, five = "the cat sat on the mat and slept", "the cat sat on it"
    found = overlap([eight, five], [f"Then {eight}; {five}."])
    assert found.share == (1.0, None)
    assert found.found == [0] and found.clean == []


def test_nothing_to_look_for_and_nothing_to_look_in() -> None:
    assert overlap([], ["text"]).share == ()
    assert overlap([LONG], []).share == (0.0,)
    assert overlap([""], [LONG]).share == (None,)
