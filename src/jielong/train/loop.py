"""The one training step and the one loop.

Every stage that learns (pre-training, instruction tuning, reward, PPO's policy and critic) goes through `train_step`.
`fit` is a generator: evaluating, logging and saving are plain statements in the body of the caller's `for`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from jielong.errors import TrainingError, UsageError
from jielong.runtime import Runtime
from jielong.train.ahead import made_ahead
from jielong.train.gradient_sums import GradientSums
from jielong.train.objectives import ModelT, Objective
from jielong.train.optim import set_learning_rate
from jielong.train.parallel import check_equal_shares, total

SelfT = TypeVar("SelfT")


class MicroBatch(Protocol):
    """What a step needs of a batch; Batch, PairBatch and Rollout all have it. Objectives read the rest."""

    @property
    def segments(self) -> Tensor: ...  # (B, T) int, 0 where padding

    @property
    def num_units(self) -> int: ...  # what the loss is averaged over

    def to(self: SelfT, device: torch.device) -> SelfT: ...

    def pinned(self: SelfT) -> SelfT: ...


MicroT = TypeVar("MicroT", bound=MicroBatch)


@dataclass(frozen=True)
class StepStats:
    """What one optimizer step did.

    step: steps done, this one included, so the first is 1 and a checkpoint after it is "step 1".
    loss: mean per unit, in nats for likelihoods. grad_norm: global norm before clipping. num_tokens: tokens read,
    padding not counted. seconds: wall time of the step, in `fit` with the making of its batches, without the
    caller's own work.
    metrics: the objective's sums, each divided by num_units. skipped: the batch had no unit, nothing was changed.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    num_units: int
    num_tokens: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    skipped: bool = False


@dataclass(frozen=True)
class FitConfig:
    """clip: largest global gradient norm (math.inf for none). start: steps that are done already; num_steps: all."""

    num_steps: int
    clip: float = 1.0
    start: int = 0


def train_step(
    model: ModelT,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[MicroT],
    objective: Objective[ModelT, MicroT],
    runtime: Runtime,
    clip: float,
    step: int = 1,
) -> StepStats:
    """One optimizer step on the mean over all units of `micro_batches`, however they are cut.

    The units of all micro-batches are counted first, and each objective's sum is divided by that count, so that the
    gradient is the one of the whole batch. The objective runs under `runtime.autocast()`, its backward outside.
    `clip` bounds the global norm of the gradient of the optimizer's parameters; `step`, its number
    from 1, only names it. With several processes, micro_batches are this one's share: units, gradients and metrics are
    summed over all, so that each takes the same step.

    Raises TrainingError when a loss or a gradient is not finite, in every process when it happens in one; weights and
    optimizer state are then untouched.
    """
    started = time.perf_counter()
    micro_batches = list(micro_batches)  # a loader makes each when it is taken: once is enough
    num_units, num_tokens = _counted(micro_batches, runtime)
    learning_rate = float(optimizer.param_groups[-1]["lr"])
    if num_units == 0:
        return StepStats(step, 0.0, 0.0, learning_rate, 0, num_tokens, time.perf_counter() - started, skipped=True)
    optimizer.zero_grad(set_to_none=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = GradientSums(model, parameters, runtime)
    sums, totals = list[Tensor](), dict[str, Tensor]()
    for number, batch in enumerate(micro_batches, start=1):
        with runtime.autocast():
            loss_sum, metrics = objective(model, batch.to(runtime.device))
        with gradients.as_they_come() if number == len(micro_batches) else nullcontext():
            (loss_sum / num_units).backward()
        sums.append(loss_sum.detach())
        for name, value in metrics.items():
            totals[name] = totals[name] + value.detach() if name in totals else value.detach()
    gradients.finish()
    grad_norm = _sum_and_clip(parameters, clip, runtime)
    losses = torch.stack(sums).tolist() if sums else []
    told = total([sum(losses), *(float(totals[name]) for name in sorted(totals))], runtime)
    _check_finite(losses, told[0], grad_norm, model, optimizer, step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    means = {name: value / num_units for name, value in zip(sorted(totals), told[1:], strict=True)}
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)  # else the optimizer's work would be billed to the next step
    spent, loss = time.perf_counter() - started, told[0] / num_units
    return StepStats(step, loss, grad_norm, learning_rate, num_units, num_tokens, spent, means)


def _counted(micro_batches: Sequence[MicroT], runtime: Runtime) -> tuple[int, int]:
    """Units and tokens of all processes' micro-batches."""
    own_tokens = sum(int((batch.segments > 0).sum()) for batch in micro_batches)
    num_units, num_tokens = total([sum(batch.num_units for batch in micro_batches), own_tokens], runtime)
    return int(num_units), int(num_tokens)


def _pinned(batch: MicroT) -> MicroT:
    return batch.pinned()


def _sum_and_clip(parameters: Sequence[nn.Parameter], clip: float, runtime: Runtime) -> float:
    """Bound the global norm of gradients, and sum first what shared-out layers leave to sum; returns what it was."""
    if runtime.mesh is None:
        return float(nn.utils.clip_grad_norm_(parameters, clip))
    from jielong.train import sharding  # here: it takes seconds to import, see there

    sharding.sum_parts(parameters, runtime)
    return sharding.clip_gradients(parameters, clip, runtime)


def _check_finite(
    losses: list[float],
    loss_sum: float,
    grad_norm: float,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    """Raise TrainingError naming step and micro-batch, or step and parameter, and drop the bad gradients.

    losses: of this process's micro-batches; loss_sum: over all processes.
    """
    bad = [index for index, loss in enumerate(losses) if not math.isfinite(loss)]
    if bad:
        what = f"the loss of micro-batch {bad[0] + 1} of {len(losses)} is {losses[bad[0]]}"
    elif not math.isfinite(loss_sum):
        what = f"the loss is {loss_sum} in another process, which says in which micro-batch"
    elif not math.isfinite(grad_norm):
        named = ((name, parameter.grad) for name, parameter in model.named_parameters())
        broken = [name for name, grad in named if grad is not None and not torch.isfinite(grad).all()]
        where = f", first in {broken[0]}" if broken else ""
        what = f"the gradient of its {len(losses)} micro-batches is not finite (norm {grad_norm}{where})"
    else:
        return
    optimizer.zero_grad(set_to_none=True)
    raise TrainingError(
        f"step {step}: {what}. The weights are those from before this step. "
        "Lower the learning rate, lengthen the warm-up, or look at the rows of this batch."
    )


def fit(
    model: ModelT,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], Sequence[MicroT]],
    objective: Objective[ModelT, MicroT],
    schedule: Callable[[int], float],
    runtime: Runtime,
    config: FitConfig,
) -> Iterator[StepStats]:
    """Train from `config.start` to `config.num_steps`, yielding after every step.

    batches: the micro-batches of a step, a pure function of it, so that going on means asking for step k.
    schedule: multiplier of each group's `initial_lr` at a step (see schedule.multiplier).
    Both are asked with steps counted from 0; the StepStats say how many steps are done, from start + 1 to num_steps.
    The caller may switch the model to eval() in its body; every step trains in train() mode.
    Raises UsageError for settings out of range, TrainingError as train_step, and where weights are shared out for
    processes with different numbers of micro-batches.
    """
    if not (config.clip > 0 and 0 <= config.start):
        raise UsageError(f"fit: clip = {config.clip} must be above 0 and start = {config.start} not negative")
    steps = range(config.start, config.num_steps)
    # With a GPU the host has nothing else to do; on a CPU the thread would only take from the step's own.
    ahead: Iterator[Sequence[MicroT]] = map(batches, steps)
    if runtime.device.type == "cuda":
        ahead = made_ahead(batches, config.start, config.num_steps, _pinned)
    for step in steps:
        started = time.perf_counter()
        model.train()
        micro_batches = next(ahead)
        if runtime.mesh is not None:  # not in train_step: PPO sees to it itself, see align.ppo.even_share
            check_equal_shares(len(micro_batches), runtime)
        set_learning_rate(optimizer, schedule(step))
        stats = train_step(model, optimizer, micro_batches, objective, runtime, config.clip, step + 1)
        yield replace(stats, seconds=time.perf_counter() - started)
