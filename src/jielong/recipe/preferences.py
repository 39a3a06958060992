"""What a recipe may say about preferences: the tables of the stages that learn from them."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jielong.align.dpo import DPOConfig
from jielong.align.settings import GRPOConfig, PolicyConfig, PPOConfig
from jielong.config import Settings
from jielong.recipe.settings import (
    Count,
    LoraSettings,
    Names,
    NotNegative,
    NumberOrFalse,
    Optimisation,
    Positive,
    VotesSettings,
    translated,
)


class ComparisonSettings(Optimisation):
    """What reward and dpo share: where comparisons come from, and how many are held out.

    batch_rows counts prompts, each with its replies.
    """

    num_prompts: Count | None = None
    replies_per_prompt: Annotated[int, Field(ge=2)] | None = None
    label_agreement: Annotated[float, Field(gt=0.5, lt=1)] = 0.75  # of the labeller with the hidden preference, a pair
    max_new_tokens: Count = 64  # of sampled replies
    temperature: Positive = 1.0
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of the prompts
    votes: VotesSettings | None = None
    lora: LoraSettings | None = None


class RewardSettings(ComparisonSettings):
    """kind = "reward": a scalar head learns from comparisons, given or made by a simulated labeller."""

    sources: Names = ("world",)  # "world": sampled from the sft model and labelled here
    ties: Literal["drop", "half"] = "drop"  # half: either is preferred with chance 1/2

    @model_validator(mode="before")
    @classmethod
    def _votes_may_be_all(cls, given: Any) -> Any:
        """Where there are votes, the labeller is asked only when the recipe says so."""
        if isinstance(given, dict) and given.get("votes") is not None and "sources" not in given:
            return {**given, "sources": []}
        return given


class Judged(Settings):
    """What the stages share that end in a policy: how it is compared with the SFT model."""

    judged_prompts: Count = 200  # held-out prompts of the win rate, a seed
    judged_seeds: Annotated[int, Field(ge=3)] = 3


class DpoSettings(ComparisonSettings, Judged):
    """kind = "dpo": the newest sft model learns from comparisons, with no reward model. See DPOConfig."""

    sources: Names = ()  # as in reward; or
    comparisons: str | None = None  # the name of a reward stage before it, whose comparisons and split are taken
    beta: float
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: float = 0.0

    @model_validator(mode="after")
    def _check(self) -> DpoSettings:
        translated(self.objective)
        if (bool(self.sources) or self.votes is not None) == (self.comparisons is not None):
            raise ValueError(
                'set exactly one of sources and comparisons, for example comparisons = "reward"; votes are a source'
            )
        return self

    def objective(self) -> DPOConfig:
        """The settings of the loss alone."""
        return DPOConfig(self.beta, self.loss, self.label_smoothing)


class BestOfNSettings(Optimisation, Judged):
    """kind = "best_of_n": the newest sft model learns the best of its own replies.

    batch_rows counts packed rows, as in sft.
    """

    num_prompts: Count
    replies_per_prompt: Annotated[int, Field(ge=2)]  # n
    max_new_tokens: Count = 64
    temperature: Positive = 1.0
    missing_eos_score: NumberOrFalse = -1.0
    reward: Literal["model", "mean", "min"] = "model"
    lora: LoraSettings | None = None


class PolicySettings(Judged):
    """What ppo and grpo share. See PolicyConfig."""

    num_iterations: Count
    rollout_rows: Count
    max_new_tokens: Count
    temperature: float = 1.0
    reward: Literal["model", "mean", "min", "verifiable", "http"] = "model"  # who judges
    skills: Names = ()  # of the world's, whose answers are verified
    reward_url: str | None = None  # of a service
    reward_timeout_seconds: Positive = 10.0
    max_skipped_fraction: float = 0.1
    kl_coefficient: float
    target_kl: float | None = None
    kl_horizon_episodes: int = 10000
    missing_eos_score: NumberOrFalse = -1.0  # false: off
    inner_epochs: int = 1
    minibatch_rows: Count
    micro_batch_rows: int = 32
    clip: float = 0.2
    inner_kl_limit: NumberOrFalse = 0.05  # false: off
    kl_limit: float | None = None
    learning_rate: Positive
    warmup_iterations: int = 5
    final_fraction: float = 0.1
    gradient_clip: float = 1.0
    ptx_coefficient: float = 0.0
    ptx_source: Literal["pretrain", "sft"] = "pretrain"  # rows of the corpus, or conversations of the sft stage
    ptx_rows: Count | None = None  # a step; minibatch_rows when left out
    ema_decay: float | None = None
    lora: LoraSettings | None = None  # of policy and critic; reference and reward model then share their weights
    num_prompts: Count | None = None  # to draw episodes from
    watch_every: Count = 10  # iterations between points of the gold curve
    checkpoint_every: Count = 5  # iterations

    @model_validator(mode="after")
    def _check(self) -> PolicySettings:
        translated(self.optimisation)
        if self.rollout_rows % self.minibatch_rows:
            raise ValueError(f"minibatch_rows = {self.minibatch_rows} must divide rollout_rows = {self.rollout_rows}")
        self._refuse_unused(("kl_horizon_episodes",), self.target_kl is None, "without target_kl")
        self._refuse_unused(("ptx_source", "ptx_rows"), self.ptx_coefficient == 0, "with ptx_coefficient = 0")
        of_http = ("reward_url", "reward_timeout_seconds")
        self._refuse_unused(of_http, self.reward != "http", 'without reward = "http"')
        self._refuse_unused(("skills",), self.reward != "verifiable", 'without reward = "verifiable"')
        judges = self.reward in ("verifiable", "http")
        self._refuse_unused(("max_skipped_fraction",), not judges, f'with reward = "{self.reward}", which judges all')
        if self.reward == "http" and self.reward_url is None:
            raise ValueError('reward = "http" wants a reward_url')
        if self.reward == "verifiable" and not self.skills:
            raise ValueError('reward = "verifiable" wants skills, for example skills = ["arithmetic"]')
        return self

    def _refuse_unused(self, names: tuple[str, ...], unused: bool, where: str) -> None:
        """Refuse values other than the defaults, for the resolved recipe spells all defaults out."""
        for name in names:
            if unused and self.__dict__[name] != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect {where}; delete it or set that")

    def optimisation(self) -> PolicyConfig:
        """The settings that align/ wants, without those of the stage around it; what is off is None there."""
        raise NotImplementedError

    def _values(self, config: type[PolicyConfig]) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(config)}
        return {name: None if value is False else value for name, value in self if name in names}


class PpoSettings(PolicySettings):
    """kind = "ppo": the newest sft model, held to by a penalty, learns to be preferred. See PPOConfig."""

    discount: float = 1.0
    smoothing: float = 0.95
    value_clip: float = 0.2
    critic_learning_rate: Positive
    critic_warmup_iterations: NotNegative = 0

    def optimisation(self) -> PPOConfig:
        """See PolicySettings."""
        return PPOConfig(**self._values(PPOConfig))


class GrpoSettings(PolicySettings):
    """kind = "grpo": the same without a critic, replies to one prompt judged against each other. See GRPOConfig."""

    group_size: int = 8
    estimator: Literal["grpo", "rloo"] = "grpo"

    def optimisation(self) -> GRPOConfig:
        """See PolicySettings."""
        return GRPOConfig(**self._values(GRPOConfig))


class PromoteSettings(Judged):
    """kind = "promote": the new policy takes the old one's place only when a judge finds it better."""

    judge: Literal["votes", "heldout", "reward", "gold"]
    threshold: Annotated[float, Field(ge=0.5, lt=1)] = 0.5  # the lower end of the win rate's interval must be above it
    votes: VotesSettings | None = None  # of people who compared the two models
    reward: str | None = None  # a reward stage: the judge, or whose held-out comparisons judge; the newest if left out
    max_new_tokens: Count = 64  # of sampled replies
    temperature: Positive = 1.0

    @model_validator(mode="after")
    def _check(self) -> PromoteSettings:
        if self.judge == "votes" and self.votes is None:
            raise ValueError('judge = "votes" wants a votes table, for example votes = {files = ["votes.jsonl"]}')
        names = ("judged_prompts", "judged_seeds", "max_new_tokens", "temperature")
        unused = {
            "votes": self.judge != "votes",
            "reward": self.judge not in ("reward", "heldout"),
            **dict.fromkeys(names, not self.samples),
        }
        for name, is_unused in unused.items():
            if is_unused and self.__dict__[name] != type(self).model_fields[name].default:
                raise ValueError(f'{name} has no effect with judge = "{self.judge}"; delete it')
        return self

    @property
    def samples(self) -> bool:
        """Whether the judge wants replies of both models."""
        return self.judge in ("reward", "gold")
