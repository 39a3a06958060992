"""The settings of learning from rewards, with the habits of the field as defaults."""

from __future__ import annotations

from dataclasses import dataclass

from jielong.errors import UsageError

ESTIMATORS = ("grpo", "rloo")


@dataclass(frozen=True)
class PolicyConfig:
    """What every method needs that samples replies and learns from their rewards. See PPOConfig and GRPOConfig.

    An iteration is one rollout and the updates made from it. There is deliberately no top_p, no top_k and no repetition
    penalty: the log-probabilities that are compared are of the whole distribution at `temperature`, and a cut one would
    bias every ratio. There is no dropout either.
    Raises UsageError naming the field, its value and what is legal.
    """

    num_iterations: int  # a choice, so it has no default
    rollout_rows: int = 64  # replies (episodes) an iteration
    max_new_tokens: int = 48  # longest reply, its end token included
    temperature: float = 1.0  # of sampling, and of every log-probability in rollout and update
    # Reward.
    kl_coefficient: float = 0.05  # beta, reward a nat; its first value when target_kl is set
    target_kl: float | None = None  # nats a reply; None holds the coefficient still
    kl_horizon_episodes: int = 10000  # episodes in which the adaptive coefficient moves by up to a fifth
    missing_eos_score: float | None = -1.0  # REPLACES the score of a reply that does not end its turn; None: off
    max_skipped_fraction: float = 0.1  # of a rollout's replies that the reward could not judge; beyond it the run stops
    # Update.
    inner_epochs: int = 1  # passes over a rollout
    minibatch_rows: int = 32  # rows an optimizer step
    micro_batch_rows: int = 32  # most rows a forward pass, to bound memory; changes no gradient
    clip: float = 0.2  # of the probability ratio
    inner_kl_limit: float | None = 0.05  # nats a token from the rollout's policy; 1.5 times it: update ends; None: off
    learning_rate: float = 1e-4  # of the policy
    warmup_iterations: int = 5  # rates rise linearly, then fall linearly; at most num_iterations of them
    final_fraction: float = 0.1  # of the rates, at the last iteration
    gradient_clip: float = 1.0
    ptx_coefficient: float = 0.0  # PPO-ptx: weight of the mean next-token loss on rows of other text
    ema_decay: float | None = None  # of a moving average of the policy's weights, a step; None: no average
    kl_limit: float | None = None  # nats a reply; the first rollout above it is the last; None: off

    def __post_init__(self) -> None:
        counts = (
            "num_iterations",
            "rollout_rows",
            "max_new_tokens",
            "inner_epochs",
            "minibatch_rows",
            "micro_batch_rows",
        )
        for name in (*counts, "kl_horizon_episodes"):
            _require(self, name, "1 or more", self.__dict__[name] >= 1)
        for name in ("temperature", "clip", "learning_rate", "gradient_clip"):
            _require(self, name, "above 0", self.__dict__[name] > 0)
        for name in ("kl_coefficient", "ptx_coefficient", "warmup_iterations"):
            _require(self, name, "0 or more", self.__dict__[name] >= 0)
        for name in ("final_fraction", "max_skipped_fraction"):
            _require(self, name, "between 0 and 1", 0 <= self.__dict__[name] <= 1)
        decay = self.ema_decay
        _require(self, "ema_decay", "above 0 and below 1, or left out", decay is None or 0 < decay < 1)
        for name in ("target_kl", "kl_limit", "inner_kl_limit"):
            off = "off (None, in a recipe false)" if name == "inner_kl_limit" else "left out"
            value = self.__dict__[name]
            _require(self, name, f"above 0, or {off}", value is None or value > 0)

    @property
    def steps_per_iteration(self) -> int:
        """Most optimizer steps of the policy in one iteration."""
        return self.inner_epochs * -(-self.rollout_rows // self.minibatch_rows)

    @property
    def micro_rows(self) -> int:
        """Rows of one forward pass in rollout and update alike, so that both do the same arithmetic."""
        return min(self.micro_batch_rows, self.minibatch_rows)


@dataclass(frozen=True)
class PPOConfig(PolicyConfig):
    """Everything that PPO needs to know: the above, and what concerns its critic."""

    discount: float = 1.0  # gamma
    smoothing: float = 0.95  # lambda of GAE
    value_clip: float = 0.2  # of the value's move away from the rollout's value
    critic_learning_rate: float = 3e-4
    critic_warmup_iterations: int = 0  # first iterations, in which only the critic learns

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("value_clip", "critic_learning_rate"):
            _require(self, name, "above 0", self.__dict__[name] > 0)
        _require(self, "critic_warmup_iterations", "0 or more", self.critic_warmup_iterations >= 0)
        for name in ("discount", "smoothing"):
            _require(self, name, "between 0 and 1", 0 <= self.__dict__[name] <= 1)


@dataclass(frozen=True)
class GRPOConfig(PolicyConfig):
    """The same without a critic: replies to one prompt are judged against each other.

    group_size: K, replies to each prompt. estimator: see align.grpo.group_advantages.
    """

    group_size: int = 8
    estimator: str = "grpo"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "group_size", "2 or more", self.group_size >= 2)
        _require(self, "estimator", f"one of {', '.join(ESTIMATORS)}", self.estimator in ESTIMATORS)
        divides = self.rollout_rows % self.group_size == 0
        _require(self, "group_size", f"a divisor of rollout_rows = {self.rollout_rows}", divides)


def _require(config: PolicyConfig, name: str, legal: str, holds: bool) -> None:
    if not holds:
        method = type(config).__name__.removesuffix("Config")
        raise UsageError(f"{method} setting {name} is {config.__dict__[name]!r}; it must be {legal}")
