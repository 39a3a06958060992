"""Shapes by name. A preset holds what ModelConfig needs beside vocab_size and max_length, which the data decide.

The ladder keeps ffn_width near 8/3 of the width (SwiGLU has three matrices where a plain feed-forward has two of 4x),
rounded to 32. jie-s to jie-l train in minutes on two cores; jie-124m and up want a GPU.
"""

from __future__ import annotations

from typing import TypedDict

from jielong.errors import UsageError, nearest
from jielong.model.config import ModelConfig


class Shape(TypedDict):
    """The fields of a preset, as in ModelConfig."""

    width: int
    decoder_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    ffn_width: int
    rope_base: float
    tie_embeddings: bool


PRESETS: dict[str, Shape] = {
    "jie-xs": {
        "width": 64, "decoder_layers": 2, "num_heads": 2, "num_kv_heads": 2, "head_size": 32, "ffn_width": 160,
        "rope_base": 10000.0, "tie_embeddings": True,
    },
    "jie-s": {
        "width": 128, "decoder_layers": 4, "num_heads": 4, "num_kv_heads": 4, "head_size": 32, "ffn_width": 352,
        "rope_base": 10000.0, "tie_embeddings": True,
    },
    "jie-m": {
        "width": 192, "decoder_layers": 6, "num_heads": 6, "num_kv_heads": 6, "head_size": 32, "ffn_width": 512,
        "rope_base": 10000.0, "tie_embeddings": True,
    },
    "jie-l": {
        "width": 256, "decoder_layers": 6, "num_heads": 8, "num_kv_heads": 4, "head_size": 32, "ffn_width": 704,
        "rope_base": 10000.0, "tie_embeddings": True,
    },
    "jie-124m": {
        "width": 768, "decoder_layers": 12, "num_heads": 12, "num_kv_heads": 12, "head_size": 64, "ffn_width": 2048,
        "rope_base": 10000.0, "tie_embeddings": True,
    },
    "jie-1b": {
        "width": 2048, "decoder_layers": 22, "num_heads": 32, "num_kv_heads": 8, "head_size": 64, "ffn_width": 5632,
        "rope_base": 500000.0, "tie_embeddings": True,
    },
}  # fmt: skip


def preset_config(name: str, vocab_size: int, max_length: int, head: str = "lm") -> ModelConfig:
    """The ModelConfig of a preset for this vocabulary and context. Raises UsageError for an unknown name."""
    if name not in PRESETS:
        near = nearest(name, PRESETS)
        hint = f"; did you mean {near}?" if near else ""
        raise UsageError(f"the model preset is {name!r}; legal are {', '.join(PRESETS)}{hint}")
    return ModelConfig(vocab_size=vocab_size, max_length=max_length, head=head, **PRESETS[name])
