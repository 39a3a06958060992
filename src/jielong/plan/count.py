"""How many parameters a config has, part by part, without building the model; and by building it without memory."""

from __future__ import annotations

import torch

from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer

PARTS = ("embedding", "positions", "attention", "ffn", "router", "norms", "head")


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by part: embedding, positions, attention, ffn, router, norms, head. The sum is exact.

    embedding: of tokens and of token types. attention: cross-attention too, biases and the norms of queries and keys.
    head is what is not the embedding: 0 for tied logits, V D untied, D for the scalar head; for "masked_lm" the
    transform, the biases of the vocabulary, the pooler and next-sentence.
    """
    layers = config.encoder_layers + config.decoder_layers
    bias_a_layer = (config.num_heads + 2 * config.num_kv_heads) * config.head_size * config.qkv_bias
    bias_a_layer += config.width * config.out_bias
    qk_norms = layers * 2 * config.head_size * config.qk_norm  # cross-attention has none
    ffns = max(1, config.num_experts)
    return {
        "embedding": (config.vocab_size + config.token_types) * config.width,
        "positions": config.max_length * config.width if config.positions == "learned" else 0,
        "attention": (layers + num_cross_layers(config)) * (attention_weights(config) + bias_a_layer) + qk_norms,
        "ffn": layers * (ffns * ffn_weights(config) + _ffn_biases(config)),  # experts have no biases
        "router": layers * config.num_experts * config.width,
        "norms": _num_norms(config) * _norm_parameters(config),
        "head": _head_parameters(config),
    }


def active_parameters(config: ModelConfig) -> dict[str, int]:
    """The same, but only what one token uses: of E experts the experts_per_token that it is sent to."""
    parts = count_parameters(config)
    if config.num_experts:
        parts["ffn"] = parts["ffn"] // config.num_experts * config.experts_per_token
    return parts


def built_parameters(config: ModelConfig) -> int:
    """The number in the model as built, on torch's meta device: neither memory nor time, whatever the size."""
    with torch.device("meta"):
        model = Transformer(config)
    return sum(parameter.numel() for parameter in model.parameters())


def attention_weights(config: ModelConfig) -> int:
    """Weights of the four matrices of one attention: queries and output, keys and values. No biases."""
    return 2 * (config.num_heads + config.num_kv_heads) * config.head_size * config.width


def ffn_weights(config: ModelConfig) -> int:
    """Weights of the matrices of one feed-forward, or of one expert. No biases."""
    return (3 if config.gated else 2) * config.ffn_width * config.width


def num_cross_layers(config: ModelConfig) -> int:
    """Layers that attend to an encoder as well: those of a decoder that has one."""
    return config.decoder_layers if config.encoder_layers else 0


def _ffn_biases(config: ModelConfig) -> int:
    return ((2 if config.gated else 1) * config.ffn_width + config.width) * config.ffn_bias


def _num_norms(config: ModelConfig) -> int:
    """Two a layer and one for cross-attention; twice as many around sublayers; a final one where they stand before."""
    a_sublayer = 2 if config.norm_at == "both" else 1
    sublayers = 2 * (config.encoder_layers + config.decoder_layers) + num_cross_layers(config)
    stacks = bool(config.encoder_layers) + bool(config.decoder_layers)
    return a_sublayer * sublayers + (stacks if config.norm_at != "post" else 0) + config.embedding_norm


def _norm_parameters(config: ModelConfig) -> int:
    return config.width * (2 if config.norm == "layer" else 1)


def _head_parameters(config: ModelConfig) -> int:
    """All that stands between the last layer and the answer, without the embedding where that is the output matrix."""
    width = config.width
    bias = not config.decoder_layers  # the heads of an encoder have biases
    pooler = width * width + width if bias and config.pooling == "cls" else 0
    if config.head == "scalar":
        return width
    if config.head == "span":
        return 2 * (width + bias)
    if config.head in ("classes", "choice"):
        return pooler + (config.num_labels if config.head == "classes" else 1) * (width + bias)
    unembedding = config.vocab_size * ((0 if config.tie_embeddings else width) + config.logit_bias)
    if config.head == "lm":
        return unembedding
    transform = width * width + width + _norm_parameters(config)
    return unembedding + transform + pooler + 2 * (width + 1)
