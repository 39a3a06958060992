"""What a recipe may say: one strict, frozen model per table. To add a setting, add a line to its class.

Defaults are habits (AdamW's betas, a 0.2 clip range); what is a choice (sizes, rates, amounts) has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin, get_type_hints

from pydantic import Field, WrapValidator, create_model, model_validator

from jielong.align.settings import PPOConfig
from jielong.config import Settings
from jielong.data.curate import CurateConfig
from jielong.data.sources import Source
from jielong.errors import ModelError, UsageError
from jielong.model.config import ModelConfig
from jielong.model.induction import check_induction
from jielong.recipe.shape import ModelSettings

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]

MAX_QUESTIONS_PER_SKILL = 200  # held-out questions of the world that are kept out of the training text


def _number_or_false(value: object, number: Callable[[object], float]) -> float:
    """Exactly `false` stands for "off", which TOML has no other word for; everything else must be a number."""
    return False if value is False else number(value)


NumberOrFalse = Annotated[float, WrapValidator(_number_or_false)]
Names = Annotated[tuple[str, ...], Field(strict=False)]  # TOML has arrays only; the items stay strict


def _translated(make: Callable[[], object]) -> None:
    """Lets a class below judge its own values: its error becomes one of this table."""
    try:
        make()
    except (ModelError, UsageError) as error:
        raise ValueError(str(error).removeprefix("source 'it': ")) from None


class RunSettings(Settings):
    """[run]: what holds for all stages."""

    name: str = Field(min_length=1)  # the run folder is runs/NAME; the recipe file's name when left out
    seed: NotNegative = 0  # every random number of the run follows from it
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: Count | None = None


class WorldSettings(Settings):
    """[data.world]: how much text the built-in generator writes; named "world" in a stage's sources."""

    megabytes: Positive
    heldout_megabytes: Positive = 0.3
    junk: bool = True  # duplicates, boilerplate, personal data: what curation is there to find


class SourceSettings(Settings):
    """[data.sources.NAME]: a file under the data root, downloaded once from `url` when it is not there. See Source."""

    path: str = Field(min_length=1)
    url: str | None = None
    sha256: str | None = None
    licence: str | None = None
    format: str = "auto"
    field: str = "text"
    split: str = "file"
    language: str = ""
    limit_documents: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> SourceSettings:
        _translated(lambda: self.source("it"))
        if self.sha256 is not None and self.url is None:
            raise ValueError("sha256 has no effect without url: only downloads are checked; delete it or set url")
        return self

    def source(self, name: str) -> Source:
        """The same as the data floor's own type."""
        return Source(name=name, **dict(self))


class DataSettings(Settings):
    """[data]: where text comes from."""

    root: str | None = None
    world: WorldSettings | None = None
    sources: dict[str, SourceSettings] = {}


def _rules_model() -> type[Settings]:
    """CurateConfig's fields as a strict table: the rules are explained and given their defaults there alone."""
    hints = get_type_hints(CurateConfig)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(CurateConfig):
        is_tuple = get_origin(hints[field.name]) is tuple
        kind = Annotated[hints[field.name], Field(strict=False)] if is_tuple else hints[field.name]
        fields[field.name] = (kind, ... if field.default is dataclasses.MISSING else field.default)
    return create_model("CurateRules", __base__=Settings, **fields)


if TYPE_CHECKING:
    CurateRules = Settings
else:
    CurateRules = _rules_model()


class CurateSettings(CurateRules):
    """kind = "curate": which documents enter the corpus, and which of them are held out. See CurateConfig."""

    sources: Names
    heldout: Literal["documents", "tail"] = "documents"  # whole documents by hash, or the end of each one
    heldout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of sources; the world has its own

    @model_validator(mode="after")
    def _check(self) -> CurateSettings:
        _translated(self.rules)
        return self

    def rules(self) -> CurateConfig:
        """The rules alone, as the curation itself wants them."""
        names = {field.name for field in dataclasses.fields(CurateConfig)}
        return CurateConfig(**{name: value for name, value in self if name in names})


class TokenizerSettings(Settings):
    """kind = "tokenizer": byte-level BPE. 263 = 256 bytes + 7 control tokens, no merges (characters, for ASCII)."""

    vocab_size: Annotated[int, Field(ge=263)]
    max_megabytes: Positive = 100.0  # of text to train on


class Optimisation(Settings):
    """How a stage trains: an optimizer, a schedule, and exactly one of num_steps and epochs."""

    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices inside layers, AdamW for the rest
    learning_rate: Positive  # AdamW's
    matrix_learning_rate: Positive = 0.02  # Muon's
    batch_rows: Count
    accumulate: Count = 1  # micro-batches of batch_rows rows a step
    num_steps: Count | None = None
    epochs: Positive | None = None
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    warmup_steps: NotNegative = 0
    final_fraction: Fraction = 0.1  # of the learning rate, at the last step
    decay_fraction: Fraction = 0.2  # of the steps, for "wsd"
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    clip: Positive = 1.0  # the gradient's norm
    evaluate_every: Count = 200  # steps
    checkpoint_every: Count = 200  # steps

    @model_validator(mode="after")
    def _check(self) -> Optimisation:
        if (self.num_steps is None) == (self.epochs is None):
            raise ValueError("set exactly one of num_steps and epochs")
        if self.num_steps is not None and self.warmup_steps >= self.num_steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} must be less than num_steps = {self.num_steps}: "
                "the learning rate would never arrive"
            )
        fields = type(self).model_fields
        if self.optimizer != "muon" and self.matrix_learning_rate != fields["matrix_learning_rate"].default:
            raise ValueError("matrix_learning_rate has no effect with optimizer = 'adamw', but with 'muon'; delete it")
        if self.schedule == "constant" and self.final_fraction != fields["final_fraction"].default:
            raise ValueError("final_fraction has no effect with schedule = 'constant'; delete it")
        if self.schedule != "wsd" and self.decay_fraction != fields["decay_fraction"].default:
            raise ValueError(
                f"decay_fraction has no effect with schedule = '{self.schedule}', but with 'wsd'; delete it"
            )
        return self

    def steps(self, num_steps_per_epoch: int) -> int:
        """Optimizer steps in all."""
        return self.num_steps or max(1, round((self.epochs or 0.0) * num_steps_per_epoch))


class PretrainSettings(Optimisation):
    """kind = "pretrain": a decoder learns the curated text, in rows of context_tokens."""

    model: ModelSettings
    context_tokens: Annotated[int, Field(ge=8)]
    start: Literal["random", "induction"] = "random"  # induction: with a circuit that copies, see model/induction.py

    @model_validator(mode="after")
    def _check_start(self) -> PretrainSettings:
        if self.start == "induction":
            config = ModelConfig(vocab_size=263, max_length=self.context_tokens, **self.model.sizes())
            _translated(lambda: check_induction(config))
        return self


class SftSettings(Optimisation):
    """kind = "sft": the newest model before it, or the folder `model`, learns to answer."""

    sources: Names  # "world" or sources that hold conversations
    num_conversations: Count | None = None  # of the world
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05  # of the sources
    packed: bool = True  # several conversations a row
    model: str | None = None  # a model folder to start from, for a recipe without pretraining


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
    pretraining_coefficient: float = 0.0
    num_prompts: Count | None = None  # to draw episodes from
    watch_every: Count = 10  # iterations between points of the gold curve
    judged_prompts: Count = 200  # held-out prompts of the win rate, a seed
    judged_seeds: Annotated[int, Field(ge=3)] = 3
    checkpoint_every: Count = 5  # iterations

    @model_validator(mode="after")
    def _check(self) -> PpoSettings:
        _translated(self.optimisation)
        if self.rollout_rows % self.minibatch_rows:
            raise ValueError(f"minibatch_rows = {self.minibatch_rows} must divide rollout_rows = {self.rollout_rows}")
        default = type(self).model_fields["kl_horizon_episodes"].default
        if self.target_kl is None and self.kl_horizon_episodes != default:
            raise ValueError("kl_horizon_episodes has no effect without target_kl; delete it or set target_kl")
        return self

    def optimisation(self) -> PPOConfig:
        """The settings that align/ wants, without those of the stage around it; what is off is None there."""
        names = {field.name for field in dataclasses.fields(PPOConfig)}
        values: dict[str, Any] = {name: None if value is False else value for name, value in self if name in names}
        return PPOConfig(**values)


class EvaluateSettings(Settings):
    """kind = "evaluate": the same prompts to all models of the run."""

    skills: Names = ()  # all of the world's when empty
    questions_per_skill: Annotated[int, Field(ge=1, le=MAX_QUESTIONS_PER_SKILL)] = 100
    prompts: Names = ()  # shown side by side where there is no world to ask
    max_new_tokens: Count = 64


STAGE_SETTINGS: dict[str, type[Settings]] = {
    "curate": CurateSettings,
    "tokenizer": TokenizerSettings,
    "pretrain": PretrainSettings,
    "sft": SftSettings,
    "reward": RewardSettings,
    "ppo": PpoSettings,
    "evaluate": EvaluateSettings,
}
