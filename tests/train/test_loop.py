"""One step is one step however the batch is cut; nothing changes when a number breaks; fit is a plain generator."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from jielong.data.batch import Batch, OnDevice, PairBatch, Rollout
from jielong.data.loader import Lazy
from jielong.errors import TrainingError, UsageError
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.train import loop
from jielong.train.loop import FitConfig, fit, train_step
from jielong.train.objectives import next_token
from jielong.train.optim import OptimizerConfig, build_optimizer

from ..model.conftest import small_decoder

CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32)


def tiny_model(seed: int = 0) -> Transformer:
    return small_decoder(seed, vocab_size=40, max_length=16, num_kv_heads=1)


def ragged_batch(seed: int, num_rows: int = 7, length: int = 16) -> Batch:
    """Rows that score 1, 3, 5, ... of their tokens, so that a mean of means would be far off."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 40, (num_rows, length), generator=generator)
    mask = torch.zeros(num_rows, length, dtype=torch.bool)
    for row in range(num_rows):
        mask[row, 1 : 2 + 2 * row] = True
    segments = torch.ones(num_rows, length, dtype=torch.int32)
    return Batch(tokens, mask, segments, int(mask.sum()))


def cut(batch: Batch, sizes: list[int]) -> list[Batch]:
    pieces, first = [], 0
    for size in sizes:
        rows = slice(first, first + size)
        mask = batch.mask[rows]
        pieces.append(Batch(batch.tokens[rows], mask, batch.segments[rows], int(mask.sum())))
        first += size
    return pieces


def gradient_of_step(micro_batches: list[Batch]) -> Tensor:
    """The gradient that a step applied: what plain descent with rate 1 took off the weights."""
    model = tiny_model().double()
    before = torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    train_step(model, optimizer, micro_batches, next_token, CPU, math.inf)
    after = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return before - after


@pytest.mark.parametrize("sizes", [[1] * 7, [6, 1], [1, 2, 4], [3, 4]])
def test_accumulated_equals_whole(sizes: list[int]) -> None:
    batch = ragged_batch(1)
    whole = gradient_of_step([batch])
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(gradient_of_step(cut(batch, sizes)), whole, rtol=0, atol=1e-6)


def test_whole_gradient_is_that_of_the_mean_over_scored_tokens() -> None:
    batch = ragged_batch(2)
    model = tiny_model().double()
    total, _ = next_token(model, batch)
    (total / batch.mask.sum()).backward()
    wanted = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    torch.testing.assert_close(gradient_of_step([batch]), wanted, rtol=0, atol=1e-6)


# ---- one weight, numbers by hand ----


@dataclass(frozen=True)
class Points(OnDevice):
    """Scalars x; the loss of each is what the objective makes of weight and x."""

    x: Tensor
    segments: Tensor
    num_units: int


def points(*x: float) -> Points:
    return Points(torch.tensor(x), torch.ones(1, len(x), dtype=torch.int32), len(x))


class Weights(nn.Module):
    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values))


def product(model: Weights, batch: Points) -> tuple[Tensor, dict[str, Tensor]]:
    return (model.w[0] * batch.x).sum(), {"x_squared": (batch.x**2).sum()}


def test_loss_metrics_and_weights_by_hand() -> None:
    model = Weights(2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    stats = train_step(model, optimizer, [points(1, 2, 3), points(6)], product, CPU, 10.0, step=7)
    # mean of x is 3: loss 2 * 3, gradient 3, weight 2 - 0.5 * 3; mean of x squared is 50 / 4
    assert (stats.step, stats.loss, stats.grad_norm, stats.num_units, stats.num_tokens) == (7, 6.0, 3.0, 4, 4)
    assert stats.metrics == {"x_squared": 12.5}
    assert stats.learning_rate == 0.5 and not stats.skipped
    assert model.w.item() == 0.5
    assert model.w.grad is None


def test_clipping_bounds_the_global_norm() -> None:
    model = nn.ModuleList([Weights(0.0), Weights(0.0)])

    def objective(model: nn.Module, batch: Points) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = model.parameters()
        return (3.0 * first + 4.0 * second).sum() * batch.num_units, {}

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    stats = train_step(model, optimizer, [points(1), points(1)], objective, CPU, 1.0)
    assert stats.grad_norm == pytest.approx(5.0)
    moved = [-parameter.item() for parameter in model.parameters()]
    assert moved == pytest.approx([0.6, 0.8], abs=1e-5)


def test_padding_is_not_counted_as_tokens() -> None:
    batch = Points(torch.ones(2), torch.tensor([[1, 2, 2, 0], [1, 0, 0, 0]], dtype=torch.int32), 2)
    model = Weights(1.0)
    stats = train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), [batch], product, CPU, 1.0)
    assert (stats.num_tokens, stats.num_units) == (4, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_loss_names_step_and_batch_and_changes_nothing(bad: float) -> None:
    model = Weights(2.0)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.1))
    train_step(model, optimizer, [points(1.0)], product, CPU, 1.0)
    before = model.w.detach().clone()
    moments = {name: value.clone() for name, value in optimizer.state[model.w].items()}
    with pytest.raises(TrainingError) as caught:
        train_step(model, optimizer, [points(1), points(2), points(bad), points(bad)], product, CPU, 1.0, step=12)
    assert "step 12" in str(caught.value) and f"micro-batch 3 of 4 is {bad}" in str(caught.value)
    assert torch.equal(model.w, before) and model.w.grad is None
    assert all(torch.equal(value, moments[name]) for name, value in optimizer.state[model.w].items())


def test_broken_gradient_of_a_finite_loss_names_the_parameter() -> None:
    model = Weights(0.0)

    def root(model: Weights, batch: Points) -> tuple[Tensor, dict[str, Tensor]]:
        return model.w.sqrt().sum(), {}  # 0, with an infinite slope

    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.1))
    with pytest.raises(TrainingError, match=r"step 3: the gradient .* first in w"):
        train_step(model, optimizer, [points(1)], root, CPU, 1.0, step=3)
    assert model.w.item() == 0.0 and model.w.grad is None


def test_a_batch_without_units_is_skipped() -> None:
    model = Weights(2.0)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    stats = train_step(model, optimizer, [points(), points()], product, CPU, 1.0)
    assert stats.skipped and stats.num_units == 0
    assert model.w.item() == 2.0 and not optimizer.state


def test_objective_runs_under_autocast() -> None:
    seen = []

    def objective(model: Weights, batch: Points) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(torch.is_autocast_enabled("cpu"))
        return product(model, batch)

    model = Weights(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for dtype in (torch.float32, torch.bfloat16):
        train_step(model, optimizer, [points(1)], objective, Runtime(torch.device("cpu"), dtype), 1.0)
    assert seen == [False, True]


def test_pairs_and_rollouts_go_through_the_same_step() -> None:
    tokens = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(3))
    segments = torch.ones(2, 8, dtype=torch.int32)
    pairs = PairBatch(
        tokens, segments, torch.tensor([4, 4]), torch.tensor([7, 7]), torch.tensor([[0, 1]]), torch.ones(1),
        torch.zeros(1), torch.ones(1), 1,
    )  # fmt: skip
    mask = segments.bool()
    zeros = torch.zeros(2, 8)
    rollout = Rollout(tokens, mask, segments, zeros, zeros, zeros, zeros, zeros, zeros, num_units=int(mask.sum()))

    def squares(model: Transformer, batch: PairBatch | Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        return model(batch.tokens).square().sum(), {}

    model = tiny_model()
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.01))
    assert train_step(model, optimizer, [pairs], squares, CPU, 1.0).num_units == 1
    assert train_step(model, optimizer, [rollout.rows(slice(0, 1)), rollout], squares, CPU, 1.0).num_units == 24


# ---- fit ----


def test_shares_are_compared_where_weights_are_shared_out_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO takes its steps without `fit`, on whole models: there one process may have a micro-batch more."""
    compared: list[int] = []
    monkeypatch.setattr(loop, "check_equal_shares", lambda num, runtime: compared.append(num))
    runtime = dataclasses.replace(CPU, mesh=cast(DeviceMesh, object()))
    model = Weights(2.0)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.1))
    assert train_step(model, optimizer, [points(1), points(2)], product, runtime, 1.0).num_units == 2
    assert compared == []
    steps = fit(model, optimizer, lambda _: [points(1)] * 3, product, lambda _: 1.0, runtime, FitConfig(num_steps=2))
    assert len(list(steps)) == 2 and compared == [3, 3]


def test_fit_yields_after_every_step_and_is_lazy() -> None:
    model = Weights(0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.param_groups[0]["initial_lr"] = 1.0
    asked: list[int] = []

    def batches(step: int) -> list[Points]:
        asked.append(step)
        return [points(1.0)]

    run = fit(model, optimizer, batches, product, lambda step: 1 / (step + 1), CPU, FitConfig(num_steps=5, start=2))
    assert asked == []
    seen = []
    for stats in run:
        seen.append((stats.step, stats.learning_rate, model.w.item()))
        model.eval()
        if stats.step == 4:
            break
    assert asked == [2, 3] and model.training is False
    assert seen == [(3, pytest.approx(1 / 3), pytest.approx(-1 / 3)), (4, pytest.approx(1 / 4), pytest.approx(-7 / 12))]


def test_micro_batches_that_are_made_when_they_are_taken_are_made_once() -> None:
    made: list[int] = []

    def make(number: int) -> Points:
        made.append(number)
        return points(1.0)

    model = Weights(0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    stats = train_step(model, optimizer, Lazy(3, make), product, CPU, math.inf)
    assert made == [0, 1, 2] and stats.num_units == 3


def test_fit_trains_in_train_mode_even_if_the_caller_evaluates() -> None:
    modes = []

    def objective(model: Weights, batch: Points) -> tuple[Tensor, dict[str, Tensor]]:
        modes.append(model.training)
        return product(model, batch)

    model = Weights(0.0)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.1))
    for _ in fit(model, optimizer, lambda step: [points(1)], objective, lambda step: 1.0, CPU, FitConfig(num_steps=2)):
        model.eval()
    assert modes == [True, True]


def test_seconds_cover_the_batches_but_not_the_callers_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)

    def batches(step: int) -> list[Points]:
        nonlocal now
        now += 5.0
        return [points(1.0)]

    model = Weights(0.0)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.1))
    seconds = []
    for stats in fit(model, optimizer, batches, product, lambda step: 1.0, CPU, FitConfig(num_steps=3)):
        seconds.append(stats.seconds)
        now += 100.0
    assert seconds == [5.0, 5.0, 5.0]


def test_going_on_in_a_second_fit_is_bit_equal() -> None:
    def run(parts: list[tuple[int, int]]) -> list[Tensor]:
        model = tiny_model()
        optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.01))
        for start, stop in parts:
            config = FitConfig(num_steps=stop, start=start)
            batches = fit(
                model, optimizer, lambda s: cut(ragged_batch(s), [3, 4]), next_token, lambda s: 1 / (1 + s), CPU, config
            )
            assert [stats.step for stats in batches] == list(range(start + 1, stop + 1))
        return [parameter.detach() for parameter in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run([(0, 6)]), run([(0, 2), (2, 6)]), strict=True))


def test_loss_falls() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.01))
    batch = ragged_batch(5)
    run = fit(model, optimizer, lambda step: [batch], next_token, lambda step: 1.0, CPU, FitConfig(num_steps=40))
    losses = [stats.loss for stats in run]
    assert losses[0] == pytest.approx(math.log(40), abs=1.0) and losses[-1] < 0.5


@pytest.mark.parametrize("config", [FitConfig(num_steps=1, clip=0.0), FitConfig(num_steps=1, start=-1)])
def test_settings_out_of_range(config: FitConfig) -> None:
    model = Weights(0.0)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.1))
    with pytest.raises(UsageError, match="clip"):
        next(fit(model, optimizer, lambda step: [points(1)], product, lambda step: 1.0, CPU, config))
