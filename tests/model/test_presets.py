from __future__ import annotations

import pytest

from jielong.errors import UsageError
from jielong.model.presets import PRESETS, preset_config


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_a_legal_shape(name: str) -> None:
    config = preset_config(name, vocab_size=300, max_length=64)
    assert config.num_heads * config.head_size == config.width
    assert 2.4 < config.ffn_width / config.width < 2.8 and config.ffn_width % 32 == 0


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="'jie-124'.*did you mean jie-124m"):
        preset_config("jie-124", vocab_size=300, max_length=64)
