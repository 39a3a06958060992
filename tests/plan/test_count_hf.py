"""Counts against Hugging Face's own classes, both on the meta device: presets of full size, no memory, no download."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from jielong.model.config import ModelConfig
from jielong.model.presets import PRESETS, preset_config
from jielong.plan.count import count_parameters

CLASSES = {
    "bert": (transformers.BertForPreTraining, transformers.BertConfig),
    "gpt1": (transformers.OpenAIGPTLMHeadModel, transformers.OpenAIGPTConfig),
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config),
    "gpt3": (transformers.GPT2LMHeadModel, transformers.GPT2Config),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config),
    "mixtral": (transformers.MixtralForCausalLM, transformers.MixtralConfig),
}
NAMES = [name for name in PRESETS if name.partition("-")[0] in CLASSES]


def their_config(name: str, config: ModelConfig) -> dict[str, Any]:
    if name.startswith("gpt"):
        return {
            "vocab_size": config.vocab_size,
            "n_positions": config.max_length,
            "n_embd": config.width,
            "n_layer": config.decoder_layers,
            "n_head": config.num_heads,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "hidden_size": config.width,
        "num_hidden_layers": config.encoder_layers + config.decoder_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.ffn_width,
        "tie_word_embeddings": config.tie_embeddings,
        "num_experts": config.num_experts,
        "moe_intermediate_size": config.ffn_width,
    }


@pytest.mark.parametrize("name", NAMES)
def test_count_equals_hugging_faces(name: str) -> None:
    config = preset_config(name)
    model_class, config_class = CLASSES[name.partition("-")[0]]
    if config.num_experts == 128:
        model_class, config_class = transformers.Qwen3MoeForCausalLM, transformers.Qwen3MoeConfig
    with torch.device("meta"):
        theirs = model_class(config_class(**their_config(name, config)))
    assert sum(count_parameters(config).values()) == sum(parameter.numel() for parameter in theirs.parameters())


def test_most_presets_are_compared() -> None:
    left_out = {name for name in PRESETS if name not in NAMES and not name.startswith("jie-")}
    assert left_out == {f"transformer-{size}" for size in ("tiny", "small", "base", "big")} | {"grok-1"}
