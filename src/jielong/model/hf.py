"""The model folder: Hugging Face's layout, their names and ours, and every check on the way in.

`transformers` loads what we write with no code of ours, as long as it has the architecture: `families.py` lists them. A
model that none of those can say, such as one in the shape of Grok-1, is written in the same layout under our own names,
with "model_type": "jielong" in its config.json; only this package loads that. Weights are safetensors only; pickle is
never read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from jielong.config import write_atomic
from jielong.errors import ModelError, nearest
from jielong.model.config import ModelConfig, RopeScaling
from jielong.model.families import FAMILIES
from jielong.model.family import Family, check_types, read_fields, write_fields
from jielong.model.pieces import ParameterReader, model_on_meta, parts_of, pieces
from jielong.model.transformer import Transformer
from jielong.model.weights import INDEX, WEIGHTS, TensorFiles, read_json, shards
from jielong.tensors import write_tensors

FOLDER_VERSION = 1
SHARD, SHARD_BYTES = "model-{:05d}-of-{:05d}.safetensors", 5_000_000_000
MOST_POSITIONS = 2**24
OWN_TYPE, OWN_ARCHITECTURE = "jielong", "JielongTransformer"
ARCHITECTURES = {name: family for family in FAMILIES for name in family.architectures}


def save_model(
    model: Transformer,
    folder: str | Path,
    extra: Mapping[str, Any] | None = None,
    token_ids: Mapping[str, int | list[int]] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write config.json, the weights, generation_config.json and jielong.json; each file appears whole or not at all.

    extra: what jielong.json says beside its version (provenance). token_ids: bos_token_id, eos_token_id and
    pad_token_id, which generation by others needs; a model alone does not know them. Weights of more than shard_bytes
    are split into files of at most that, with an index. Raises StorageError when there is no room for it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **(token_ids or {})}
    family, content = _choose(model.config)
    _write_weights(model, family, folder, shard_bytes)
    if model.config.encoder_layers and model.config.decoder_layers:
        ids["forced_eos_token_id"] = None  # theirs would end with token 0
        ids["decoder_start_token_id"] = ids["bos_token_id"] or 0  # what their generation begins a target with
    generation = {key: value for key, value in ids.items() if value is not None}
    write_atomic(folder / "generation_config.json", _json(generation))
    write_atomic(folder / "jielong.json", _json({"version": FOLDER_VERSION, **(extra or {})}))
    write_atomic(folder / "config.json", _json({**content, "dtype": dtype, **ids}))


def load_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """Read a model folder, ours or Hugging Face's, on the CPU, its weights as `dtype`; it is in training mode.

    Weights that are stored as `dtype` stay in the file until they are used: do not write into that file meanwhile; to
    replace it, as saving does, is safe. Raises ModelError naming the file, the key or the tensor: missing, truncated,
    of a wrong shape, of an architecture that we do not have, or pickled.
    """
    folder = Path(folder)
    theirs = _read_content(folder)
    family, config = _translate(theirs, folder / "config.json")
    files = TensorFiles(folder)
    _check_promises(config, files)
    fresh = () if family is None else family.fresh.get(_architecture(theirs), ())
    try:
        model = model_on_meta(config)
    except ModelError as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from None
    state = ParameterReader(files, family, config, dtype, fresh).state(dict(model.named_parameters()))
    model.load_state_dict(state, assign=True)
    model.requires_grad_(True)
    model.build_tables()
    return model


def _check_promises(config: ModelConfig, files: TensorFiles) -> None:
    """Raises ModelError for a config after which far more would be built than the weights are for."""
    num_layers, num_tensors = max(config.encoder_layers, config.decoder_layers), len(files.names())
    if num_layers > num_tensors:
        raise ModelError(
            f"{files.folder}: config.json asks for {num_layers} layers; the weights hold {num_tensors} tensors"
        )
    if config.max_length > MOST_POSITIONS:
        raise ModelError(
            f"{files.folder}: by config.json the longest row is {config.max_length} tokens; legal are up to "
            f"{MOST_POSITIONS}, the last position that float32 counts exactly"
        )


def read_provenance(folder: str | Path) -> dict[str, Any]:
    """What jielong.json says; {} for a folder that others wrote. Raises ModelError when it is broken or too new."""
    path = Path(folder) / "jielong.json"
    if not path.exists():
        return {}
    provenance = read_json(path)
    version = provenance.get("version")
    if version != FOLDER_VERSION:
        raise ModelError(
            f"{path}: version is {version!r}; this jielong reads {FOLDER_VERSION}; use the one that wrote it"
        )
    return provenance


def read_config(folder: str | Path) -> ModelConfig:
    """ModelConfig from config.json. Raises ModelError naming the key, its value and what we can read."""
    folder = Path(folder)
    return _translate(_read_content(folder), folder / "config.json")[1]


def writes_text(folder: str | Path) -> bool:
    """Whether config.json is that of a language model, by its architecture alone. Raises ModelError when broken."""
    theirs = _read_content(Path(folder))
    name = _architecture(theirs)
    head = ARCHITECTURES[name].architectures[name] if name in ARCHITECTURES else theirs.get("head")
    return head == "lm"


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json: as the first family that can say all of it, else our own."""
    return _choose(config)[1]


def their_names(name: str, config: ModelConfig) -> tuple[str, ...]:
    """The Hugging Face tensors that make up our parameter `name`, in the order of its first axis."""
    family = _choose(config)[0]
    return (name,) if family is None else tuple(piece.theirs for piece in pieces(family, config, name))


def _choose(config: ModelConfig) -> tuple[Family | None, dict[str, Any]]:
    for family in FAMILIES:
        content = write_fields(family, config)
        if content is not None:
            return family, content
    return None, {"architectures": [OWN_ARCHITECTURE], "model_type": OWN_TYPE, **dataclasses.asdict(config)}


# config.json, read.


def _read_content(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        raise ModelError(f"{folder}: this is a file; name the model folder that it stands in")
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such model folder")
    return read_json(folder / "config.json")


def _architecture(theirs: Mapping[str, Any]) -> str:
    """The class that the folder is for; where none is named, the first of its model_type."""
    named = theirs.get("architectures")
    if named:
        return str(named[0]) if isinstance(named, list) else str(named)
    kinds = {family.model_type: next(iter(family.architectures)) for family in FAMILIES}
    return {**kinds, OWN_TYPE: OWN_ARCHITECTURE}.get(str(theirs.get("model_type")), "(none given)")


def _translate(theirs: Mapping[str, Any], path: Path) -> tuple[Family | None, ModelConfig]:
    """Family and ModelConfig of a config.json; no family for one of our own."""
    try:
        if theirs.get("quantization_config"):
            raise ModelError("quantization_config is set; we read weights of 16 bits or more, not quantised ones")
        name = _architecture(theirs)
        if name == OWN_ARCHITECTURE:
            return None, _own_config(theirs)
        if name not in ARCHITECTURES:
            near = nearest(name, ARCHITECTURES)
            hint = f"; did you mean {near}?" if near else ""
            raise ModelError(f"architecture is {name!r}; legal are {', '.join(ARCHITECTURES)}{hint}")
        family = ARCHITECTURES[name]
        kind = theirs.get("model_type", family.model_type)
        if kind != family.model_type:
            raise ModelError(f"model_type is {kind!r}, but the architecture {name} is of {family.model_type!r}")
        return family, read_fields(family, theirs, family.architectures[name])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _own_config(theirs: Mapping[str, Any]) -> ModelConfig:
    """ModelConfig from our own kind of config.json, whose keys are its fields."""
    fields = {field.name: theirs[field.name] for field in dataclasses.fields(ModelConfig) if field.name in theirs}
    check_types(fields)
    try:
        scaling = fields.get("rope_scaling")
        if scaling is not None:
            fields["rope_scaling"] = RopeScaling(**scaling)
        return ModelConfig(**{**fields, "windows": tuple(fields.get("windows", (0,)))})
    except TypeError as error:
        raise ModelError(f"a field is missing or of a wrong type: {error}") from None


# Weights, written.


def _write_weights(model: Transformer, family: Family | None, folder: Path, shard_bytes: int) -> None:
    """One file, or several and an index. Files of an earlier save that are none of these are removed afterwards."""
    parts = parts_of(model, family)
    groups = list(shards({name: view.nbytes for name, (_, view) in parts.items()}, shard_bytes))
    names = [WEIGHTS] if len(groups) == 1 else [SHARD.format(n + 1, len(groups)) for n in range(len(groups))]
    if len(groups) > 1:
        (folder / INDEX).unlink(missing_ok=True)  # an old one must not name a mixture of new files and old
    for file, group in zip(names, groups, strict=True):
        tensors = {name: parts[name][0].written(parts[name][1]) for name in group}
        write_tensors(folder / file, tensors, {"format": "pt"})  # transformers asks for that mark
    if len(groups) > 1:
        places = {name: file for file, group in zip(names, groups, strict=True) for name in group}
        total = sum(view.nbytes for _, view in parts.values())
        write_atomic(folder / INDEX, _json({"metadata": {"total_size": total}, "weight_map": places}))
    else:
        (folder / INDEX).unlink(missing_ok=True)
    for old in [folder / WEIGHTS, *folder.glob("model-*-of-*.safetensors")]:
        if old.name not in names:
            old.unlink(missing_ok=True)


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
