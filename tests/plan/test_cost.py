from __future__ import annotations

import dataclasses

import pytest
import torch

from jielong.model.config import ModelConfig
from jielong.plan.cost import estimate_seconds, expected_mfu, flops_per_token, probe_flops
from jielong.runtime import Runtime

CONFIG = ModelConfig(
    vocab_size=10, max_length=8, width=6, decoder_layers=2, num_heads=2, num_kv_heads=1, head_size=4, ffn_width=5
)


def test_flops_by_hand() -> None:
    # attention 2 * 144 and ffn 2 * 90 weights, the unembedding 60; scores and sums 12 * 2 layers * 8 columns * 7 keys
    assert flops_per_token(CONFIG, length=7) == 6 * (288 + 180 + 60) + 12 * 2 * 8 * 7
    untied = dataclasses.replace(CONFIG, tie_embeddings=False)
    assert flops_per_token(untied, length=7) == flops_per_token(CONFIG, length=7)  # a looked-up embedding costs nothing
    scalar = dataclasses.replace(CONFIG, head="scalar")
    assert flops_per_token(scalar, length=7) == 6 * (288 + 180 + 6) + 12 * 2 * 8 * 7


def test_estimate_seconds_by_hand() -> None:
    assert estimate_seconds(CONFIG, num_tokens=1000, length=7, flops_per_second=45120.0) == pytest.approx(100.0)


def test_probe_is_a_rate_that_this_machine_reaches() -> None:
    runtime = Runtime(device=torch.device("cpu"), dtype=torch.float32)
    assert 1e8 < probe_flops(runtime, seconds=0.06) < 1e14


def test_wider_models_are_expected_to_do_better() -> None:
    runtime = Runtime(device=torch.device("cpu"), dtype=torch.bfloat16)
    widths = [64, 128, 192, 256, 384, 768]
    found = [expected_mfu(dataclasses.replace(CONFIG, width=width), runtime) for width in widths]
    assert found == sorted(found) and 0 < found[0] < found[-1] < 1
