"""config.json of every family: each of their fields has its place; what we cannot represent is refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import PretrainedConfig

from jielong.errors import ModelError
from jielong.model.config import ModelConfig, RopeScaling
from jielong.model.families import FAMILIES
from jielong.model.family import Family, read_fields
from jielong.model.hf import config_to_hf, read_config

from .hf_cases import CASES

TYPES = {family.model_type: family for family in FAMILIES}


def content(case: str, **changes: Any) -> dict[str, Any]:
    """The config.json of one of the tiny models, as transformers writes it, with changes; None takes a key away."""
    name, model_type, settings = CASES[case]
    written = transformers.AutoConfig.for_model(model_type, **settings).to_dict()
    return {**written, "architectures": [name], **changes}


def read(folder: Path, config: dict[str, Any]) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(config))
    return read_config(folder)


@pytest.mark.parametrize("family", FAMILIES, ids=TYPES)
def test_every_field_of_theirs_is_accounted_for(family: Family) -> None:
    """A field that transformers adds, and that changes what is computed, must not pass unseen."""
    theirs = type(transformers.AutoConfig.for_model(family.model_type))
    common = {field.name for field in dataclasses.fields(PretrainedConfig)} | {"is_encoder_decoder"}
    known = {*family.keys, *family.choices, *family.fixed, *family.synonyms, *family.ignored}
    known |= {family.window, family.scale}
    found = {field.name for field in dataclasses.fields(theirs)} - common
    assert found <= known, found - known


@pytest.mark.parametrize("family", FAMILIES, ids=TYPES)
def test_tables_name_fields_of_ours(family: Family) -> None:
    ours = {field.name for field in dataclasses.fields(ModelConfig)}
    named = {name for fields, _ in family.keys.values() for name in fields.split()}
    named |= {name for name, _, _ in family.choices.values()} | set(family.implied) | set(family.zeros)
    assert named <= ours
    assert family.fresh.keys() <= family.architectures.keys()
    assert not set(family.keys) & set(family.fixed)


@pytest.mark.parametrize("case", CASES)
def test_defaults_are_theirs(case: str, tmp_path: Path) -> None:
    """Every key with the value that its absence means can be left out; the others must be there."""
    full = content(case)
    expected = read(tmp_path, full)
    family = TYPES[full["model_type"]]
    for key, (_, default) in family.keys.items():
        spelled = next((name for name in (key, "num_experts") if name in full), None)  # qwen2 may lack head_dim
        left = {name: value for name, value in full.items() if name not in (key, *family.synonyms)}
        if default is ...:
            with pytest.raises(ModelError, match=f"config.json: the key '{key}' is missing"):
                read(tmp_path, left)
        elif spelled is not None and full[spelled] == default:
            assert read(tmp_path, left) == expected


def test_defaults_equal_those_of_their_classes() -> None:
    for family in FAMILIES:
        theirs = type(transformers.AutoConfig.for_model(family.model_type))
        defaults = {field.name: field.default for field in dataclasses.fields(theirs)}
        for key, (_, default) in family.keys.items():
            if default not in (..., None) and key in defaults and defaults[key] is not None:
                assert default == defaults[key], (family.model_type, key)
        for key, (_, default, _) in family.choices.items():
            assert default == defaults[key], (family.model_type, key)
        if family.base is not None:
            assert family.base == theirs.default_theta


@pytest.mark.parametrize(
    ("case", "changes", "told"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; of a llama config we read silu"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, "rope_type is 'dynamic'"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "key 'low_freq_factor' of rope_para"),
        ("llama", {"rope_parameters": 7}, "rope_parameters is 7; it must be an object"),
        ("llama", {"num_attention_heads": 5}, "the width is 32 and the number of heads 5"),
        ("llama", {"num_attention_heads": 0}, "the number of heads 0"),
        ("llama", {"hidden_size": "32"}, "hidden_size is '32'; it must be a whole number"),
        ("llama", {"hidden_size": True}, "hidden_size is True; it must be a whole number"),
        ("llama", {"hidden_size": None}, "hidden_size is None; it must be a whole number"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; it must be a number"),
        ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
        ("llama", {"jielong": {"width": 3}}, "jielong.width is 3; legal there are dropout, attention_dropout"),
        ("llama", {"jielong": 3}, "jielong is 3; it must be an object"),
        ("llama", {"model_type": "qwen2"}, "model_type is 'qwen2', but the architecture LlamaForCausalLM is"),
        ("llama", {"architectures": ["GPTNeoXForCausalLM"]}, "legal are LlamaForCausalLM"),
        ("llama", {"architectures": ["LlamaForCausalLLM"]}, "did you mean LlamaForCausalLM"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantization_config is set"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True; of a qwen2 config we read only False"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("qwen3-moe", {"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]; of a qwen3_moe config we read only \[\]"),
        ("qwen3-moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise is 0.1"),
        ("mixtral", {"num_experts_per_tok": 5}, "experts_per_token is 5"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("gpt2", {"activation_function": "quick_gelu"}, "activation_function is 'quick_gelu'"),
        ("gpt2", {"embd_pdrop": 0.0}, "resid_pdrop is 0.1 and embd_pdrop 0.0; here they are one, dropout"),
        ("gpt2-choice", {"summary_type": "mean"}, "summary_type is 'mean'"),
        ("gpt1", {"afn": "gelu_pytorch"}, "afn is 'gelu_pytorch'"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("bert", {"is_decoder": True}, "is_decoder is True"),
        ("bert", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ("bert", {"classifier_dropout": 0.5}, "classifier_dropout is 0.5 and hidden_dropout_prob 0.1"),
        ("marian", {"decoder_ffn_dim": 64}, "encoder_ffn_dim is 48 and decoder_ffn_dim 64"),
        ("marian", {"encoder_attention_heads": 2}, "encoder_attention_heads is 2 and decoder_attention_heads 4"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings is False"),
        ("marian", {"normalize_before": True}, "normalize_before is True"),
        ("marian", {"activation_dropout": 0.1}, "activation_dropout is 0.1"),
        ("marian", {"decoder_vocab_size": 60}, "decoder_vocab_size is 60 and vocab_size 61"),
    ],
)  # fmt: skip
def test_refused_by_the_name_of_the_field(case: str, changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"config.json: .*{told}") as caught:
        read(tmp_path, content(case, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("case", "changes", "expected"),
    [
        ("llama", {"rope_parameters": None, "rope_theta": 7e4}, {"rope_base": 7e4}),
        ("llama", {"rope_parameters": None, "rope_theta": 500000}, {"rope_base": 5e5}),
        ("llama", {"rope_parameters": None}, {"rope_base": 1e4}),
        ("mixtral", {"rope_parameters": None}, {"rope_base": 1e6}),
        ("llama", {"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": {
            "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
            "original_max_position_embeddings": 8192}},
         {"rope_base": 5e5, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 8192)}),
        ("llama", {"num_key_value_heads": None, "head_dim": None}, {"num_kv_heads": 4, "head_size": 8}),
        ("llama", {"architectures": None}, {"head": "lm"}),
        ("bert", {"architectures": None}, {"head": "masked_lm"}),
        ("mistral", {"sliding_window": None}, {"windows": (0,)}),
        ("mistral", {"sliding_window": 7}, {"windows": (7,)}),
        ("qwen2", {"sliding_window": 4096, "max_window_layers": 1}, {"windows": (0,)}),  # without use_sliding_window
        ("marian", {"activation_function": "gelu", "scale_embedding": False},
         {"activation": "gelu", "embedding_scale": 1.0}),
        ("gpt2", {"reorder_and_upcast_attn": True, "activation_function": "gelu_pytorch_tanh"},
         {"activation": "gelu_tanh"}),
        ("gpt2", {"n_inner": 99}, {"ffn_width": 99}),
        ("bert", {"hidden_act": "relu", "classifier_dropout": 0.1}, {"activation": "relu"}),
        ("qwen3-moe", {"num_experts": None, "num_local_experts": 6}, {"num_experts": 6}),
        ("llama-classes", {"id2label": {"0": "no", "1": "yes"}}, {"head": "classes", "num_labels": 2}),
        ("llama-classes", {"id2label": {"0": "score"}}, {"head": "scalar", "num_labels": 1}),
        ("llama-classes", {"id2label": None}, {"head": "classes", "num_labels": 2}),
    ],
)  # fmt: skip
def test_spellings_and_defaults(case: str, changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    found = read(tmp_path, content(case, **changes))
    assert {name: found.__dict__[name] for name in expected} == expected


def test_both_spellings_of_experts_and_rotary_base_are_written(tmp_path: Path) -> None:
    written = config_to_hf(read(tmp_path, content("qwen3-moe")))
    assert written["num_experts"] == written["num_local_experts"] == 4
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 5000.0


def test_our_own_kind_of_config_is_strict(tmp_path: Path) -> None:
    config = ModelConfig(
        vocab_size=9, max_length=8, width=8, decoder_layers=1, num_heads=1, num_kv_heads=1, head_size=8, ffn_width=8,
        norm_at="both", rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192), windows=(0, 3),
    )  # fmt: skip
    written = json.loads(json.dumps(config_to_hf(config)))
    assert written["model_type"] == "jielong" and read(tmp_path, written) == config
    for changes, told in (
        ({"width": "8"}, "width is '8'"),
        ({"qk_norm": "yes"}, "qk_norm is 'yes'"),
        ({"rope_scaling": {"factor": 1.0}}, "a field is missing or of a wrong type"),
        ({"windows": 3}, "a field is missing or of a wrong type"),
        ({"norm_at": "behind"}, "norm_at is 'behind'"),
    ):
        with pytest.raises(ModelError, match=f"config.json: {told}"):
            read(tmp_path, {**written, **changes})
    del written["vocab_size"]
    with pytest.raises(ModelError, match="'vocab_size'"):
        read(tmp_path, written)


def test_read_fields_takes_no_folder() -> None:
    assert read_fields(TYPES["llama"], content("llama"), "lm").width == 32
