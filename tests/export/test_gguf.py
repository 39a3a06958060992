"""The GGUF file as the gguf package reads it: what it says of the model, and tensors within their type's rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

from jielong.errors import ModelError, UsageError
from jielong.export import gguf as room
from jielong.export.gguf import check_gguf, need_gguf, pair_up, write_gguf
from jielong.export.vocabulary import Vocabulary
from jielong.generate.engine import Engine
from jielong.model.transformer import Transformer

Build = Callable[..., Engine]

SHAPES = ("llama", "llama-untied", "llama-wide-heads", "llama-3.1", "qwen2", "qwen3")


def fields(path: Path) -> dict[str, object]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tensor_is_read_back(shape: str, kind: str, build: Build, vocabulary: Vocabulary, tmp_path: Path) -> None:
    model = build(shape).model
    path = tmp_path / "model.gguf"
    write_gguf(path, model, vocabulary, kind, "mine")
    parameters = dict(model.named_parameters())
    num_fused = sum("attention.qkv" in name for name in parameters)
    expected = len(parameters) + 2 * num_fused + (shape == "llama-3.1")
    assert check_gguf(path, model, vocabulary, kind) == expected
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) == 2}
    assert types == {kind}


def test_what_the_file_says(build: Build, vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, build("qwen3").model, vocabulary, "F16", "mine")
    found = fields(path)
    expected = {
        "general.architecture": "qwen3", "general.name": "mine", "general.file_type": gguf.LlamaFileType.MOSTLY_F16,
        "qwen3.context_length": 96, "qwen3.embedding_length": 64, "qwen3.block_count": 2,
        "qwen3.feed_forward_length": 96, "qwen3.attention.head_count": 4, "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 24, "qwen3.attention.value_length": 24, "qwen3.rope.dimension_count": 24,
        "qwen3.rope.freq_base": 1e6, "qwen3.vocab_size": 420, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.bos_token_id": vocabulary.bos_id, "tokenizer.ggml.eos_token_id": vocabulary.eos_id,
        "tokenizer.ggml.eot_token_id": vocabulary.end_id, "tokenizer.ggml.padding_token_id": vocabulary.pad_id,
        "tokenizer.ggml.tokens": vocabulary.spelled, "tokenizer.chat_template": vocabulary.chat_template,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in vocabulary.merges],
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    kinds = found["tokenizer.ggml.token_type"]
    assert isinstance(kinds, list)
    assert {number for number, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL} == vocabulary.controls


def test_rows_beyond_the_vocabulary_are_left_out(build: Build, vocabulary: Vocabulary, tmp_path: Path) -> None:
    model = Transformer(replace(build("llama").model.config, vocab_size=448, tie_embeddings=False))
    model.init_weights(torch.Generator().manual_seed(0))
    path = tmp_path / "model.gguf"
    write_gguf(path, model, vocabulary, "F32", "mine")
    assert check_gguf(path, model, vocabulary, "F32")
    shapes = {tensor.name: tensor.shape.tolist() for tensor in gguf.GGUFReader(path).tensors}
    assert shapes["token_embd.weight"] == shapes["output.weight"] == [64, 420]


def test_kinds_of_tokens(build: Build, vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    changed = replace(vocabulary, added=frozenset({300}), gaps=frozenset({301}), prefix_ids=[])
    write_gguf(path, build("llama").model, changed, "F32", "mine")
    found = fields(path)
    kinds = found["tokenizer.ggml.token_type"]
    assert isinstance(kinds, list)
    assert kinds[299:302] == [gguf.TokenType.NORMAL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNUSED]
    assert found["tokenizer.ggml.add_bos_token"] is False


def test_pairs_are_put_side_by_side() -> None:
    rows = torch.arange(8.0)[:, None]  # two heads of size 4
    assert pair_up(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_rows_that_blocks_do_not_fill_are_half_precision(build: Build, vocabulary: Vocabulary, tmp_path: Path) -> None:
    model = build("llama", ffn_width=40).model
    path = tmp_path / "model.gguf"
    write_gguf(path, model, vocabulary, "Q8_0", "mine")
    assert check_gguf(path, model, vocabulary, "Q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q8_0"
    assert types["blk.0.ffn_norm.weight"] == "F32"


@pytest.mark.parametrize(("kind", "change"), [("F32", 1e-6), ("F16", 1e-2), ("Q8_0", 5e-2)])
def test_a_changed_weight_is_found(
    kind: str, change: float, build: Build, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    model = build("llama").model
    path = tmp_path / "model.gguf"
    write_gguf(path, model, vocabulary, kind, "mine")
    with torch.no_grad():
        model.layers[1].ffn.up.weight[3, 5] += change
    with pytest.raises(ModelError, match=rf"model.gguf: blk.1.ffn_up.weight is off by .* beyond {kind}'s rounding"):
        check_gguf(path, model, vocabulary, kind)


def test_missing_and_additional_tensors_are_found(build: Build, vocabulary: Vocabulary, tmp_path: Path) -> None:
    tied = build("llama").model
    untied = Transformer(replace(tied.config, tie_embeddings=False))
    untied.load_state_dict(tied.state_dict(), strict=False)
    write_gguf(tmp_path / "tied.gguf", tied, vocabulary, "F32", "mine")
    write_gguf(tmp_path / "untied.gguf", untied, vocabulary, "F32", "mine")
    with pytest.raises(ModelError, match="tied.gguf: the tensor output.weight is missing"):
        check_gguf(tmp_path / "tied.gguf", untied, vocabulary, "F32")
    with pytest.raises(ModelError, match="untied.gguf: it holds output.weight, which the model does not have"):
        check_gguf(tmp_path / "untied.gguf", tied, vocabulary, "F32")


def test_numbers_beyond_16_bits(build: Build, vocabulary: Vocabulary, tmp_path: Path) -> None:
    model = build("llama").model
    with torch.no_grad():
        model.layers[0].ffn.down.weight[0, 0] = 1e5
    with pytest.raises(ModelError, match="layers.0.ffn.down.weight holds 1e[+]05; F16 ends at 65504. Use --type F32"):
        write_gguf(tmp_path / "model.gguf", model, vocabulary, "F16", "mine")
    write_gguf(tmp_path / "model.gguf", model, vocabulary, "F32", "mine")
    assert check_gguf(tmp_path / "model.gguf", model, vocabulary, "F32")


def test_a_vocabulary_without_merges(build: Build, vocabulary: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the tokenizer has no merges; llama.cpp loads none without"):
        write_gguf(tmp_path / "model.gguf", build("llama").model, replace(vocabulary, merges=[]), "F32", "mine")
    assert not (tmp_path / "model.gguf").exists()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    need_gguf()
    monkeypatch.setattr(room, "gguf", None)
    with pytest.raises(UsageError, match=r"pip install 'jielong\[gguf\]'"):
        need_gguf()
