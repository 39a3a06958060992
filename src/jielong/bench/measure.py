"""The measurements of `jielong bench` by name, and the small ones that need no file of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jielong.bench.contender import Job
from jielong.bench.decoding import decoding_section
from jielong.bench.nanochat import nanochat_section
from jielong.bench.nanogpt import RIVALS, nanogpt_section, started
from jielong.bench.table import Section
from jielong.bench.timing import clock_for
from jielong.bench.training import training_section
from jielong.errors import UsageError
from jielong.model.context import Context, Heads, Mask
from jielong.model.kernels import SelfKernel, plain_attention, sdpa_attention
from jielong.model.kernels import choose_kernels as chosen_kernels
from jielong.model.positions import Unturned
from jielong.plan.cost import PROBE_SHAPES, probe_flops
from jielong.plan.memory import training_memory_bytes
from jielong.runtime import DTYPES, Runtime

LENGTHS = (64, 128, 256, 512, 1024, 2048)
ATTENTION_TOKENS = 2048  # in one call, whatever their length
# layers, heads, width, rows, tokens a row, vocabulary: five sizes from the demo's to GPT-2's smallest
MEMORY_SIZES = (
    (4, 4, 128, 32, 256, 2048),
    (6, 6, 192, 16, 256, 2048),
    (6, 6, 384, 12, 256, 65),
    (8, 8, 512, 8, 256, 4096),
    (12, 12, 768, 2, 256, 32000),
)


@dataclass(frozen=True)
class Choice:
    """What the command line says of all measurements. folders: of nanogpt and nanochat, where it names them."""

    presets: list[str]
    folders: Mapping[str, Path | None]
    blocks: int
    block_seconds: float
    compiled: bool = False  # nanoGPT with torch.compile as well


def measure(name: str, runtime: Runtime, choice: Choice) -> Section:
    """The section of this name. Raises UsageError where the device or the folder does not fit it."""
    if name == "products":
        return products_section(runtime)
    if name == "training":
        return training_section(choice.presets, runtime, choice.blocks, choice.block_seconds)
    if name == "decoding":
        return decoding_section(choice.presets, runtime, choice.blocks, choice.block_seconds)
    if name == "attention":
        return attention_section(runtime, choice.blocks)
    if name == "memory":
        return memory_section(runtime)
    folder = choice.folders[name]
    assert folder is not None
    if name == "nanochat":
        return nanochat_section(folder, runtime, choice.blocks, choice.block_seconds)
    rivals = [name for name in RIVALS if choice.compiled or not RIVALS[name][0].get("compiled")]
    return nanogpt_section(folder, runtime, choice.blocks, choice.block_seconds, rivals=rivals)


def products_section(runtime: Runtime) -> Section:
    """The fastest matrix product, which all shares of "the peak" refer to."""
    rows, figures = [], []
    clock = clock_for(runtime)
    for name, dtype in DTYPES.items():
        rate = probe_flops(Runtime(runtime.device, dtype), clock=clock)
        rows.append([name, f"{rate / 1e9:,.0f}"])
        figures.append({"dtype": name, "flops_per_second": rate})
    shapes = ", ".join(" x ".join(map(str, shape)) for shape in PROBE_SHAPES)
    return Section("Matrix products", ("dtype", "GFLOP/s"), rows, figures, f"The fastest of {shapes}.")


def attention_section(runtime: Runtime, repeats: int) -> Section:
    """Forward and backward of one layer's attention by our kernel and by torch's, and which of them training takes."""
    if runtime.device.type != "cpu":
        raise UsageError(f"bench attention: the device is {runtime.device}; only a CPU has two kernels to choose from")
    rows, figures = [], []
    for length in LENGTHS:
        plain = _attention_seconds(plain_attention, length, runtime.dtype, repeats)
        fused = _attention_seconds(sdpa_attention, length, runtime.dtype, repeats)
        taken = chosen_kernels(runtime.device, runtime.dtype, length, False, 0.0)[0]
        name = "ours" if taken is plain_attention else "torch's"
        rows.append([str(length), f"{1e3 * plain:.1f}", f"{1e3 * fused:.1f}", f"{fused / plain:.2f}", name])
        figures.append({"length": length, "ours_seconds": plain, "torch_seconds": fused, "taken": name})
    note = f"{ATTENTION_TOKENS} tokens, 6 heads of 64, {runtime.dtype}, causal; the fastest of {repeats}, CPU time."
    header = ("tokens a row", "ours, ms", "torch's, ms", "torch's over ours", "training takes")
    return Section("Attention", header, rows, figures, note)


def _attention_seconds(kernel: SelfKernel, length: int, dtype: torch.dtype, repeats: int) -> float:
    heads, num_rows = Heads(6, 6, 64, layer=0), ATTENTION_TOKENS // length
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(num_rows, length, 18 * 64, generator=generator).to(dtype).requires_grad_()
    upstream = torch.randn(num_rows, length, 6 * 64, generator=generator).to(dtype)

    def work() -> Tensor:
        context = Context(dtype, Unturned(), Mask(True, torch.arange(length), dtype), kernel, None)  # type: ignore[arg-type]
        mixed.grad = None
        output = kernel(mixed, context, heads)
        output.backward(upstream)
        return output

    work()
    fastest = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        fastest = min(fastest, time.process_time() - start)
    return fastest


def memory_section(runtime: Runtime) -> Section:
    """Peak resident memory of three training steps, less what the process held before, and the plan's."""
    if runtime.device.type != "cpu":
        raise UsageError(f"bench memory: the device is {runtime.device}; what is measured is a CPU's memory")
    rows, figures = [], []
    for layers, heads, width, num_rows, length, vocab_size in MEMORY_SIZES:
        name = str(runtime.dtype).removeprefix("torch.")
        job = Job(
            "jielong", num_rows, vocab_size, torch.get_num_threads(), dtype=name, layers=layers, heads=heads,
            width=width, context_tokens=length,
        )  # fmt: skip
        with started(job, True, "jielong") as running:
            told = running.finish()
        used = told["peak_memory_bytes"] - told["before_bytes"]
        planned = training_memory_bytes(job.config(), num_rows * length, length, runtime.dtype.itemsize)
        shape = f"{layers} x {width}, {num_rows} x {length}, {vocab_size:,}"
        rows.append([shape, f"{used / 1e6:,.0f}", f"{planned / 1e6:,.0f}", f"{used / planned:.2f}"])
        figures.append({"shape": shape, "used_bytes": used, "planned_bytes": planned, "ratio": used / planned})
    note = f"Resident memory in MB, {runtime.dtype}, of three steps, less what Python and torch hold before."
    header = ("layers x width, rows x tokens, vocabulary", "used", "planned", "used over planned")
    return Section("Memory of training", header, rows, figures, note)
