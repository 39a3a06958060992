"""The engine that `chat` and `complete` decode with: ours, or llama.cpp's."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from rich.console import Console

from jielong.cli.models import Found, find_model
from jielong.errors import UsageError, nearest
from jielong.export.llamacpp_engine import LlamaCppEngine
from jielong.folder import load
from jielong.generate.engine import Engine
from jielong.log import format_count
from jielong.model.hf import read_provenance
from jielong.runtime import detect

ENGINES = ("jielong", "llama.cpp")


@dataclass(frozen=True)
class EngineChoice:
    """name: one of ENGINES. weights: how they are packed, or stored by llama.cpp; None or "auto" leaves it to us."""

    name: str
    device: str
    weights: str | None
    seed: int

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            near = nearest(self.name, ENGINES)
            hint = f"; did you mean {near}?" if near else ""
            raise UsageError(f"--engine is {self.name!r}; legal are {', '.join(ENGINES)}{hint}")
        if self.name == "llama.cpp" and self.device not in ("auto", "cpu"):
            raise UsageError(f"--device {self.device}: llama.cpp decodes on the CPU here; leave it out")


def find_engine(model: str, choice: EngineChoice, say: Console) -> tuple[Engine, Found]:
    """The engine over a model, and how the model was found; its provenance is told."""
    found = find_model(model)
    if found.note:
        say.print(found.note, style="dim", markup=False, soft_wrap=True)
    runtime = detect("cpu" if choice.name == "llama.cpp" else choice.device, "float32", None, choice.seed)
    network, tokenizer = load(found.folder)
    provenance = read_provenance(found.folder)
    number = format_count(sum(p.numel() for p in network.parameters()))
    origin = [provenance[key] for key in ("kind",) if provenance.get(key)]
    # relative to the model folder, so that a run may be moved
    parent = [f"from {os.path.normpath(found.folder / provenance['parent'])}"] if provenance.get("parent") else []
    facts = ", ".join([f"{number} parameters", f"context {network.config.max_length} tokens", *origin, *parent])
    say.print(f"model: {found.folder} ({facts})", markup=False, soft_wrap=True)
    automatic = choice.weights in (None, "auto")
    if choice.name == "llama.cpp":
        kind = "Q8_0" if automatic else str(choice.weights)
        threads = torch.get_num_threads()
        return LlamaCppEngine(network, tokenizer, found.folder, kind, threads, rows=1), found  # one text at a time
    packed = None if automatic and runtime.device.type != "cpu" else choice.weights
    return Engine(network.to(runtime.device), tokenizer, runtime, packed), found
