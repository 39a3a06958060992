"""What a recipe may say: one strict, frozen model per table. To add a setting, add a line to its class.

Defaults are habits (AdamW's betas, a 0.2 clip range); what is a choice (sizes, rates, amounts) has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin, get_type_hints

from pydantic import Field, WrapValidator, create_model, model_validator

from jielong.config import Settings
from jielong.data.curate import CurateConfig
from jielong.data.mixture import check_weights
from jielong.data.sources import Source
from jielong.data.votes import MAX_BAD_FRACTION
from jielong.errors import ModelError, UsageError
from jielong.evaluate.tasks import find_task
from jielong.model.config import ModelConfig
from jielong.model.induction import check_induction
from jielong.recipe.shape import ModelSettings
from jielong.train.lora import LoraConfig
from jielong.train.parallel import Layout

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


def translated(make: Callable[[], object]) -> None:
    """Lets a class of a lower floor judge its own values: its error becomes one of this table."""
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
    compile: bool = False  # the layers, by torch.compile, where a compiler is there
    fp8: bool = False  # the products of the layers' linear maps in training, on GPUs that have them; see train/fp8.py
    async_checkpoints: bool = False  # written by a thread while training goes on, from copies in memory
    # How several processes share the work. None of these changes what is computed; see docs/distributed.md.
    sharding: Literal["none", "full", "hybrid"] = "none"  # weights: each has all, a part, or a part per machine
    tensor_parallel: Count = 1  # processes that compute each a part of every layer, for the same rows
    recompute: bool = False  # what layers computed on the way forward, on the way back, instead of keeping it

    @model_validator(mode="after")
    def _check(self) -> RunSettings:
        if self.compile and (self.sharding != "none" or self.tensor_parallel > 1):
            raise ValueError(
                "compile goes with whole weights: set sharding = 'none' and tensor_parallel = 1, or delete compile"
            )
        if self.fp8 and (self.sharding != "none" or self.tensor_parallel > 1):
            raise ValueError(
                "fp8 goes with whole weights (in parts it is untried): set sharding = 'none' and tensor_parallel = 1, "
                "or delete fp8"
            )
        if self.fp8 and self.dtype == "float32":
            raise ValueError("fp8 goes with bfloat16, which its products give: set dtype = 'bfloat16' or 'auto'")
        return self

    def layout(self) -> Layout:
        """The same as the training floor's own type."""
        return Layout(self.sharding, self.tensor_parallel)


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
    languages: Names = ()  # of a file of pairs: its columns, or the keys of its records
    limit_documents: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> SourceSettings:
        translated(lambda: self.source("it"))
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
    keep_out: Names = ()  # stages of kind finetune: no text that they are examined on stays in the corpus

    @model_validator(mode="after")
    def _check(self) -> CurateSettings:
        translated(self.rules)
        return self

    def rules(self) -> CurateConfig:
        """The rules alone, as the curation itself wants them."""
        names = {field.name for field in dataclasses.fields(CurateConfig)}
        return CurateConfig(**{name: value for name, value in self if name in names})


class TokenizerSettings(Settings):
    """kind = "tokenizer": byte-level BPE. 263 = 256 bytes + 7 control tokens, no merges (characters, for ASCII)."""

    vocab_size: Annotated[int, Field(ge=263)]
    max_megabytes: Positive = 100.0  # of text to train on
    sources: Names = ()  # of parallel text, all languages together; without them what [curate] kept


class Learning(Settings):
    """How a stage trains, whatever its batches are: an optimizer, a schedule, one of num_steps and epochs."""

    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices inside layers, AdamW for the rest
    learning_rate: Positive  # AdamW's
    matrix_learning_rate: Positive = 0.02  # Muon's
    accumulate: Count = 1  # micro-batches a step
    num_steps: Count | None = None
    epochs: Positive | None = None
    schedule: Literal["cosine", "wsd", "linear", "constant", "noam"] = "cosine"
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
    def _check(self) -> Learning:
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
        endless = self.schedule in ("constant", "noam")
        if endless and self.final_fraction != fields["final_fraction"].default:
            raise ValueError(f"final_fraction has no effect with schedule = '{self.schedule}'; delete it")
        if self.schedule != "wsd" and self.decay_fraction != fields["decay_fraction"].default:
            raise ValueError(
                f"decay_fraction has no effect with schedule = '{self.schedule}', but with 'wsd'; delete it"
            )
        return self

    def steps(self, num_steps_per_epoch: int) -> int:
        """Optimizer steps in all."""
        return self.num_steps or max(1, round((self.epochs or 0.0) * num_steps_per_epoch))


class Optimisation(Learning):
    """How a stage trains on rows."""

    batch_rows: Count  # of one micro-batch


class PretrainSettings(Optimisation):
    """kind = "pretrain": a decoder learns the curated text, in rows of context_tokens."""

    model: ModelSettings
    context_tokens: Annotated[int, Field(ge=8)]
    mixture: dict[str, Positive] | None = None  # source -> weight; without it each source counts by its size
    start: Literal["random", "induction"] = "random"  # induction: with a circuit that copies, see model/induction.py
    z_loss: Annotated[float, Field(ge=0)] = 0.0  # of (log Z)^2 a token; PaLM has 1e-4, the rest nothing
    router_balance: Annotated[float, Field(ge=0)] = 0.01  # of experts: of the loss that lets all be chosen alike often
    router_z: Annotated[float, Field(ge=0)] = 0.001  # of experts: of (log Z)^2 of the router, a token and layer

    @model_validator(mode="after")
    def _check_experts(self) -> PretrainSettings:
        for name in ("router_balance", "router_z"):
            value, usual = self.__dict__[name], type(self).model_fields[name].default
            if value != usual and not self.model.sizes().get("num_experts"):
                raise ValueError(f"{name} = {value} has no effect: the model has no experts; delete it")
        return self

    @model_validator(mode="after")
    def _check_start(self) -> PretrainSettings:
        if self.mixture is not None:
            weights = self.mixture
            translated(lambda: check_weights(weights))
        if self.start == "induction":
            config = ModelConfig(vocab_size=263, max_length=self.context_tokens, **self.model.sizes())
            translated(lambda: check_induction(config))
        return self


class LoraSettings(Settings):
    """[STAGE.lora]: low-rank changes of some linear layers learn, and all else stays as it is. See LoraConfig."""

    rank: Count
    alpha: Positive  # a change is multiplied by alpha / rank
    targets: Names  # of q, k, v, out, gate, up, down
    rank_stabilised: bool = False  # multiplied by alpha / sqrt(rank) instead

    @model_validator(mode="after")
    def _check(self) -> LoraSettings:
        translated(self.config)
        return self

    def config(self) -> LoraConfig:
        """The same as the training floor's own type."""
        return LoraConfig(**dict(self))


class VotesSettings(Settings):
    """[STAGE.votes]: files of what people said of answers. See data/votes.py."""

    files: Annotated[Names, Field(min_length=1)]
    per_user: Count | None = None  # votes of one user that count at most: the last ones
    max_bad_fraction: Fraction = MAX_BAD_FRACTION  # of a file's lines that may be no votes


class SftSettings(Optimisation):
    """kind = "sft": the newest model before it, or the folder `model`, learns to answer."""

    sources: Names  # "world" or sources that hold conversations
    num_conversations: Count | None = None  # of the world
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05  # of the sources
    packed: bool = True  # several conversations a row
    votes: VotesSettings | None = None  # whose edited answers are conversations to learn from
    model: str | None = None  # a model folder to start from, for a recipe without pretraining
    lora: LoraSettings | None = None


class EvaluateSettings(Settings):
    """kind = "evaluate": the same prompts to all models of the run."""

    skills: Names = ()  # all of the world's when empty
    questions_per_skill: Annotated[int, Field(ge=1, le=MAX_QUESTIONS_PER_SKILL)] = 100
    prompts: Names = ()  # shown side by side where there is no world to ask
    max_new_tokens: Count = 64
    tasks: Names = ()  # benchmarks under the data root, see evaluate/tasks.py, asked of every model of the run
    shots: NotNegative = 0  # worked examples before each of their questions
    items_per_task: Count | None = None  # only so many, evenly spaced; all when left out

    @model_validator(mode="after")
    def _check(self) -> EvaluateSettings:
        for name in self.tasks:
            translated(partial(find_task, name))
        if not self.tasks and (self.shots or self.items_per_task):
            raise ValueError("shots and items_per_task have no effect without tasks; delete them, or name some")
        return self
