"""A model folder with its tokenizer: the two must belong together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from jielong.errors import ModelError
from jielong.model.hf import load_model, read_provenance, save_model
from jielong.model.transformer import Transformer
from jielong.tokenizer.tokenizer import Tokenizer, check_sizes


def load(folder: str | Path, dtype: torch.dtype = torch.float32) -> tuple[Transformer, Tokenizer]:
    """The model (on the CPU, in eval mode, its weights as dtype) and the tokenizer of a model folder.

    The folder may be ours or Hugging Face's: Llama, Mistral, Qwen2, Qwen3, Qwen3-MoE, Mixtral, GPT-2, OpenAI-GPT, BERT
    and Marian. Weights stored as dtype stay in their file until they are used; see `model.hf.load_model`.
    Raises ModelError when a file is missing or broken, or when the tokenizer is another model's.
    """
    model, tokenizer = load_model(folder, dtype), Tokenizer.load(folder)
    provenance = read_provenance(folder)
    expected = provenance.get("tokenizer_hash")
    if expected is not None and expected != tokenizer.hash:
        raise ModelError(
            f"{folder}: tokenizer.json is not the one this model was trained with (hash {tokenizer.hash[:12]}, "
            f"jielong.json names {str(expected)[:12]}); put back the tokenizer that belongs to the model"
        )
    check_sizes(tokenizer, model.config.vocab_size, f"{folder}")
    return model.eval(), tokenizer


def save(
    model: Transformer, tokenizer: Tokenizer, folder: str | Path, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write a model folder. provenance goes into jielong.json, beside the version and the tokenizer's hash.

    Raises ModelError when model and tokenizer differ in vocabulary size.
    """
    check_sizes(tokenizer, model.config.vocab_size, f"{folder}")
    tokenizer.save(folder)
    ids: dict[str, int | list[int]] = {"pad_token_id": tokenizer.pad_id}
    if tokenizer.bos_id is not None:
        ids["bos_token_id"] = tokenizer.bos_id
    if tokenizer.stop_ids:
        ids["eos_token_id"] = list(tokenizer.stop_ids)
    save_model(model, folder, {**(provenance or {}), "tokenizer_hash": tokenizer.hash}, ids)


def model_hash(folder: str | Path) -> str:
    """Names the weights of a model folder: sha256 over the names and bytes of their files, 16 hex digits.

    A vote says with it whose answer it judges, since a folder's name may be given again. Raises ModelError when the
    folder holds no weights.
    """
    files = sorted(Path(folder).glob("model*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: holds no weights (model.safetensors)")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
