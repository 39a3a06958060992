"""How much memory training and generating take, from the config alone. Estimates, good to about a third."""

from __future__ import annotations

from jielong.model.config import ModelConfig
from jielong.plan.count import count_parameters

WEIGHT_BYTES = 4  # weights, gradients and both moments of AdamW are float32
LOGITS_CHUNK_BYTES = 64 * 2**20  # model/logprobs.py works through the vocabulary in chunks of about this size


def training_memory(config: ModelConfig, batch_tokens: int, length: int, compute_bytes: int = 2) -> dict[str, int]:
    """Bytes by part while training on batch_tokens tokens at once (one micro-batch) in rows of `length`.

    compute_bytes: 2 for bfloat16, 4 for float32. activations is what the forward pass keeps for the backward one:
    a token and layer keep the residual stream twice (float32), each norm's output, q k v and their turned copies, the
    attention output, gate, up and their product; and, where attention is explicit, one probability a key and head.
    """
    num_parameters = sum(count_parameters(config).values())
    heads = config.num_heads * config.head_size
    kv_heads = config.num_kv_heads * config.head_size
    kept = 2 * config.width + 2 * heads + 2 * (heads + 2 * kv_heads) + 3 * config.ffn_width
    probabilities = config.num_heads * length if length <= 512 else 0
    per_layer = 2 * config.width * 4 + (kept + probabilities) * compute_bytes
    return {
        "weights": WEIGHT_BYTES * num_parameters,
        "gradients": WEIGHT_BYTES * num_parameters,
        "optimizer": 2 * WEIGHT_BYTES * num_parameters,
        "activations": batch_tokens * (config.decoder_layers * per_layer + 2 * config.width * 4),
        "logits": min(batch_tokens * config.vocab_size * (compute_bytes + 4), 3 * LOGITS_CHUNK_BYTES),
    }


def training_memory_bytes(config: ModelConfig, batch_tokens: int, length: int, compute_bytes: int = 2) -> int:
    """The sum of `training_memory`."""
    return sum(training_memory(config, batch_tokens, length, compute_bytes).values())


def cache_bytes(config: ModelConfig, batch: int, length: int, compute_bytes: int = 2) -> int:
    """Bytes of keys and values held while generating: `batch` rows of `length` tokens."""
    return 2 * config.decoder_layers * config.num_kv_heads * config.head_size * batch * length * compute_bytes
