"""Proximal policy optimisation: the two losses, the update from one rollout, and the iterations; GRPO's and RLOO's too.

Everything an iteration does is a function of its number, the seed, the weights and the optimizers' state, so a run that
goes on from a checkpoint taken between two iterations is bit-equal to one that was never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from jielong.align.grpo import collect_groups
from jielong.align.learner import Learner, check_frozen, move_average
from jielong.align.rollout import collect, iteration_prompts, minibatch_rows, trim, values_before
from jielong.align.settings import GRPOConfig, PolicyConfig, PPOConfig
from jielong.data.batch import Batch, Rollout
from jielong.errors import TrainingError
from jielong.generate.engine import Completion
from jielong.model.logprobs import scored_logprobs
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime, derive_seed
from jielong.train.loop import StepStats, train_step
from jielong.train.objectives import Objective, next_token
from jielong.train.optim import set_learning_rate
from jielong.train.parallel import from_leader, own_share, total
from jielong.train.schedule import multiplier

RATIO_TOLERANCE_NATS = 1e-6  # largest |log ratio| before the first update of a rollout
INNER_KL_FACTOR = 1.5


def policy_terms(logprobs: Tensor, batch: Rollout, clip_range: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate: (sum over scored tokens of max(-A r, -A clip(r, 1 - c, 1 + c)), sums of metrics).

    logprobs: (B, T), the policy's now; r = exp(logprobs - batch.logprobs). A = batch.advantages, whitened.
    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7.
    """
    mask = batch.mask
    log_ratio = (logprobs - batch.logprobs)[mask]  # (M,)
    advantages = batch.advantages[mask]
    ratio = log_ratio.exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range))
    with torch.no_grad():
        metrics = {
            "approx_kl": (torch.expm1(log_ratio) - log_ratio).sum(),
            "clip_fraction": ((ratio - 1).abs() > clip_range).sum().float(),
            "moved": (log_ratio.abs() > RATIO_TOLERANCE_NATS).sum().float(),
        }
    return loss.sum(), metrics


def policy_loss(config: PolicyConfig, vocab_size: int | None = None) -> Objective[Transformer, Rollout]:
    """Objective of the policy; log-probabilities by the code path of the rollout's own. vocab_size: the tokenizer's."""

    def objective(model: Transformer, batch: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs, _ = scored_logprobs(
            model, batch.tokens, None, batch.mask, config.temperature, entropy=False, vocab_size=vocab_size
        )
        return policy_terms(logprobs, batch, config.clip)

    return objective


def value_terms(values: Tensor, batch: Rollout, clip_range: float) -> tuple[Tensor, dict[str, Tensor]]:
    """(sum over scored tokens of 0.5 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2), sums of metrics).

    values: (B, T), the critic's now; V_old = batch.values, R = batch.returns (not whitened).
    Source: Ziegler et al. 2019's code (arXiv:1909.08593); Engstrom et al. 2020, arXiv:2005.12729, section 3, item 1.
    """
    mask = batch.mask
    now, old, returns = values[mask], batch.values[mask], batch.returns[mask]
    clipped = torch.clamp(now, old - clip_range, old + clip_range)
    loss = 0.5 * torch.maximum((now - returns) ** 2, (clipped - returns) ** 2)
    metrics = {"value_clip_fraction": ((now - old).abs() > clip_range).sum().float()}
    return loss.sum(), metrics


def value_loss(config: PPOConfig) -> Objective[Transformer, Rollout]:
    """Objective of the critic."""

    def objective(model: Transformer, batch: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        return value_terms(values_before(model, batch.tokens), batch, config.value_clip)

    return objective


def with_text(
    objective: Objective[Transformer, Rollout], coefficient: float, rollout_units: float
) -> Objective[Transformer, Rollout | Batch]:
    """PPO-ptx: the objective, plus coefficient times the mean next-token loss (nats) on a batch of other text.

    That batch is a micro-batch of its own beside the rollout's, without units (see `text_batch`). Its term is
    multiplied by rollout_units, those of the whole minibatch, so that after `train_step`'s one division it is the mean.
    Source: Ouyang et al. 2022, arXiv:2203.02155, equation 2.
    """

    def mixed(model: Transformer, batch: Rollout | Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if isinstance(batch, Rollout):
            return objective(model, batch)
        loss, _ = next_token(model, batch)
        mean = loss / batch.mask.sum().clamp(min=1) * rollout_units
        return coefficient * mean, {"ptx_loss_nats": mean.detach()}

    return mixed


def text_batch(batch: Batch) -> Batch:
    """Rows of text that share a step with a rollout without counting into what its loss is averaged over."""
    return replace(batch, num_units=0)


def minibatches(rollout: Rollout, config: PolicyConfig, order: Sequence[int]) -> Iterator[list[Rollout]]:
    """The rollout's rows in this order, as lists of micro-batches, each as long as its longest row."""
    rows = torch.tensor(order, device=rollout.tokens.device)
    for cuts in minibatch_rows(len(order), config):
        yield [trim(rollout.rows(rows[cut])) for cut in cuts]


def even_share(batch: Sequence[Rollout], runtime: Runtime) -> list[Rollout]:
    """This process's micro-batches of a minibatch; as many in each process where they compute together.

    One that would have fewer reads a row that nothing is scored of.
    """
    own = own_share(batch, runtime)
    if runtime.mesh is not None and len(own) * runtime.world_size < len(batch):
        row = batch[0].rows(torch.zeros(1, dtype=torch.int64, device=batch[0].tokens.device))
        own.append(replace(row, mask=torch.zeros_like(row.mask), num_units=0))
    return own


@dataclass
class _Tally:
    """Means over the steps of one update."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0) + 1

    def add_step(self, who: str, stats: StepStats) -> None:
        self.add(f"{who}_loss", stats.loss)
        self.add(f"{who}_gradient_norm", stats.grad_norm)
        for name, value in stats.metrics.items():
            if name != "moved":  # a check, not a figure
                self.add(name, value)

    def means(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}


def update(
    learner: Learner,
    rollout: Rollout,
    config: PPOConfig | GRPOConfig,
    runtime: Runtime,
    iteration: int,
    text: Callable[[int], Batch] | None = None,
) -> dict[str, float]:
    """Learn from one rollout: inner_epochs passes, each minibatch one step of the policy and one of the critic.

    The first pass takes the rows as they lie, the way their log-probabilities were computed; later ones are shuffled.
    When a minibatch shows that the policy has moved too far from the rollout's, the update ends there.
    text: step of this update -> rows for PPO-ptx.
    Returns means over the steps. Raises TrainingError when the ratios of the first minibatch are not 1.
    """
    objective = policy_loss(config, learner.actors.tokenizer.vocab_size)
    policy, tally, num_steps, stopped = learner.actors.policy, _Tally(), 0, False
    for batch in _passes(rollout, config, runtime, iteration):
        own = even_share(batch, runtime)
        if isinstance(config, GRPOConfig) or iteration >= config.critic_warmup_iterations:
            micro_batches: list[Rollout | Batch] = [*own]
            if text is not None and config.ptx_coefficient > 0:
                micro_batches.append(text_batch(text(num_steps)))
            units = total([sum(part.num_units for part in own)], runtime)[0]
            # every process reads the same text: each adds its part of the one term
            mixed = with_text(objective, config.ptx_coefficient, units / runtime.world_size)
            stats = train_step(
                policy, learner.policy_optimizer, micro_batches, mixed, runtime, config.gradient_clip, iteration
            )
            if num_steps == 0:
                check_ratio(stats)
            move_average(learner, config)
            tally.add_step("policy", stats)
            limit = config.inner_kl_limit
            stopped = limit is not None and stats.metrics["approx_kl"] > INNER_KL_FACTOR * limit
        if isinstance(config, PPOConfig):
            critic, optimizer = learner.actors.critic, learner.critic_optimizer
            assert critic is not None and optimizer is not None, "PPO needs a critic"
            stats = train_step(critic, optimizer, own, value_loss(config), runtime, config.gradient_clip, iteration)
            tally.add_step("critic", stats)
        num_steps += 1
        if stopped:
            break
    return {**tally.means(), "update_steps": float(num_steps), "stopped_early": float(stopped)}


def _passes(rollout: Rollout, config: PolicyConfig, runtime: Runtime, iteration: int) -> Iterator[list[Rollout]]:
    """The minibatches of all inner epochs."""
    num_rows = len(rollout.tokens)
    for epoch in range(config.inner_epochs):
        order = list(range(num_rows))
        if epoch > 0:
            order = torch.randperm(num_rows, generator=runtime.generator("inner", iteration, epoch)).tolist()
        yield from minibatches(rollout, config, order)


def check_ratio(stats: StepStats) -> None:
    """Raises TrainingError unless the policy is still the one that made the rollout (every |log ratio| below 1e-6)."""
    if stats.metrics["moved"] > 0:
        raise TrainingError(
            f"{stats.metrics['moved']:.1%} of the tokens have a probability ratio other than 1 before the first update "
            "of a rollout: its log-probabilities were computed in another way or with other weights than the update's"
        )


@dataclass(frozen=True)
class IterationStats:
    """What one iteration did. iteration: how many are done now. figures: see collect and update. stopped: the last."""

    iteration: int
    figures: dict[str, float]
    completions: list[Completion]
    stopped: bool = False


def optimise(
    learner: Learner,
    prompts: Sequence[list[int]],
    config: PPOConfig | GRPOConfig,
    runtime: Runtime,
    *,
    start: int = 0,
    text: Callable[[int], Batch] | None = None,
) -> Iterator[IterationStats]:
    """Iterations start, ..., num_iterations - 1, yielding after each; save, log and judge in the caller's loop.

    They end before that when a rollout is farther from the reference than kl_limit; nothing is learned from that one.

    prompts: ids ending where the reply begins, all of which must leave room for a reply (rollout.fitting_prompts).
    text: step of the policy, counted over all iterations -> rows for PPO-ptx. Seeds come from runtime.seed and the
    iteration alone.
    Raises TrainingError; see collect, update and check_frozen (called after the last iteration).
    """
    for iteration in range(start, config.num_iterations):
        rows = None if text is None else _from_step(text, iteration * config.steps_per_iteration)
        stats = _iterate(learner, prompts, config, runtime, iteration, rows)
        yield stats
        if stats.stopped or iteration + 1 == config.num_iterations:
            check_frozen(learner, runtime)
        if stats.stopped:
            return


def _from_step(text: Callable[[int], Batch], first: int) -> Callable[[int], Batch]:
    return lambda step: text(first + step)


def _iterate(
    learner: Learner,
    prompts: Sequence[list[int]],
    config: PPOConfig | GRPOConfig,
    runtime: Runtime,
    iteration: int,
    text: Callable[[int], Batch] | None,
) -> IterationStats:
    started = time.perf_counter()
    rate = multiplier(
        iteration,
        kind="linear",
        warmup_steps=min(config.warmup_iterations, config.num_iterations),
        num_steps=config.num_iterations,
        final_fraction=config.final_fraction,
    )
    for optimizer in learner.optimizers.values():
        set_learning_rate(optimizer, rate)
    coefficient, seed = learner.kl.coefficient, derive_seed(runtime.seed, "rollout", iteration)
    num_prompts = config.rollout_rows // (config.group_size if isinstance(config, GRPOConfig) else 1)
    chosen = [prompts[i] for i in iteration_prompts(len(prompts), num_prompts, runtime.seed, iteration)]
    if isinstance(config, GRPOConfig):
        rollout, figures, completions = collect_groups(learner.actors, chosen, config, coefficient, seed, runtime)
    else:
        rollout, figures, completions = collect(learner.actors, chosen, config, coefficient, seed, runtime)
    rollout_seconds = time.perf_counter() - started
    # Each process finds it, and other processors may round it otherwise; one that stopped alone would leave the rest.
    kl = from_leader([figures["kl_nats_per_reply"]] if runtime.process == 0 else None, 1, runtime)[0]
    stopped = config.kl_limit is not None and kl > config.kl_limit
    if not stopped:
        figures |= update(learner, rollout, config, runtime, iteration, text)
        learner.kl.update(kl, config.rollout_rows)
    seconds = time.perf_counter() - started
    figures |= {
        "kl_coefficient": coefficient,
        "learning_rate": config.learning_rate * rate,
        "rollout_seconds": rollout_seconds,
        "seconds": seconds,
        "episodes_per_second": config.rollout_rows / seconds,
    }
    return IterationStats(iteration + 1, figures, completions, stopped)
