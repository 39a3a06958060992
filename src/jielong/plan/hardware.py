"""Hardware by name: what it can do on paper, and what we assume of it.

Data: peak dense bfloat16 FLOP/s (with float32 sums, no sparsity), memory and its bandwidth are the makers' data sheets
(NVIDIA A100 80GB SXM, H100 SXM, H200 SXM, HGX B200, L40S; GeForce: appendices of the Ampere GA102 and Ada whitepapers;
AMD Instinct MI300X). GB are 10^9 bytes.

Assumptions: `mfu`, the part of that peak which training a model that fills the card reaches, and the price of an hour
in US dollars. 0.45 on the A100: OPT-175B ran at up to 147 TFLOP/s (Zhang et al. 2022, arXiv:2205.01068), and the hours
of Llama 2 come to 0.42 to 0.46 by our count. 0.40 on the H100: Llama 3 405B reports 0.38 to 0.43 (Grattafiori et al.
2024, arXiv:2407.21783, table 4). The others are taken to be like these, cards on PCIe a little lower; nothing was
measured here. Prices are round numbers for rented cards in 2026, on demand and not from the largest clouds, where they
are two or three times as high; --price sets another.
"""

from __future__ import annotations

from dataclasses import dataclass

from jielong.errors import UsageError, nearest
from jielong.model.config import ModelConfig
from jielong.plan.cost import expected_mfu, probe_flops
from jielong.runtime import Runtime, memory_bytes

GB = 10**9


@dataclass(frozen=True)
class Device:
    """One accelerator, or this machine. price_an_hour, bytes_per_second: None when not known."""

    name: str
    flops_per_second: float  # dense bfloat16, at most
    memory_bytes: int
    bytes_per_second: float | None  # of its memory
    mfu: float  # model FLOP/s over flops_per_second, assumed
    price_an_hour: float | None
    single: bool = False  # there is no second one of it


DEVICES = {
    device.name: device
    for device in (
        Device("rtx-3090", 71.0e12, 24 * GB, 936e9, 0.40, 0.20),
        Device("rtx-4090", 165.2e12, 24 * GB, 1008e9, 0.40, 0.40),
        Device("l40s", 362.0e12, 48 * GB, 864e9, 0.35, 0.90),
        Device("a100-80gb", 312.0e12, 80 * GB, 2039e9, 0.45, 1.50),
        Device("h100", 989.4e12, 80 * GB, 3350e9, 0.40, 2.50),
        Device("h200", 989.4e12, 141 * GB, 4800e9, 0.40, 3.50),
        Device("b200", 2250.0e12, 180 * GB, 8000e9, 0.35, 5.00),
        Device("mi300x", 1307.4e12, 192 * GB, 5300e9, 0.35, 2.50),
    )
}


def find_device(name: str) -> Device:
    """The device of that name. Raises UsageError for one that the table has not."""
    if name not in DEVICES:
        near = nearest(name.lower(), DEVICES)
        hint = f"; did you mean {near}?" if near else ""
        raise UsageError(f"--on is {name!r}; legal are {', '.join(DEVICES)}{hint}; --flops plans for any other speed")
    return DEVICES[name]


def this_machine(config: ModelConfig, runtime: Runtime, flops: float | None = None) -> Device:
    """The machine that asks: probed for two seconds, unless its FLOP/s are given."""
    rate = flops or probe_flops(runtime)
    mfu = expected_mfu(config, runtime)
    return Device("this machine", rate, memory_bytes(runtime.device), None, mfu, None, single=True)
