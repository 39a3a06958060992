from __future__ import annotations

import dataclasses

import pytest
import torch

from jielong.model.config import ModelConfig
from jielong.model.presets import PRESETS, preset_config
from jielong.model.transformer import Transformer
from jielong.plan.count import count_parameters


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", ["lm", "scalar"])
def test_count_equals_the_model_on_the_meta_device(name: str, tied: bool, head: str) -> None:
    config = dataclasses.replace(preset_config(name, vocab_size=1000, max_length=64), tie_embeddings=tied, head=head)
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(count_parameters(config).values()) == sum(parameter.numel() for parameter in model.parameters())


def test_parts_by_hand() -> None:
    config = ModelConfig(
        vocab_size=10, max_length=8, width=6, decoder_layers=2, num_heads=2, num_kv_heads=1, head_size=4, ffn_width=5,
        tie_embeddings=False,
    )  # fmt: skip
    assert count_parameters(config) == {
        "embedding": 10 * 6,
        "attention": 2 * (6 * 8 + 2 * 6 * 4 + 8 * 6),  # q; k and v; the output projection
        "ffn": 2 * 3 * 6 * 5,
        "norms": 5 * 6,
        "head": 60,
    }
