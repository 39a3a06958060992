from __future__ import annotations

import pytest

from jielong.align.settings import PPOConfig
from jielong.errors import UsageError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_iterations", 0),
        ("rollout_rows", 0),
        ("temperature", 0.0),
        ("clip", 0.0),
        ("discount", 1.1),
        ("smoothing", -0.1),
        ("kl_coefficient", -1.0),
        ("target_kl", 0.0),
        ("inner_kl_limit", -1.0),
        ("learning_rate", 0.0),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: float) -> None:
    settings = {"num_iterations": 1, name: value}
    with pytest.raises(UsageError, match=f"PPO setting {name} is {value}"):
        PPOConfig(**settings)


def test_micro_rows_never_exceed_a_minibatch() -> None:
    assert PPOConfig(num_iterations=1, minibatch_rows=8, micro_batch_rows=32).micro_rows == 8
    assert PPOConfig(num_iterations=1, minibatch_rows=64, micro_batch_rows=32).micro_rows == 32
