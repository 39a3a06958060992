from __future__ import annotations

import pytest
import torch

from jielong.errors import UsageError
from jielong.model.config import ModelConfig
from jielong.plan.cost import expected_mfu
from jielong.plan.hardware import DEVICES, find_device, this_machine
from jielong.runtime import Runtime

CONFIG = ModelConfig(
    vocab_size=10, max_length=8, width=6, decoder_layers=2, num_heads=2, num_kv_heads=1, head_size=4, ffn_width=5
)


@pytest.mark.parametrize("name", DEVICES)
def test_numbers_are_of_the_right_order(name: str) -> None:
    device = find_device(name)
    assert 5e13 < device.flops_per_second < 5e15
    assert 2e10 < device.memory_bytes < 3e11
    assert device.bytes_per_second is not None and 5e11 < device.bytes_per_second < 1e13
    assert 0.3 <= device.mfu <= 0.5 and device.price_an_hour is not None and 0.1 < device.price_an_hour < 10


def test_unknown_device_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="--on is 'H-100'; legal are .*; did you mean h100.*--flops"):
        find_device("H-100")


def test_this_machine_is_one_machine_as_given() -> None:
    runtime = Runtime(device=torch.device("cpu"), dtype=torch.bfloat16)
    device = this_machine(CONFIG, runtime, 1e11)
    assert device.single and device.flops_per_second == 1e11 and device.price_an_hour is None
    assert device.memory_bytes > 10**8 and device.mfu == expected_mfu(CONFIG, runtime)
