from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from jielong.errors import ModelError
from jielong.model.config import ModelConfig

GOOD = ModelConfig(
    vocab_size=10, max_length=8, width=16, decoder_layers=1, num_heads=4, num_kv_heads=2, head_size=4, ffn_width=8
)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("vocab_size", 0, "vocab_size is 0"),
        ("width", 16.0, "width is 16.0"),
        ("decoder_layers", True, "decoder_layers is True"),
        ("num_kv_heads", 3, "must divide num_heads, 4"),
        ("head_size", 5, "must be even"),
        ("rope_base", 0.5, "rope_base is 0.5"),
        ("head", "lmm", "legal are lm, scalar"),
        ("positions", "rotory", "did you mean rotary"),
        ("norm", "batch", "legal are rms, layer"),
        ("norm_at", "behind", "legal are pre, post, both"),
        ("activation", "gelu_tan", "did you mean gelu_tanh"),
        ("windows", (), "windows is \\(\\)"),
        ("windows", (0, -1), "whole numbers, 0"),
        ("attention_softcap", -1.0, "0 \\(off\\) or more"),
        ("experts_per_token", 1, "legal are 0 only"),
        ("num_experts", 4, "legal are 1 to 4"),
        ("dropout", 1.0, "under 1"),
        ("decoder_layers", 0, "both 0"),
        ("head", "masked_lm", "decoder_layers must be 0"),
        ("token_types", 2, "only an encoder-only model"),
        ("num_labels", 0, "num_labels is 0"),
    ],
)
def test_illegal_value_is_named(field: str, value: Any, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        dataclasses.replace(GOOD, **{field: value})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"encoder_layers": 1, "decoder_layers": 0}, "head is 'lm'"),
        ({"encoder_layers": 1, "decoder_layers": 0, "head": "masked_lm", "windows": (4,)}, "an encoder sees the whole"),
        ({"num_experts": 4, "experts_per_token": 2, "ffn_bias": True}, "experts have no biases"),
        ({"positions": "sinusoidal", "width": 15}, "must be even"),
    ],
)
def test_fields_that_do_not_go_together_are_named(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        dataclasses.replace(GOOD, **fields)


def test_windows_repeat_over_layers() -> None:
    config = dataclasses.replace(GOOD, decoder_layers=5, windows=(0, 3))
    assert [config.window(layer) for layer in range(5)] == [0, 3, 0, 3, 0]


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.width = 8  # type: ignore[misc]
