"""What [STAGE.model] may say: a model by its preset, by its sizes, or by a preset with some fields put otherwise.

The fields are ModelConfig's own, which explains them and checks their values; a new one there is a new key here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_origin, get_type_hints

from pydantic import Field, create_model, model_validator

from jielong.config import Settings
from jielong.errors import ModelError, nearest
from jielong.model.config import ModelConfig
from jielong.model.presets import PRESETS, is_decoder, is_encoder, is_translator

# Not for a recipe to say: the data decide the first two, the kind of stage those that make another thing of a decoder.
# rope_scaling stretches a model that has been trained; a new one is trained with the context that it is to have.
NOT_KEYS = (
    "vocab_size", "max_length", "encoder_layers", "token_types", "head", "num_labels", "pooling", "rope_scaling",
)  # fmt: skip


def _fields_model() -> type[Settings]:
    """ModelConfig's fields but for NOT_KEYS as a strict table, each None when left out."""
    hints = get_type_hints(ModelConfig)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(ModelConfig):
        if field.name not in NOT_KEYS:
            hint = hints[field.name]
            kind = Annotated[hint, Field(strict=False)] if get_origin(hint) is tuple else hint
            fields[field.name] = (kind | None, None)
    return create_model("ModelFields", __base__=Settings, **fields)


if TYPE_CHECKING:
    ModelFields = Settings
else:
    ModelFields = _fields_model()


class Shape(ModelFields):
    """What the tables of all kinds of model share: a preset, sizes, or a preset with some fields put differently.

    FITS: the presets for a kind, NEEDS: sizes that it must say.

    LACKS: what another preset lacks to be of the kind.
    """

    FITS: ClassVar[Callable[[str], bool]]
    NEEDS: ClassVar[tuple[str, ...]]
    EXAMPLE: ClassVar[str]
    LACKS: ClassVar[str]

    preset: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Shape:
        if self.preset is not None:
            self._check_preset(self.preset)
        else:
            self._check_sizes()
        try:
            config = ModelConfig(vocab_size=1, max_length=1, **self.sizes())
        except ModelError as error:
            raise ValueError(str(error)) from None
        self._check_effects(config)
        return self

    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in self if name != "preset" and value is not None}

    def _check_preset(self, preset: str) -> None:
        fitting = [name for name in PRESETS if type(self).FITS(name)]
        if preset not in PRESETS:
            guess = nearest(preset, fitting)
            hint = f"; did you mean '{guess}'?" if guess else ""
            raise ValueError(f"preset '{preset}' is not known{hint} (legal: {', '.join(fitting)})")
        if preset not in fitting:
            layers = PRESETS[preset].get("encoder_layers", 0)
            raise ValueError(
                f"preset '{preset}' is no {self.LACKS}, which this stage trains: it has {layers} encoder layers "
                f"(legal: {', '.join(fitting)})"
            )
        usual = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
        for name, value in self._given().items():
            if value == PRESETS[preset].get(name, usual[name]):
                raise ValueError(f"{name} = {value} has no effect: preset '{preset}' has it; delete it")

    def _check_sizes(self) -> None:
        given = self._given()
        missing = [name for name in self.NEEDS if name not in given]
        if missing:
            raise ValueError(f"wants a preset, for example '{self.EXAMPLE}', or sizes; missing: {', '.join(missing)}")
        for name in ("width", "num_heads"):
            if given[name] < 1:
                raise ValueError(f"{name} is {given[name]}; it must be a whole number, 1 or more")
        if "head_size" not in given and given["width"] % given["num_heads"]:
            raise ValueError(
                f"num_heads = {given['num_heads']} does not divide width = {given['width']}; or set head_size"
            )

    def _check_effects(self, config: ModelConfig) -> None:
        """Refuses a key that the others leave without effect."""
        idle = {
            "rope_base": config.positions != "rotary" and f"positions are '{config.positions}'",
            "normalise_experts": not config.num_experts and "there are no experts; set num_experts",
        }
        for name, why in idle.items():
            if why and name in self._given():
                raise ValueError(f"{name} = {self._given()[name]} has no effect: {why}; delete it")

    def sizes(self) -> dict[str, Any]:
        """ModelConfig's fields but for vocab_size and max_length."""
        given = self._given()
        if self.preset is not None:
            preset = {name: value for name, value in PRESETS[self.preset].items() if name not in NOT_KEYS[:2]}
            return {**preset, **given}
        gated = given.get("activation", "swiglu") in ("swiglu", "geglu")
        derived = {
            "num_kv_heads": given["num_heads"],
            "head_size": given["width"] // given["num_heads"],
            "ffn_width": math.ceil(given["width"] * 8 / 3 / 32) * 32 if gated else 4 * given["width"],
        }
        return {**derived, **given}


class ModelSettings(Shape):
    """[STAGE.model] of a decoder: a preset, explicit sizes, or a preset with some fields put differently."""

    FITS = is_decoder
    NEEDS = ("width", "decoder_layers", "num_heads")
    EXAMPLE = "jie-s"
    LACKS = "decoder"


class TranslatorSettings(Shape):
    """[translate.model]: an encoder and a decoder, likewise."""

    FITS = is_translator
    NEEDS = ("width", "encoder_layers", "decoder_layers", "num_heads")
    EXAMPLE = "transformer-small"
    LACKS = "encoder-decoder"

    encoder_layers: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _check_stacks(self) -> TranslatorSettings:
        if not self.sizes().get("decoder_layers"):
            raise ValueError("decoder_layers is 0; a translator has two stacks, one to read and one to write")
        return self


class EncoderSettings(Shape):
    """[mlm.model]: an encoder that learns to guess hidden tokens, likewise."""

    FITS = is_encoder
    NEEDS = ("width", "encoder_layers", "num_heads")
    EXAMPLE = "jie-encoder-s"
    LACKS = "encoder"

    encoder_layers: Annotated[int, Field(ge=1)] | None = None
    token_types: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _check_router(self) -> EncoderSettings:
        if self.sizes().get("num_experts"):
            raise ValueError("num_experts: experts want losses of their router, which this stage has not; delete it")
        return self

    def sizes(self) -> dict[str, Any]:
        """ModelConfig's fields but for vocab_size and max_length."""
        implied = {"decoder_layers": 0, "token_types": 2, "head": "masked_lm"} if self.preset is None else {}
        return {**implied, **super().sizes()}
