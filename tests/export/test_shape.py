"""What other programs cannot compute is refused by naming the field."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from jielong.errors import ModelError
from jielong.export.shape import NUMPY, check_shape, gguf_family, rope_divisors
from jielong.model.config import ModelConfig, RopeScaling
from jielong.model.positions import rotary_tables

SMALL: dict[str, Any] = {
    "vocab_size": 300, "max_length": 32, "width": 32, "decoder_layers": 1, "num_heads": 2, "num_kv_heads": 2,
    "head_size": 16, "ffn_width": 48,
}  # fmt: skip
REFUSED: dict[str, Any] = {
    "encoder_layers": 1,
    "positions": "sinusoidal",
    "norm_at": "post",
    "embedding_norm": True,
    "activation": "relu",
    "windows": (8,),
    "embedding_scale": 5.5,
    "logit_scale": 0.5,
    "attention_softcap": 30.0,
    "logit_bias": True,
    "head": "scalar",
}


@pytest.mark.parametrize(
    ("changes", "family"), [({}, "llama"), ({"qkv_bias": True}, "qwen2"), ({"qk_norm": True}, "qwen3")]
)
def test_families(changes: dict[str, Any], family: str) -> None:
    assert gguf_family(ModelConfig(**SMALL, **changes)) == family
    assert gguf_family(ModelConfig(**SMALL, **changes, windows=(0, 0))) == family


@pytest.mark.parametrize("field", REFUSED)
def test_no_export_takes_what_its_reader_does_not_compute(field: str) -> None:
    config = ModelConfig(**SMALL, **{field: REFUSED[field]})
    named = re.escape(f"{field} is {REFUSED[field]!r}; ")
    with pytest.raises(ModelError, match=named + "llama.cpp's llama knows only"):
        gguf_family(config)
    with pytest.raises(ModelError, match=named + "run.py knows only"):
        check_shape(config, NUMPY, "run.py")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 4, "experts_per_token": 2}, "num_experts is 4"),
        ({"norm": "layer"}, "norm is 'layer'"),
        ({"out_bias": True}, "out_bias is True"),
        ({"qkv_bias": True, "qk_norm": True}, "qkv_bias is True; llama.cpp's qwen3 knows only False"),
        ({"qkv_bias": True, "head_size": 24}, "head_size is 24; llama.cpp's qwen2 knows only width / num_heads, 16"),
        ({"qk_norm": True, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 32)}, "rope_scaling is RopeScaling"),
    ],
)
def test_gguf_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        gguf_family(ModelConfig(**{**SMALL, **changes}))


def test_divisors_are_those_of_the_models_own_angles() -> None:
    scaling = RopeScaling(8.0, 1.0, 4.0, 32)
    divisors = rope_divisors(ModelConfig(**SMALL, rope_base=50.0, rope_scaling=scaling))
    assert divisors is not None
    assert divisors[0] == 1 and float(divisors[-1]) == pytest.approx(8.0)  # fast ones kept, slow ones divided
    cos, _ = rotary_tables(2, 16, 50.0, scaling)
    frequencies = 50.0 ** (-torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close((frequencies / divisors).cos(), cos[1, :8])
    assert rope_divisors(ModelConfig(**SMALL)) is None
