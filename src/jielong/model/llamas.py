"""Llama and its kin, as literal tables: rotary positions, RMSNorm before each sublayer, SwiGLU. See `family.py`."""

from __future__ import annotations

from jielong.model.family import Family

_ROTARY_KEYS = {
    "vocab_size": ("vocab_size", ...),
    "max_position_embeddings": ("max_length", ...),
    "hidden_size": ("width", ...),
    "num_hidden_layers": ("decoder_layers", ...),
    "num_attention_heads": ("num_heads", ...),
    "num_key_value_heads": ("num_kv_heads", None),
    "head_dim": ("head_size", None),
    "intermediate_size": ("ffn_width", ...),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "tie_word_embeddings": ("tie_embeddings", False),
    "attention_dropout": ("attention_dropout", 0.0),
    "initializer_range": ("init_std", 0.02),
}
_ROTARY_IMPLIED = {"positions": "rotary", "norm": "rms", "norm_at": "pre"}
_SILU_GATE = {"hidden_act": ("activation", "silu", {"silu": "swiglu", "swish": "swiglu"})}
_ROTARY_IGNORED = ("pretraining_tp", "rope_parameters", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id")
_ATTENTION = "model.layers.{i}.self_attn."
_ROTARY_NAMES: dict[str, str | tuple[str, ...]] = {
    "embed": "model.embed_tokens",
    "layers.{i}.attention_norm": "model.layers.{i}.input_layernorm",
    "layers.{i}.attention.qkv": (_ATTENTION + "q_proj", _ATTENTION + "k_proj", _ATTENTION + "v_proj"),
    "layers.{i}.attention.out": _ATTENTION + "o_proj",
    "layers.{i}.attention.q_norm": _ATTENTION + "q_norm",
    "layers.{i}.attention.k_norm": _ATTENTION + "k_norm",
    "layers.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "layers.{i}.ffn.gate": "model.layers.{i}.mlp.gate_proj",
    "layers.{i}.ffn.up": "model.layers.{i}.mlp.up_proj",
    "layers.{i}.ffn.down": "model.layers.{i}.mlp.down_proj",
    "norm": "model.norm",
    "unembedding": "lm_head",
    "score": "score",
    "classifier": "score",
}
_MOE = "model.layers.{i}.block_sparse_moe."
_EXPERT = "model.layers.{i}.mlp.experts.{e}."
_FUSED = "model.layers.{i}.mlp.experts."
_FUSED_EXPERTS = {
    "layers.{i}.ffn.gate": (_FUSED + "gate_up_proj", 0),
    "layers.{i}.ffn.up": (_FUSED + "gate_up_proj", 1),
    "layers.{i}.ffn.down": (_FUSED + "down_proj", None),
}

LLAMA = Family(
    model_type="llama",
    architectures={"LlamaForCausalLM": "lm", "LlamaForSequenceClassification": "labels"},
    keys={
        **_ROTARY_KEYS,
        "attention_bias": ("qkv_bias out_bias", False),
        "mlp_bias": ("ffn_bias", False),
    },
    choices=_SILU_GATE,
    implied=_ROTARY_IMPLIED,
    ignored=_ROTARY_IGNORED,
    base=10000.0,
    divides=True,  # their config is refused otherwise, head_dim or not
    prefix="model.",
    names=_ROTARY_NAMES,
    skipped=("rotary_emb.inv_freq",),
)
MISTRAL = Family(
    model_type="mistral",
    architectures={"MistralForCausalLM": "lm", "MistralForSequenceClassification": "labels"},
    keys={**_ROTARY_KEYS, "num_key_value_heads": ("num_kv_heads", 8)},
    choices=_SILU_GATE,
    implied=_ROTARY_IMPLIED,
    ignored=_ROTARY_IGNORED,
    base=10000.0,
    window="sliding_window",
    prefix="model.",
    names=_ROTARY_NAMES,
    skipped=("rotary_emb.inv_freq",),
)
QWEN2 = Family(
    model_type="qwen2",
    architectures={"Qwen2ForCausalLM": "lm", "Qwen2ForSequenceClassification": "labels"},
    keys={**_ROTARY_KEYS, "num_key_value_heads": ("num_kv_heads", ...)},
    choices=_SILU_GATE,
    fixed={"use_sliding_window": False},
    implied={**_ROTARY_IMPLIED, "qkv_bias": True},
    ignored=(*_ROTARY_IGNORED, "sliding_window", "max_window_layers", "layer_types"),  # only with use_sliding_window
    base=10000.0,
    prefix="model.",
    names=_ROTARY_NAMES,
    skipped=("rotary_emb.inv_freq",),
)
QWEN3 = Family(
    model_type="qwen3",
    architectures={"Qwen3ForCausalLM": "lm", "Qwen3ForSequenceClassification": "labels"},
    keys={
        **_ROTARY_KEYS,
        "num_key_value_heads": ("num_kv_heads", ...),
        "head_dim": ("head_size", 128),
        "attention_bias": ("qkv_bias out_bias", False),
    },
    choices=_SILU_GATE,
    fixed={"use_sliding_window": False},
    implied={**_ROTARY_IMPLIED, "qk_norm": True},
    ignored=(*_ROTARY_IGNORED, "sliding_window", "max_window_layers", "layer_types"),
    base=10000.0,
    prefix="model.",
    names=_ROTARY_NAMES,
)
MIXTRAL = Family(
    model_type="mixtral",
    architectures={"MixtralForCausalLM": "lm", "MixtralForSequenceClassification": "labels"},
    keys={
        **_ROTARY_KEYS,
        "num_key_value_heads": ("num_kv_heads", 8),
        "rms_norm_eps": ("norm_eps", 1e-5),
        "num_local_experts": ("num_experts", 8),
        "num_experts_per_tok": ("experts_per_token", 2),
    },
    choices=_SILU_GATE,
    fixed={"router_jitter_noise": 0.0},
    implied={**_ROTARY_IMPLIED, "normalise_experts": True},
    ignored=(*_ROTARY_IGNORED, "output_router_logits", "router_aux_loss_coef"),
    base=1e6,
    window="sliding_window",
    prefix="model.",
    names={
        **_ROTARY_NAMES,
        "layers.{i}.ffn.router": _MOE + "gate",
        "layers.{i}.ffn.gate": _MOE + "experts.{e}.w1.weight",
        "layers.{i}.ffn.up": _MOE + "experts.{e}.w3.weight",
        "layers.{i}.ffn.down": _MOE + "experts.{e}.w2.weight",
    },
    renamed={".mlp.gate.": ".block_sparse_moe.gate."},
    fused=_FUSED_EXPERTS,
    skipped=("rotary_emb.inv_freq",),
)
QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architectures={"Qwen3MoeForCausalLM": "lm", "Qwen3MoeForSequenceClassification": "labels"},
    keys={
        **{key: value for key, value in _ROTARY_KEYS.items() if key != "intermediate_size"},
        "num_key_value_heads": ("num_kv_heads", ...),
        "moe_intermediate_size": ("ffn_width", ...),
        "attention_bias": ("qkv_bias out_bias", False),
        "num_local_experts": ("num_experts", ...),
        "num_experts_per_tok": ("experts_per_token", 8),
        "norm_topk_prob": ("normalise_experts", False),
    },
    synonyms={"num_experts": "num_local_experts"},  # the hub's spelling; transformers 5.23 writes the other
    choices=_SILU_GATE,
    fixed={"use_sliding_window": False, "decoder_sparse_step": 1, "mlp_only_layers": ([], None)},
    implied={**_ROTARY_IMPLIED, "qk_norm": True},
    ignored=(
        *_ROTARY_IGNORED,
        "sliding_window",
        "intermediate_size",
        "output_router_logits",
        "router_aux_loss_coef",
    ),  # fmt: skip
    base=10000.0,
    prefix="model.",
    names={
        **_ROTARY_NAMES,
        "layers.{i}.ffn.router": "model.layers.{i}.mlp.gate",
        "layers.{i}.ffn.gate": _EXPERT + "gate_proj.weight",
        "layers.{i}.ffn.up": _EXPERT + "up_proj.weight",
        "layers.{i}.ffn.down": _EXPERT + "down_proj.weight",
    },
    fused=_FUSED_EXPERTS,
)
