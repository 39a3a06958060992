"""What a recipe may say of the stage `translate`."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from jielong.generate.beam import BeamConfig
from jielong.model.config import ModelConfig
from jielong.model.structure import Structure, StructuredTransformer
from jielong.recipe.settings import Count, Learning, Names, translated
from jielong.recipe.shape import TranslatorSettings


class TranslateSettings(Learning):
    """kind = "translate": an encoder-decoder learns to turn one language into another.

    Adam's second beta, the schedule and the absence of decay are those of Vaswani et al. 2017, section 5.3.
    """

    sources: Names  # of pairs: one file of columns, or one file a language, the second beside the first
    validation: Names  # likewise; never learned from
    from_language: str
    to_language: str
    architecture: Literal["transformer", "recurrent", "structured"] = "transformer"
    model: TranslatorSettings
    recurrent_layers: Count = 2  # of each of the two LSTMs, with architecture = "recurrent"
    recurrent_width: Count | None = None  # the model's when left out
    switches: Names = ()  # that are on, with architecture = "structured"; see model/structure.py
    context_tokens: Annotated[int, Field(ge=8)]  # longest source or target; longer pairs are left out
    batch_tokens: Count  # rows times the longest side of a micro-batch
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    average_last: Count = 5  # evaluations whose weights are averaged to be the model
    beam: Count = 4
    length_penalty: Annotated[float, Field(ge=-10, le=10)] = 0.6
    watch_pairs: Count = 500  # of validation, translated greedily at each evaluation
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["cosine", "wsd", "linear", "constant", "noam"] = "noam"

    @model_validator(mode="after")
    def _check_translate(self) -> TranslateSettings:
        translated(lambda: BeamConfig(self.beam, self.length_penalty))
        if self.from_language == self.to_language:
            raise ValueError(f"from_language and to_language are both '{self.to_language}'; they must differ")
        if (self.recurrent_width or 0) % 2:
            raise ValueError(f"recurrent_width = {self.recurrent_width} must be even: half for each direction")
        belong = {"recurrent_layers": "recurrent", "recurrent_width": "recurrent", "switches": "structured"}
        for name, architecture in belong.items():
            if self.architecture != architecture and self.__dict__[name] != type(self).model_fields[name].default:
                value = self.__dict__[name]
                raise ValueError(f"{name} = {value} has no effect with architecture = '{self.architecture}'")
        if self.architecture == "structured":
            self._check_structure()
        return self

    def _check_structure(self) -> None:
        legal = [field.name for field in fields(Structure)]
        for switch in self.switches:
            if switch not in legal:
                raise ValueError(f"switches: {switch!r} is none; legal are {', '.join(legal)}")
        config = ModelConfig(vocab_size=263, max_length=self.context_tokens, **self.model.sizes())
        with torch.device("meta"):
            translated(lambda: StructuredTransformer(config, self.structure()))

    def structure(self) -> Structure:
        """The switches that are on."""
        return Structure(**dict.fromkeys(self.switches, True))
