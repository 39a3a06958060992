from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from jielong.errors import ModelError
from jielong.model.hf import load_model, read_provenance, save_model, their_names
from jielong.model.transformer import Transformer


def make_llama(head: str, kv_heads: int, tied: bool, head_dim: int = 8) -> Any:
    torch.manual_seed(kv_heads)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, head_dim=head_dim, max_position_embeddings=64, tie_word_embeddings=tied,
        rms_norm_eps=1e-5, initializer_range=0.2, pad_token_id=0, num_labels=1,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )  # fmt: skip
    return (LlamaForCausalLM if head == "lm" else LlamaForSequenceClassification)(config).eval()


@pytest.mark.parametrize("head", ["lm", "scalar"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_gradients_equal_transformers(
    head: str, kv_heads: int, tied: bool, tmp_path: Path, tokens: Tensor
) -> None:
    theirs = make_llama(head, kv_heads, tied, head_dim=8 if kv_heads > 1 else 6)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    tokens = tokens.clamp(min=1)  # no padding, so that their classifier reads the last position
    expected = theirs(tokens).logits
    found = ours(tokens) if head == "lm" else ours(tokens)[:, -1:]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    expected.backward(upstream)
    found.backward(upstream)
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        gradient = torch.cat([their_gradients[part] for part in their_names(name)])
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item(), msg=name
        )


@pytest.mark.parametrize("head", ["lm", "scalar"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_what_we_write(
    build, head: str, tied: bool, tmp_path: Path, tokens: Tensor, caplog: pytest.LogCaptureFixture
) -> None:  # type: ignore[no-untyped-def]
    ours: Transformer = build(head=head, tied=tied)
    save_model(ours, tmp_path, {"stage": "test"}, {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0})
    auto = transformers.AutoModelForCausalLM if head == "lm" else transformers.AutoModelForSequenceClassification
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        theirs, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not any(report.values()), report  # missing, unexpected, mismatched keys, error messages
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    tokens = tokens.clamp(min=1)
    expected = ours(tokens) if head == "lm" else ours(tokens)[:, -1:]
    torch.testing.assert_close(theirs(tokens).logits, expected, rtol=1e-5, atol=1e-5)
    assert theirs.config.eos_token_id == [2, 3]
    if head == "lm":
        assert theirs.generation_config.eos_token_id == [2, 3]
        greedy = theirs.generate(tokens[:1, :5], max_new_tokens=3, do_sample=False, eos_token_id=-1)
        assert greedy[0, 5].item() == ours(tokens[:1, :5])[0, -1].argmax().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_equal(build, tmp_path: Path, tokens: Tensor, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build(tied=False).to(dtype)
    save_model(model, tmp_path, {"parent": "none"})
    again = load_model(tmp_path, dtype)
    assert again.config == model.config and read_provenance(tmp_path) == {"version": 1, "parent": "none"}
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and theirs[name].requires_grad for name in ours)
    assert again.positions.cos.device.type == "cpu"
    if dtype == torch.float32:
        assert torch.equal(model(tokens), again(tokens))
    assert not list(tmp_path.glob(".*"))  # no temporary file is left


def test_loading_uses_no_random_numbers(build, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    save_model(build(), tmp_path)
    state = torch.get_rng_state()
    load_model(tmp_path)
    assert torch.equal(state, torch.get_rng_state())


def test_sharded_weights(build, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build()
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    again = load_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="model-00002-of-00002.safetensors: the file is missing"):
        load_model(tmp_path)


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _edit_weights(folder: Path, changes: dict[str, Tensor | None]) -> None:
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.fixture
def folder(build, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    save_model(build(), tmp_path)
    return tmp_path


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: there is no such model folder"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_missing_file(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ModelError, match=f"{file}: the file is missing"):
        load_model(folder)


@pytest.mark.parametrize("kept", [0, 4, 200, 0.5, -1])  # of the header, of the tensors, all but one byte
def test_truncated_weights(folder: Path, kept: float) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ModelError, match="model.safetensors: truncated"):
        load_model(folder)


def test_truncated_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(ModelError, match="config.json: not JSON"):
        load_model(folder)
    path.write_text("[]")
    with pytest.raises(ModelError, match="config.json: it holds a list"):
        load_model(folder)


def test_pickle_is_refused_unread(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ModelError, match="pytorch_model.bin is pickle"):
        load_model(folder)


def test_wrong_tensors(folder: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    good = load_file(folder / "model.safetensors")[name]
    _edit_weights(folder, {name: good[:3].clone()})
    with pytest.raises(ModelError, match=r"k_proj.weight has shape \(3, 32\); config.json asks for \(16, 32\)"):
        load_model(folder)
    _edit_weights(folder, {name: None})
    with pytest.raises(ModelError, match="lack the tensor 'model.layers.1.self_attn.k_proj.weight'"):
        load_model(folder)
    _edit_weights(folder, {name: good, "model.layers.2.extra.weight": good.clone()})
    with pytest.raises(ModelError, match="hold 'model.layers.2.extra.weight'"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architectures": ["LlamaForCausalLMs"]}, "did you mean LlamaForCausalLM"),
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture is 'GPT2LMHeadModel'; legal are LlamaForCausalLM"),
        ({"architectures": None}, "none given"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type is 'yarn'"),
        ({"num_key_value_heads": 3}, "config.json: num_kv_heads is 3"),
        ({"vocab_size": 62}, r"embed_tokens.weight has shape \(61, 32\); config.json asks for \(62, 32\)"),
    ],
)
def test_config_that_we_cannot_read(folder: Path, changes: dict[str, Any], told: str) -> None:
    _edit_config(folder, **changes)
    with pytest.raises(ModelError, match=told):
        load_model(folder)


def test_config_key_missing(folder: Path) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    del content["hidden_size"]
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="the key 'hidden_size' is missing"):
        load_model(folder)


def test_provenance(folder: Path) -> None:
    assert read_provenance(folder) == {"version": 1}
    (folder / "jielong.json").write_text('{"version": 99}')
    with pytest.raises(ModelError, match="version is 99"):
        read_provenance(folder)
    (folder / "jielong.json").unlink()
    assert read_provenance(folder) == {}
