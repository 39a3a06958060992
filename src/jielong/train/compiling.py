"""torch.compile as an option: block by block, and without it where no compiler is there.

A layer is compiled, not the whole model: all layers share one program, so compiling takes as long for 48 as for one,
and what is around them (masks, the loss in chunks) stays plain Python. Names of weights do not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from jielong.model.kernels import CrossKernel, SelfKernel, plain_attention
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime


def compiler_problem(runtime: Runtime) -> str | None:
    """Why nothing can be compiled for this device, found by compiling something small; None where it works.

    On a CPU torch needs a C++ compiler, on a GPU Triton; which of many errors says that one is missing differs between
    versions, so every error counts.
    """
    try:
        probe = torch.compile(lambda x: (x * 2 + 1).relu())
        x = torch.ones(8, device=runtime.device)
        if not torch.equal(probe(x), x * 2 + 1):
            return "what torch compiled on trial gave a wrong result"
    except Exception as error:  # noqa: BLE001
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return None


@contextmanager
def compiled_layers(model: nn.Module, runtime: Runtime, backend: str = "inductor") -> Iterator[str | None]:
    """Within the block, the layers of a Transformer in `model` run compiled; yields why not, where they do not.

    The first steps take longer: each kind of batch is compiled when it comes. Afterwards the model is as before: to
    decode, whose shapes change with every token, is no work for a compiler (see `uncompiled`). backend: torch's name
    of one; only inductor makes anything faster.
    """
    models = [one for one in model.modules() if isinstance(one, Transformer)]
    problem = None if models else "only a Transformer's layers are compiled"
    if problem is None and backend == "inductor":
        problem = compiler_problem(runtime)
    if problem is not None:
        yield problem
        return
    layers = [layer for one in models for stack in (one.encoder, one.layers) for layer in stack]
    choices = [one.choose_kernels for one in models]
    for one in models:
        _leave_out_plain_attention(one)
    for layer in layers:
        layer.compile(backend=backend)
    try:
        yield None
    finally:
        for layer in layers:
            layer._compiled_call_impl = None  # what nn.Module.compile sets; torch has no way back of its own
        for one, choice in zip(models, choices, strict=True):
            one.choose_kernels = choice


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Within the block compiled layers run as they are written.

    To decode while a model is trained: each length of a cache would be compiled for, until torch has as many programs
    of a layer as it keeps (8), and compiles no more of training either.
    """
    compiled = [module for module in model.modules() if module._compiled_call_impl is not None]
    calls = [module._compiled_call_impl for module in compiled]
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in zip(compiled, calls, strict=True):
            module._compiled_call_impl = call


def _leave_out_plain_attention(model: Transformer) -> None:
    """Its backward pass is written by hand, which torch cannot look into: compiled layers call it from outside."""
    choose = model.choose_kernels
    # Here, not as a decorator where it is defined: that would import torch's compiler, which takes a second.
    apart: SelfKernel = torch.compiler.disable(plain_attention)

    def choose_kernels(
        device: torch.device, dtype: torch.dtype, length: int, cached: bool, dropout: float
    ) -> tuple[SelfKernel, CrossKernel]:
        own, across = choose(device, dtype, length, cached, dropout)
        return apart if own is plain_attention else own, across

    model.choose_kernels = choose_kernels
