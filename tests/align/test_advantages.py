"""Rewards, GAE and whitening against numbers worked out by hand, on ragged rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jielong.align.advantages import explained_variance, gae, masked_variance, token_rewards, whiten

# Two rows: tokens 1-3 scored in the first, token 2 alone in the second (token 3 is padding).
MASK = torch.tensor([[False, True, True, True], [False, False, True, False]])
REWARDS = torch.tensor([[0.0, -0.1, -0.2, 1.0], [0.0, 0.0, 2.0, 0.0]])
VALUES = torch.tensor([[0.0, 0.5, 0.4, 0.6], [0.0, 0.0, 1.5, 0.0]])


def test_32_gae_by_hand() -> None:
    advantages, returns = gae(REWARDS, VALUES, MASK, discount=1.0, smoothing=0.5)
    # t=3: 1 - .6 = .4;  t=2: -.2 + .6 - .4 + .5*.4 = .2;  t=1: -.1 + .4 - .5 + .5*.2 = -.1;  second row: 2 - 1.5
    assert advantages[0].tolist() == pytest.approx([0.0, -0.1, 0.2, 0.4], abs=1e-6)
    assert advantages[1].tolist() == pytest.approx([0.0, 0.0, 0.5, 0.0], abs=1e-6)
    assert returns[0].tolist() == pytest.approx([0.0, 0.4, 0.6, 1.0], abs=1e-6)
    assert returns[1].tolist() == pytest.approx([0.0, 0.0, 2.0, 0.0], abs=1e-6)


def test_gae_discount_by_hand() -> None:
    advantages, _ = gae(REWARDS, VALUES, MASK, discount=0.9, smoothing=0.5)
    # t=3: .4;  t=2: -.2 + .9*.6 - .4 + .45*.4 = .12;  t=1: -.1 + .9*.4 - .5 + .45*.12 = -.186
    assert advantages[0].tolist() == pytest.approx([0.0, -0.186, 0.12, 0.4], abs=1e-6)


def brute_force(rewards: list[float], values: list[float], discount: float, smoothing: float) -> list[float]:
    """The O(T^2) sum of the definition over a row's scored tokens."""
    errors = [
        reward + discount * (values[t + 1] if t + 1 < len(values) else 0.0) - values[t]
        for t, reward in enumerate(rewards)
    ]
    return [
        sum((discount * smoothing) ** (later - t) * errors[later] for later in range(t, len(errors)))
        for t in range(len(errors))
    ]


numbers = st.floats(-3, 3, width=32)
tokens = st.lists(st.tuples(numbers, numbers, st.booleans()), min_size=1, max_size=8)


@given(st.lists(tokens, min_size=1, max_size=3), st.floats(0, 1), st.floats(0, 1))
def test_32_gae_is_the_brute_force_sum(
    rows: list[list[tuple[float, float, bool]]], discount: float, smoothing: float
) -> None:
    """Item 32, also with gaps in the mask; what stands at unscored tokens does not matter."""
    length = max(len(row) for row in rows)
    rewards, values, mask = torch.full((len(rows), length), 9.0), torch.full((len(rows), length), -9.0), None
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        for t, (reward, value, scored) in enumerate(row):
            rewards[index, t], values[index, t], mask[index, t] = reward, value, scored
    advantages, returns = gae(rewards, values, mask, discount=discount, smoothing=smoothing)
    for index, row in enumerate(rows):
        scored = [(reward, value) for reward, value, chosen in row if chosen]
        expected = brute_force([r for r, _ in scored], [v for _, v in scored], discount, smoothing)
        assert advantages[index][mask[index]].tolist() == pytest.approx(expected, abs=1e-4)
    assert not advantages[~mask].any() and not returns[~mask].any()
    assert torch.allclose(returns[mask], (advantages + values)[mask])


def test_token_rewards_by_hand() -> None:
    kl = torch.tensor([[9.0, 0.5, -0.25, 1.0], [9.0, 9.0, 2.0, 9.0]])
    rewards = token_rewards(torch.tensor([3.0, -1.0]), torch.tensor([3, 2]), kl, MASK, 0.1)
    assert rewards[0].tolist() == pytest.approx([0.0, -0.05, 0.025, 2.9])
    assert rewards[1].tolist() == pytest.approx([0.0, 0.0, -1.2, 0.0])


def test_a_score_cannot_land_on_a_token_the_policy_did_not_choose() -> None:
    with pytest.raises(ValueError, match="ends must point at tokens that the policy chose"):
        token_rewards(torch.tensor([3.0, -1.0]), torch.tensor([3, 3]), torch.zeros(2, 4), MASK, 0.1)


def test_whiten_by_hand() -> None:
    values = torch.tensor([[100.0, 1.0, 2.0, 3.0], [100.0, 100.0, 6.0, 100.0]])
    # mean 3, biased variance (4 + 1 + 0 + 9) / 4 = 3.5
    expected = [(x - 3) / 3.5**0.5 for x in (1.0, 2.0, 3.0, 6.0)]
    whitened = whiten(values, MASK)
    assert whitened[MASK].tolist() == pytest.approx(expected)
    assert not whitened[~MASK].any()
    kept = whiten(values, MASK, shift_mean=False)
    assert kept[MASK].tolist() == pytest.approx([x + 3 for x in expected])


def test_whiten_leaves_a_single_token_alone() -> None:
    mask = torch.tensor([[False, True]])
    assert whiten(torch.tensor([[5.0, 2.0]]), mask).tolist() == [[0.0, 2.0]]


def test_equal_advantages_become_zero_and_not_nan() -> None:
    assert not whiten(torch.full((2, 4), 0.7), MASK).any()


def test_explained_variance_by_hand() -> None:
    returns = torch.tensor([[7.0, 1.0, 2.0, 3.0], [7.0, 7.0, 6.0, 7.0]])
    assert explained_variance(returns, returns, MASK) == 1.0
    assert explained_variance(torch.zeros(2, 4), returns, MASK) == pytest.approx(0.0)
    halves = torch.where(MASK, returns / 2, 55.0)  # Var(R - R/2) = Var(R) / 4
    assert explained_variance(halves, returns, MASK) == pytest.approx(0.75)
    assert explained_variance(returns, torch.ones(2, 4), MASK) == 0.0


def test_masked_variance_of_nothing_is_zero() -> None:
    assert float(masked_variance(torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool))) == 0.0
