"""Models by name. A preset holds the fields of ModelConfig that its model puts differently from the defaults.

Our own ladder, jie-…, leaves vocab_size and max_length to the data (jie-encoder-… are encoders of the same sizes). Its
ffn_width stays near 8/3 of the width (SwiGLU has three matrices where a plain feed-forward has two of 4x), rounded to
32. jie-s to jie-l train in minutes on two cores; jie-124m and up want a GPU.

The others are the published models with their published numbers; the comment above a row says where those stand. "HF
config" is the config.json that is released with the weights. docs/models.md explains them, and tests count them. To
add one, write a row here; if it needs a new field, that is a change of the model first.
"""

from __future__ import annotations

from typing import Any

from jielong.errors import UsageError, nearest
from jielong.model.config import ModelConfig, RopeScaling

# Vaswani et al. 2017, arXiv:1706.03762, table 3. Projections of attention have no biases (section 3.2.2), the three
# embeddings are one matrix (3.4). About 37,000 tokens (5.1); max_length is ours. norm_eps, of which the paper
# is silent, stays 1e-5 as in Marian, whose shape the folder then has for transformers; tensor2tensor has 1e-6.
TRANSFORMER = {
    "vocab_size": 37000, "max_length": 1024, "encoder_layers": 6, "decoder_layers": 6, "head_size": 64,
    "positions": "sinusoidal", "norm": "layer", "norm_at": "post", "activation": "relu", "ffn_bias": True,
}  # fmt: skip

# Devlin et al. 2018, arXiv:1810.04805, sections 3 and 3.1; google-research/bert modeling.py; vocabulary of "uncased".
BERT = {
    "vocab_size": 30522, "max_length": 512, "decoder_layers": 0, "head_size": 64, "positions": "learned",
    "norm": "layer", "norm_at": "post", "norm_eps": 1e-12, "embedding_norm": True, "activation": "gelu",
    "qkv_bias": True, "out_bias": True, "ffn_bias": True, "logit_bias": True, "token_types": 2, "dropout": 0.1,
    "attention_dropout": 0.1, "init_std": 0.02, "head": "masked_lm",
}  # fmt: skip

# What GPT-1, -2 and -3 share: Radford et al. 2018, section 4.1.
GPT = {
    "positions": "learned", "norm": "layer", "activation": "gelu_tanh", "qkv_bias": True, "out_bias": True,
    "ffn_bias": True, "init_std": 0.02,
}  # fmt: skip

# Radford et al. 2019, sections 2.2 and 2.3; dropout from the HF config, the paper has none.
GPT2 = {**GPT, "vocab_size": 50257, "max_length": 1024, "dropout": 0.1, "attention_dropout": 0.1}

# Brown et al. 2020, arXiv:2005.14165, section 2.1. Every second layer sees a band of keys. Its width is not published:
# 256 as in GPT-Neo, the public counterpart.
GPT3 = {**GPT, "vocab_size": 50257, "max_length": 2048, "windows": (0, 256)}

# Touvron et al. 2023, arXiv:2307.09288, section 2.2 and table 1; HF config.
LLAMA2 = {"vocab_size": 32000, "max_length": 4096, "head_size": 128, "tie_embeddings": False}

# Grattafiori et al. 2024, arXiv:2407.21783, section 3.2; HF config.
LLAMA3 = {
    "vocab_size": 128256, "max_length": 8192, "width": 4096, "decoder_layers": 32, "num_heads": 32, "num_kv_heads": 8,
    "head_size": 128, "ffn_width": 14336, "rope_base": 500000.0, "tie_embeddings": False,
}  # fmt: skip

# Yang et al. 2024, arXiv:2407.10671, section 2.2 and table 1; HF config, whose vocabulary is padded.
QWEN2 = {"vocab_size": 151936, "max_length": 131072, "rope_base": 1000000.0, "norm_eps": 1e-6, "qkv_bias": True}

# Yang et al. 2025, arXiv:2505.09388, section 2, tables 1 and 2; HF config.
QWEN3 = {
    "vocab_size": 151936, "max_length": 40960, "head_size": 128, "rope_base": 1000000.0, "norm_eps": 1e-6,
    "qk_norm": True,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "jie-xs": dict(width=64, decoder_layers=2, num_heads=2, num_kv_heads=2, head_size=32, ffn_width=160),
    "jie-s": dict(width=128, decoder_layers=4, num_heads=4, num_kv_heads=4, head_size=32, ffn_width=352),
    "jie-m": dict(width=192, decoder_layers=6, num_heads=6, num_kv_heads=6, head_size=32, ffn_width=512),
    "jie-l": dict(width=256, decoder_layers=6, num_heads=8, num_kv_heads=4, head_size=32, ffn_width=704),
    "jie-124m": dict(width=768, decoder_layers=12, num_heads=12, num_kv_heads=12, head_size=64, ffn_width=2048),
    "jie-1b": dict(
        width=2048, decoder_layers=22, num_heads=32, num_kv_heads=8, head_size=64, ffn_width=5632, rope_base=500000.0
    ),
    "jie-encoder-s": dict(
        width=128, encoder_layers=4, decoder_layers=0, num_heads=4, num_kv_heads=4, head_size=32, ffn_width=352,
        token_types=2, head="masked_lm",
    ),
    "jie-encoder-m": dict(
        width=192, encoder_layers=6, decoder_layers=0, num_heads=6, num_kv_heads=6, head_size=32, ffn_width=512,
        token_types=2, head="masked_lm",
    ),
    # Table 3, rows "base" and "big"; big's dropout is that of English-German.
    "transformer-base": dict(
        TRANSFORMER, width=512, num_heads=8, num_kv_heads=8, ffn_width=2048, embedding_scale=512**0.5, dropout=0.1
    ),
    "transformer-big": dict(
        TRANSFORMER, width=1024, num_heads=16, num_kv_heads=16, ffn_width=4096, embedding_scale=32.0, dropout=0.3
    ),
    # Section 3, "BERT-BASE" and "BERT-LARGE".
    "bert-base": dict(BERT, width=768, encoder_layers=12, num_heads=12, num_kv_heads=12, ffn_width=3072),
    "bert-large": dict(BERT, width=1024, encoder_layers=24, num_heads=16, num_kv_heads=16, ffn_width=4096),
    # Turc et al. 2019, arXiv:1908.08962, and the README of google-research/bert: the small BERTs, always heads of 64.
    "bert-tiny": dict(BERT, width=128, encoder_layers=2, num_heads=2, num_kv_heads=2, ffn_width=512),
    "bert-mini": dict(BERT, width=256, encoder_layers=4, num_heads=4, num_kv_heads=4, ffn_width=1024),
    "bert-small": dict(BERT, width=512, encoder_layers=4, num_heads=8, num_kv_heads=8, ffn_width=2048),
    "bert-medium": dict(BERT, width=512, encoder_layers=8, num_heads=8, num_kv_heads=8, ffn_width=2048),
    # Radford et al. 2018, section 4.1; 40,000 merges and 478 characters from openai/finetune-transformer-lm.
    "gpt1": dict(
        GPT, width=768, decoder_layers=12, num_heads=12, num_kv_heads=12, head_size=64, ffn_width=3072,
        vocab_size=40478, max_length=512, norm_at="post", dropout=0.1, attention_dropout=0.1,
    ),
    # Radford et al. 2019, table 2; numbers of parameters as openai/gpt-2 corrects them.
    "gpt2-124m": dict(
        GPT2, width=768, decoder_layers=12, num_heads=12, num_kv_heads=12, head_size=64, ffn_width=3072
    ),
    "gpt2-355m": dict(
        GPT2, width=1024, decoder_layers=24, num_heads=16, num_kv_heads=16, head_size=64, ffn_width=4096
    ),
    "gpt2-774m": dict(
        GPT2, width=1280, decoder_layers=36, num_heads=20, num_kv_heads=20, head_size=64, ffn_width=5120
    ),
    "gpt2-1558m": dict(
        GPT2, width=1600, decoder_layers=48, num_heads=25, num_kv_heads=25, head_size=64, ffn_width=6400
    ),
    # Brown et al. 2020, table 2.1, but for two of its rows, which its own parameter counts contradict: the 1.3B has 16
    # heads where the table says 24, and the 13B is 5120 wide (40 heads of 128) where it says 5140.
    "gpt3-125m": dict(
        GPT3, width=768, decoder_layers=12, num_heads=12, num_kv_heads=12, head_size=64, ffn_width=3072
    ),
    "gpt3-350m": dict(
        GPT3, width=1024, decoder_layers=24, num_heads=16, num_kv_heads=16, head_size=64, ffn_width=4096
    ),
    "gpt3-760m": dict(
        GPT3, width=1536, decoder_layers=24, num_heads=16, num_kv_heads=16, head_size=96, ffn_width=6144
    ),
    "gpt3-1.3b": dict(
        GPT3, width=2048, decoder_layers=24, num_heads=16, num_kv_heads=16, head_size=128, ffn_width=8192
    ),
    "gpt3-2.7b": dict(
        GPT3, width=2560, decoder_layers=32, num_heads=32, num_kv_heads=32, head_size=80, ffn_width=10240
    ),
    "gpt3-6.7b": dict(
        GPT3, width=4096, decoder_layers=32, num_heads=32, num_kv_heads=32, head_size=128, ffn_width=16384
    ),
    "gpt3-13b": dict(
        GPT3, width=5120, decoder_layers=40, num_heads=40, num_kv_heads=40, head_size=128, ffn_width=20480
    ),
    "gpt3-175b": dict(
        GPT3, width=12288, decoder_layers=96, num_heads=96, num_kv_heads=96, head_size=128, ffn_width=49152
    ),
    "llama-2-7b": dict(LLAMA2, width=4096, decoder_layers=32, num_heads=32, num_kv_heads=32, ffn_width=11008),
    "llama-2-13b": dict(LLAMA2, width=5120, decoder_layers=40, num_heads=40, num_kv_heads=40, ffn_width=13824),
    "llama-2-70b": dict(LLAMA2, width=8192, decoder_layers=80, num_heads=64, num_kv_heads=8, ffn_width=28672),
    "llama-3-8b": LLAMA3,
    # The same weights' shape; the context is stretched: HF config, rope_scaling.
    "llama-3.1-8b": dict(
        LLAMA3, max_length=131072,
        rope_scaling=RopeScaling(factor=8.0, low_frequency=1.0, high_frequency=4.0, original_length=8192),
    ),
    "qwen2-0.5b": dict(
        QWEN2, width=896, decoder_layers=24, num_heads=14, num_kv_heads=2, head_size=64, ffn_width=4864
    ),
    "qwen2-1.5b": dict(
        QWEN2, width=1536, decoder_layers=28, num_heads=12, num_kv_heads=2, head_size=128, ffn_width=8960
    ),
    "qwen2-7b": dict(
        QWEN2, width=3584, decoder_layers=28, num_heads=28, num_kv_heads=4, head_size=128, ffn_width=18944,
        vocab_size=152064, tie_embeddings=False,
    ),
    "qwen3-0.6b": dict(QWEN3, width=1024, decoder_layers=28, num_heads=16, num_kv_heads=8, ffn_width=3072),
    "qwen3-1.7b": dict(QWEN3, width=2048, decoder_layers=28, num_heads=16, num_kv_heads=8, ffn_width=6144),
    "qwen3-4b": dict(QWEN3, width=2560, decoder_layers=36, num_heads=32, num_kv_heads=8, ffn_width=9728),
    "qwen3-8b": dict(
        QWEN3, width=4096, decoder_layers=36, num_heads=32, num_kv_heads=8, ffn_width=12288, tie_embeddings=False
    ),
    "qwen3-30b-a3b": dict(
        QWEN3, width=2048, decoder_layers=48, num_heads=32, num_kv_heads=4, ffn_width=768, num_experts=128,
        experts_per_token=8, tie_embeddings=False,
    ),
    # Jiang et al. 2024, arXiv:2401.04088, table 1; HF config.
    "mixtral-8x7b": dict(
        vocab_size=32000, max_length=32768, width=4096, decoder_layers=32, num_heads=32, num_kv_heads=8, head_size=128,
        ffn_width=14336, rope_base=1000000.0, num_experts=8, experts_per_token=2, tie_embeddings=False,
    ),
    # xai-org/grok-1, run.py and model.py: four norms a layer, two scales (sqrt of the width, 1 / sqrt 3) and the cap.
    "grok-1": dict(
        vocab_size=131072, max_length=8192, width=6144, decoder_layers=64, num_heads=48, num_kv_heads=8, head_size=128,
        ffn_width=32768, norm_at="both", activation="geglu", embedding_scale=6144**0.5, logit_scale=3**-0.5,
        attention_softcap=30.0, num_experts=8, experts_per_token=2, normalise_experts=False,
    ),
}  # fmt: skip

# Tokens that a published model was trained on: GPT-3 table 2.1, Llama 2 table 1, the Llama 3 model card ("15T+"), Qwen2
# table 1, Qwen3 section 3. With two stacks, pairs of one source and one target token: 25,000 of each a step
# (Vaswani et al., sections 5.1 and 5.2). BERT: a million steps of 256 rows, nine in ten of them of 128 tokens (A.2).
TRAINED_ON: dict[str, float] = {
    "transformer-base": 100_000 * 25_000,
    "transformer-big": 300_000 * 25_000,
    **dict.fromkeys(("bert-base", "bert-large"), 1_000_000 * 256 * (0.9 * 128 + 0.1 * 512)),
    **dict.fromkeys((name for name in PRESETS if name.startswith("gpt3-")), 300e9),
    **dict.fromkeys(("llama-2-7b", "llama-2-13b", "llama-2-70b"), 2e12),
    **dict.fromkeys(("llama-3-8b", "llama-3.1-8b"), 15e12),
    **dict.fromkeys(("qwen2-1.5b", "qwen2-7b"), 7e12),
    "qwen2-0.5b": 12e12,
    **dict.fromkeys((name for name in PRESETS if name.startswith("qwen3-")), 36e12),
}


def preset_config(
    name: str, vocab_size: int | None = None, max_length: int | None = None, head: str | None = None
) -> ModelConfig:
    """The ModelConfig of a preset; what is None is as published.

    Raises UsageError for an unknown name, and for a preset of our own without vocab_size and max_length.
    """
    if name not in PRESETS:
        near = nearest(name, PRESETS)
        hint = f"; did you mean {near}?" if near else ""
        raise UsageError(f"the model preset is {name!r}; legal are {', '.join(PRESETS)}{hint}")
    given = {"vocab_size": vocab_size, "max_length": max_length, "head": head}
    fields = {**PRESETS[name], **{key: value for key, value in given.items() if value is not None}}
    missing = [key for key in ("vocab_size", "max_length") if key not in fields]
    if missing:
        raise UsageError(f"the model preset {name!r} leaves {' and '.join(missing)} to the data; give them")
    return ModelConfig(**fields)


def is_encoder(name: str) -> bool:
    """Whether the preset is one that reads both directions and guesses hidden tokens: no decoder."""
    return PRESETS[name].get("head", "lm") == "masked_lm"


def is_decoder(name: str) -> bool:
    """Whether the preset is one that continues text: no encoder, logits over the vocabulary."""
    preset = PRESETS[name]
    return not preset.get("encoder_layers") and preset.get("head", "lm") == "lm"
