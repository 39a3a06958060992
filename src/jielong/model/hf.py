"""The model folder: Hugging Face's layout, their names and ours, and every check on the way in.

`transformers` loads what we write with no code of ours. Weights are safetensors only; pickle is never read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jielong.config import write_atomic
from jielong.errors import ModelError, nearest
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.tensors import write_tensors

FOLDER_VERSION = 1
ARCHITECTURES = {"LlamaForCausalLM": "lm", "LlamaForSequenceClassification": "scalar"}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

# Ours -> theirs. A fused matrix of ours is several of theirs, stacked by rows in this order.
LAYER_NAMES = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention.out.weight": ("self_attn.o_proj.weight",),
    "ffn_norm.weight": ("post_attention_layernorm.weight",),
    "ffn.gate.weight": ("mlp.gate_proj.weight",),
    "ffn.up.weight": ("mlp.up_proj.weight",),
    "ffn.down.weight": ("mlp.down_proj.weight",),
}
TOP_NAMES = {
    "embed.weight": ("model.embed_tokens.weight",),
    "norm.weight": ("model.norm.weight",),
    "score.weight": ("score.weight",),
    "unembedding.weight": ("lm_head.weight",),
}


def their_names(name: str) -> tuple[str, ...]:
    """The Hugging Face tensors that make up our parameter `name`, in the order of its rows."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, index, rest = name.split(".", 2)
    return tuple(f"model.layers.{index}.{part}" for part in LAYER_NAMES[rest])


def row_counts(name: str, config: ModelConfig) -> list[int] | None:
    """How many rows each of `their_names(name)` has; None where it is the whole of our parameter."""
    if not name.endswith("attention.qkv.weight"):
        return None
    return [heads * config.head_size for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]


def save_model(
    model: Transformer,
    folder: str | Path,
    extra: Mapping[str, Any] | None = None,
    token_ids: Mapping[str, int | list[int]] | None = None,
) -> None:
    """Write config.json, model.safetensors, generation_config.json and jielong.json; each appears whole or not at all.

    extra: what jielong.json says beside its version (provenance). token_ids: bos_token_id, eos_token_id and
    pad_token_id, which generation by others needs; a model alone does not know them. Raises StorageError when there is
    no room for it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **(token_ids or {})}
    write_tensors(folder / WEIGHTS, dict(_to_theirs(model)), {"format": "pt"})  # transformers asks for that mark
    generation = {key: value for key, value in ids.items() if value is not None}
    write_atomic(folder / "generation_config.json", _json(generation))
    write_atomic(folder / "jielong.json", _json({"version": FOLDER_VERSION, **(extra or {})}))
    write_atomic(folder / "config.json", _json({**config_to_hf(model.config), "dtype": dtype, **ids}))


def load_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """Read a model folder, ours or a Llama of Hugging Face's, on the CPU, its weights as `dtype`.

    Raises ModelError naming the file or the tensor: missing, truncated, of a wrong shape, of an architecture that we
    do not have, or pickled.
    """
    folder = Path(folder)
    config = read_config(folder)
    with torch.device("meta"):  # no memory and no random numbers for weights that are about to be replaced
        model = Transformer(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    model.load_state_dict(_read_weights(folder, config, shapes, dtype), assign=True)
    model.requires_grad_(True)
    model.build_tables()
    return model


def read_provenance(folder: str | Path) -> dict[str, Any]:
    """What jielong.json says; {} for a folder that others wrote. Raises ModelError when it is broken or too new."""
    path = Path(folder) / "jielong.json"
    if not path.exists():
        return {}
    provenance = _read_json(path)
    version = provenance.get("version")
    if version != FOLDER_VERSION:
        raise ModelError(
            f"{path}: version is {version!r}; this jielong reads {FOLDER_VERSION}; use the one that wrote it"
        )
    return provenance


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """config.json as transformers' LlamaConfig understands it."""
    scalar = config.head == "scalar"
    return {
        "architectures": [name for name, head in ARCHITECTURES.items() if head == config.head],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "hidden_size": config.width,
        "num_hidden_layers": config.decoder_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.ffn_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,  # read by llama.cpp and by transformers 4; the next line by transformers 5
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        **({"id2label": {"0": "score"}, "label2id": {"score": 0}} if scalar else {}),
    }


def read_config(folder: Path) -> ModelConfig:
    """ModelConfig from config.json. Raises ModelError naming the key, its value and what we can read."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such model folder")
    path = folder / "config.json"
    theirs = _read_json(path)
    architecture = (theirs.get("architectures") or ["(none given)"])[0]
    if architecture not in ARCHITECTURES:
        near = nearest(str(architecture), ARCHITECTURES)
        hint = f"; did you mean {near}?" if near else ""
        raise ModelError(f"{path}: architecture is {architecture!r}; legal are {', '.join(ARCHITECTURES)}{hint}")
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    for key, value, legal in (
        ("hidden_act", theirs.get("hidden_act", "silu"), "silu"),
        ("attention_bias", theirs.get("attention_bias", False), False),
        ("mlp_bias", theirs.get("mlp_bias", False), False),
        ("rope_type", rope.get("rope_type", rope.get("type", "default")), "default"),
    ):
        if value != legal:
            raise ModelError(f"{path}: {key} is {value!r}; this version reads only models with {legal!r}")
    try:
        heads, width = theirs["num_attention_heads"], theirs["hidden_size"]
        return ModelConfig(
            vocab_size=theirs["vocab_size"],
            max_length=theirs["max_position_embeddings"],
            width=width,
            decoder_layers=theirs["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=theirs.get("num_key_value_heads") or heads,
            head_size=theirs.get("head_dim") or width // heads,
            ffn_width=theirs["intermediate_size"],
            rope_base=float(rope.get("rope_theta", theirs.get("rope_theta", 10000.0))),
            norm_eps=theirs.get("rms_norm_eps", 1e-6),
            tie_embeddings=theirs.get("tie_word_embeddings", False),
            head=ARCHITECTURES[architecture],
        )
    except KeyError as error:
        raise ModelError(f"{path}: the key {error.args[0]!r} is missing; a Llama config must have it") from None
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _to_theirs(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        rows = row_counts(name, model.config)
        parts = parameter.detach().split(rows) if rows else (parameter.detach(),)
        yield from zip(their_names(name), (part.contiguous().cpu() for part in parts), strict=True)


def _read_weights(
    folder: Path, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Our state from the safetensors files of `folder`, one parameter at a time so as to need little more memory."""
    places = _tensor_places(folder)
    state = {}
    for name, shape in shapes.items():
        rows = row_counts(name, config) or [shape[0]]
        parts = [
            _read_tensor(places, theirs, (num_rows, *shape[1:]), folder).to(dtype)
            for theirs, num_rows in zip(their_names(name), rows, strict=True)
        ]
        state[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    expected = {theirs for name in shapes for theirs in their_names(name)}
    ignored = {"lm_head.weight"} if config.tie_embeddings else set()  # some writers store the tied matrix twice
    left_over = sorted(key for key in places.keys() - expected - ignored if not key.endswith("rotary_emb.inv_freq"))
    if left_over:
        raise ModelError(f"{folder}: the weights hold {left_over[0]!r}, which config.json leaves no room for")
    return state


def _tensor_places(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor."""
    index = folder / INDEX
    if index.exists() and not (folder / WEIGHTS).exists():
        files = sorted({folder / str(file) for file in _read_json(index).get("weight_map", {}).values()})
    else:
        files = [folder / WEIGHTS]
    places = {}
    for path in files:
        if not path.exists():
            pickled = sorted(found.name for pattern in PICKLES for found in folder.glob(pattern))
            why = f"; {pickled[0]} is pickle, which can run code and is never read: convert it" if pickled else ""
            raise ModelError(f"{path}: the file is missing{why}")
        try:
            with safe_open(path, framework="pt") as file:
                places.update(dict.fromkeys(file.keys(), path))
        except SafetensorError as error:
            raise ModelError(f"{path}: truncated or no safetensors file ({error}); copy the folder again") from None
    return places


def _read_tensor(places: Mapping[str, Path], name: str, shape: tuple[int, ...], folder: Path) -> Tensor:
    if name not in places:
        raise ModelError(f"{folder}: the weights lack the tensor {name!r} that config.json asks for")
    with safe_open(places[name], framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    if tuple(tensor.shape) != shape:
        raise ModelError(f"{places[name]}: {name} has shape {tuple(tensor.shape)}; config.json asks for {shape}")
    return tensor


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ModelError(f"{path}: the file is missing; a model folder must have it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not JSON ({error}); copy the folder again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: it holds a {type(content).__name__}; an object is needed")
    return content


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
