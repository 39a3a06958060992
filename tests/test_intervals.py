"""Wilson's interval, by hand and by its properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jielong.intervals import wilson_ci95


def test_wilson_by_hand() -> None:
    # 8 of 10: centre (.8 + 3.8415/20) / 1.38415, half-width 1.96 sqrt(.016 + 3.8415/400) / 1.38415
    low, high = wilson_ci95(8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_ci95(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_ci95(0, 0) == (0.0, 1.0)
    assert wilson_ci95(5, 5)[1] == 1.0 and wilson_ci95(0, 5)[0] == 0.0


@given(st.integers(0, 200), st.integers(1, 200))
def test_interval_holds_the_rate_and_mirrors(successes: int, trials: int) -> None:
    successes = min(successes, trials)
    low, high = wilson_ci95(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    mirrored = wilson_ci95(trials - successes, trials)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-9)
