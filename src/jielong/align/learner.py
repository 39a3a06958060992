"""Who learns from rewards, from what, and what a checkpoint between two iterations must hold."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from jielong.align.judges import ReplyScorer, RewardEnsemble
from jielong.align.kl import KLController, build_controller
from jielong.align.reward import RewardModel, reward_models, scalar_from_policy
from jielong.align.rollout import Actors, weights_hash
from jielong.align.settings import GRPOConfig, PolicyConfig, PPOConfig
from jielong.errors import CheckpointError, TrainingError
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.tokenizer.tokenizer import Tokenizer
from jielong.train.lora import Adapter, LoraConfig, attach, shared_copy, without_adapter
from jielong.train.optim import OptimizerConfig, build_optimizer


@dataclass(frozen=True)
class Learner:
    """The actors and what makes them learn."""

    actors: Actors
    policy_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer | None
    kl: KLController
    frozen_hashes: dict[str, str]  # of the models that must not change: "reference", "reward"
    adapters: dict[str, Adapter]  # of policy and critic, where only those learn
    average: torch.nn.Module | None  # moving average of the policy's weights, or of its adapter's

    @property
    def models(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint holds, by name."""
        found = {"policy": self.actors.policy, "critic": self.actors.critic, **self.adapters, "average": self.average}
        return {name: model for name, model in found.items() if model is not None}

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """What a checkpoint holds, by name."""
        found = {"policy": self.policy_optimizer, "critic": self.critic_optimizer}
        return {name: optimizer for name, optimizer in found.items() if optimizer is not None}


def build_learner(
    policy: Transformer,
    reward: RewardModel | RewardEnsemble | ReplyScorer,
    tokenizer: Tokenizer,
    config: PPOConfig | GRPOConfig,
    lora: LoraConfig | None = None,
    generator: torch.Generator | None = None,
) -> Learner:
    """A learner from the SFT model and what judges its replies.

    The policy is trained in place; the reference is a frozen copy of it as it is now. PPO's critic starts as the reward
    model, or where the reward is none, as the policy with a fresh scalar head. To go on from a checkpoint, build from
    the same model folders, load the weights, then `restore`.
    lora: train adapters of policy and critic instead. The reference is then the policy without its adapter, and
    reference and reward model share their weights with the two: two models in memory, not four.
    generator: of a fresh head and of the adapters.
    """
    policy.eval()  # without dropout in rollout and update alike: the ratio would not begin at 1
    for judge in reward_models(reward).values():
        judge.model.eval().requires_grad_(False)
    critic = _critic(policy, reward, lora is not None, generator) if isinstance(config, PPOConfig) else None
    adapters: dict[str, Adapter] = {}
    if lora is None:
        reference = copy.deepcopy(policy).eval().requires_grad_(False)
    else:
        assert generator is not None
        adapters["policy"] = attach(policy, lora, generator)
        if critic is not None:
            adapters["critic"] = attach(critic, lora, generator)
        reference = without_adapter(policy)
    hashes = {"reference": weights_hash(reference)}
    hashes |= {name: weights_hash(judge.model) for name, judge in reward_models(reward).items()}
    return assemble(Actors(policy, critic, reference, reward, tokenizer), config, hashes, adapters)


def _critic(
    policy: Transformer,
    reward: RewardModel | RewardEnsemble | ReplyScorer,
    shared: bool,
    generator: torch.Generator | None,
) -> Transformer:
    """Where a critic starts from. shared: its trunk is the reward model's own, to be adapted and not changed."""
    judges = list(reward_models(reward).values())
    if not judges:
        assert generator is not None
        return scalar_from_policy(policy, generator).eval()
    if not shared:
        return judges[-1].critic()
    critic = shared_copy(judges[-1].model)
    critic.score.weight = torch.nn.Parameter(judges[-1].gain * judges[-1].model.score.weight)
    return critic


def _normalisation(reward: object) -> dict[str, object]:
    """Gain and bias of the reward models, as a checkpoint keeps them."""
    found = {name: {"gain": judge.gain, "bias": judge.bias} for name, judge in reward_models(reward).items()}
    return dict(found.get("reward", found))


def _none(model: Transformer) -> list[torch.nn.Parameter]:
    return []


def assemble(
    actors: Actors,
    config: PPOConfig | GRPOConfig,
    frozen_hashes: dict[str, str],
    adapters: dict[str, Adapter] | None = None,
) -> Learner:
    """A learner of given actors."""
    controller = build_controller(config.kl_coefficient, config.target_kl, config.kl_horizon_episodes)
    learner = Learner(actors, *build_optimizers(actors, config), controller, frozen_hashes, adapters or {}, None)
    if config.ema_decay is None:
        return learner
    return replace(learner, average=copy.deepcopy(learner.models["policy"]).requires_grad_(False))


def build_optimizers(
    actors: Actors, config: PPOConfig | GRPOConfig, apart: Callable[[Transformer], list[torch.nn.Parameter]] = _none
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
    """Those of policy and critic. Adam's epsilon is 1e-5: the usual 1e-8 makes the first steps too large.

    apart: a model's parameters that lie otherwise than its rest, as for build_optimizer.
    """

    def optimizer(model: Transformer, rate: float) -> torch.optim.Optimizer:
        return build_optimizer(model, OptimizerConfig(rate, weight_decay=0.0, beta2=0.999, eps=1e-5), apart(model))

    of_critic = None
    if isinstance(config, PPOConfig):
        assert actors.critic is not None, "PPO needs a critic"
        of_critic = optimizer(actors.critic, config.critic_learning_rate)
    return optimizer(actors.policy, config.learning_rate), of_critic


@torch.no_grad()
def move_average(learner: Learner, config: PolicyConfig) -> None:
    """After a step of the policy: average <- decay * average + (1 - decay) * policy. Nothing without an average.

    Source: Ouyang et al. 2022, arXiv:2203.02155, appendix C.4.
    """
    if learner.average is None or config.ema_decay is None:
        return
    for kept, now in zip(learner.average.parameters(), learner.models["policy"].parameters(), strict=True):
        kept.lerp_(now, 1 - config.ema_decay)


@torch.no_grad()
def take_average(learner: Learner) -> None:
    """Make the average the policy. Nothing without an average."""
    if learner.average is not None:
        for now, kept in zip(learner.models["policy"].parameters(), learner.average.parameters(), strict=True):
            now.copy_(kept)


def checkpoint_state(learner: Learner, iteration: int, runtime: Runtime | None = None) -> dict[str, object]:
    """What to store beside weights and optimizers after `iteration` iterations: plain JSON. runtime: see weights_hash.

    Raises TrainingError when the reference or the reward model is not what it was.
    """
    check_frozen(learner, runtime)
    return {
        "iteration": iteration,
        "kl_coefficient": learner.kl.coefficient,
        "reward": _normalisation(learner.actors.reward),
        "hashes": learner.frozen_hashes,
    }


def restore(learner: Learner, state: dict[str, object]) -> int:
    """Take up the KL coefficient of a checkpoint; returns the iteration to go on with.

    Raises CheckpointError when the checkpoint was made with another reference or reward model.
    """
    for what, stored, now in (
        ("reference and reward weights", state["hashes"], learner.frozen_hashes),
        ("reward normalisation", state["reward"], _normalisation(learner.actors.reward)),
    ):
        if stored != now:
            raise CheckpointError(
                f"this PPO checkpoint was made with other {what}: {stored}, now {now}. "
                "Go on with the SFT and reward models it began with, or remove the checkpoint to start again"
            )
    learner.kl.coefficient = float(str(state["kl_coefficient"]))
    return int(str(state["iteration"]))


def check_frozen(learner: Learner, runtime: Runtime | None = None) -> None:
    """Raises TrainingError when the reference or the reward model has changed since the learner was built.

    runtime: see weights_hash.
    """
    models: dict[str, torch.nn.Module] = {"reference": learner.actors.reference}
    models |= {name: judge.model for name, judge in reward_models(learner.actors.reward).items()}
    for name, model in models.items():
        if name in learner.frozen_hashes and weights_hash(model, runtime) != learner.frozen_hashes[name]:
            raise TrainingError(f"the weights of the {name} changed during PPO; they must be frozen")
