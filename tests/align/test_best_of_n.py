"""Best of n against numbers worked out by hand and against sampling it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from jielong.align.best_of_n import (
    as_examples,
    beats_another,
    curve,
    expected_best,
    kl_bound,
    pick,
    win_rate_bound,
)
from jielong.generate.engine import Completion


def made(prompt: list[int], tokens: list[int]) -> Completion:
    return Completion(prompt, tokens, "", [0.0] * len(tokens), "stop")


def test_bounds_by_hand() -> None:
    assert kl_bound(1) == 0.0 and kl_bound(4) == pytest.approx(math.log(4) - 0.75)
    assert win_rate_bound(1) == 0.5 and win_rate_bound(3) == 0.75


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_expected_best_is_the_mean_over_all_subsets(n: int) -> None:
    proxy = torch.tensor([[0.3, -1.0, 2.0, 0.5, 1.5]])
    gold = torch.tensor([[1.0, 5.0, 2.0, 7.0, 3.0]])
    subsets = list(itertools.combinations(range(5), n))
    expected = sum(float(gold[0, max(subset, key=lambda i: float(proxy[0, i]))]) for subset in subsets) / len(subsets)
    assert float(expected_best(proxy, gold, n)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="n is 6"):
        expected_best(proxy, gold, 6)


def test_the_curve_keeps_its_bounds() -> None:
    proxy = torch.randn(500, 8, generator=torch.Generator().manual_seed(1))
    points = curve(proxy, gold=-proxy)
    assert [point["n"] for point in points] == [1, 2, 4, 8]
    assert points[0]["beats_another"] == pytest.approx(0.5) and points[0]["kl_bound_nats"] == 0
    for low, high in itertools.pairwise(points):
        assert high["proxy"] > low["proxy"] and high["gold"] < low["gold"]
    assert points[3]["proxy"] == pytest.approx(1.42, abs=0.1)  # mean of the largest of 8 normal numbers
    for point in points[:3]:
        assert point["beats_another"] == pytest.approx(win_rate_bound(int(point["n"])))  # without ties it is the bound
        assert point["gold_beats_another"] == pytest.approx(1 - point["beats_another"])
    assert "beats_another" not in points[3], "no reply is left that was not among the eight"


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_win_is_over_a_reply_that_was_not_among_the_n(n: int) -> None:
    proxy = torch.tensor([[0.3, -1.0, 2.0, 0.5, 1.5]])
    gold = torch.tensor([[1.0, 5.0, 2.0, 2.0, 3.0]])
    wins = []
    for subset in itertools.combinations(range(5), n):
        chosen = max(subset, key=lambda i: float(proxy[0, i]))
        others = [gold[0, other] for other in range(5) if other not in subset]
        wins += [float((gold[0, chosen] - other).sign() + 1) / 2 for other in others]
    assert float(beats_another(proxy, gold, n)) == pytest.approx(sum(wins) / len(wins))
    with pytest.raises(ValueError, match="n is 5; it must be from 1 to 4"):
        beats_another(proxy, gold, 5)


def test_pick_takes_the_best_of_each_and_never_one_that_nobody_judged() -> None:
    replies = [made([1], [n]) for n in range(6)]
    assert [each.tokens for each in pick(replies, [0.0, 2.0, 2.0, math.nan, -1.0, -5.0], 3)] == [[1], [4]]
    assert pick(replies[:2], [math.nan, math.nan], 2) == []


def test_what_is_learned_is_the_reply_as_it_was_sampled() -> None:
    assert as_examples([made([7, 8], [1, 2])]) == [([7, 8, 1, 2], [False, False, True, True])]
