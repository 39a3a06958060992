from __future__ import annotations

import dataclasses

import pytest

from jielong.model.config import ModelConfig
from jielong.model.presets import PRESETS, preset_config
from jielong.plan.count import PARTS, active_parameters, built_parameters, count_parameters

# What others say: the papers, or Hugging Face's classes counted. All but the last group to the last parameter.
PUBLISHED = {
    "gpt1": 116_534_784,
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1558m": 1_557_611_200,
    "gpt3-175b": 174_604_259_328,
    "bert-base": 110_106_428,  # with both heads
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704,
}
ROUNDED = {
    "transformer-base": (65e6, 0.04),  # table 3; ours has 37,000 entries in the vocabulary
    "transformer-big": (213e6, 0.01),
    "bert-base": (110e6, 0.01),
    "bert-large": (340e6, 0.02),
    "bert-tiny": (4.4e6, 0.02),  # the README of google-research/bert, without the heads
    "bert-mini": (11.3e6, 0.01),
    "bert-small": (29.1e6, 0.01),
    "bert-medium": (41.7e6, 0.01),
    "gpt3-125m": (125e6, 0.01),  # table 2.1
    "gpt3-350m": (350e6, 0.02),
    "gpt3-760m": (760e6, 0.01),
    "gpt3-1.3b": (1.3e9, 0.02),
    "gpt3-2.7b": (2.7e9, 0.02),
    "gpt3-6.7b": (6.7e9, 0.01),
    "gpt3-13b": (13.0e9, 0.02),
    "gpt3-175b": (174.6e9, 0.001),  # table D.1
    "grok-1": (314e9, 0.01),
}


def published_config(name: str) -> ModelConfig:
    return preset_config(name, **({} if "vocab_size" in PRESETS[name] else {"vocab_size": 1000, "max_length": 64}))


def total(config: ModelConfig) -> int:
    return sum(count_parameters(config).values())


@pytest.mark.parametrize("name", PRESETS)
def test_count_equals_the_model_on_the_meta_device(name: str) -> None:
    config = published_config(name)
    assert total(config) == built_parameters(config)


@pytest.mark.parametrize(
    "fields",
    [
        {"tie_embeddings": False},
        {"head": "scalar"},
        {"head": "classes", "num_labels": 3},
        {"head": "choice"},
        {"head": "span"},
        {"norm": "layer", "norm_at": "both"},
        {"norm_at": "post", "embedding_norm": True},
        {"positions": "learned", "qk_norm": True, "logit_bias": True},
        {"qkv_bias": True, "out_bias": True, "ffn_bias": True},
        {"activation": "relu", "ffn_bias": True, "qkv_bias": True},
        {"num_experts": 4, "experts_per_token": 2, "norm_at": "both"},
        {"num_experts": 4, "experts_per_token": 2, "activation": "gelu", "out_bias": True},
    ],
    ids=lambda fields: "-".join(fields),
)
@pytest.mark.parametrize("stacks", [(0, 3), (2, 3), (3, 0)], ids=["decoder", "both", "encoder"])
def test_every_field_is_counted(stacks: tuple[int, int], fields: dict[str, object]) -> None:
    head = "lm" if stacks[1] else "masked_lm"
    config = ModelConfig(
        vocab_size=50, max_length=16, width=24, num_heads=4, num_kv_heads=2, head_size=8, ffn_width=20,
        **{"encoder_layers": stacks[0], "decoder_layers": stacks[1], "head": head, **fields},  # type: ignore[arg-type]
    )  # fmt: skip
    assert total(config) == built_parameters(config)


def test_a_mean_has_no_pooler() -> None:
    config = dataclasses.replace(preset_config("bert-tiny", head="classes"), pooling="mean")
    assert total(config) == built_parameters(config)
    assert total(dataclasses.replace(config, pooling="cls")) - total(config) == 128 * 129


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_count_to_the_last_parameter(name: str) -> None:
    assert total(preset_config(name)) == PUBLISHED[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_published_round_number(name: str) -> None:
    number, tolerance = ROUNDED[name]
    assert total(preset_config(name)) == pytest.approx(number, rel=tolerance)


@pytest.mark.parametrize(("name", "bare"), [("bert-base", 109_482_240), ("bert-large", 335_141_888)])
def test_bert_without_its_heads(name: str, bare: int) -> None:
    """Hugging Face's BertModel has the pooler and neither of the two heads."""
    config = preset_config(name)
    parts = count_parameters(config)
    assert total(config) - parts["head"] + config.width * (config.width + 1) == bare


def test_the_paper_of_gpt3_contradicts_two_rows_of_its_table() -> None:
    """With 24 heads the 1.3B would have 1.5 billion parameters; 5140 is no multiple of its 40 heads of 128."""
    wide = dataclasses.replace(preset_config("gpt3-1.3b"), num_heads=24, num_kv_heads=24)
    assert total(wide) > 1.5e9
    assert 40 * 128 == preset_config("gpt3-13b").width != 5140


def test_active_parameters() -> None:
    active = {name: sum(active_parameters(preset_config(name)).values()) for name in PUBLISHED}
    assert active["mixtral-8x7b"] == 12_879_925_248
    assert active["qwen3-30b-a3b"] == pytest.approx(3.3e9, rel=0.02)
    dense = [name for name in PUBLISHED if not preset_config(name).num_experts]
    assert {name: active[name] for name in dense} == {name: PUBLISHED[name] for name in dense}


def test_grok_as_published_and_as_configured() -> None:
    config = preset_config("grok-1")
    assert total(config) == pytest.approx(315.7e9, rel=2e-4)
    assert total(config) - count_parameters(config)["embedding"] == pytest.approx(314.9e9, rel=2e-4)
    assert sum(active_parameters(config).values()) == pytest.approx(83.8e9, rel=1e-3)


def test_parts_by_hand() -> None:
    config = ModelConfig(
        vocab_size=10, max_length=8, width=6, decoder_layers=2, num_heads=2, num_kv_heads=1, head_size=4, ffn_width=5,
        tie_embeddings=False,
    )  # fmt: skip
    assert count_parameters(config) == {
        "embedding": 10 * 6,
        "positions": 0,
        "attention": 2 * (6 * 8 + 2 * 6 * 4 + 8 * 6),  # q; k and v; the output projection
        "ffn": 2 * 3 * 6 * 5,
        "router": 0,
        "norms": 5 * 6,
        "head": 60,
    }
    assert tuple(count_parameters(config)) == PARTS


def test_parts_with_everything_by_hand() -> None:
    config = ModelConfig(
        vocab_size=10, max_length=8, width=6, encoder_layers=1, decoder_layers=2, num_heads=2, num_kv_heads=1,
        head_size=4, ffn_width=5, positions="learned", norm="layer", activation="relu", qkv_bias=True, out_bias=True,
        qk_norm=True, num_experts=3, experts_per_token=1, logit_bias=True,
    )  # fmt: skip
    attention = 2 * (6 * 8) + 2 * (6 * 4) + (8 + 4 + 4) + 6
    assert count_parameters(config) == {
        "embedding": 60,
        "positions": 8 * 6,
        "attention": 5 * attention + 3 * 2 * 4,  # of three layers, and cross-attention of two, without their norms
        "ffn": 3 * 3 * 2 * 6 * 5,
        "router": 3 * 3 * 6,
        "norms": (2 * 3 + 2 + 2) * 2 * 6,  # two a layer, one for cross-attention, one at the end of each stack
        "head": 10,
    }
    assert active_parameters(config)["ffn"] == 3 * 2 * 6 * 5
