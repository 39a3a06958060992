"""Tiny models of each shape that can be exported, their weights so large that the context decides the next token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jielong.export.verify import TEXTS
from jielong.export.vocabulary import Vocabulary, read_vocabulary
from jielong.folder import save
from jielong.generate.engine import Engine
from jielong.model.config import ModelConfig, RopeScaling
from jielong.model.transformer import Transformer
from jielong.tokenizer.tokenizer import Tokenizer

Build = Callable[..., Engine]

SIZES: dict[str, Any] = {
    "max_length": 96, "width": 64, "decoder_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_size": 16,
    "ffn_width": 96,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-untied": {"tie_embeddings": False, "num_kv_heads": 4, "rope_base": 5e5},
    "llama-wide-heads": {"head_size": 24, "num_kv_heads": 1, "norm_eps": 1e-6},
    "llama-3.1": {"rope_base": 50.0, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 32)},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_size": 24, "rope_base": 1e6},
    "gpt2": {
        "positions": "learned", "norm": "layer", "activation": "gelu_tanh", "qkv_bias": True, "out_bias": True,
        "ffn_bias": True, "num_kv_heads": 4,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([*TEXTS, "once upon a time there was a fox 从前有一个狐狸 the answer is 42"] * 3, 420)


def build_model(**changes: Any) -> Transformer:
    """Random weights in every parameter, norms and biases included, so that one left out would show."""
    model = Transformer(ModelConfig(**{**SIZES, **changes}))
    generator = torch.Generator().manual_seed(3)
    model.init_weights(generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim == 1 else 0.05))
            if name in ("embed.weight", "unembedding.weight"):
                parameter.mul_(2)
    return model.eval()


@pytest.fixture(scope="session")
def build(tokenizer: Tokenizer) -> Build:
    """build("qwen2", max_length=64): an engine over a model of that shape."""

    def make(shape: str = "llama", **changes: Any) -> Engine:
        return Engine(build_model(vocab_size=tokenizer.vocab_size, **{**SHAPES[shape], **changes}), tokenizer)

    return make


@pytest.fixture(scope="session")
def build_rows() -> Callable[[str, int], Transformer]:
    """build_rows("qwen2", 448): a model of that shape with so many rows in its embedding."""
    return lambda shape, rows: build_model(vocab_size=rows, **SHAPES[shape])


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return read_vocabulary(folder, tokenizer)


@pytest.fixture(scope="session")
def folder(build: Build, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of the llama shape, as a stage leaves it."""
    path = tmp_path_factory.mktemp("run") / "06-ppo" / "model"
    save(build("llama").model, tokenizer, path, {"kind": "ppo", "parent": "../../04-sft/model"})
    return path


@pytest.fixture(scope="session")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """24 prompts of 1 to 24 tokens."""
    ids = [number for text in TEXTS for number in tokenizer.encode(text)]
    return [[tokenizer.bos_id, *ids[7 * number : 8 * number]] for number in range(24)]
