"""The scaling law: constants that are known are found again, and what it says follows from them."""

from __future__ import annotations

import math
import random

import pytest

from jielong.errors import UsageError
from jielong.plan.scaling import Point, ScalingLaw, fit_scaling_law

CHINCHILLA = ScalingLaw(1.69, 406.4, 0.34, 410.7, 0.28, 0.0)  # the paper's own constants
SIZES, LENGTHS = (1e5, 3e5, 1e6), (1e6, 1e7, 1e8)


def points(law: ScalingLaw, noise: float = 0.0) -> list[Point]:
    rng = random.Random(3)
    return [Point(n, d, law.loss(n, d) * math.exp(rng.gauss(0, noise)), "run") for n in SIZES for d in LENGTHS]


def test_a_known_law_is_found_again() -> None:
    law = fit_scaling_law(points(CHINCHILLA))
    assert law.size_exponent == pytest.approx(0.34, abs=1e-3)
    assert law.data_exponent == pytest.approx(0.28, abs=1e-3)
    assert law.irreducible == pytest.approx(1.69, abs=0.01)
    assert law.error < 1e-5


def test_noise_is_told_as_error_and_the_prediction_holds() -> None:
    law = fit_scaling_law(points(CHINCHILLA, noise=0.01))
    assert 0.002 < law.error < 0.02
    assert law.loss(3e6, 3e8) == pytest.approx(CHINCHILLA.loss(3e6, 3e8), rel=0.05)


@pytest.mark.parametrize("flops", [1e15, 1e21])
def test_the_best_split_is_the_least_loss_on_the_budget_line(flops: float) -> None:
    parameters, tokens = CHINCHILLA.best_split(flops)
    assert 6 * parameters * tokens == pytest.approx(flops)
    best = CHINCHILLA.loss(parameters, tokens)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert CHINCHILLA.loss(parameters * factor, tokens / factor) > best


def test_the_loss_is_the_sum_of_its_terms() -> None:
    law = ScalingLaw(1.0, 8.0, 1 / 3, 100.0, 0.5, 0.0)
    assert law.loss(64, 100) == pytest.approx(1 + 8 / 4 + 100 / 10)


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(UsageError, match="5 runs of 3 sizes and 2 lengths; .* at least 6 runs"):
        fit_scaling_law([p for p in points(CHINCHILLA) if p.tokens < 1e8][:5])
    with pytest.raises(UsageError, match="3 sizes and 1 lengths"):
        fit_scaling_law([Point(p.parameters, 1e6, p.loss) for p in points(CHINCHILLA)])


@pytest.mark.parametrize("loss", [0.0, -1.0, math.nan, math.inf])
def test_a_loss_that_is_none_is_named(loss: float) -> None:
    with pytest.raises(UsageError, match="broken: 100000 parameters"):
        fit_scaling_law([Point(1e5, 1e6, loss, "broken"), *points(CHINCHILLA)])
