from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.errors import UsageError
from jielong.generate.engine import Engine
from jielong.generate.penalties import Penalties
from jielong.generate.sampling import Sampling

CPU = torch.device("cpu")


def numpy_scores(scores: np.ndarray, asked: Sampling, prompt: list[int], said: list[int]) -> np.ndarray:
    """The same rules, one token after the other."""
    found = scores.astype(np.float64).copy()
    for token, bias in asked.logit_bias:
        found[token] += bias
    for token in {*prompt, *said}:
        found[token] *= asked.repetition_penalty if found[token] < 0 else 1 / asked.repetition_penalty
    for token in set(said):
        found[token] -= asked.frequency_penalty * said.count(token) + asked.presence_penalty
    return found


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    prompt=st.lists(st.integers(0, 19), min_size=1, max_size=12),
    said=st.lists(st.integers(0, 19), max_size=12),
    repetition=st.sampled_from([0.5, 1.0, 1.3]),
    presence=st.sampled_from([-1.0, 0.0, 0.7]),
    frequency=st.sampled_from([-0.4, 0.0, 2.0]),
    bias=st.dictionaries(st.integers(0, 19), st.floats(-100, 100), max_size=4),
)
def test_scores_match_numpy(
    seed: int, prompt: list[int], said: list[int], repetition: float, presence: float, frequency: float,
    bias: dict[int, float],
) -> None:  # fmt: skip
    asked = Sampling(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency,
        logit_bias=tuple(bias.items()),
    )  # fmt: skip
    scores = torch.randn(20, generator=torch.Generator().manual_seed(seed)) * 4
    expected = numpy_scores(scores.numpy(), asked, prompt, said)
    penalties = Penalties(asked, prompt, 20, CPU)
    for token in said:
        penalties.add(token)
    penalties.apply(scores)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5, atol=1e-4)


def test_barred_tokens_are_out() -> None:
    scores = torch.zeros(5)
    Penalties(Sampling(logit_bias=((1, 5.0),)), [0], 5, CPU).apply(scores, frozenset([1, 3]))
    assert scores.tolist() == [0.0, -math.inf, 0.0, -math.inf, 0.0]


def generate(engine: Engine, **settings: Any) -> list[int]:
    return engine.generate([[1, 2, 3]], max_new_tokens=12, stop_ids=(), **settings)[0].tokens


def test_the_engine_obeys_them(engine: Engine) -> None:
    free = generate(engine, temperature=0.0)
    assert generate(engine, temperature=0.0, repetition_penalty=1.0) == free
    banned = generate(engine, temperature=0.0, logit_bias={free[2]: -100.0})
    assert free[2] not in banned and banned[:2] == free[:2]
    assert generate(engine, temperature=1.0, logit_bias={7: 100.0}) == [7] * 12
    # A token that was said loses 2 each time: with a bias of 100 for ten of them, each of the ten comes in turn.
    turns = generate(
        engine, temperature=0.0, logit_bias={token: 90.0 for token in range(10)}, presence_penalty=2.0,
        frequency_penalty=2.0,
    )  # fmt: skip
    assert len(set(turns)) > 6 and set(turns) <= set(range(10))
    assert generate(engine, temperature=1.0, min_p=1.0) == generate(engine, temperature=0.0)
    with pytest.raises(UsageError, match="logit_bias names the id 275"):
        generate(engine, logit_bias={275: 1.0})


def test_rows_are_penalised_each_by_its_own(engine: Engine) -> None:
    """Also when ended rows are dropped from the batch."""
    prompts = [[token, token + 1] for token in range(40)]
    options: dict[str, Any] = {
        "max_new_tokens": 10, "repetition_penalty": 1.4, "frequency_penalty": 0.5, "stop_ids": range(0, 275, 5),
    }  # fmt: skip
    together = engine.generate(prompts, seed=list(range(40)), **options)
    for row, prompt in enumerate(prompts):
        assert together[row].tokens == engine.generate([prompt], seed=[row], **options)[0].tokens
    assert [made.tokens for made in together] != [
        made.tokens for made in engine.generate(prompts, seed=list(range(40)), **{**options, "repetition_penalty": 1.0})
    ]


def test_a_stream_is_penalised_as_well(engine: Engine) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.0, "repetition_penalty": 3.0}
    assert "".join(engine.stream([5, 6], **options)) == engine.generate([[5, 6]], **options)[0].text
