from __future__ import annotations

import pytest
import torch
from torch import nn

from jielong.errors import UsageError
from jielong.train.optim import OptimizerConfig, build_optimizer, decay_groups, set_learning_rate


class Tied(nn.Module):
    """An embedding that is also the output matrix, one norm, one frozen matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.LayerNorm(3)
        self.out = nn.Linear(3, 5)
        self.out.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def test_matrices_decay_vectors_do_not_and_a_tied_matrix_counts_once() -> None:
    model = Tied()
    matrices, vectors = decay_groups(model, 0.1)
    assert matrices["weight_decay"] == 0.1 and vectors["weight_decay"] == 0.0
    assert [id(p) for p in matrices["params"]] == [id(model.embed.weight)]  # type: ignore[attr-defined]
    assert {id(p) for p in vectors["params"]} == {id(p) for p in (model.norm.weight, model.norm.bias, model.out.bias)}  # type: ignore[attr-defined]


def test_first_step_by_hand() -> None:
    # Adam's first step is the rate times the sign of the gradient; decay takes rate * 0.5 of a matrix besides.
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(1.0)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    (3.0 * model.weight.sum() - 2.0 * model.bias.sum()).backward()
    optimizer.step()
    assert model.weight.item() == pytest.approx(1 - 0.1 * 0.5 - 0.1, abs=1e-6)
    assert model.bias.item() == pytest.approx(1 + 0.1, abs=1e-6)


def test_optimizer_is_fused_and_takes_its_settings() -> None:
    config = OptimizerConfig(learning_rate=1e-3, weight_decay=0.2, beta1=0.8, beta2=0.99, eps=1e-5)
    optimizer = build_optimizer(Tied(), config)
    for group, decay in zip(optimizer.param_groups, (0.2, 0.0), strict=True):
        assert group["fused"] is True
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-3, (0.8, 0.99), 1e-5, decay)


def test_learning_rate_is_peak_times_multiplier() -> None:
    optimizer = build_optimizer(Tied(), OptimizerConfig(learning_rate=0.01))
    assert set_learning_rate(optimizer, 0.5) == pytest.approx(0.005)
    assert set_learning_rate(optimizer, 0.25) == pytest.approx(0.0025)  # of the peak, not of what was there
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0025, 0.0025])


@pytest.mark.parametrize(
    "bad", [{"learning_rate": 0.0}, {"weight_decay": -1.0}, {"beta1": 1.0}, {"beta2": -0.1}, {"eps": 0.0}]
)
def test_bad_settings_are_named(bad: dict[str, float]) -> None:
    (name, value), = bad.items()
    with pytest.raises(UsageError, match=f"{name} = {value}"):
        OptimizerConfig(**{"learning_rate": 0.1, **bad})


def test_nothing_to_train_is_an_error() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UsageError, match="no trainable parameter"):
        build_optimizer(model, OptimizerConfig(learning_rate=0.1))
