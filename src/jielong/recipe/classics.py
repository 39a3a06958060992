"""The tables of BERT's pre-training and of fine-tuning on a task: [mlm], [finetune]."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jielong.data.labelled import TASKS
from jielong.model.config import ModelConfig
from jielong.model.neighbours import check_neighbours
from jielong.recipe.settings import Count, Fraction, Names, NotNegative, Optimisation, translated
from jielong.recipe.shape import EncoderSettings


class MlmSettings(Optimisation):
    """kind = "mlm": an encoder learns to guess hidden tokens of the curated text, and which texts belong together."""

    model: EncoderSettings
    context_tokens: Annotated[int, Field(ge=8)]
    mask_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    whole_words: bool = False
    next_sentence: bool = True
    short_fraction: Fraction = 0.1  # of the rows that are meant to be shorter than context_tokens
    start: Literal["random", "neighbours"] = "random"  # neighbours: first heads look beside, see model/neighbours.py
    vectors: Literal["random", "counted"] = "random"  # counted: the embedding's start, see data/cooccurrence.py

    @model_validator(mode="after")
    def _check_start(self) -> MlmSettings:
        if self.start == "neighbours":
            config = ModelConfig(vocab_size=263, max_length=self.context_tokens, **self.model.sizes())
            translated(lambda: check_neighbours(config))
        return self


class FinetuneSettings(Optimisation):
    """kind = "finetune": the newest model before it, or the folder `model`, learns a task; all its weights do."""

    task: Literal["classification", "pairs", "similarity", "choice", "span"]
    sources: Names  # labelled examples
    heldout_sources: Names = ()  # else heldout_fraction of the sources
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    labels: Names = ()  # legal ones; those of the training examples when empty
    limit_examples: Count | None = None  # learn from so many of the training examples
    from_scratch: bool = False  # the same net, its weights drawn anew
    language_weight: Annotated[float, Field(ge=0)] = (
        0.0  # GPT-1's lambda: of the language model's loss beside the task's
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None  # instead of the model's own
    pooling: Literal["cls", "mean"] = "cls"  # what an encoder's label or choice is read off: [CLS], or all states
    row_tokens: Count | None = None  # the longest row; the model's own limit when left out
    split_seed: NotNegative = 0  # which examples are held out
    model: str | None = None  # a model folder to start from, for a recipe without pre-training

    @model_validator(mode="after")
    def _check_task(self) -> FinetuneSettings:
        assert self.task in TASKS
        fraction = type(self).model_fields["heldout_fraction"].default
        if self.heldout_sources and self.heldout_fraction != fraction:
            raise ValueError("heldout_fraction has no effect with heldout_sources, which are held out; delete it")
        if self.heldout_sources and self.split_seed:
            raise ValueError("split_seed has no effect with heldout_sources, which are held out; delete it")
        both = sorted(set(self.sources) & set(self.heldout_sources))
        if both:
            raise ValueError(f"{both[0]!r} is in sources and in heldout_sources; it cannot teach and examine")
        if self.labels and self.task not in ("classification", "pairs"):
            raise ValueError(f"labels has no effect with task = '{self.task}', whose answers are no labels; delete it")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            raise ValueError(f"labels = {list(self.labels)}: wants two or more different ones")
        if self.pooling == "mean" and self.task == "span":
            raise ValueError("pooling has no effect with task = 'span', which reads every token by itself; delete it")
        if self.language_weight and self.task == "span":
            raise ValueError("language_weight has no effect with task = 'span', which only encoders learn; delete it")
        return self
