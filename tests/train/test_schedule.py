"""Schedules against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jielong.errors import UsageError
from jielong.train.schedule import KINDS, multiplier


def rates(kind: str, steps: list[int], **settings: float) -> list[float]:
    return [multiplier(step, kind=kind, warmup_steps=4, num_steps=12, **settings) for step in steps]


@pytest.mark.parametrize("kind", KINDS)
def test_warm_up_is_linear_and_never_zero(kind: str) -> None:
    assert rates(kind, [0, 1, 2, 3, 4]) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine() -> None:
    # 8 steps from 1 to 0.2: half-way 0.6, a quarter 0.2 + 0.8 (1 + cos 45 degrees) / 2
    found = rates("cosine", [4, 6, 8, 10, 12, 99], final_fraction=0.2)
    assert found == pytest.approx([1.0, 0.8828427, 0.6, 0.3171573, 0.2, 0.2], abs=1e-7)


def test_linear_to_zero_wastes_no_step() -> None:
    assert rates("linear", [4, 6, 8, 11, 12], final_fraction=0.0) == pytest.approx([1.0, 0.75, 0.5, 0.125, 0.0])


def test_warmup_stable_decay() -> None:
    # a third of 12 steps decays: steps 8 to 11, on the way to 0.1 at step 12
    found = rates("wsd", [4, 7, 8, 9, 10, 11, 12], decay_fraction=1 / 3)
    assert found == pytest.approx([1.0, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1])


def test_decay_longer_than_the_rest_begins_after_warm_up() -> None:
    assert rates("wsd", [4, 8, 12], decay_fraction=1.0, final_fraction=0.0) == pytest.approx([1.0, 0.5, 0.0])


def test_constant_stays() -> None:
    assert rates("constant", [4, 11, 500]) == [1.0, 1.0, 1.0]


def test_noam_is_the_papers_formula() -> None:
    width, warmup = 512, 4000
    for step in (1, 17, 4000, 4001, 100_000):  # counted from 1, as there
        paper = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        ours = multiplier(step - 1, kind="noam", warmup_steps=warmup - 1, num_steps=100_000)
        assert ours / math.sqrt(width * warmup) == pytest.approx(paper)


def test_warm_up_may_take_all_steps() -> None:
    assert multiplier(3, kind="cosine", warmup_steps=4, num_steps=4) == pytest.approx(0.8)


@given(
    kind=st.sampled_from(KINDS),
    warmup=st.integers(0, 30),
    rest=st.integers(1, 50),
    final=st.floats(0, 1),
    decay=st.floats(0, 1),
)
def test_rises_to_one_then_never_rises(kind: str, warmup: int, rest: int, final: float, decay: float) -> None:
    num_steps = warmup + rest
    found = [
        multiplier(
            step, kind=kind, warmup_steps=warmup, num_steps=num_steps, final_fraction=final, decay_fraction=decay
        )
        for step in range(num_steps)
    ]
    assert all(0 < value <= 1 + 1e-12 for value in found)
    assert max(found) == pytest.approx(1.0) and found[warmup] == pytest.approx(1.0)
    after = found[warmup:]
    assert all(later <= earlier + 1e-12 for earlier, later in zip(after, after[1:], strict=False))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kind": "cosin"}, ["'cosin'", "cosine", "did you mean"]),
        ({"warmup_steps": 13}, ["warmup_steps = 13", "num_steps = 12"]),
        ({"num_steps": 0, "warmup_steps": 0}, ["num_steps = 0"]),
        ({"final_fraction": 1.5}, ["final_fraction = 1.5"]),
        ({"decay_fraction": -0.1}, ["decay_fraction = -0.1"]),
        ({"step": -1}, ["step = -1"]),
    ],
)
def test_bad_settings_name_the_value(changed: dict[str, object], words: list[str]) -> None:
    settings: dict[str, object] = {"step": 0, "kind": "cosine", "warmup_steps": 2, "num_steps": 12, **changed}
    with pytest.raises(UsageError) as caught:
        multiplier(**settings)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words)
