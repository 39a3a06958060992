"""Operations and time: what a token costs, and how fast this machine multiplies."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from jielong.model.config import ModelConfig
from jielong.plan.count import attention_weights, ffn_weights, num_cross_layers
from jielong.runtime import Runtime

# (rows, inner, columns) of the products that the probe times: some machines like small ones, some large.
PROBE_SHAPES = ((4096, 512, 512), (4096, 1024, 1024), (2048, 2048, 2048))


def flops_per_token(config: ModelConfig, length: int) -> int:
    """Floating-point operations to train on one token (forward and backward) in rows of `length` tokens.

    3 times `forward_flops`: the backward pass takes twice the forward one. With two stacks: on a pair of one source
    and one target token, rows of `length` on both sides. For a decoder it is 6 P + 12 L N H T: P counts the matrices
    that multiply a token (attention, ffn or the chosen experts, router, and the unembedding, tied or not), not the
    looked-up embedding nor norms and biases. Custom says 6 N for N parameters, as in GPT-3's table D.1.
    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1; Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
    """
    return 3 * sum(forward_flops(config, length).values())


def forward_flops(config: ModelConfig, length: int) -> dict[str, int]:
    """{"source": ..., "target": ...}: operations of the forward pass on one token of either side, 0 for no such side.

    A token of a decoder is a target token, one of an encoder a source token. 2 a weight; 4 N H a key for the score and
    the weighted sum, over all keys of the row or the layer's window: that causality halves them is not taken off, as
    is the custom. With two stacks the keys and values of cross-attention are made once for each source token, its
    queries, output and scores once for each target token. The heads "classes" and "choice" look at one token a row,
    "span" makes two numbers a token: they are left out. "masked_lm" is counted at every token, though its loss is on
    some 15 %.
    """
    heads = config.num_heads * config.head_size
    routed = config.num_experts * config.width
    layer = attention_weights(config) + max(1, config.experts_per_token) * ffn_weights(config) + routed
    head = {"lm": config.vocab_size * config.width, "scalar": config.width}.get(config.head, 0)
    if config.head == "masked_lm":
        head = (config.vocab_size + config.width) * config.width
    crosses = num_cross_layers(config)
    keys_and_values = 2 * config.num_kv_heads * config.head_size * config.width
    source = config.encoder_layers * (2 * layer + 4 * heads * length) + 2 * crosses * keys_and_values
    spans = [config.window(index) or length for index in range(config.decoder_layers)]
    target = 2 * config.decoder_layers * layer + 4 * heads * sum(min(span, length) for span in spans)
    target += crosses * (2 * (attention_weights(config) - keys_and_values) + 4 * heads * length)
    if config.decoder_layers:
        return {"source": source, "target": target + 2 * head}
    return {"source": source + 2 * head, "target": 0}


def probe_flops(runtime: Runtime, seconds: float = 2.0, clock: Callable[[], float] = time.perf_counter) -> float:
    """The best rate, in FLOP/s, at which this machine multiplies matrices in the runtime's dtype, right now.

    It runs products for about `seconds` by the clock. Model FLOP/s over this number is what we call MFU.
    """
    best = 0.0
    for rows, inner, columns in PROBE_SHAPES:
        x = torch.ones(rows, inner, dtype=runtime.dtype, device=runtime.device)
        weight = torch.ones(columns, inner, dtype=runtime.dtype, device=runtime.device)
        best = max(best, _rate(x, weight, seconds / len(PROBE_SHAPES), clock))
    return best


@torch.no_grad()
def _rate(x: torch.Tensor, weight: torch.Tensor, seconds: float, clock: Callable[[], float]) -> float:
    """FLOP/s of x @ weight^T: the fastest of the repetitions in `seconds`, for others may use the machine too."""
    flops = 2 * x.shape[0] * x.shape[1] * weight.shape[0]
    repeats = 1 if x.device.type == "cpu" else 64  # a product on a GPU is too short to be timed alone
    F.linear(x, weight)
    fastest = float("inf")
    end = clock() + seconds
    while clock() < end or fastest == float("inf"):
        _wait(x.device)
        start = clock()
        for _ in range(repeats):
            F.linear(x, weight)
        _wait(x.device)
        fastest = min(fastest, (clock() - start) / repeats)
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
