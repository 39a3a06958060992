"""The models of PPO and GRPO shared out: no process has all of the policy, the critic, the reference or the reward.

With N processes each holds 1/N of them, of their gradients and of their optimizers' state. While replies are sampled
every process has a whole copy of the policy beside that: to decode is to call a model once a token, and to gather its
layers as often would take longer than all else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from jielong.align.learner import Learner, build_optimizers
from jielong.align.reward import reward_models
from jielong.align.settings import GRPOConfig, PPOConfig
from jielong.runtime import Runtime


@contextmanager
def shared_out(learner: Learner, config: PPOConfig | GRPOConfig, runtime: Runtime) -> Iterator[Learner]:
    """Within the block the models lie as the runtime's mesh says, and the learner that it gives learns.

    After it the policy, its average and the reward models are whole again in every process. The critic and the
    reference are not, for nothing reads them then, and the learner that came in has no optimizers any more. With
    adapters nothing is shared out: reference and policy are the same weights there, and what is learned is small.
    All processes call this together.
    """
    if runtime.mesh is None or learner.adapters:
        yield learner
        return
    from jielong.train import sharding  # here: it takes seconds to import, see there

    actors = learner.actors
    averages = [] if learner.average is None else [sharding.shardable(learner.average)]
    read_after = [actors.policy, *averages, *(judge.model for judge in reward_models(actors.reward).values())]
    skeletons = [sharding.skeleton_of(model) for model in read_after]
    for optimizer in learner.optimizers.values():
        optimizer.param_groups.clear()  # which would keep the whole weights
    for model in (*actors.models, *averages):
        sharding.shard(model, runtime)
    of_policy, of_critic = build_optimizers(actors, config, sharding.split_parameters)
    yield replace(learner, policy_optimizer=of_policy, critic_optimizer=of_critic)
    for model, skeleton in zip(read_after, skeletons, strict=True):
        sharding.unshard(model, skeleton, runtime)
