"""Tiny models for the tests of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from jielong.model.config import ModelConfig, RopeScaling
from jielong.model.transformer import Transformer

BuildModel = Callable[..., Transformer]
BuildFamily = Callable[..., Transformer]

SIZES: dict[str, Any] = {
    "vocab_size": 61, "max_length": 64, "width": 32, "decoder_layers": 2, "num_heads": 4, "num_kv_heads": 4,
    "head_size": 8, "ffn_width": 48,
}  # fmt: skip
BIASES = {"qkv_bias": True, "out_bias": True, "ffn_bias": True}
GPT: dict[str, Any] = {"positions": "learned", "norm": "layer", "activation": "gelu_tanh", **BIASES}
EXPERTS = {"num_experts": 4, "experts_per_token": 2}
TWO_STACKS: dict[str, Any] = {
    "encoder_layers": 2, "positions": "sinusoidal", "norm": "layer", "norm_at": "post", "activation": "relu",
    "ffn_bias": True, "embedding_scale": 32**0.5,
}  # fmt: skip
BERT: dict[str, Any] = {
    **GPT, "encoder_layers": 2, "decoder_layers": 0, "norm_at": "post", "norm_eps": 1e-12, "embedding_norm": True,
    "activation": "gelu", "logit_bias": True, "token_types": 2, "head": "masked_lm",
}  # fmt: skip
# What each system is, as fields that differ from the defaults; the last few are combinations that nobody shipped.
FAMILIES: dict[str, dict[str, Any]] = {
    "jie": {"num_kv_heads": 2},
    "gpt1": {**GPT, "norm_at": "post"},
    "gpt2": GPT,
    "gpt3": {**GPT, "windows": (0, 5)},
    "llama31": {"num_kv_heads": 2, "rope_base": 50.0, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 32)},
    "mistral": {"num_kv_heads": 1, "windows": (4,), "tie_embeddings": False},
    "qwen2": {"num_kv_heads": 2, "qkv_bias": True},
    "qwen3": {"num_kv_heads": 2, "qk_norm": True, "head_size": 12},
    "mixtral": {"num_kv_heads": 2, "tie_embeddings": False, **EXPERTS},
    "grok1": {
        "num_kv_heads": 2, "norm_at": "both", "activation": "geglu", "normalise_experts": False, "embedding_scale": 5.5,
        "logit_scale": 0.577, "attention_softcap": 2.0, **EXPERTS,
    },
    "bert": BERT,
    "transformer": TWO_STACKS,
    "marian": {**TWO_STACKS, **BIASES, "logit_bias": True},
    "encoder-pre": {**BERT, "norm_at": "pre", "positions": "rotary", "norm": "rms", "activation": "swiglu"},
    "two-stacks-rotary": {
        "encoder_layers": 1, "num_kv_heads": 1, "norm_at": "both", "qk_norm": True, "attention_softcap": 3.0,
        "windows": (3, 0), "logit_scale": 2.0, "logit_bias": True,
    },
    "experts-relu": {"encoder_layers": 1, "activation": "relu", "num_experts": 3, "experts_per_token": 1},
    "learned-capped-window": {**GPT, "windows": (3,), "attention_softcap": 1.5, "num_kv_heads": 2},
}  # fmt: skip


def randomise(model: Transformer) -> Transformer:
    """Random weights in every parameter: norms of 1 and biases of 0 would hide one that is left out or misplaced."""
    generator = torch.Generator().manual_seed(5)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def small_decoder(seed: int = 0, **changes: Any) -> Transformer:
    """A decoder of SIZES but for the changes, with the weights it begins to train with."""
    model = Transformer(ModelConfig(**{**SIZES, **changes}))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


@pytest.fixture
def build() -> BuildModel:
    """build(num_kv_heads=2, head="lm", tied=True, max_length=64): random weights, large enough to matter."""

    def make(num_kv_heads: int = 2, head: str = "lm", tied: bool = True, max_length: int = 64) -> Transformer:
        changes = {"num_kv_heads": num_kv_heads, "max_length": max_length, "tie_embeddings": tied, "head": head}
        return randomise(Transformer(ModelConfig(**{**SIZES, **changes})))

    return make


@pytest.fixture
def build_family() -> BuildFamily:
    """build_family(name, **changes): a tiny model of FAMILIES, random and in eval mode."""

    def make(name: str, **changes: Any) -> Transformer:
        return randomise(Transformer(ModelConfig(**{**SIZES, **FAMILIES[name], **changes}))).eval()

    return make


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """The name of each family in turn."""
    return request.param


@pytest.fixture(params=[name for name, fields in FAMILIES.items() if fields.get("decoder_layers") != 0])
def decoder_family(request: pytest.FixtureRequest) -> str:
    """The name of each family that decodes, in turn."""
    return request.param


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(61, (3, 24), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def build_translator() -> Callable[[], Transformer]:
    """Two stacks in the shape of 2017: post-norm, sinusoids, no biases but those of the feed-forward."""

    def make() -> Transformer:
        config = ModelConfig(
            vocab_size=61, max_length=64, width=32, encoder_layers=2, decoder_layers=2, num_heads=4, num_kv_heads=4,
            head_size=8, ffn_width=48, positions="sinusoidal", norm="layer", norm_at="post", activation="relu",
            ffn_bias=True, embedding_scale=32**0.5,
        )  # fmt: skip
        model = Transformer(config)
        model.init_weights(torch.Generator().manual_seed(5))
        return model

    return make
