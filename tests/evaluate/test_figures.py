"""Means with errors, pass@k and the vote, against numbers worked out by hand or by counting."""

from __future__ import annotations

import itertools
import math

import pytest

from jielong.evaluate.figures import mean_figure, pass_at_k, perplexity_figure, vote
from jielong.intervals import wilson_ci95


def test_a_rate_has_the_error_of_its_sample_and_wilsons_interval() -> None:
    figure = mean_figure([1.0, 1.0, 1.0, 0.0])
    assert figure.value == 0.75 and figure.num == 4
    assert figure.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3))  # lm-eval's: s / sqrt(n), s with n - 1
    assert figure.ci95 == wilson_ci95(3, 4)


def test_other_means_have_a_normal_interval() -> None:
    figure = mean_figure([0.2, 0.4, 0.9])
    assert figure.stderr == pytest.approx(math.sqrt(0.13 / 3))
    assert figure.ci95[1] - figure.value == pytest.approx(1.96 * figure.stderr, rel=1e-3)


def test_one_item_has_no_error() -> None:
    record = mean_figure([0.5]).as_record()
    assert record["stderr"] is None and record["ci95"] == [0.5, 0.5]


def test_perplexity_is_of_the_mean() -> None:
    figure = perplexity_figure([math.log(2), math.log(8)])
    assert figure.value == pytest.approx(4.0)
    assert figure.stderr == pytest.approx(4.0 * math.log(2))
    assert figure.ci95[0] < 4.0 < figure.ci95[1]
    assert math.isfinite(perplexity_figure([1e6]).value)


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    for num, right, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if right <= num and k <= num:
            draws = list(itertools.combinations([1] * right + [0] * (num - right), k))
            assert pass_at_k(num, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    assert pass_at_k(2000, 1, 1000) == pytest.approx(0.5)
    assert pass_at_k(2000, 0, 1000) == 0.0 and pass_at_k(2000, 1500, 1000) == 1.0


def test_the_vote() -> None:
    assert vote(["5", None, "7", "7", None, None]) == "7"
    assert vote(["9", "5", "5", "9"]) == "9"  # the first among equals
    assert vote([None, None]) is None
