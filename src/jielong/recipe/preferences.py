"""What a recipe may say about preferences: the tables of the stages that learn from them."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jielong.align.settings import PPOConfig
from jielong.config import Settings
from jielong.recipe.settings import (
    Count,
    LoraSettings,
    Names,
    NumberOrFalse,
    Optimisation,
    Positive,
    translated,
)


class RewardSettings(Optimisation):
    """kind = "reward": comparisons of replies, given or made by a simulated labeller; a scalar head learns from them.

    batch_rows counts prompts, each with its replies.
    """

    sources: Names = ("world",)  # "world": sampled from the sft model and labelled here
    num_prompts: Count | None = None
    replies_per_prompt: Annotated[int, Field(ge=2)] | None = None
    label_agreement: Annotated[float, Field(gt=0.5, lt=1)] = 0.75  # of the labeller with the hidden preference, a pair
    max_new_tokens: Count = 64  # of the sampled replies, which the score's zero and unit are taken from as well
    temperature: Positive = 1.0
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of the prompts
    lora: LoraSettings | None = None  # the head learns whole all the same


class PpoSettings(Settings):
    """kind = "ppo": the newest sft model, held to by a penalty, learns to be preferred. See PPOConfig."""

    num_iterations: Count
    rollout_rows: Count
    max_new_tokens: Count
    temperature: float = 1.0
    kl_coefficient: float
    target_kl: float | None = None
    kl_horizon_episodes: int = 10000
    missing_eos_score: NumberOrFalse = -1.0  # false: off
    discount: float = 1.0
    smoothing: float = 0.95
    inner_epochs: int = 1
    minibatch_rows: Count
    micro_batch_rows: int = 32
    clip: float = 0.2
    value_clip: float = 0.2
    inner_kl_limit: NumberOrFalse = 0.05  # false: off
    learning_rate: Positive
    critic_learning_rate: Positive
    warmup_iterations: int = 5
    final_fraction: float = 0.1
    critic_warmup_iterations: int = 0
    gradient_clip: float = 1.0
    ptx_coefficient: float = 0.0
    ptx_source: Literal["pretrain", "sft"] = "pretrain"  # rows of the corpus, or conversations of the sft stage
    ptx_rows: Count | None = None  # a step; minibatch_rows when left out
    ema_decay: float | None = None
    kl_limit: float | None = None
    lora: LoraSettings | None = None  # of policy and critic; reference and reward model then share their weights
    num_prompts: Count | None = None  # to draw episodes from
    watch_every: Count = 10  # iterations between points of the gold curve
    judged_prompts: Count = 200  # held-out prompts of the win rate, a seed
    judged_seeds: Annotated[int, Field(ge=3)] = 3
    checkpoint_every: Count = 5  # iterations

    @model_validator(mode="after")
    def _check(self) -> PpoSettings:
        translated(self.optimisation)
        if self.rollout_rows % self.minibatch_rows:
            raise ValueError(f"minibatch_rows = {self.minibatch_rows} must divide rollout_rows = {self.rollout_rows}")
        for name in ("ptx_source", "ptx_rows"):
            if self.ptx_coefficient == 0 and self.__dict__[name] != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with ptx_coefficient = 0; delete it or set that")
        default = type(self).model_fields["kl_horizon_episodes"].default
        if self.target_kl is None and self.kl_horizon_episodes != default:
            raise ValueError("kl_horizon_episodes has no effect without target_kl; delete it or set target_kl")
        return self

    def optimisation(self) -> PPOConfig:
        """The settings that align/ wants, without those of the stage around it; what is off is None there."""
        names = {field.name for field in dataclasses.fields(PPOConfig)}
        values: dict[str, Any] = {name: None if value is False else value for name, value in self if name in names}
        return PPOConfig(**values)
