"""Best of n: of several replies the one that the reward likes best, to be given, or to be learned from.

The yardstick of every method that learns from a reward: what it buys, and what it costs in nats, is known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jielong.generate.engine import Completion


def kl_bound(n: int) -> float:
    """Most nats that best of n is away from the policy it samples from: log n - (n - 1) / n.

    Source: Stiennon et al. 2020, arXiv:2009.01325, appendix G.3; that it is a bound and no equality: Beirami et al.
    2024, arXiv:2401.01879, theorem 1.
    """
    return math.log(n) - (n - 1) / n


def win_rate_bound(n: int) -> float:
    """Most often that best of n beats one reply by the very reward it chose with: n / (n + 1)."""
    return n / (n + 1)


def expected_best(chosen_by: Tensor, value: Tensor, n: int) -> Tensor:
    """Mean value of the reply that chosen_by likes best among n, over all choices of n of the N that were sampled.

    chosen_by, value: (P, N), any two scores of the same replies. Returns (P,) float64. Every reply counts with the
    chance that it is the best of a random n, so that one sample of N gives the whole curve; of equal ones the first.
    Source: Nakano et al. 2021, arXiv:2112.09332, appendix I.
    """
    num = chosen_by.shape[1]
    if not 1 <= n <= num:
        raise ValueError(f"n is {n}; it must be from 1 to the {num} replies that were sampled")
    order = chosen_by.argsort(dim=1, descending=True, stable=True)
    return value.gather(1, order).double() @ _chances(num, n)


def _chances(num: int, n: int) -> Tensor:
    """(N,) float64: the chance of each place, best first, to be the best of a random n of N."""
    ways = [math.comb(num - place - 1, n - 1) / math.comb(num, n) for place in range(num)]
    return torch.tensor(ways, dtype=torch.float64)


def beats_another(chosen_by: Tensor, value: Tensor, n: int) -> Tensor:
    """How often the reply that chosen_by likes best among n has the higher value than one that is not among them.

    chosen_by, value: (P, N), n < N. Over all choices of n and of the other one; equal values count half. Returns (P,)
    float64. By the very score it was chosen with that is n / (n + 1) but for ties; by another judge's it is less.
    """
    num = chosen_by.shape[1]
    if not 1 <= n < num:
        raise ValueError(f"n is {n}; it must be from 1 to {num - 1}: one of the {num} replies has to be another's")
    order = chosen_by.argsort(dim=1, descending=True, stable=True)
    ranked = value.gather(1, order).double()
    wins = ((ranked[:, :, None] - ranked[:, None, :]).sign() + 1) / 2  # (P, N, N): chosen, other
    place = torch.arange(num, dtype=torch.float64)
    # A reply above the chosen one is never among the n; of those below, n - 1 are.
    below = 1 - (n - 1) / (num - 1 - place).clamp(min=1)
    outside = torch.where(place[None, :] > place[:, None], below[:, None], 1.0).fill_diagonal_(0.0)
    return torch.einsum("pcq,cq,c->p", wins, outside, _chances(num, n)) / (num - n)


def curve(proxy: Tensor, gold: Tensor | None = None) -> list[dict[str, float]]:
    """What best of n gives for n = 1, 2, 4, ... up to N, by the reward it chooses with and by a judge.

    proxy, gold: (P, N), N replies to each of P prompts. Each point: n, kl_bound_nats, proxy, gold; and for n < N
    beats_another and gold_beats_another, how often the chosen one is better than a reply that is not among the n.
    """
    points = []
    n = 1
    while n <= proxy.shape[1]:
        point = {"n": float(n), "kl_bound_nats": kl_bound(n), "proxy": float(expected_best(proxy, proxy, n).mean())}
        for name, value in (("", proxy), ("gold_", gold)):
            if value is not None and n < proxy.shape[1]:
                point[f"{name}beats_another"] = float(beats_another(proxy, value, n).mean())
        if gold is not None:
            point["gold"] = float(expected_best(proxy, gold, n).mean())
        points.append(point)
        n *= 2
    return points


def pick(completions: Sequence[Completion], scores: Sequence[float], n: int) -> list[Completion]:
    """The best of each n completions side by side; of equal ones the first. Scores that are no numbers never win."""
    assert len(completions) == len(scores) and len(scores) % n == 0, (len(completions), len(scores), n)
    chosen = []
    for first in range(0, len(scores), n):
        known = [place for place in range(first, first + n) if math.isfinite(scores[place])]
        if known:
            chosen.append(completions[max(known, key=lambda place: scores[place])])
    return chosen


def as_examples(completions: Sequence[Completion]) -> list[tuple[list[int], list[bool]]]:
    """(ids, which of them are learned) of each: prompt and reply as they were sampled, scored at the reply."""
    return [
        ([*each.prompt, *each.tokens], [False] * len(each.prompt) + [True] * len(each.tokens)) for each in completions
    ]
