"""Two files that need only Python and numpy: run.py, which is `export/run.py` as it is, and its model.safetensors.

Config, tokenizer and chat format travel in the header of the weights, so that the two files are all there is.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import torch

from jielong.export import run
from jielong.export.shape import NUMPY, PER_TOKEN, check_shape, rope_divisors
from jielong.export.vocabulary import Vocabulary
from jielong.model.transformer import Transformer
from jielong.tensors import write_tensors

WEIGHTS, PROGRAM = "model.safetensors", "run.py"
TOKENIZER_KEYS = ("split", "ignore_merges", "normalise", "bos_id", "prefix_ids", "stop_ids")


def write_two_files(folder: Path, model: Transformer, vocabulary: Vocabulary, dtype: torch.dtype) -> None:
    """Write model.safetensors, its numbers as `dtype`, and run.py. Raises ModelError for a shape that run.py lacks."""
    check_shape(model.config, NUMPY, "run.py")
    num_tokens = len(vocabulary.tokens)
    tensors = {
        # Rows beyond the vocabulary, which others pad to round numbers, are left out.
        name: (parameter.detach()[:num_tokens] if name in PER_TOKEN else parameter.detach()).to(dtype).cpu()
        for name, parameter in model.named_parameters()
    }
    divisors = rope_divisors(model.config)
    if divisors is not None:
        tensors["rope.divisors"] = divisors
    notes = {
        "format": run.FORMAT,
        "config": {key: model.config.__dict__[key] for key in run.CONFIG},
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "tokenizer": {
            "tokens": [token.decode("latin-1") for token in vocabulary.tokens],
            "merges": vocabulary.merged_ids,
            "added": sorted(vocabulary.added),
            **{key: vocabulary.__dict__[key] for key in TOKENIZER_KEYS},
        },
        "joints": asdict(vocabulary.joints) if vocabulary.joints else None,
    }
    text = json.dumps(notes, ensure_ascii=False, separators=(",", ":"))
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt", "jielong": text})
    program = Path(run.__file__).read_text(encoding="utf-8")
    (folder / PROGRAM).write_text(program, encoding="utf-8")


def load_program(folder: Path) -> ModuleType:
    """The exported run.py as a module, so that what is checked is what was written."""
    path = folder / PROGRAM
    spec = importlib.util.spec_from_file_location("jielong_exported_run", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # two files, not three
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module
