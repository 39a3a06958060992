"""The model folder: what we write, transformers and we read; what is broken is refused in one line."""

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

from jielong.errors import ModelError
from jielong.model.config import ModelConfig, RopeScaling
from jielong.model.hf import (
    config_to_hf,
    load_model,
    read_config,
    read_provenance,
    save_model,
    their_names,
    writes_text,
)
from jielong.model.presets import PRESETS, preset_config
from jielong.model.transformer import Transformer

from .hf_cases import CASES, make_theirs, padded

IDS = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0}


def load_theirs(folder: Path, caplog: pytest.LogCaptureFixture) -> Any:
    """The folder in `transformers`, in the class that its config names; nothing missing, left over or warned of."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        theirs, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not any(report.values()), report  # missing, unexpected, mismatched keys, error messages
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert not told, told
    return theirs


def same(one: Transformer, other: Transformer) -> None:
    """Bit for bit the same parameters, and the same config."""
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert one.config == other.config and ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name]) and parameter.dtype == theirs[name].dtype, name


def random_model(config: ModelConfig) -> Transformer:
    """A model whose biases and norms are random too."""
    model, generator = Transformer(config).eval(), torch.Generator().manual_seed(5)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:.*new weights were drawn")
def test_ours_to_theirs_and_back(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Their folder, ours, theirs again: the same architecture, config and bits each time, and nothing to warn of."""
    theirs = make_theirs(case)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    save_model(ours, tmp_path / "ours", token_ids=IDS)
    same(ours, load_model(tmp_path / "ours"))
    again = load_theirs(tmp_path / "ours", caplog)
    heads = {"BertForMaskedLM": "BertForPreTraining", "BertModel": "BertForSequenceClassification"}
    kind = type(theirs).__name__
    assert type(again).__name__ == heads.get(kind, kind)
    again.save_pretrained(tmp_path / "again")
    same(ours, load_model(tmp_path / "again"))
    if kind in heads:
        return
    state, found = theirs.state_dict(), again.state_dict()
    assert state.keys() == found.keys()
    constant = "multiple_choice_head.summary.bias"  # one number added to all candidates, which ours has not
    assert all(torch.equal(state[name], found[name]) for name in state if name != constant)


@pytest.mark.parametrize("head", ["lm", "scalar"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_what_we_write(
    build, head: str, tied: bool, tmp_path: Path, tokens: Tensor, caplog: pytest.LogCaptureFixture
) -> None:  # type: ignore[no-untyped-def]
    ours: Transformer = build(head=head, tied=tied)
    save_model(ours, tmp_path, {"stage": "test"}, IDS)
    theirs = load_theirs(tmp_path, caplog)
    tokens = tokens.clamp(min=1)
    expected = ours(tokens) if head == "lm" else ours(tokens)[:, -1:]
    torch.testing.assert_close(theirs(tokens).logits, expected, rtol=1e-5, atol=1e-5)
    assert theirs.config.eos_token_id == [2, 3]
    if head == "lm":
        assert theirs.generation_config.eos_token_id == [2, 3]
        greedy = theirs.generate(tokens[:1, :5], max_new_tokens=3, do_sample=False, eos_token_id=-1)
        assert greedy[0, 5].item() == ours(tokens[:1, :5])[0, -1].argmax().item()


SHAPE = {
    "vocab_size": 61, "max_length": 64, "width": 32, "decoder_layers": 2, "num_heads": 4, "num_kv_heads": 4,
    "head_size": 8, "ffn_width": 48,
}  # fmt: skip
LAYER_NORM = {"norm": "layer", "activation": "gelu_tanh", "ffn_width": 128}
TWO_STACKS = {**LAYER_NORM, "encoder_layers": 2, "norm_at": "post", "positions": "sinusoidal", "activation": "relu"}
BIASES = {"qkv_bias": True, "out_bias": True, "ffn_bias": True}
# A config of ours -> the architecture that it is written as.
WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("LlamaForCausalLM", {}),
    "trained otherwise": ("LlamaForCausalLM", {"dropout": 0.1, "attention_dropout": 0.2, "init_std": 0.3}),
    "longer context": ("LlamaForCausalLM", {"rope_scaling": RopeScaling(4.0, 1.0, 4.0, 16)}),
    "all biases": ("LlamaForCausalLM", BIASES),
    "heads that do not divide": ("MistralForCausalLM", {"num_heads": 3, "num_kv_heads": 3, "head_size": 12}),
    "window": ("MistralForCausalLM", {"windows": (5,)}),
    "qkv bias": ("Qwen2ForCausalLM", {"qkv_bias": True}),
    "qk norm": ("Qwen3ForCausalLM", {"qk_norm": True, "head_size": 12}),
    "qk norm, scalar": ("Qwen3ForSequenceClassification", {"qk_norm": True, "head": "scalar"}),
    "classes": ("LlamaForSequenceClassification", {"head": "classes", "num_labels": 5}),
    "experts": ("MixtralForCausalLM", {"num_experts": 4, "experts_per_token": 2}),
    "experts, qk norm": ("Qwen3MoeForCausalLM", {"num_experts": 4, "experts_per_token": 2, "qk_norm": True}),
    "gpt2": ("GPT2LMHeadModel", {**LAYER_NORM, **BIASES, "positions": "learned", "ffn_width": 40, "dropout": 0.1}),
    "gpt2 without biases": ("GPT2LMHeadModel", {**LAYER_NORM, "positions": "learned"}),
    "gpt1": ("OpenAIGPTLMHeadModel", {**LAYER_NORM, **BIASES, "positions": "learned", "norm_at": "post"}),
    "transformer": ("MarianMTModel", {**TWO_STACKS, "ffn_bias": True, "embedding_scale": 32**0.5}),
    "translator": ("MarianMTModel", {**TWO_STACKS, **BIASES, "logit_bias": True}),
    "bert": ("BertForPreTraining", {
        **LAYER_NORM, **BIASES, "encoder_layers": 2, "decoder_layers": 0, "norm_at": "post", "positions": "learned",
        "activation": "gelu", "embedding_norm": True, "logit_bias": True, "token_types": 2, "head": "masked_lm"}),
    # what none of theirs can say
    "exact gelu, gpt1": ("JielongTransformer", {
        **LAYER_NORM, **BIASES, "positions": "learned", "norm_at": "post", "activation": "gelu"}),
    "qkv bias, window": ("JielongTransformer", {"qkv_bias": True, "windows": (5,)}),
    "alternating windows": ("JielongTransformer", {**LAYER_NORM, **BIASES, "positions": "learned", "windows": (0, 4)}),
    "grok": ("JielongTransformer", {
        "norm_at": "both", "activation": "geglu", "num_experts": 4, "experts_per_token": 2, "normalise_experts": False,
        "embedding_scale": 78.38, "logit_scale": 0.577, "attention_softcap": 30.0}),
    "untied translator": ("JielongTransformer", {**TWO_STACKS, **BIASES, "tie_embeddings": False}),
    "stretched, capped": ("JielongTransformer", {
        "rope_scaling": RopeScaling(4.0, 1.0, 4.0, 16), "attention_softcap": 30.0}),
}  # fmt: skip


@pytest.mark.parametrize("case", WRITTEN)
def test_written_as_the_family_that_says_all_of_it(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    architecture, fields = WRITTEN[case]
    model = random_model(ModelConfig(**{**SHAPE, **fields}))
    save_model(model, tmp_path, token_ids=IDS)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [architecture]
    assert read_config(tmp_path) == model.config and writes_text(tmp_path) == (model.config.head == "lm")
    same(model, load_model(tmp_path))
    names = {theirs for name, _ in model.named_parameters() for theirs in their_names(name, model.config)}
    assert names <= load_file(tmp_path / "model.safetensors").keys()
    if architecture == "JielongTransformer":
        with pytest.raises(ValueError, match="jielong"):
            transformers.AutoModel.from_pretrained(tmp_path)
        return
    theirs = load_theirs(tmp_path, caplog).eval()
    if model.config.head != "lm":
        return  # their scores are compared in test_hf_parity.py
    tokens, _ = padded("none")
    with torch.no_grad():
        if model.config.encoder_layers:
            expected = theirs(tokens, decoder_input_ids=tokens.flip(1)).logits
            found = model(tokens.flip(1), source=tokens)
        else:
            expected, found = theirs(tokens).logits, model(tokens)
    assert (found - expected).abs().max() <= 1e-5


# Presets by the beginning of their names.
PRESETS_WRITTEN = {
    "jie-encoder-": "JielongTransformer", "jie-": "LlamaForCausalLM", "llama-": "LlamaForCausalLM",
    "qwen2-": "Qwen2ForCausalLM",
    "qwen3-30b-a3b": "Qwen3MoeForCausalLM", "qwen3-": "Qwen3ForCausalLM", "mixtral-": "MixtralForCausalLM",
    "gpt1": "OpenAIGPTLMHeadModel", "gpt2-": "GPT2LMHeadModel", "bert-": "BertForPreTraining",
    "transformer-": "MarianMTModel", "gpt3-": "JielongTransformer", "grok-1": "JielongTransformer",
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_written_as_what_they_are_called(name: str) -> None:
    """GPT-3 has windows in every second layer and Grok-1 norms on both sides, which none of theirs can say."""
    sizes = {"vocab_size": 1000, "max_length": 64} if name.startswith("jie-") else {}
    written = config_to_hf(preset_config(name, **sizes))
    expected = next(kind for beginning, kind in PRESETS_WRITTEN.items() if name.startswith(beginning))
    assert written["architectures"] == [expected]


def test_translators_generate_alike(build_translator, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    """Their greedy decoding begins with our bos, and never puts a token of its own choice."""
    model = build_translator().eval()
    save_model(model, tmp_path / "without ids")
    load_theirs(tmp_path / "without ids", caplog)
    save_model(model, tmp_path, token_ids={"bos_token_id": 1, "pad_token_id": 0, "eos_token_id": 60})
    theirs = load_theirs(tmp_path, caplog).eval()
    source, _ = padded("none", rows=1, length=9)
    found = torch.tensor([[1]])
    with torch.no_grad():
        for _ in range(6):
            found = torch.cat((found, model(found, source=source)[:, -1].argmax(dim=-1, keepdim=True)), dim=1)
        made = theirs.generate(source, max_new_tokens=6, do_sample=False, num_beams=1)
    assert 60 not in found and made.tolist() == found.tolist()


def test_a_decoder_with_one_class_is_no_scalar(tmp_path: Path) -> None:
    """Theirs are told apart by the number of labels alone, so this one is written as our own."""
    config = ModelConfig(**{**SHAPE, "head": "classes", "num_labels": 1})
    assert config_to_hf(config)["model_type"] == "jielong"


def test_a_bert_that_reads_a_mean_is_our_own_and_comes_back(build_family, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """BertForSequenceClassification reads [CLS] through its pooler and nothing else: it is not told to load this."""
    assert config_to_hf(build_family("bert", head="classes", num_labels=2).config)["model_type"] == "bert"
    model = build_family("bert", head="classes", num_labels=2, pooling="mean")
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "jielong"
    loaded = load_model(tmp_path).eval()
    assert loaded.config == model.config
    source, segments = padded("right", rows=2, length=9)
    torch.testing.assert_close(loaded(source, segments), model(source, segments))


@pytest.mark.parametrize("case", ["llama", "gpt2", "mixtral", "bert", "marian"])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision(case: str, stored: torch.dtype, tmp_path: Path) -> None:
    """Read as float32 the numbers are theirs exactly; read as they are stored, they are written back bit for bit."""
    theirs = make_theirs(case).to(stored)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    half = load_model(tmp_path, stored)
    assert {parameter.dtype for parameter in half.parameters()} == {stored}
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, half.get_parameter(name).float())
    save_model(half, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == str(stored)[6:]
    wanted, found = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "ours" / "model.safetensors")
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_round_trip_computes_the_same(build, tmp_path: Path, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build(tied=False)
    save_model(model, tmp_path, {"parent": "none"})
    again = load_model(tmp_path)
    same(model, again)
    assert read_provenance(tmp_path) == {"version": 1, "parent": "none"}
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert torch.equal(model(tokens), again(tokens))
    assert not list(tmp_path.glob(".*"))  # no temporary file is left


def test_weights_in_use_may_be_replaced_and_changed(build, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Parameters are views of the file: training must not write into it, nor saving pull it from under them."""
    save_model(build(), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = load_model(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    save_model(model, tmp_path)
    same(model, load_model(tmp_path))


def test_loading_uses_no_random_numbers(build, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    save_model(build(), tmp_path)
    state = torch.get_rng_state()
    load_model(tmp_path)
    assert torch.equal(state, torch.get_rng_state())


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


def test_truncated_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(ModelError, match="config.json: not JSON"):
        load_model(folder)
    path.write_text("[]")
    with pytest.raises(ModelError, match="config.json: it holds a list"):
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
    with pytest.raises(ModelError, match="holds 'model.layers.2.extra.weight', which config.json leaves"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architectures": ["LlamaForCausalLMs"]}, "did you mean LlamaForCausalLM"),
        ({"architectures": ["GPT2LMHeadModel"]}, "model_type is 'llama', but the architecture GPT2LMHeadModel is of"),
        ({"architectures": ["T5Model"]}, "architecture is 'T5Model'; legal are LlamaForCausalLM"),
        ({"architectures": None, "model_type": None}, "none given"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "lack the tensor 'model.layers.0.self_attn.q_proj.bias'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is set"),
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
