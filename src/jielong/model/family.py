"""A family of Hugging Face's models: how its config.json and its tensor names translate into ours, and back.

A family is data (`families.py` has them all); what reads that data, in both directions, stands here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jielong.errors import ModelError
from jielong.model.config import ModelConfig, RopeScaling

KINDS = {entry.name: str(entry.type) for entry in dataclasses.fields(ModelConfig)}
# Settings of training alone. Where their config has no word for ours, it stands in config.json under "jielong".
TRAINING = ("dropout", "attention_dropout", "init_std")

# Their key -> our field, or two of ours; and what its absence means: ... is an error, None is derived from the others.
Keys = Mapping[str, tuple[str, Any]]
# Their key -> our field, what its absence means, and their values for ours; the first that fits is written.
Choices = Mapping[str, tuple[str, str, Mapping[str, str]]]


@dataclass(frozen=True)
class Family:
    """One `model_type` of theirs.

    architectures: class name -> our head; "labels" is scalar for one label and classes for more. The first is taken
    where config.json names none. fixed: their keys with a single value that we can represent; a tuple lists several,
    the first of which absence means. implied: what the family is without saying so. synonyms: another spelling of a
    key -> the one in the tables; both are written. ignored: their keys without effect on what is computed. base: the
    default rotary base. window, scale: their keys for `windows` and `embedding_scale`. divides: width must be a
    multiple of num_heads.

    names: our parameter, or what stands before its ".weight" and ".bias", -> theirs. {i} is the layer, {e} the expert;
    several names are stacked by rows in their order; "choice/classifier" holds for that head only. prefix: what older
    and headless folders leave out. transposed: parameters that they hold the other way round. leading: those with one
    more axis in front, of length 1. zeros: biases that may be absent in ours; theirs are then 0. constants: by head,
    tensors that ours has no counterpart of and which change nothing. fused: how transformers 5 holds experts in
    memory: half 0 or 1 of the second axis, or all. renamed: parts of names that other writers use. skipped: ends of
    names that say nothing new. fresh: modules that an architecture may lack.
    """

    model_type: str
    architectures: Mapping[str, str]
    keys: Keys
    names: Mapping[str, str | tuple[str, ...]]
    choices: Choices = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    implied: Mapping[str, Any] = field(default_factory=dict)
    synonyms: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    base: float | None = None
    window: str | None = None
    scale: str | None = None
    divides: bool = False
    prefix: str = ""
    transposed: tuple[str, ...] = ()
    leading: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()
    constants: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, int | None]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    fresh: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_fields(family: Family, theirs: Mapping[str, Any], head: str) -> ModelConfig:
    """ModelConfig from the content of a config.json. Raises ModelError naming the key and its value."""
    theirs = {**{family.synonyms[key]: value for key, value in theirs.items() if key in family.synonyms}, **theirs}
    _check_fixed(family, theirs)
    values: dict[str, Any] = dict(family.implied)
    sources: dict[str, str] = {}
    for key, (fields, default) in family.keys.items():
        value = theirs.get(key, default)
        if value is ...:
            raise ModelError(f"the key {key!r} is missing; a {family.model_type} config must have it")
        if value is None:
            if default is None:
                continue
            value = default if default is not ... else value
        for name in fields.split():
            _put(values, sources, name, key, _typed(key, value, KINDS[name]))
    for key, (name, default, legal) in family.choices.items():
        value = theirs.get(key, default)
        if isinstance(value, list | dict) or value not in legal:
            raise ModelError(f"{key} is {value!r}; of a {family.model_type} config we read {', '.join(legal)}")
        values[name] = legal[value]
    _read_rope(family, theirs, values)
    if family.window is not None:
        values["windows"] = (_typed(family.window, theirs.get(family.window) or 0, "int"),)
    if family.scale is not None and theirs.get(family.scale, False):
        values["embedding_scale"] = math.sqrt(values["width"])
    values["head"], values["num_labels"] = _read_head(theirs, head)
    _derive(family, values)
    return ModelConfig(**{**values, **_read_stored(family, theirs, values)})


def _put(values: dict[str, Any], sources: dict[str, str], name: str, key: str, value: Any) -> None:
    if sources.setdefault(name, key) != key and values[name] != value:
        raise ModelError(f"{key} is {value!r} and {sources[name]} {values[name]!r}; here they are one, {name}")
    values[name] = value


def _typed(key: str, value: Any, kind: str) -> Any:
    """The value as our field has it. Raises ModelError for another type, or a number that is not finite."""
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    words = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    raise ModelError(f"{key} is {value!r}; it must be {words[kind]}")


def check_types(fields: Mapping[str, Any]) -> None:
    """Raises ModelError for a plain field of ModelConfig whose value is of another type."""
    for name, value in fields.items():
        if KINDS[name] in ("int", "float", "bool"):
            _typed(name, value, KINDS[name])


def _check_fixed(family: Family, theirs: Mapping[str, Any]) -> None:
    for key, legal in family.fixed.items():
        accepted = legal if isinstance(legal, tuple) else (legal,)
        value = theirs.get(key, accepted[0])
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in accepted):
            ours = " or ".join(repr(one) for one in accepted)
            raise ModelError(f"{key} is {value!r}; of a {family.model_type} config we read only {ours}")


def _read_rope(family: Family, theirs: Mapping[str, Any], values: dict[str, Any]) -> None:
    """Rotary settings: "rope_parameters" of transformers 5, else "rope_scaling" and "rope_theta" of those before."""
    if family.base is None:
        return
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ModelError(f"rope_parameters is {rope!r}; it must be an object")
    values["rope_base"] = _typed("rope_theta", rope.get("rope_theta", theirs.get("rope_theta", family.base)), "float")
    part = rope.get("partial_rotary_factor", theirs.get("partial_rotary_factor", 1.0))
    if part not in (1, None):
        raise ModelError(f"partial_rotary_factor is {part!r}; we turn whole heads only, which is 1.0")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "llama3":
        numbers = {ours: _rope_number(rope, key) for key, ours in ROPE_KEYS.items()}
        numbers["original_length"] = int(numbers["original_length"])
        values["rope_scaling"] = RopeScaling(**numbers)
    elif kind != "default":
        raise ModelError(f"rope_type is {kind!r}; we read 'default' and 'llama3'")


ROPE_KEYS = {
    "factor": "factor",
    "low_freq_factor": "low_frequency",
    "high_freq_factor": "high_frequency",
    "original_max_position_embeddings": "original_length",
}


def _rope_number(rope: Mapping[str, Any], key: str) -> Any:
    if key not in rope:
        raise ModelError(f"the key {key!r} of rope_parameters is missing; rope_type 'llama3' must have it")
    return _typed(key, rope[key], "float")


def _read_head(theirs: Mapping[str, Any], head: str) -> tuple[str, int]:
    labels = theirs.get("id2label")
    counted = len(labels) if isinstance(labels, Mapping) else 2
    num_labels = _typed("num_labels", theirs.get("num_labels", counted), "int")
    if head == "labels":
        return ("scalar", 1) if num_labels == 1 else ("classes", num_labels)
    return head, num_labels if head == "classes" else 1


def _derive(family: Family, values: dict[str, Any]) -> None:
    """What their config leaves out: as many kv heads as heads, heads that fill the width, four times the width."""
    width, heads = values["width"], values["num_heads"]
    if heads < 1 or ((family.divides or "head_size" not in values) and width % heads):
        raise ModelError(f"the width is {width} and the number of heads {heads}; it must divide the width")
    values.setdefault("num_kv_heads", heads)
    values.setdefault("head_size", width // heads)
    values.setdefault("ffn_width", 4 * width)


def _read_stored(family: Family, theirs: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What we wrote under "jielong" because their config has no word for it."""
    stored = theirs.get("jielong", {})
    if not isinstance(stored, Mapping):
        raise ModelError(f"jielong is {stored!r}; it must be an object")
    legal = (*TRAINING, *family.zeros)
    for name, value in stored.items():
        if name not in legal:
            raise ModelError(f"jielong.{name} is {value!r}; legal there are {', '.join(legal)}")
        _typed(f"jielong.{name}", value, KINDS[name])
    return dict(stored)


def write_fields(family: Family, config: ModelConfig) -> dict[str, Any] | None:
    """The content of config.json as this family has it; None when it cannot say all that `config` says.

    What it says is read back to find out. Settings of training, and biases that are absent, may differ; they are
    added under "jielong", which only we read.
    """
    architecture = _architecture(family, config)
    if architecture is None:
        return None
    theirs: dict[str, Any] = {"architectures": [architecture], "model_type": family.model_type}
    values = config.__dict__
    theirs |= {key: values[fields.split()[0]] for key, (fields, _) in family.keys.items()}
    theirs |= {key: legal[0] if isinstance(legal, tuple) else legal for key, legal in family.fixed.items()}
    theirs |= {key: theirs[known] for key, known in family.synonyms.items()}
    for key, (name, _, legal) in family.choices.items():
        spelled = [their for their, ours in legal.items() if ours == values[name]]
        if not spelled:
            return None
        theirs[key] = spelled[0]
    if family.window is not None:
        theirs[family.window] = config.windows[0] or None
    if family.scale is not None:
        theirs[family.scale] = config.embedding_scale != 1
    theirs |= _written_rope(family, config) | _written_labels(config)
    # transformers draws new weights with this number; ours is 0 for 1 / sqrt(width)
    if not config.init_std:
        theirs |= {key: config.width**-0.5 for key, (fields, _) in family.keys.items() if fields == "init_std"}
    try:
        found = read_fields(family, theirs, family.architectures[architecture])
    except ModelError:
        return None
    stored = {name: values[name] for name in KINDS if values[name] != found.__dict__[name]}
    if any(name not in TRAINING and (name not in family.zeros or values[name]) for name in stored):
        return None
    return {**theirs, "jielong": stored} if stored else theirs


def _architecture(family: Family, config: ModelConfig) -> str | None:
    heads = (config.head, "labels") if config.head in ("scalar", "classes") else (config.head,)
    return next((name for name, head in family.architectures.items() if head in heads), None)


def _written_rope(family: Family, config: ModelConfig) -> dict[str, Any]:
    """Both spellings: llama.cpp and transformers 4 read the base beside, transformers 5 inside of rope_parameters."""
    if family.base is None:
        return {}
    if config.rope_scaling is None:
        rope: dict[str, Any] = {"rope_type": "default"}
        return {"rope_theta": config.rope_base, "rope_parameters": {**rope, "rope_theta": config.rope_base}}
    numbers = {key: config.rope_scaling.__dict__[ours] for key, ours in ROPE_KEYS.items()}
    rope = {"rope_type": "llama3", **numbers}
    return {
        "rope_theta": config.rope_base,
        "rope_scaling": rope,
        "rope_parameters": {**rope, "rope_theta": config.rope_base},
    }


def _written_labels(config: ModelConfig) -> dict[str, Any]:
    if config.head == "scalar":
        return {"id2label": {"0": "score"}, "label2id": {"score": 0}}
    if config.head != "classes":
        return {}
    names = {str(index): f"LABEL_{index}" for index in range(config.num_labels)}
    return {"id2label": names, "label2id": {name: int(index) for index, name in names.items()}}
