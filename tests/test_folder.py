from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from jielong.errors import ModelError
from jielong.folder import load, save
from jielong.generate.engine import Engine
from jielong.model.config import ModelConfig
from jielong.model.hf import read_provenance
from jielong.model.transformer import Transformer
from jielong.tokenizer.tokenizer import Tokenizer

from .model.hf_cases import make_theirs
from .tokenizer.conftest import gpt2, llama3, mistral, openai_gpt, qwen, qwen3

TEXT = ["the cat sat on the mat", "猫坐在垫子上", "the dog sat on the log"] * 3


def make_model(vocab_size: int) -> Transformer:
    config = ModelConfig(
        vocab_size=vocab_size, max_length=32, width=16, decoder_layers=1, num_heads=2, num_kv_heads=1, head_size=8,
        ffn_width=24,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXT, 270)


def test_round_trip_and_provenance(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make_model(tokenizer.vocab_size)
    save(model, tokenizer, tmp_path, {"stage": "pretrain"})
    again, same = load(tmp_path)
    assert same.hash == tokenizer.hash and not again.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert read_provenance(tmp_path) == {"version": 1, "stage": "pretrain", "tokenizer_hash": tokenizer.hash}


def test_another_dtype(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make_model(tokenizer.vocab_size)
    save(model, tokenizer, tmp_path)
    half, _ = load(tmp_path, torch.bfloat16)
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(model.parameters(), half.parameters(), strict=True))


def test_transformers_loads_both(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make_model(tokenizer.vocab_size)
    save(model, tokenizer, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([transformers.AutoTokenizer.from_pretrained(tmp_path).encode("the cat 猫")])
    assert ids[0].tolist() == tokenizer.encode("the cat 猫")
    torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=1e-5, atol=1e-5)
    assert theirs.generation_config.eos_token_id == list(tokenizer.stop_ids)
    assert theirs.config.pad_token_id == tokenizer.pad_id and theirs.config.bos_token_id == tokenizer.bos_id


def test_tokenizer_of_another_size(tokenizer: Tokenizer, tmp_path: Path) -> None:
    size = tokenizer.vocab_size
    with pytest.raises(ModelError, match=f"tokenizer has {size} tokens and the model {size + 1}"):
        save(make_model(size + 1), tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_tokenizer_of_another_model(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save(make_model(tokenizer.vocab_size), tokenizer, tmp_path)
    other = Tokenizer.train(["zebra zebra zoo zoo"] * 3, tokenizer.vocab_size)
    other.save(tmp_path)
    with pytest.raises(ModelError, match="not the one this model was trained with"):
        load(tmp_path)
    (tmp_path / "jielong.json").unlink()  # a folder by others: only a tokenizer that is too large can be noticed
    if other.vocab_size <= tokenizer.vocab_size:
        load(tmp_path)
    Tokenizer.train(TEXT, 275).save(tmp_path)
    with pytest.raises(ModelError, match="they must agree"):
        load(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_file_is_named(tokenizer: Tokenizer, tmp_path: Path, file: str) -> None:
    save(make_model(tokenizer.vocab_size), tokenizer, tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ModelError, match=file):
        load(tmp_path)


@pytest.mark.parametrize(
    ("write", "case"),
    [(gpt2, "gpt2"), (llama3, "llama"), (llama3, "llama-3.1"), (mistral, "mistral"), (qwen, "qwen2"), (qwen3, "qwen3"),
     (qwen3, "qwen3-moe"), (openai_gpt, "gpt1")],
)  # fmt: skip
def test_folders_of_others_are_used_as_they_are(write: Callable[[Path], Path], case: str, tmp_path: Path) -> None:
    """Model and tokenizer of one folder: encoded, continued and decoded as transformers does it; then saved as ours."""
    write(tmp_path)
    path = tmp_path / "generation_config.json"
    generation = path.read_bytes() if path.exists() else b"{}"
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs = make_theirs(case, vocab_size=len(theirs_tokenizer))
    theirs.save_pretrained(tmp_path)
    path.write_bytes(generation)
    model, tokenizer = load(tmp_path)
    ids = theirs_tokenizer.encode("the cat sat on a red mat", add_special_tokens=False)
    assert tokenizer.encode("the cat sat on a red mat") == ids
    made = theirs.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    engine = Engine(model, tokenizer)
    (completion,) = engine.generate([ids], max_new_tokens=8, temperature=0.0, stop_ids=[])
    assert completion.tokens == made[0, len(ids) :].tolist()
    save(model, tokenizer, tmp_path / "ours")
    again, same = load(tmp_path / "ours")
    assert same.hash == tokenizer.hash and again.config == model.config
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
