from __future__ import annotations

import pytest
import torch

from jielong.generate.engine import Engine
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.tokenizer.tokenizer import Tokenizer

MAX_LENGTH = 32


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["你好,接龙! the cat sat on the mat 😀"] * 3, 275)


def build_model(tokenizer: Tokenizer, seed: int = 0, max_length: int = MAX_LENGTH) -> Transformer:
    """Two layers, shared kv heads; weights so large that neighbours in the context change the next token."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        max_length=max_length,
        width=32,
        decoder_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_size=8,
        ffn_width=48,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.mul_(1.36)
    return model


@pytest.fixture
def model(tokenizer: Tokenizer) -> Transformer:
    return build_model(tokenizer)


@pytest.fixture
def engine(model: Transformer, tokenizer: Tokenizer) -> Engine:
    return Engine(model, tokenizer)


@pytest.fixture(scope="session")
def shared_engine(tokenizer: Tokenizer) -> Engine:
    """One engine for tests that only read: hypothesis wants fixtures that outlive an example."""
    return Engine(build_model(tokenizer), tokenizer)
