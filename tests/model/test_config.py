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
    ],
)
def test_illegal_value_is_named(field: str, value: Any, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        dataclasses.replace(GOOD, **{field: value})


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.width = 8  # type: ignore[misc]
