"""Folders that name or arrange the same tensors otherwise: the hub's older ones, headless ones, fused experts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from jielong.errors import ModelError
from jielong.model.hf import load_model, save_model
from jielong.model.pieces import Piece

from .hf_cases import make_theirs

Tensors = dict[str, Tensor]


def rewrite(folder: Path, change: Callable[[Tensors], Tensors], **settings: Any) -> None:
    """The same folder with other weights and other settings in config.json."""
    path, config = folder / "model.safetensors", folder / "config.json"
    save_file(change(load_file(path)), folder / "new")  # beside it: what is loaded may be a view of the old file
    (folder / "new").rename(path)
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))


def old_gpt2(tensors: Tensors) -> Tensors:
    """As the hub's gpt2: no prefix, and the causal mask of every layer as a tensor."""
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(2)}
    return {**tensors, **masks, **{f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}}


def old_bert(tensors: Tensors) -> Tensors:
    """As the hub's bert-base-uncased: gamma and beta, positions as a tensor, the tied matrix stored twice."""
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    tied = {
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].clone(),
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone(),
    }
    return {**tensors, **tied, "bert.embeddings.position_ids": torch.arange(64)[None]}


def old_marian(tensors: Tensors) -> Tensors:
    """As the hub's translators: sinusoids and all copies of the shared matrix are stored."""
    copies = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    sinusoids = {f"model.{stack}.embed_positions.weight": torch.zeros(64, 32) for stack in ("encoder", "decoder")}
    return {**tensors, **{name: tensors["model.shared.weight"].clone() for name in copies}, **sinusoids}


def old_llama(tensors: Tensors) -> Tensors:
    """As Llama's first releases: the rotary frequencies of every layer; a tied matrix stored twice."""
    frequencies = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    return {**tensors, **frequencies, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def only_the_output_matrix(tensors: Tensors) -> Tensors:
    """As some writers of tied models: the shared matrix under the name of the output alone."""
    return {name.replace("model.embed_tokens", "lm_head"): tensor for name, tensor in tensors.items()}


def headless(tensors: Tensors) -> Tensors:
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def fused(tensors: Tensors) -> Tensors:
    """As transformers 5 holds experts in memory."""
    kept = {
        name.replace("block_sparse_moe", "mlp"): tensor for name, tensor in tensors.items() if ".experts." not in name
    }
    for layer in range(2):
        here = [name for name in tensors if name.startswith(f"model.layers.{layer}.") and ".experts." in name]

        def stack(*endings: str, here: list[str] = here) -> Tensor:
            found = [sorted(name for name in here if name.endswith(f"{ending}.weight")) for ending in endings]
            return torch.stack([tensors[name] for name in next(names for names in found if names)])

        experts = f"model.layers.{layer}.mlp.experts."
        gates, ups = stack("w1", "gate_proj"), stack("w3", "up_proj")
        kept |= {
            experts + "gate_up_proj": torch.cat((gates, ups), dim=1),
            experts + "down_proj": stack("w2", "down_proj"),
        }
    return kept


@pytest.mark.parametrize(
    ("case", "change", "settings"),
    [
        ("gpt2", old_gpt2, {}),
        ("gpt2", old_gpt2, {"architectures": ["GPT2Model"]}),
        ("gpt1", lambda tensors: {n.removeprefix("transformer."): t for n, t in tensors.items()}, {}),
        ("bert", old_bert, {}),
        ("marian", old_marian, {"normalize_before": False, "static_position_embeddings": True}),
        ("llama-tied-mha", old_llama, {}),
        ("llama-tied-mha", only_the_output_matrix, {}),
        ("qwen2-tied", headless, {}),
        ("mixtral", fused, {}),
        ("qwen3-moe", fused, {}),
    ],
)
def test_other_layouts_are_the_same_model(
    case: str, change: Callable[[Tensors], Tensors], settings: dict[str, Any], tmp_path: Path
) -> None:
    make_theirs(case).save_pretrained(tmp_path)
    usual = load_model(tmp_path)
    expected = {name: parameter.detach().clone() for name, parameter in usual.named_parameters()}
    rewrite(tmp_path, change, **settings)
    found = load_model(tmp_path)
    assert found.config == usual.config
    assert all(torch.equal(expected[name], parameter) for name, parameter in found.named_parameters())


def test_shapes_are_checked_in_every_layout(tmp_path: Path) -> None:
    """Transposed, fused, leading and stacked tensors are told of in their own shape."""
    for case, name, change, told in (
        ("gpt2", "transformer.h.0.attn.c_attn.weight", None, r"\(31, 96\); config.json asks for \(32, 96\)"),
        ("marian", "final_logits_bias", None, r"\(0, 61\); config.json asks for \(1, 61\)"),
        (
            "mixtral",
            "model.layers.1.mlp.experts.gate_up_proj",
            fused,
            r"\(3, 96, 32\); config.json asks for \(4, 96, 32\)",
        ),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.3.w2.weight", None, r"\(31, 48\); .* \(32, 48\)"),
    ):
        folder = tmp_path / f"{case}-{name}"
        make_theirs(case).save_pretrained(folder)
        rewrite(folder, change or dict)
        rewrite(folder, lambda tensors, name=name: {**tensors, name: tensors[name][:-1].clone()})
        with pytest.raises(ModelError, match=told):
            load_model(folder)


def test_an_expert_is_missing(tmp_path: Path) -> None:
    make_theirs("mixtral").save_pretrained(tmp_path)
    gone = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    rewrite(tmp_path, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != gone})
    with pytest.raises(ModelError, match=f"lack the tensor '{gone}'"):
        load_model(tmp_path)


@pytest.mark.parametrize(("case", "new"), [("bert-masked", {"pooler", "next_sentence"}), ("bert-bare", {"classifier"})])
def test_what_a_bert_lacks_is_new_and_told(case: str, new: set[str], tmp_path: Path) -> None:
    """The last map of a new head says nothing yet, and can be trained; the same one is drawn every time."""
    make_theirs(case).save_pretrained(tmp_path)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=f"has no {' and '.join(sorted(new))}: new weights were drawn"):
        model = load_model(tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    for name in new:
        assert bool(model.get_parameter(f"{name}.weight").any()) == (name == "pooler")
        assert not model.get_parameter(f"{name}.bias").any()
    with pytest.warns(UserWarning):
        again = load_model(tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def test_other_parts_may_not_be_missing(tmp_path: Path) -> None:
    make_theirs("bert").save_pretrained(tmp_path)
    gone = "bert.pooler.dense.weight"
    rewrite(tmp_path, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != gone})
    with pytest.raises(ModelError, match=f"lack the tensor '{gone}'"):
        load_model(tmp_path)


def test_absent_biases_that_were_trained_elsewhere_are_not_dropped(tmp_path: Path, build_translator) -> None:  # type: ignore[no-untyped-def]
    """Ours without biases is written with zeros. Once those have been trained, leaving them out would change it."""
    save_model(build_translator(), tmp_path)
    name = "model.decoder.layers.1.encoder_attn.v_proj.bias"
    assert not load_file(tmp_path / "model.safetensors")[name].any()
    rewrite(tmp_path, lambda tensors: {**tensors, name: tensors[name] + 1})
    with pytest.raises(ModelError, match=f"{name} is not 0"):
        load_model(tmp_path)
    config = tmp_path / "config.json"
    content = json.loads(config.read_text())
    assert content["jielong"].keys() >= {"qkv_bias", "out_bias", "logit_bias"}
    del content["jielong"]
    config.write_text(json.dumps(content))
    assert load_model(tmp_path).config.qkv_bias


def test_a_piece_goes_to_its_place_and_back() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    for piece in (Piece("x"), Piece("x", transposed=True), Piece("x", leading=True)):
        theirs = piece.written(tensor)
        assert theirs.shape == piece.their_shape((2, 3)) and torch.equal(piece.ours(theirs), tensor)
    halves = torch.arange(24.0).view(2, 4, 3)
    assert Piece("x", half=1).their_shape((2, 2, 3)) == halves.shape
    assert torch.equal(Piece("x", half=1).ours(halves), halves[:, 2:])
