"""The split that votes keep from round to round."""

from __future__ import annotations

import pytest

from jielong.align.comparisons import Comparison, split_for_good
from jielong.errors import DataError


def comparisons(numbers: range) -> list[Comparison]:
    made = [
        {"messages": [{"role": "user", "content": f"{n}?"}], "replies": ["x", "y"], "pairs": [[0, 1]]} for n in numbers
    ]
    return [Comparison.from_record(record) for record in made]


def test_a_prompt_stays_on_its_side_when_others_are_added() -> None:
    few, many = comparisons(range(60)), comparisons(range(400))
    held_before = {one.prompt for one in split_for_good(few, 0.2, seed=3)[1]}
    training, held = split_for_good([*many, *many], 0.2, seed=3)
    held_after, trained = {one.prompt for one in held}, {one.prompt for one in training}
    assert held_before == held_after & {one.prompt for one in few} and not held_after & trained
    assert len(training) + len(held) == 800 and 0.14 < len(held_after) / 400 < 0.26
    assert held_after != {one.prompt for one in split_for_good(many, 0.2, seed=4)[1]}


def test_both_sides_have_a_prompt() -> None:
    two = comparisons(range(2))
    for fraction in (1e-9, 1 - 1e-9):
        training, held = split_for_good(two, fraction, seed=0)
        assert len(training) == len(held) == 1
    with pytest.raises(DataError, match="1 prompt"):
        split_for_good([*comparisons(range(1)), *comparisons(range(1))], 0.5, seed=0)
