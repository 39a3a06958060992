"""Operations and time: what a token costs, and how fast this machine multiplies."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from jielong.model.config import ModelConfig
from jielong.plan.count import count_parameters
from jielong.runtime import Runtime

# (rows, inner, columns) of the products that the probe times: some machines like small ones, some large.
PROBE_SHAPES = ((4096, 512, 512), (4096, 1024, 1024), (2048, 2048, 2048))


def flops_per_token(config: ModelConfig, length: int) -> int:
    """Floating-point operations to train on one token (forward and backward) in rows of `length` tokens.

    6 P + 12 L N H T: P counts the matrices that multiply (attention, ffn, and the unembedding, tied or not), not the
    looked-up embedding nor the norms; 2 operations a weight forward, 4 backward. The second term is q k^T and the
    weighted sum over all T keys; that causality halves them is not taken off, as is the custom.
    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1; Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
    """
    parts = count_parameters(config)
    unembedding = config.width if config.head == "scalar" else config.vocab_size * config.width
    multiplying = parts["attention"] + parts["ffn"] + unembedding
    return 6 * multiplying + 12 * config.decoder_layers * config.num_heads * config.head_size * length


def probe_flops(runtime: Runtime, seconds: float = 2.0) -> float:
    """The best rate, in FLOP/s, at which this machine multiplies matrices in the runtime's dtype, right now.

    It runs products for about `seconds`. Model FLOP/s over this number is what we call MFU.
    """
    best = 0.0
    for rows, inner, columns in PROBE_SHAPES:
        x = torch.ones(rows, inner, dtype=runtime.dtype, device=runtime.device)
        weight = torch.ones(columns, inner, dtype=runtime.dtype, device=runtime.device)
        best = max(best, _rate(x, weight, seconds / len(PROBE_SHAPES)))
    return best


@torch.no_grad()
def _rate(x: torch.Tensor, weight: torch.Tensor, seconds: float) -> float:
    """FLOP/s of x @ weight^T: the fastest of the repetitions in `seconds`, for others may use the machine too."""
    flops = 2 * x.shape[0] * x.shape[1] * weight.shape[0]
    repeats = 1 if x.device.type == "cpu" else 64  # a product on a GPU is too short to be timed alone
    F.linear(x, weight)
    fastest = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or fastest == float("inf"):
        _wait(x.device)
        start = time.perf_counter()
        for _ in range(repeats):
            F.linear(x, weight)
        _wait(x.device)
        fastest = min(fastest, (time.perf_counter() - start) / repeats)
    return flops / fastest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def expected_mfu(config: ModelConfig, runtime: Runtime) -> float:
    """The part of `probe_flops` that training reaches: small models spend their time between the products.

    On a CPU from forward and backward passes timed on one core (T = 256, batch 32, vocabulary 2048), less a little for
    the optimizer; a guess on other devices. A report sets the plan beside what came.
    """
    if runtime.device.type != "cpu":
        return 0.4
    for width, mfu in ((96, 0.25), (160, 0.35), (224, 0.42), (320, 0.47), (512, 0.55)):
        if config.width < width:
            return mfu
    return 0.6


def estimate_seconds(config: ModelConfig, num_tokens: int, length: int, flops_per_second: float) -> float:
    """Seconds to train on num_tokens tokens in rows of `length`, at a model FLOP/s (probe_flops times expected_mfu)."""
    return num_tokens * flops_per_token(config, length) / flops_per_second
