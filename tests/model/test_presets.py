from __future__ import annotations

import dataclasses

import pytest

from jielong.errors import UsageError
from jielong.model.presets import PRESETS, TRAINED_ON, is_decoder, is_encoder, preset_config

OURS = [name for name in PRESETS if name.startswith("jie-")]
PUBLISHED = [name for name in PRESETS if name not in OURS]
FIELDS = {field.name: field.default for field in dataclasses.fields(preset_config("jie-s", 300, 64))}


@pytest.mark.parametrize("name", OURS)
def test_each_step_of_the_ladder_is_a_legal_shape(name: str) -> None:
    config = preset_config(name, vocab_size=300, max_length=64)
    assert (config.vocab_size, config.max_length) == (300, 64)
    assert config.num_heads * config.head_size == config.width
    assert 2.4 < config.ffn_width / config.width < 2.8 and config.ffn_width % 32 == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_need_nothing_said(name: str) -> None:
    config = preset_config(name)
    assert config.vocab_size == PRESETS[name]["vocab_size"] and config.max_length == PRESETS[name]["max_length"]
    other = preset_config(name, vocab_size=300, max_length=64, head="scalar")
    assert (other.vocab_size, other.max_length, other.head) == (300, 64, "scalar")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_only_what_differs(name: str) -> None:
    """A default spelled out again would have to be kept equal by hand."""
    assert not [field for field, value in PRESETS[name].items() if value == FIELDS[field]]


def test_our_own_presets_want_the_datas_numbers() -> None:
    with pytest.raises(UsageError, match="'jie-s' leaves vocab_size and max_length to the data"):
        preset_config("jie-s")


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="'jie-124'.*did you mean jie-124m"):
        preset_config("jie-124", vocab_size=300, max_length=64)


def test_all_that_the_issue_names_is_there() -> None:
    sizes = ("125m", "350m", "760m", "1.3b", "2.7b", "6.7b", "13b", "175b")
    assert {name for name in PRESETS if name.startswith("gpt3-")} == {f"gpt3-{size}" for size in sizes}
    named = "transformer-base transformer-big bert-base bert-large gpt1 gpt2-124m gpt2-355m gpt2-774m gpt2-1558m"
    named += " llama-2-7b llama-2-70b llama-3-8b qwen2-0.5b qwen3-0.6b mixtral-8x7b grok-1"
    assert set(named.split()) <= set(PRESETS) and set(TRAINED_ON) <= set(PRESETS)


def test_decoders_are_told_from_the_others() -> None:
    others = {name for name in PRESETS if not is_decoder(name)}
    translators = {f"transformer-{size}" for size in ("tiny", "small", "base", "big")}
    encoders = {name for name in PRESETS if is_encoder(name)}
    berts = {f"bert-{size}" for size in ("tiny", "mini", "small", "medium", "base", "large")}
    assert encoders == berts | {"jie-encoder-s", "jie-encoder-m"}
    assert others == encoders | translators


def test_windows_alternate_in_gpt3() -> None:
    config = preset_config("gpt3-175b")
    assert [config.window(layer) for layer in range(4)] == [0, 256, 0, 256]
