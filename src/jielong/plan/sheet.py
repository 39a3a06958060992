"""What a model is and costs, as one record: parameters, operations, memory, hours and money. What `plan` prints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from jielong.config import plain
from jielong.model.config import ModelConfig
from jielong.plan.cost import flops_per_token, forward_flops
from jielong.plan.count import active_parameters, built_parameters, count_parameters
from jielong.plan.hardware import Device
from jielong.plan.memory import SHARDINGS, WEIGHT_BITS, cache_bytes, least_devices, serving_memory, training_memory

TOKENS_A_PARAMETER = 20  # Hoffmann et al. 2022, arXiv:2203.15556, table 3: about what a model of a size should read
COMPUTE_BYTES = {"float32": 4, "bfloat16": 2}
SERVED_ROWS = (1, 32)
NUM_DEVICES = 8  # of the table of memory, where nobody asks for another number


def model_sheet(
    config: ModelConfig,
    *,
    row_tokens: int,
    tokens: float | None = None,
    devices: Sequence[Device] = (),
    num_devices: int | None = None,
) -> dict[str, Any]:
    """Everything about one model, in plain values.

    row_tokens: tokens of a row, in training (each device has one such row at a time) and in serving. tokens: to train
    on, with two stacks pairs of a source and a target token; None takes TOKENS_A_PARAMETER for each active parameter.
    num_devices: how many of each device; None takes the least power of two on which training fits.
    """
    active = sum(active_parameters(config).values())
    amount = round(tokens or TOKENS_A_PARAMETER * active)
    per_token = flops_per_token(config, row_tokens)
    return {
        "kind": kind(config),
        "model": {**describe_model(config), "built_parameters": built_parameters(config), "config": plain(config)},
        "row_tokens": row_tokens,
        "tokens": amount,
        "flops": {
            "forward_per_token": forward_flops(config, row_tokens),
            "training_per_token": per_token,
            "training": per_token * amount,
            "six_n_d": 6 * active * amount,
        },
        "kv_bytes_per_token": {name: cache_bytes(config, 1, 1, size) for name, size in COMPUTE_BYTES.items()},
        "training_memory": list(_training(config, row_tokens, num_devices or NUM_DEVICES)),
        "serving_memory": list(_serving(config, row_tokens)),
        "hardware": [_on(device, config, row_tokens, per_token * amount, num_devices) for device in devices],
    }


def kind(config: ModelConfig) -> str:
    """What the two layer counts make of it: decoder, encoder or encoder-decoder."""
    if not config.encoder_layers:
        return "decoder"
    return "encoder-decoder" if config.decoder_layers else "encoder"


def describe_model(config: ModelConfig) -> dict[str, Any]:
    """Parameters by part, shape, and operations a token in rows of the greatest length."""
    parts = count_parameters(config)
    return {
        "parameters": sum(parts.values()),
        "active_parameters": sum(active_parameters(config).values()),
        "parts": parts,
        "width": config.width,
        "layers": config.encoder_layers + config.decoder_layers,
        "vocab_size": config.vocab_size,
        "context_tokens": config.max_length,
        "flops_per_token": flops_per_token(config, config.max_length),
    }


def _training(config: ModelConfig, row_tokens: int, num_devices: int) -> Iterator[dict[str, Any]]:
    """Memory of each device with one row on it, for both dtypes and all ways to divide the model."""
    ways = [*((sharding, False) for sharding in SHARDINGS), (SHARDINGS[-1], True)]
    for dtype, size in COMPUTE_BYTES.items():
        for sharding, recompute in ways:
            parts = training_memory(config, row_tokens, row_tokens, size, sharding, num_devices, recompute)
            yield {
                "dtype": dtype,
                "sharding": sharding,
                "recompute": recompute,
                "devices": num_devices,
                "parts": parts,
                "bytes": sum(parts.values()),
            }


def _serving(config: ModelConfig, row_tokens: int) -> Iterator[dict[str, Any]]:
    for form in WEIGHT_BITS:
        for rows in SERVED_ROWS:
            parts = serving_memory(config, form, rows, row_tokens)
            yield {"weights_as": form, "rows": rows, "parts": parts, "bytes": sum(parts.values())}


def _on(device: Device, config: ModelConfig, row_tokens: int, flops: float, num_devices: int | None) -> dict[str, Any]:
    """Time and money of training on one kind of device, and the most tokens a second that one stream gets from it.

    The latter: each token reads all active weights (bfloat16) once, on as few devices as hold all weights.
    """
    least = least_devices(config, row_tokens, device.memory_bytes)
    number = 1 if device.single else num_devices or least or 1
    seconds = flops / (device.flops_per_second * device.mfu * number)
    hours = seconds * number / 3600
    weights = serving_memory(config, "bfloat16", 1, row_tokens)["weights"]
    holders = max(1, math.ceil(weights / device.memory_bytes)) if device.memory_bytes else 1
    read = 2 * sum(active_parameters(config).values())
    writes = device.bytes_per_second is not None and config.decoder_layers > 0
    return {
        "device": device.name,
        "flops_per_second": device.flops_per_second,
        "mfu": device.mfu,
        "memory_bytes": device.memory_bytes,
        "devices": number,
        "least_devices": least,
        "seconds": seconds,
        "device_hours": hours,
        "price_an_hour": device.price_an_hour,
        "price": None if device.price_an_hour is None else device.price_an_hour * hours,
        "decode_tokens_per_second": holders * (device.bytes_per_second or 0.0) / read if writes else None,
    }
