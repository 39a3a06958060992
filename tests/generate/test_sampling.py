from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.errors import UsageError
from jielong.generate.sampling import Sampling, choose, restrict, sample, uniforms
from jielong.runtime import derive_seed


def numpy_distribution(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float = 0.0
) -> np.ndarray:
    """The same rules written out for one row: sort (lower ids first among equals), cut at k, at p, and at min_p."""
    scores = logits.astype(np.float64) / temperature
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    kept = order[: top_k or None]
    weights = np.exp(scores[kept] - scores[kept].max())
    weights /= weights.sum()
    total, support = 0.0, []
    for token, weight in zip(kept, weights, strict=True):
        if total >= top_p:
            break
        if weight >= min_p * weights[0]:
            support.append(token)
        total += weight
    distribution = np.zeros(len(scores))
    distribution[support] = np.exp(scores[support] - scores[kept].max())
    return distribution / distribution.sum()


def chi_square_limit(degrees: int) -> float:
    """The 99.9 % point, by Wilson and Hilferty's approximation."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 3.0902 * math.sqrt(spread)) ** 3


@pytest.mark.parametrize(
    "asked",
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (2.0, 5, 1.0), (1.0, 0, 0.8), (1.3, 9, 0.7), (1.0, 0, 1.0, 0.2), (1.5, 9, 0.9, 0.1)],
)
def test_draws_follow_the_distribution(asked: tuple[float, int, float] | tuple[float, int, float, float]) -> None:
    num = 100_000
    logits = torch.randn(16, generator=torch.Generator().manual_seed(3)) * 1.5
    generator = torch.Generator().manual_seed(11)
    rows = logits.expand(num, -1)
    ids, _ = choose(rows, Sampling(*asked), torch.rand(num, generator=generator))
    counts = np.bincount(ids.numpy(), minlength=16)
    expected = numpy_distribution(logits.numpy(), *asked) * num
    assert set(counts.nonzero()[0]) == set(expected.nonzero()[0])
    seen = expected > 0
    statistic = ((counts - expected)[seen] ** 2 / expected[seen]).sum()
    assert statistic < chi_square_limit(int(seen.sum()) - 1)


@settings(max_examples=150, deadline=None)
@given(
    logits=st.lists(st.integers(-6, 6), min_size=2, max_size=20),
    top_k=st.integers(0, 21),
    top_p=st.floats(0.013, 1.0),
)
def test_support_and_logprobs_match_numpy(logits: list[int], top_k: int, top_p: float) -> None:
    row = np.array(logits, dtype=np.float32) * 0.37  # few distinct values: many ties
    expected = numpy_distribution(row, 1.0, top_k, top_p)
    cumulative = np.sort(numpy_distribution(row, 1.0, top_k, 1.0))[::-1].cumsum()
    if np.abs(cumulative - top_p).min() < 1e-5:
        return  # the cut falls on a rounding error
    kept = restrict(torch.from_numpy(row)[None], top_k, top_p)[0]
    assert kept.isfinite().nonzero()[:, 0].tolist() == expected.nonzero()[0].tolist()
    assert torch.equal(kept[kept.isfinite()], torch.from_numpy(row)[kept.isfinite()])
    numbers = torch.linspace(0, 1 - 2**-24, 50)
    ids, logprobs = choose(torch.from_numpy(row).expand(50, -1), Sampling(1.0, top_k, top_p), numbers)
    np.testing.assert_allclose(logprobs.exp().numpy(), expected[ids.numpy()], rtol=1e-4)


@pytest.mark.parametrize("spread", [0.1, 3.0])  # nearly all tokens are in the nucleus, or few
def test_top_p_of_a_large_vocabulary(spread: float) -> None:
    """More tokens than are looked at first, with equals at the cut: the support is that of a full sort."""
    logits = (torch.randn(4, 3000, generator=torch.Generator().manual_seed(2)) * spread * 50).round() / 50
    for top_p in (0.03, 0.5, 0.97):
        kept = restrict(logits, 0, top_p).isfinite()
        for row in range(4):
            expected = numpy_distribution(logits[row].numpy(), 1.0, 0, top_p) > 0
            assert abs(int(expected.sum()) - int(kept[row].sum())) <= 1  # the sum may cross a token later by rounding
            different = (kept[row].numpy() != expected).sum()
            assert different <= 1


def test_min_p_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert restrict(logits, 0, 1.0, 0.25).isfinite().tolist() == [[True, True, True, False]]
    assert restrict(logits, 0, 1.0, 0.5).isfinite().tolist() == [[True, True, False, False]]
    assert restrict(logits, 0, 1.0, 1.0).isfinite().tolist() == [[True, False, False, False]]
    assert restrict(logits, 0, 0.7, 0.1).isfinite().tolist() == [[True, True, False, False]]


def test_top_p_keeps_the_token_that_crosses() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert restrict(logits, 0, 0.6).isfinite().tolist() == [[True, True, False]]
    assert restrict(logits, 0, 0.49).isfinite().tolist() == [[True, False, False]]
    assert restrict(logits, 0, 1e-9).isfinite().tolist() == [[True, False, False]]


def test_top_p_is_measured_after_top_k() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # Among the first two the likeliest has 4/7 = 0.57, so 0.5 keeps it alone; over all four it would keep two.
    assert restrict(logits, 2, 0.5).isfinite().tolist() == [[True, False, False, False]]
    assert restrict(logits, 0, 0.5).isfinite().tolist() == [[True, True, False, False]]


def test_inverse_cumulative_by_hand() -> None:
    logits = torch.tensor([0.5, 0.0, 0.25, 0.25]).log().expand(6, -1)  # token 1 has probability 0
    numbers = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 1 - 2**-24])
    ids, logprobs = choose(logits, Sampling(), numbers)
    assert ids.tolist() == [0, 0, 2, 2, 3, 3]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25, 0.25]))


def test_a_first_token_without_probability_is_not_drawn_by_zero() -> None:
    logits = torch.tensor([[0.0, 0.0, 1.0]]).log()
    assert choose(logits, Sampling(), torch.zeros(1))[0].tolist() == [2]


@given(total=st.integers(2, 400), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_largest_number_stays_inside(total: int, seed: int) -> None:
    logits = torch.randn(3, total, generator=torch.Generator().manual_seed(seed)) * 8
    logits[:, -1] = -math.inf  # the last token must not be reached even by the largest number
    ids, logprobs = choose(logits, Sampling(), torch.full((3,), 1 - 2**-24))
    assert (ids < total - 1).all() and logprobs.isfinite().all()


def test_temperature_zero_takes_the_lowest_of_equals() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0], [2.0, 2.0, 2.0, 2.0]])
    ids, logprobs = choose(logits, Sampling(0.0), torch.zeros(2))
    assert ids.tolist() == [1, 0]
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, ids[:, None])[:, 0])
    wide = torch.zeros(4, 5000)
    wide[:, [77, 4000]] = 1.0
    assert choose(wide, Sampling(0.0), torch.zeros(4))[0].tolist() == [77] * 4


def test_temperature_divides_the_logits() -> None:
    logits = torch.tensor([[0.0, 2.0]])
    _, logprobs = choose(logits, Sampling(2.0), torch.tensor([0.9]))
    assert math.isclose(float(logprobs), math.log(math.e / (1 + math.e)), rel_tol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_show_in_the_logprob(temperature: float, bad: float) -> None:
    logits = torch.zeros(3, 8)
    logits[1, 5] = bad
    _, logprobs = choose(logits, Sampling(temperature), torch.full((3,), 0.3))
    assert logprobs.isfinite().tolist() == [True, False, True]
    _, logprobs = choose(torch.full((1, 8), -math.inf), Sampling(temperature), torch.zeros(1))
    assert not logprobs.isfinite().any()


def test_a_row_of_uniforms_is_its_seeds_alone() -> None:
    together = uniforms([5, 6, 7], 40)
    assert torch.equal(uniforms([7, 5], 40), together[[2, 0]])
    assert torch.equal(uniforms([6], 9)[0], together[1, :9])  # asking for more does not change the first
    one_by_one = torch.Generator().manual_seed(5)
    assert torch.equal(torch.cat([torch.rand(1, generator=one_by_one) for _ in range(40)]), together[0])
    assert uniforms([], 4).shape == (0, 4)


def test_first_numbers_of_neighbouring_rows_are_uniform() -> None:
    num = 5000
    numbers = uniforms([derive_seed(0, row) for row in range(num)], 2)
    for column in numbers.T:
        counts = np.bincount((column * 20).long().numpy(), minlength=20)
        assert ((counts - num / 20) ** 2 / (num / 20)).sum() < chi_square_limit(19)
    assert abs(float(np.corrcoef(numbers.T.numpy())[0, 1])) < 4 / math.sqrt(num)


def test_generators_a_row_or_one_for_all() -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    each = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3, 4)]
    ids = sample(logits, generators=each)
    alone = sample(logits[2:3], generators=torch.Generator().manual_seed(3))
    assert ids[2] == alone[0]
    with pytest.raises(UsageError, match="3 generators for 4 rows"):
        sample(logits, generators=each[:3])


@pytest.mark.parametrize(
    ("setting", "value", "legal"),
    [
        ("temperature", -0.1, "0.001 to 100"),
        ("temperature", 1e-9, "0.001 to 100"),
        ("temperature", math.nan, "0.001 to 100"),
        ("temperature", math.inf, "0.001 to 100"),
        ("temperature", "1", "0.001 to 100"),
        ("temperature", True, "0.001 to 100"),
        ("top_k", -1, "from 0"),
        ("top_k", 2.5, "from 0"),
        ("top_p", 0.0, "above 0"),
        ("top_p", 1.01, "above 0"),
        ("top_p", math.nan, "above 0"),
        ("min_p", -0.1, "0 (all tokens) to 1"),
        ("min_p", 1.1, "0 (all tokens) to 1"),
        ("repetition_penalty", 0.0, "0.01 to 100"),
        ("repetition_penalty", math.inf, "0.01 to 100"),
        ("presence_penalty", 2.1, "-2 to 2"),
        ("frequency_penalty", math.nan, "-2 to 2"),
    ],
)
def test_settings_out_of_range(setting: str, value: Any, legal: str) -> None:
    with pytest.raises(UsageError) as caught:
        Sampling(**{setting: value})
    assert setting in str(caught.value) and repr(value) in str(caught.value) and legal in str(caught.value)


def test_a_bias_out_of_range() -> None:
    with pytest.raises(UsageError, match="logit_bias of 3 is 101.0; legal is -100 to 100"):
        Sampling(logit_bias=((3, 101.0),))
    with pytest.raises(UsageError, match="twice"):
        Sampling(logit_bias=((3, 1.0), (3, 2.0)))
    assert not Sampling(0.5, 3, 0.9, 0.1).changes_scores
    for changed in ({"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"logit_bias": ((0, 0.0),)}):
        assert Sampling(**changed).changes_scores  # type: ignore[arg-type]
