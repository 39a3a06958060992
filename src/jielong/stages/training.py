"""The one resumable training run that pretrain, sft and reward share, and the adapter that some of them train."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from jielong.model.transformer import Transformer
from jielong.runtime import derive_seed
from jielong.stages.context import Context
from jielong.train.adapter_folder import save_adapter
from jielong.train.checkpoint import latest_checkpoint, load_checkpoint
from jielong.train.checkpoint_writer import CheckpointWriter
from jielong.train.compiling import compiled_layers
from jielong.train.fp8 import fp8_layers
from jielong.train.loop import FitConfig, StepStats, fit
from jielong.train.lora import Adapter, attach, merge
from jielong.train.objectives import Objective
from jielong.train.optim import OptimizerConfig, build_optimizer
from jielong.train.parallel import (
    check_agreement,
    check_equal_weights,
    rows_each,
    told_when_lost,
)
from jielong.train.schedule import multiplier

SMOOTHING = 0.9  # weight of the past in the displayed loss


class Optimisation(Protocol):
    """The settings that every training stage has (recipe.py)."""

    optimizer: str
    learning_rate: float
    matrix_learning_rate: float
    weight_decay: float
    beta1: float
    beta2: float
    clip: float
    schedule: str
    warmup_steps: int
    final_fraction: float
    decay_fraction: float
    evaluate_every: int
    checkpoint_every: int


def optimizer_config(settings: Optimisation) -> OptimizerConfig:
    """The optimizer's part of a training stage's settings."""
    return OptimizerConfig(
        settings.learning_rate,
        weight_decay=settings.weight_decay,
        beta1=settings.beta1,
        beta2=settings.beta2,
        matrix_learning_rate=settings.matrix_learning_rate if settings.optimizer == "muon" else None,
    )


@dataclass
class Totals:
    """What a training run used, over all its sessions."""

    steps: int
    tokens: int
    seconds: float
    last_loss: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


def train(
    context: Context,
    model: torch.nn.Module,
    objective: Objective,
    batches: Callable[[int], Sequence[Any]],
    num_steps: int,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    learned: torch.nn.Module | None = None,
) -> Totals:
    """Train model in place for num_steps, or for what is left of them after the newest checkpoint.

    batches: step -> its micro-batches, a pure function, so that a resumed run sees what an uninterrupted one would.
    With several processes each takes its share of them; see `micro_batches`, which cuts them finely enough.
    evaluate: step -> figures on held-out data, called every evaluate_every steps and after the last.
    learned: what a checkpoint holds, where that is not the whole model (see `adapt`).
    Side effects: metrics.jsonl and checkpoints/ in the stage's folder. Raises TrainingError when a loss is
    not finite.
    """
    with _as_asked(context, model):
        return _train(context, model, objective, batches, num_steps, evaluate, learned)


@contextmanager
def _as_asked(context: Context, model: torch.nn.Module) -> Iterator[None]:
    """Within the block the layers multiply in 8 bits and run compiled, where [run] says so; tells what does not."""
    run = context.recipe.run
    with contextlib.ExitStack() as stack:
        left_out = None
        if run.fp8 and context.kind == "dpo":  # it learns in eval(), where layers multiply as ever, see align/dpo.py
            left_out = "dpo trains without it, for the policy must be read as its reference was"
        elif run.fp8:  # first: it is these layers that are compiled
            left_out = stack.enter_context(fp8_layers(model))
        if left_out is not None:
            context.progress.say(f"{context.name}: [run] fp8 is on, but {left_out}")
        if run.compile:
            problem = stack.enter_context(compiled_layers(model, context.runtime))
            if problem is not None:
                context.progress.say(f"{context.name}: [run] compile is on, but nothing is compiled: {problem}")
        yield


def _train(
    context: Context,
    model: torch.nn.Module,
    objective: Objective,
    batches: Callable[[int], Sequence[Any]],
    num_steps: int,
    evaluate: Callable[[int], dict[str, float]] | None,
    learned: torch.nn.Module | None,
) -> Totals:
    settings: Optimisation = context.settings
    runtime = context.runtime
    learned = model if learned is None else learned

    def own(step: int) -> Sequence[Any]:
        return batches(step)[runtime.rank :: runtime.world_size]

    with told_when_lost(runtime), placed(context, model, learned) as optimizer, checkpoints(context) as writer:
        totals = _resume(context, learned, optimizer)
        context.metrics.truncate(totals.steps)
        context.progress.start(context.name, num_steps)
        config = FitConfig(clip=settings.clip, start=totals.steps, num_steps=num_steps)
        mark = time.monotonic()
        seed_dropout(context, totals.steps)
        for stats in fit(model, optimizer, own, objective, _rate(settings, num_steps), runtime, config):
            totals.steps, totals.tokens = stats.step, totals.tokens + stats.num_tokens
            totals.seconds += time.monotonic() - mark
            last = stats.step == num_steps
            due = evaluate is not None and (last or stats.step % settings.evaluate_every == 0)
            found_figures = evaluate(stats.step) if evaluate is not None and due else {}
            _record(context, totals, stats, found_figures, num_steps)
            if not last and stats.step % settings.checkpoint_every == 0:
                writer.save(totals.steps, {"model": learned}, {"optimizer": optimizer}, _told(totals))
            seed_dropout(context, stats.step)  # here, not where the batches are made: that may be another thread
            mark = time.monotonic()
    model.eval()
    return totals


def seed_dropout(context: Context, step: int) -> None:
    """Make what dropout draws a function of the step, counted from 0, where a checkpoint cannot hold what comes next.

    A checkpoint holds the state of the leading process's generator on the CPU: enough for one process on a CPU, which
    is left as it is. Processes that read other rows draw other numbers; those that split a layer the same.
    """
    if context.runtime.num_processes > 1 or context.runtime.device.type != "cpu":
        torch.manual_seed(derive_seed(context.seed, "dropout", context.runtime.rank, step))


@contextmanager
def placed(context: Context, model: torch.nn.Module, learned: torch.nn.Module) -> Iterator[torch.optim.Optimizer]:
    """Within the block the model lies as [run] says, shared out over the processes or not; then it is whole again.

    learned: as for `train`; it goes along. Yields its optimizer. A model on the meta device, where weights are to be
    shared out, begins with the weights that the stage's seed draws. Raises UsageError for what cannot be shared out,
    TrainingError when the processes do not begin with the same weights.
    """
    config, runtime = optimizer_config(context.settings), context.runtime
    if isinstance(model, Transformer):
        model.recompute = context.recipe.run.recompute
    weightless = next(model.parameters()).is_meta
    if not weightless:
        check_equal_weights(model, runtime)
    if runtime.mesh is None:
        yield build_optimizer(model.to(runtime.device), config)
        return
    from jielong.train import sharded_muon, sharding  # here: it takes seconds to import, see there

    transformer = sharding.shardable(model)
    skeleton = sharding.skeleton_of(transformer)
    sharding.shard(transformer, runtime)
    if weightless:
        sharding.fill(transformer, runtime, runtime.generator(context.name, "weights"))
    sharding.rebind(learned, model)
    yield build_optimizer(model, config, sharding.split_parameters(model), sharded_muon.ShardedMuon)
    sharding.unshard(transformer, skeleton, runtime)
    sharding.rebind(learned, model)


def checkpoints(context: Context) -> CheckpointWriter:
    """What writes the stage's checkpoints, for use in a `with`; every process makes one, and saves with it."""
    return CheckpointWriter(context.checkpoints, context.runtime, context.recipe.run.async_checkpoints)


def _told(totals: Totals) -> dict[str, Any]:
    """What a checkpoint remembers of what was used."""
    return {"tokens": totals.tokens, "seconds": totals.seconds, "last_loss": totals.last_loss}


def _rate(settings: Optimisation, num_steps: int) -> Callable[[int], float]:
    """The settings' schedule: step -> multiplier of the learning rates."""
    return functools.partial(
        multiplier,
        kind=settings.schedule,
        warmup_steps=settings.warmup_steps,
        num_steps=num_steps,
        final_fraction=settings.final_fraction,
        decay_fraction=settings.decay_fraction,
    )


def micro_batches(context: Context, most: int | None = None) -> tuple[int, int]:
    """(rows of a micro-batch, micro-batches a step) so that every process gets as many as the settings say.

    The rows of a step are the same whatever the number of processes, so that a run may go on with another.
    most: so many rows there are; of fewer than batch_rows as many as can be shared equally are one batch.
    Raises UsageError when the settings' batch_rows cannot be shared equally.
    """
    settings, runtime = context.settings, context.runtime
    rows = rows_each(f"[{context.name}] batch_rows", settings.batch_rows, runtime)
    if most is not None:
        rows = max(1, min(rows, most // runtime.world_size))
    return rows, settings.accumulate * runtime.world_size


def adapt(context: Context, model: Transformer) -> Adapter | None:
    """Where the stage has a lora table: freeze the model and put a fresh adapter into it."""
    lora = context.settings.lora
    if lora is None:
        return None
    return attach(model, lora.config(), context.runtime.generator(context.name, "lora"))


def settle(context: Context, model: Transformer, adapter: Adapter | None, parent: Path) -> dict[str, int]:
    """Write the adapter folder beside where the model folder will be, and merge the adapter into the model.

    parent: the model folder that the adapter belongs on top of. Returns figures; does nothing without an adapter.
    """
    if adapter is None:
        return {}
    folder = context.folder / "adapter"
    save_adapter(model, adapter, folder, Path(os.path.relpath(parent, folder)).as_posix())
    merge(model)
    return {"adapter_parameters": sum(parameter.numel() for parameter in adapter.parameters())}


def newest_checkpoint(context: Context) -> Path | None:
    """What the stage goes on from, None when it begins. Raises UsageError when processes do not see the same one."""
    found = latest_checkpoint(context.checkpoints)
    check_agreement("newest checkpoint", "none" if found is None else found.name, context.runtime)
    return found


def _resume(context: Context, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Totals:
    """Load the newest checkpoint, if there is one, and say what was used up to it."""
    found = newest_checkpoint(context)
    if found is None:
        return Totals(0, 0, 0.0, float("nan"))
    steps, state = load_checkpoint(found, {"model": model}, {"optimizer": optimizer}, context.runtime)
    context.progress.say(f"{context.name}: going on from step {steps}")
    return Totals(steps, state["tokens"], state["seconds"], state["last_loss"])


def _record(context: Context, totals: Totals, stats: StepStats, figures: dict[str, float], num_steps: int) -> None:
    """Write one line of metrics and show the step."""
    first = totals.last_loss != totals.last_loss
    totals.last_loss = stats.loss if first else SMOOTHING * totals.last_loss + (1 - SMOOTHING) * stats.loss
    speed = stats.num_tokens / max(stats.seconds, 1e-9)
    context.metrics.write(
        stats.step,
        loss_nats=stats.loss,
        learning_rate=stats.learning_rate,
        gradient_norm=stats.grad_norm,
        tokens=stats.num_tokens,
        seconds=stats.seconds,
        tokens_per_second=speed,
        **stats.metrics,
        **figures,
    )
    context.progress.update(stats.step, total=num_steps, loss=totals.last_loss, tokens_per_second=speed, **figures)
