"""An adapter as a PEFT folder: adapter_config.json and adapter_model.safetensors, written and read.

`peft` loads what we write on top of our model folder, and we load what it writes. The names are those of the Hugging
Face architecture. Where their matrix is one and ours has several changes (GPT-2's c_attn), the changes are written as
one of their ranks' sum, block by block, which is the same function.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from jielong.config import write_atomic
from jielong.errors import ModelError
from jielong.model.hf import their_names
from jielong.model.transformer import Transformer
from jielong.tensors import write_tensors
from jielong.train.lora import HEADS, Adapter, LoraConfig, LowRank, Piece, adapted_layers, linear_layers, put_in

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TASKS = {"lm": "CAUSAL_LM", "scalar": "SEQ_CLS", "classes": "SEQ_CLS"}
ON_THEIR_SIDE = ("c_attn", "c_proj", "c_fc")  # GPT's matrices, which are stored transposed
# Keys of adapter_config.json that we read, and those that do not change what the adapter computes. Any other must say
# "no", for it may be a variant that we do not have.
READ = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "modules_to_save",
    "init_lora_weights",
}  # fmt: skip
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "target_modules", "task_type",
}  # fmt: skip
# Starts of A and B that leave the model's own weights as they are; others ("pissa", "olora") take a part out of them.
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")

Change = tuple[Tensor, Tensor, float]  # A (R, D_in), B (D_out, R), scale


def save_adapter(model: Transformer, adapter: Adapter, folder: str | Path, base: str = "") -> None:
    """Write the adapter of `model` as a PEFT folder. base: where its model folder lies, for people and for `peft`.

    Raises StorageError when there is no room for it.
    """
    folder = Path(folder)
    config, tensors = adapter.config, {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    names = []
    for name, (lora_a, lora_b, scale) in _to_theirs(model):
        tensors[f"{PREFIX}{name}.lora_A.weight"] = lora_a.contiguous().cpu()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = lora_b.contiguous().cpu()
        names.append(name)
        if len(lora_a) != config.rank:
            ranks[name] = len(lora_a)
        alpha = scale * (math.sqrt(len(lora_a)) if config.rank_stabilised else len(lora_a))
        if not math.isclose(alpha, config.alpha, rel_tol=1e-6):
            alphas[name] = round(alpha, 6)
    whole = sorted({name.partition(".")[0] for name, _ in model.named_parameters()} & set(HEADS))
    for name in whole:
        for key, parameter in model.get_submodule(name).named_parameters():
            tensors[f"{PREFIX}{_their_module(f'{name}.{key}', model)}.{key}"] = parameter.detach().cpu().contiguous()
    content = {
        "peft_type": "LORA",
        "task_type": TASKS.get(model.config.head),
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "use_rslora": config.rank_stabilised,
        "target_modules": _short_names(names, model),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "modules_to_save": whole or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(name.endswith(ON_THEIR_SIDE) for name in names),
        "inference_mode": True,
    }
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    write_atomic(folder / CONFIG, json.dumps(content, indent=2) + "\n")


def load_adapter(model: Transformer, folder: str | Path) -> Adapter:
    """Put the adapter of a PEFT folder into `model`, which is frozen; returns what may learn on.

    Raises ModelError naming file, key or tensor: a variant that we do not have, or an adapter of another model.
    """
    folder = Path(folder)
    content = _read_config(folder / CONFIG)
    tensors = _read_tensors(folder)
    found: dict[str, dict[str, LowRank]] = {}
    for name, layer, pieces in linear_layers(model):
        theirs = _their_modules(f"{name}.weight", model)
        given = [_pop_change(tensors, module, content, folder) for module in theirs]
        for piece, change in zip(pieces, _split(given, pieces), strict=True):
            if change is not None:
                found.setdefault(name, {})[piece.target] = _low_rank(piece, change, layer, f"{folder}: {name}")
    if not found:
        raise ModelError(f"{folder / WEIGHTS}: holds no change of a layer that this model has")
    for name in HEADS:
        for key in [key for key in tensors if key.startswith(f"{PREFIX}{name}.")]:
            _load_head(model, f"{name}.{key.rpartition('.')[2]}", tensors.pop(key), f"{folder}: {key}")
    if tensors:
        raise ModelError(f"{folder / WEIGHTS}: {sorted(tensors)[0]!r} has no place in this model; is it another one's?")
    targets = tuple(dict.fromkeys(target for of_layer in found.values() for target in of_layer))
    config = LoraConfig(content["r"], content["lora_alpha"], targets, bool(content.get("use_rslora")))
    return put_in(model, config, found)


# ---- ours and theirs ----


def _their_modules(name: str, model: Transformer) -> tuple[str, ...]:
    return tuple(theirs.removesuffix(".weight") for theirs in their_names(name, model.config))


def _their_module(name: str, model: Transformer) -> str:
    return their_names(name, model.config)[0].rpartition(".")[0]


def _to_theirs(model: Transformer) -> Iterator[tuple[str, Change]]:
    """(their module, its change) of every adapted layer."""
    for name, layer in adapted_layers(model):
        modules = _their_modules(f"{name}.weight", model)
        if len(modules) > 1:
            pieces = next(pieces for each, _, pieces in linear_layers(model) if each == name)
            for module, piece in zip(modules, pieces, strict=True):
                change = next((change for change in layer.low_ranks() if change.piece.target == piece.target), None)
                if change is not None:
                    yield module, (change.lora_a.detach(), change.lora_b.detach(), change.scale)
        else:
            yield modules[0], _joined(layer.low_ranks(), layer.out_features)


def _joined(changes: list[LowRank], num_rows: int) -> Change:
    """Several changes of one matrix as a single one: A's stacked, each B in its own rows and columns."""
    scale = changes[0].scale
    stacked = torch.cat([change.lora_a.detach() for change in changes])
    wide = torch.zeros(num_rows, len(stacked), device=stacked.device)
    column = 0
    for change in changes:
        rank = change.lora_b.shape[1]
        block = change.lora_b.detach() * (change.scale / scale)
        wide[change.piece.first : change.piece.last, column : column + rank] = block
        column += rank
    return stacked, wide, scale


def _split(given: list[Change | None], pieces: list[Piece]) -> list[Change | None]:
    """Their changes by our pieces; one of theirs over several of ours has its B cut by rows and its A shared out.

    Rows of B that are zero say nothing of their piece, and blocks of `_joined` fall apart again into theirs.
    """
    if len(given) == len(pieces):
        return given
    assert len(given) == 1, (given, pieces)
    if given[0] is None:
        return [None] * len(pieces)
    lora_a, lora_b, scale = given[0]
    found: list[Change | None] = []
    for piece in pieces:
        rows = lora_b[piece.first : piece.last]
        used = rows.abs().amax(dim=0) > 0  # columns of other blocks are zero here
        found.append((lora_a[used], rows[:, used], scale) if bool(used.any()) else None)
    return found


def _low_rank(piece: Piece, change: Change, layer: nn.Linear, where: str) -> LowRank:
    lora_a, lora_b, scale = change
    rank, device = len(lora_a), layer.weight.device
    wanted = [(rank, layer.in_features), (piece.last - piece.first, rank)]
    shapes = [tuple(lora_a.shape), tuple(lora_b.shape)]
    if shapes != wanted:
        raise ModelError(f"{where}, {piece.target}: A and B have shapes {shapes}; this model needs {wanted}")
    return LowRank(piece, lora_a.float().clone().to(device), lora_b.float().clone().to(device), scale)


@torch.no_grad()
def _load_head(model: Transformer, name: str, weight: Tensor, where: str) -> None:
    parameter = dict(model.named_parameters()).get(name)
    if parameter is None or parameter.shape != weight.shape:
        now = "none" if parameter is None else tuple(parameter.shape)
        raise ModelError(f"{where} is a head of shape {tuple(weight.shape)}; this model's is {now}")
    parameter.copy_(weight)


def _short_names(names: list[str], model: Transformer) -> list[str]:
    """The ends of their modules' names where those mean these modules and no other, else the names in full."""
    all_modules = {module for name, _ in _plain_parameters(model) for module in _their_modules(name, model)}
    ends = sorted({name.rpartition(".")[2] for name in names})
    meant = {module for module in all_modules if module.rpartition(".")[2] in ends}
    return ends if meant == set(names) else sorted(names)


def _plain_parameters(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in model.named_parameters() if ".changes." not in name)


# ---- reading ----


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is missing or no JSON: {error}; a PEFT folder must have it") from None
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        kind = content.get("peft_type") if isinstance(content, dict) else content
        raise ModelError(f"{path}: peft_type is {kind!r}; only 'LORA' can be read")
    rank, alpha, start = content.get("r"), content.get("lora_alpha"), content.get("init_lora_weights", True)
    heads = content.get("modules_to_save") or []
    for key, value, legal, ok in (
        ("r", rank, "a whole number, 1 or more", isinstance(rank, int) and rank >= 1),
        ("lora_alpha", alpha, "a number above 0", isinstance(alpha, int | float) and alpha > 0),
        ("bias", content.get("bias", "none"), "'none'", content.get("bias", "none") == "none"),
        ("init_lora_weights", start, "one that leaves the model's weights alone", start in PLAIN_STARTS),
        ("modules_to_save", heads, f"some of {', '.join(HEADS)}, or nothing", set(heads) <= set(HEADS)),
    ):
        if not ok:
            raise ModelError(f"{path}: {key} is {value!r}; legal is {legal}")
    for key, value in content.items():
        if key not in READ | HARMLESS and value:
            raise ModelError(f"{path}: {key} is {value!r}, a variant of LoRA that is not known here; it must be off")
    return content


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise ModelError(f"{path}: the file is missing; adapter_model.bin is pickle, which is never read: convert it")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is missing or damaged: {error}; copy the folder again") from None


def _pop_change(tensors: dict[str, Tensor], module: str, content: Mapping[str, Any], folder: Path) -> Change | None:
    """Take the change of their module out of `tensors`; None when it has none."""
    keys = [f"{PREFIX}{module}.lora_{letter}.weight" for letter in "AB"]
    found = [tensors.pop(key, None) for key in keys]
    lora_a, lora_b = found
    if lora_a is None and lora_b is None:
        return None
    if lora_a is None or lora_b is None or lora_a.ndim != 2 or lora_b.ndim != 2 or len(lora_a) != lora_b.shape[1]:
        shapes = [None if each is None else tuple(each.shape) for each in found]
        raise ModelError(f"{folder / WEIGHTS}: {keys[0]} and lora_B have shapes {shapes}; A is (R, in), B (out, R)")
    rank = len(lora_a)
    declared = _patterned(content.get("rank_pattern"), module, content["r"])
    if rank != declared:
        raise ModelError(f"{folder / WEIGHTS}: {keys[0]} has rank {rank}, {CONFIG} says {declared}")
    alpha = float(_patterned(content.get("alpha_pattern"), module, content["lora_alpha"]))
    return lora_a, lora_b, alpha / (math.sqrt(rank) if content.get("use_rslora") else rank)


def _patterned(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of the module's name, as `peft` looks it up."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
