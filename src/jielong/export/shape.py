"""Which shapes the other programs know, and the field that is in the way when they do not know this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor

from jielong.errors import ModelError
from jielong.model.config import ModelConfig
from jielong.model.positions import scaled_frequencies

PER_TOKEN = ("embed.weight", "unembedding.weight")  # parameters with a row for every token

# Fields that no export's reader lets vary. Those that decide how much is computed, not what, may have any value.
ALWAYS: dict[str, tuple[object, ...]] = {
    "encoder_layers": (0,),
    "norm_at": ("pre",),
    "embedding_norm": (False,),
    "windows": ((0,),),
    "embedding_scale": (1.0,),
    "logit_scale": (1.0,),
    "attention_softcap": (0.0,),
    "logit_bias": (False,),
    "token_types": (0,),
    "num_experts": (0,),
    "head": ("lm",),
}
LLAMA: dict[str, tuple[object, ...]] = {
    **ALWAYS,
    "positions": ("rotary",),
    "norm": ("rms",),
    "activation": ("swiglu",),
    "out_bias": (False,),
    "ffn_bias": (False,),
}
# llama.cpp has a name for each combination that it computes; what else differs is read from the file.
FAMILIES: dict[str, dict[str, tuple[object, ...]]] = {
    "llama": {**LLAMA, "qkv_bias": (False,), "qk_norm": (False,)},
    "qwen2": {**LLAMA, "qkv_bias": (True,), "qk_norm": (False,), "rope_scaling": (None,)},
    "qwen3": {**LLAMA, "qkv_bias": (False,), "qk_norm": (True,), "rope_scaling": (None,)},
}
# What run.py computes: the three above, and GPT-2.
NUMPY: dict[str, tuple[object, ...]] = {
    **ALWAYS,
    "positions": ("rotary", "learned"),
    "norm": ("rms", "layer"),
    "activation": ("swiglu", "gelu_tanh"),
}


def check_shape(config: ModelConfig, legal: Mapping[str, tuple[object, ...]], reader: str) -> None:
    """Raises ModelError naming the first field of `config` whose value the reader does not know."""
    for field in fields(config):
        value = config.__dict__[field.name]
        if field.name == "windows" and not any(value):
            continue
        if field.name in legal and value not in legal[field.name]:
            known = " or ".join(repr(each) for each in legal[field.name])
            raise ModelError(f"{field.name} is {value!r}; {reader} knows only {known}; `--to hf` writes any shape")


def gguf_family(config: ModelConfig) -> str:
    """ "llama", "qwen2" or "qwen3": the architecture under which llama.cpp computes this model.

    Raises ModelError naming the field that none of them has.
    """
    family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    check_shape(config, FAMILIES[family], f"llama.cpp's {family}")
    if family == "qwen2" and config.num_heads * config.head_size != config.width:
        raise ModelError(
            f"head_size is {config.head_size}; llama.cpp's qwen2 knows only width / num_heads, "
            f"{config.width / config.num_heads:g}"
        )
    return family


def rope_divisors(config: ModelConfig) -> Tensor | None:
    """What each rotary frequency is divided by, (H/2,) float32, where positions are stretched; None where not."""
    if config.rope_scaling is None or config.positions != "rotary":
        return None
    frequencies = config.rope_base ** (-torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size)
    return frequencies / scaled_frequencies(frequencies, config.rope_scaling)
