from __future__ import annotations

import pytest
import torch

from jielong.model.config import ModelConfig
from jielong.model.logprobs import scored_logprobs
from jielong.model.transformer import Transformer
from jielong.plan.memory import cache_bytes, training_memory, training_memory_bytes

CONFIG = ModelConfig(
    vocab_size=256, max_length=64, width=32, decoder_layers=3, num_heads=4, num_kv_heads=2, head_size=8, ffn_width=96
)


def test_weights_by_hand() -> None:
    num_parameters = 256 * 32 + 3 * (12 * 8 * 32 + 3 * 32 * 96) + 7 * 32
    parts = training_memory(CONFIG, batch_tokens=512, length=64)
    assert parts["weights"] == parts["gradients"] == 4 * num_parameters
    assert parts["optimizer"] == 8 * num_parameters
    assert training_memory_bytes(CONFIG, 512, 64) == sum(parts.values())


def test_cache_by_hand() -> None:
    assert cache_bytes(CONFIG, batch=5, length=10) == 2 * 3 * 2 * 8 * 5 * 10 * 2


def _kept_bytes(batch: int) -> int:
    """What autograd really keeps for the backward pass, weights left out, each storage once."""
    model = Transformer(CONFIG)
    tokens = torch.zeros(batch, 64, dtype=torch.int64)
    mask = torch.ones(batch, 64, dtype=torch.bool)
    mask[:, 0] = False
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.dtype.is_floating_point:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scored_logprobs(model, tokens, None, mask, entropy=False)
    return sum(kept.values())


def test_activations_are_about_what_autograd_keeps() -> None:
    measured = _kept_bytes(16) - _kept_bytes(8)
    many, few = (training_memory(CONFIG, rows * 64, 64, compute_bytes=4) for rows in (16, 8))
    estimated = sum(many[part] - few[part] for part in ("activations", "logits"))
    assert estimated == pytest.approx(measured, rel=0.33)
