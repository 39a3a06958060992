"""Files of tensors: whole or not there, readable by whom the umask allows, and one clear error for a full disk."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import jielong
from jielong.config import write_atomic
from jielong.data.pack import pack_stream
from jielong.errors import JielongError, StorageError
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.tensors import write_tensors
from jielong.tokenizer.tokenizer import Tokenizer
from jielong.train.checkpoint import save_checkpoint


@contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """A file that grows beyond this fails as on a full disk (Python ignores the signal that comes with it)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def model_and_tokenizer() -> tuple[Transformer, Tokenizer]:
    config = ModelConfig(
        vocab_size=263, max_length=16, width=32, decoder_layers=1, num_heads=2, num_kv_heads=2, head_size=16,
        ffn_width=64,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    return model, Tokenizer.train(["to be"], 263)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_every_written_file_honours_the_umask(mask: int, mode: int, tmp_path: Path) -> None:
    model, tokenizer = model_and_tokenizer()
    with umask(mask):
        write_atomic(tmp_path / "text.json", "{}")
        write_tensors(tmp_path / "plain.safetensors", {"a": torch.zeros(3)})
        pack_stream([[1, 2, 3]], 4).save(tmp_path / "rows.safetensors")
        jielong.save(model, tokenizer, tmp_path / "model")
        save_checkpoint(tmp_path / "checkpoints", 1, {"model": model}, {}, {})
    found = modes(tmp_path)
    assert {"text.json", "plain.safetensors", "rows.safetensors", "model.safetensors", "state.json"} <= set(found)
    assert {name for name, other in found.items() if other != mode} == set()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_tensors(tmp_path / "deep" / "a.safetensors", {"a": torch.arange(5)})
    assert load_file(tmp_path / "deep" / "a.safetensors")["a"].tolist() == [0, 1, 2, 3, 4]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.safetensors"]


def test_saving_on_a_full_disk_is_one_error_and_loses_nothing(tmp_path: Path) -> None:
    model, tokenizer = model_and_tokenizer()
    jielong.save(model, tokenizer, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.embed.weight.zero_()
    with (
        files_limited_to(20_000),
        pytest.raises(StorageError, match="model.safetensors could not be written") as caught,
    ):
        jielong.save(model, tokenizer, tmp_path)
    assert isinstance(caught.value, JielongError) and "Make room" in str(caught.value)
    with files_limited_to(1_000), pytest.raises(StorageError, match="rows.safetensors could not be written"):
        pack_stream([list(range(1, 400))], 64).save(tmp_path / "rows.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or path.name.startswith("rows")]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        write_tensors(tmp_path / "file" / "a.safetensors", {"a": torch.zeros(1)})
