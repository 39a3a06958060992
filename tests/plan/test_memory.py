from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial

import pytest
import torch

from jielong.errors import UsageError
from jielong.model.config import ModelConfig
from jielong.model.logprobs import CHUNK_BYTES, CHUNK_BYTES_ELSEWHERE, summed_nats
from jielong.model.presets import preset_config
from jielong.model.transformer import Transformer
from jielong.plan.count import count_parameters
from jielong.plan.memory import (
    CHUNK_COPIES,
    SHARDINGS,
    cache_bytes,
    fp8_saving,
    least_devices,
    serving_memory,
    training_memory,
    training_memory_bytes,
)
from jielong.train.fp8 import fp8_layers

CONFIG = ModelConfig(
    vocab_size=256, max_length=64, width=32, decoder_layers=3, num_heads=4, num_kv_heads=2, head_size=8, ffn_width=96
)


def test_weights_by_hand() -> None:
    num_parameters = 256 * 32 + 3 * (12 * 8 * 32 + 3 * 32 * 96) + 7 * 32
    parts = training_memory(CONFIG, batch_tokens=512, length=64)
    assert parts["weights"] == parts["gradients"] == 4 * num_parameters
    assert parts["optimizer"] == 8 * num_parameters
    assert parts["copies"] == 2 * num_parameters  # in bfloat16, which the products are made of
    assert training_memory(CONFIG, 512, 64, compute_bytes=4)["copies"] == 0
    # in a step of one micro-batch, gradients take the place of activations; all logits fit into a chunk
    both = parts["gradients"], parts["activations"]
    assert min(both) > 0
    assert training_memory_bytes(CONFIG, 512, 64) == sum(parts.values()) - min(both)
    assert training_memory_bytes(CONFIG, 512, 64, accumulate=2) == sum(parts.values())


def test_logits_by_hand() -> None:
    """A chunk in four forms, the gradient of hidden states in bfloat16 and that of the unembedding in float32."""
    ends = 512 * 32 * 2 + 256 * 32 * 4
    assert training_memory(CONFIG, 512, 64)["logits"] == 4 * 512 * 256 * 4 + ends
    large = dataclasses.replace(CONFIG, vocab_size=500_000)
    saved = training_memory(large, 512, 64)["logits"] - 512 * 32 * 2 - 500_000 * 32 * 4
    assert saved == 4 * CHUNK_BYTES_ELSEWHERE  # 1 GB of logits, a chunk at a time
    on_cpu, parts = training_memory_bytes(large, 512, 64, accumulate=2), training_memory(large, 512, 64)
    assert sum(parts.values()) - on_cpu == 4 * (CHUNK_BYTES_ELSEWHERE - CHUNK_BYTES)
    scalar = dataclasses.replace(CONFIG, head="scalar")
    assert training_memory(scalar, 512, 64)["logits"] == 0


def test_the_backward_pass_works_in_one_layer() -> None:
    parts = training_memory(CONFIG, 512, 64)
    assert parts["working"] == parts["activations"] // 3
    assert training_memory(CONFIG, 512, 64, recompute=True)["working"] == parts["working"]


def test_what_each_sharding_divides() -> None:
    one = training_memory(CONFIG, 512, 64)
    ddp, zero, fsdp = (training_memory(CONFIG, 512, 64, 2, sharding, num_devices=4) for sharding in SHARDINGS)
    assert ddp == one
    assert (zero["weights"], zero["copies"]) == (one["weights"], one["copies"])
    for part in ("gradients", "optimizer"):
        assert zero[part] == fsdp[part] == pytest.approx(one[part] / 4, abs=8)
    assert fsdp["weights"] == pytest.approx(one["weights"] / 4, abs=4)
    # the largest unit is a layer: 12 * 8 * 32 + 3 * 32 * 96 weights against 256 * 32 of the embedding
    assert fsdp["copies"] == 2 * 2 * (12 * 8 * 32 + 3 * 32 * 96)
    assert all(training_memory(CONFIG, 512, 64, 2, sharding) == one for sharding in SHARDINGS)  # of one device
    with pytest.raises(UsageError, match="sharding is 'zero-3'; legal are ddp, zero-2, fsdp"):
        training_memory(CONFIG, 512, 64, 2, "zero-3")


def test_recomputing_keeps_one_layer_and_the_streams() -> None:
    kept, recomputed = (training_memory(CONFIG, 512, 64, recompute=again)["activations"] for again in (False, True))
    ends = 512 * 2 * 32 * 4
    assert recomputed == (kept - ends) // 3 + 3 * 512 * 32 * 4 + ends


def test_least_devices_is_the_first_power_of_two_that_fits() -> None:
    config = preset_config("llama-2-70b")
    for memory in (80e9, 24e9):
        least = least_devices(config, 4096, int(memory))
        assert least is not None
        needed = [sum(training_memory(config, 4096, 4096, 2, "fsdp", n, True).values()) for n in (least // 2, least)]
        assert needed[1] <= memory < needed[0]
    assert least_devices(CONFIG, 64, 10**9) == 1
    assert least_devices(config, 4096, 10**9) is None


def test_serving_by_hand() -> None:
    num_parameters = sum(count_parameters(CONFIG).values())
    assert serving_memory(CONFIG, "float32", 2, 64) == {
        "weights": 4 * num_parameters,
        "cache": cache_bytes(CONFIG, 2, 64, 4),
    }
    assert serving_memory(CONFIG, "bfloat16", 2, 64)["cache"] == cache_bytes(CONFIG, 2, 64, 2)
    assert serving_memory(CONFIG, "int8", 1, 64)["weights"] == num_parameters + 2 * num_parameters // 32
    assert serving_memory(CONFIG, "int4", 1, 64)["weights"] == num_parameters // 2 + 2 * num_parameters // 32


def test_cross_attention_has_a_cache_of_its_own() -> None:
    both = dataclasses.replace(CONFIG, encoder_layers=2)
    assert cache_bytes(both, batch=5, length=10) == 2 * cache_bytes(CONFIG, batch=5, length=10)
    encoder = dataclasses.replace(CONFIG, encoder_layers=2, decoder_layers=0, head="masked_lm")
    assert cache_bytes(encoder, batch=5, length=10) == 0


def test_cache_by_hand() -> None:
    assert cache_bytes(CONFIG, batch=5, length=10) == 2 * 3 * 2 * 8 * 5 * 10 * 2


def _saved_bytes(model: Transformer, run: Callable[[], object]) -> int:
    """What autograd really keeps for the backward pass of `run`, weights left out, each storage once."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.dtype.is_floating_point:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def _with_loss(batch: int) -> int:
    model = Transformer(CONFIG)
    tokens = torch.zeros(batch, 64, dtype=torch.int64)
    mask = torch.ones(batch, 64, dtype=torch.bool)
    mask[:, 0] = False
    return _saved_bytes(model, lambda: summed_nats(model, model.hidden(tokens), tokens, mask))


def test_activations_are_about_what_autograd_keeps() -> None:
    measured = _with_loss(16) - _with_loss(8)
    many, few = (training_memory(CONFIG, rows * 64, 64, compute_bytes=4) for rows in (16, 8))
    chunks = CHUNK_COPIES * 8 * 64 * CONFIG.vocab_size * 4  # which are not kept
    estimated = sum(many[part] - few[part] for part in ("activations", "logits")) - chunks
    assert estimated == pytest.approx(measured, rel=0.33)


WIDE = {"num_kv_heads": 4, "ffn_width": 256}
SHAPES: dict[str, dict[str, object]] = {
    "jie": {},
    "gpt2": {**WIDE, "norm": "layer", "positions": "learned", "activation": "gelu_tanh", "ffn_bias": True},
    "gpt2 with dropout": {
        **WIDE, "norm": "layer", "positions": "learned", "activation": "gelu_tanh", "dropout": 0.1,
        "attention_dropout": 0.1,
    },
    "transformer": {**WIDE, "encoder_layers": 3, "norm": "layer", "norm_at": "post", "activation": "relu"},
    "bert": {**WIDE, "encoder_layers": 3, "decoder_layers": 0, "head": "masked_lm", "norm_at": "post"},
    "qwen3": {"qk_norm": True},
    "mixtral": {"num_experts": 4, "experts_per_token": 2},
    "grok": {"num_experts": 4, "experts_per_token": 2, "norm_at": "both", "attention_softcap": 30.0},
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_activations_of_the_whole_family(name: str) -> None:
    """Rows of 256 tokens, where attention is explicit: the forward pass alone, in float32."""
    length = 256
    config = dataclasses.replace(
        CONFIG, **{"width": 64, "head_size": 16, "ffn_width": 192, "max_length": length, **SHAPES[name]}
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    model.train()
    measured, estimated = [], []
    for batch in (2, 4):
        tokens = torch.zeros(batch, length, dtype=torch.int64)
        measured.append(_saved_bytes(model, partial(_forward, model, tokens)))
        estimated.append(training_memory(config, batch * length, length, compute_bytes=4)["activations"])
    assert estimated[1] - estimated[0] == pytest.approx(measured[1] - measured[0], rel=0.25)


def test_8_bits_by_hand() -> None:
    """Weights of 16 x 16 multiples a byte fewer; inputs of qkv, out and down too, gate and up have one each."""
    saved = fp8_saving(CONFIG, batch_tokens=512)
    assert saved == {"copies": 3 * (12 * 8 * 32 + 3 * 32 * 96), "activations": 3 * 512 * (32 + 32 + 96)}
    less = training_memory_bytes(CONFIG, 512, 64, accumulate=2) - training_memory_bytes(
        CONFIG, 512, 64, accumulate=2, fp8=True
    )
    assert less == sum(saved.values())
    odd = dataclasses.replace(CONFIG, ffn_width=90)
    assert fp8_saving(odd, 512) == {"copies": 3 * 12 * 8 * 32, "activations": 3 * 512 * 64}


@pytest.mark.parametrize("name", ["jie", "gpt2", "transformer", "mixtral"])
def test_8_bits_keep_about_as_much_less_as_planned(name: str) -> None:
    config = dataclasses.replace(CONFIG, **{"width": 64, "head_size": 16, "ffn_width": 192, **SHAPES[name]})
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    model.train()
    kept = []
    for narrow in (False, True):
        with torch.autocast("cpu", torch.bfloat16), fp8_layers(model) if narrow else contextlib.nullcontext():
            kept.append(_saved_bytes(model, partial(_forward, model, torch.zeros(8, 64, dtype=torch.int64))))
    assert sum(fp8_saving(config, 8 * 64).values()) == pytest.approx(kept[0] - kept[1], rel=0.25)


def _forward(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    if model.config.encoder_layers and model.config.decoder_layers:
        return model.hidden(tokens, memory=model.encode(tokens))
    return model.hidden(tokens)
