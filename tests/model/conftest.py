"""Tiny models for the tests of the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer

BuildModel = Callable[..., Transformer]


@pytest.fixture
def build() -> BuildModel:
    """build(num_kv_heads=2, head="lm", tied=True, max_length=64): random weights, large enough to matter."""

    def make(num_kv_heads: int = 2, head: str = "lm", tied: bool = True, max_length: int = 64) -> Transformer:
        config = ModelConfig(
            vocab_size=61, max_length=max_length, width=32, decoder_layers=2, num_heads=4, num_kv_heads=num_kv_heads,
            head_size=8, ffn_width=48, tie_embeddings=tied, head=head,
        )  # fmt: skip
        model = Transformer(config)
        generator = torch.Generator().manual_seed(5)
        model.init_weights(generator)
        with torch.no_grad():  # norms of 1 would hide one that is left out, or two that change places
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
                assert "norm" in name or parameter.dim() == 2
        return model

    return make


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
