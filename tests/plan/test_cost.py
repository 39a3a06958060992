from __future__ import annotations

import dataclasses

import pytest
import torch

from jielong.model.config import ModelConfig
from jielong.model.presets import preset_config
from jielong.plan.cost import estimate_seconds, expected_mfu, flops_per_token, forward_flops, probe_flops
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


def test_windows_shorten_the_scores_of_their_layers_only() -> None:
    banded = dataclasses.replace(CONFIG, windows=(0, 3))
    assert flops_per_token(banded, length=7) == 6 * (288 + 180 + 60) + 12 * 8 * (7 + 3)
    assert flops_per_token(banded, length=2) == flops_per_token(CONFIG, length=2)


def test_only_the_chosen_experts_cost() -> None:
    sparse = dataclasses.replace(CONFIG, num_experts=4, experts_per_token=2)
    assert flops_per_token(sparse, length=7) == 6 * (288 + 2 * 180 + 2 * 4 * 6 + 60) + 12 * 2 * 8 * 7


def test_two_stacks_by_hand() -> None:
    """Layers of 144 and 90 weights; cross-attention: 2 * 4 * 6 for a source token, 2 * 8 * 6 for a target token."""
    both = dataclasses.replace(CONFIG, encoder_layers=1)
    assert forward_flops(both, length=7) == {
        "source": 2 * (144 + 90) + 4 * 8 * 7 + 2 * 2 * 48,
        "target": 2 * (288 + 180 + 60) + 4 * 2 * 8 * 7 + 2 * 2 * 96 + 4 * 2 * 8 * 7,
    }
    assert flops_per_token(both, length=7) == 3 * sum(forward_flops(both, length=7).values())


def test_an_encoder_costs_source_tokens_and_its_head() -> None:
    encoder = dataclasses.replace(CONFIG, encoder_layers=2, decoder_layers=0, head="masked_lm")
    assert forward_flops(encoder, length=7) == {
        "source": 2 * (288 + 180 + 60 + 36) + 4 * 2 * 8 * 7,
        "target": 0,
    }


def test_gpt3_took_3e23_operations() -> None:
    """Brown et al. 2020, table D.1: 3.14e23 = 6 N D; the scores that it leaves out and we count are 1.6 %."""
    config, tokens = preset_config("gpt3-175b"), 300e9
    assert 6 * 174_604_259_328 * tokens == pytest.approx(3.14e23, rel=0.002)
    assert flops_per_token(config, length=2048) * tokens == pytest.approx(3.14e23, rel=0.02)


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
