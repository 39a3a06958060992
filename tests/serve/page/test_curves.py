"""The marks of an axis, as the browser computes them: few, round, within the range, and never without end."""

from __future__ import annotations

import math
from typing import Any

import pytest

TICKS = "([low, high, num]) => import('/web/training/series.js').then(({ ticks }) => ticks(low, high, num))"
DRAWN = """(values) => import('/web/training/chart.js').then(({ Chart }) => {
  const chart = new Chart('constant');
  const series = { steps: values.map((_, place) => place + 1), values };
  chart.draw([{ label: 'one', colour: 0, dashed: false, exact: false, series }], { log: false, weight: 0.6 });
  return chart.picture.querySelectorAll('path.line').length;
})"""


@pytest.mark.parametrize(
    ("low", "high", "num"),
    [(0, 1, 4), (1.9, 7.1, 4), (-3, 5, 5), (0, 1000, 5), (1, 1e6, 5), (1e-5, 1e-4, 4), (0.0009999, 0.0010001, 4)],
)
def test_marks_are_few_and_within_the_range(modules: Any, low: float, high: float, num: int) -> None:
    found = modules.evaluate(TICKS, [low, high, num])
    assert 2 <= len(found) <= 2 * num + 1
    slack = (high - low) * 1e-6
    assert all(low - slack <= mark <= high + slack for mark in found) and found == sorted(found)


def test_a_range_of_nothing_but_rounding_has_an_end(modules: Any) -> None:
    assert len(modules.evaluate(TICKS, [0.001, math.nextafter(0.001, 1), 4])) <= 9


@pytest.mark.parametrize("value", [1e-3, 2e4, 0.1 + 0.2, -7.3])
def test_a_number_that_never_changes_is_drawn(modules: Any, value: float) -> None:
    """Its smoothed values differ from it in the last digits."""
    assert modules.evaluate(DRAWN, [value] * 5000) >= 1
