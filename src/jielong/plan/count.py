"""How many parameters a config has, part by part, without building the model."""

from __future__ import annotations

from jielong.model.config import ModelConfig


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by part: embedding, attention, ffn, norms, head. The sum is exact.

    head is the part that is not the embedding: 0 for tied logits, V * D untied, D for the scalar head.
    """
    layers, width = config.decoder_layers, config.width
    heads = 2 * config.num_heads + 2 * config.num_kv_heads  # q and the output projection, k and v
    untied = 0 if config.tie_embeddings else config.vocab_size * width
    return {
        "embedding": config.vocab_size * width,
        "attention": layers * heads * config.head_size * width,
        "ffn": layers * 3 * config.ffn_width * width,
        "norms": (2 * layers + 1) * width,
        "head": width if config.head == "scalar" else untied,
    }
