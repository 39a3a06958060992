"""Adapter folders against `peft` itself, both ways, and what is wrong with a folder named."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from jielong.errors import ModelError
from jielong.model.config import ModelConfig
from jielong.model.hf import load_model, save_model
from jielong.model.transformer import Transformer
from jielong.train import adapter_folder
from jielong.train.adapter_folder import load_adapter, save_adapter
from jielong.train.lora import TARGETS, LoraConfig, Piece, adapted_layers, attach, without_adapter

from ..model.hf_cases import make_theirs

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TOKENS = torch.randint(50, (3, 16), generator=torch.Generator().manual_seed(9))


def build(head: str = "lm", num_kv_heads: int = 2) -> Transformer:
    model = Transformer(ModelConfig(50, 24, 32, 2, 4, num_kv_heads, 8, 48, head=head))
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


def adapted(config: LoraConfig, head: str = "lm") -> tuple[Transformer, Any]:
    """A model with something in every B."""
    model = build(head)
    adapter = attach(model, config, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            for change in layer.low_ranks():
                change.lora_b.copy_(torch.randn(change.lora_b.shape, generator=generator) * 0.1)
    return model, adapter


def their_base(model: Transformer, folder: Path, kind: Any, **more: Any) -> Any:
    save_model(without_adapter(model), folder)
    return kind.from_pretrained(folder, **more).eval()


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(4, 8.0, TARGETS),
        LoraConfig(3, 5.0, ("q", "v")),
        LoraConfig(4, 8.0, ("k", "down"), rank_stabilised=True),
    ],
)
def test_peft_loads_what_we_write(config: LoraConfig, tmp_path: Path) -> None:
    model, adapter = adapted(config)
    save_adapter(model, adapter, tmp_path / "adapter", base="../model")
    base = their_base(model, tmp_path / "model", transformers.AutoModelForCausalLM)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of missing or unexpected keys
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        ours = model(TOKENS)
        assert float((theirs(TOKENS).logits - ours).abs().max()) < 1e-5
        assert float((theirs.merge_and_unload()(TOKENS).logits - ours).abs().max()) < 1e-5
        assert float((without_adapter(model)(TOKENS) - ours).abs().max()) > 0.1


ATTENTION = ("q", "k", "v", "out")


@torch.no_grad()
def outputs(model: Any, case: str, theirs: bool) -> torch.Tensor:
    """Logits of the same tokens; of a scalar head the score of the last one."""
    source = TOKENS[:, :7]
    if case == "marian":
        return model(source, decoder_input_ids=TOKENS).logits if theirs else model(TOKENS, source=source)
    if theirs:
        return model(TOKENS).logits
    return model(TOKENS)[:, -1:] if case.endswith("scalar") else model(TOKENS)


@pytest.mark.parametrize(
    ("case", "targets"),
    [
        ("llama-biases", TARGETS),
        ("qwen2", ("k", "v")),
        ("qwen3", ("q", "down")),
        ("mixtral", ATTENTION),
        ("gpt2", (*ATTENTION, "up", "down")),
        ("gpt2", ("v", "out")),
        ("gpt2-scalar", ("q", "v")),
        ("gpt1", ("q", "down")),
        ("bert-masked", (*ATTENTION, "up", "down")),
        ("bert-classes", ("q", "out")),
        ("marian", (*ATTENTION, "up", "down")),
    ],
)
def test_every_family_both_ways(case: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    """Fused, apart or on their side: `peft` and we read the same adapter as the same function."""
    theirs = make_theirs(case)
    theirs.save_pretrained(tmp_path / "model")
    ours = load_model(tmp_path / "model").eval()
    before = outputs(ours, case, theirs=False)
    adapter = attach(ours, LoraConfig(3, 6.0, targets), torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, layer in adapted_layers(ours):
            for change in layer.low_ranks():
                change.lora_b.copy_(torch.randn(change.lora_b.shape, generator=generator) * 0.2)
    save_adapter(ours, adapter, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapted_theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    expected, found = outputs(adapted_theirs, case, theirs=True), outputs(ours, case, theirs=False)
    assert float((found - before).abs().max()) > 0.05 and float((found - expected).abs().max()) < 2e-5
    adapted_theirs.save_pretrained(tmp_path / "again")
    again = load_model(tmp_path / "model").eval()
    load_adapter(again, tmp_path / "again")
    assert float((outputs(again, case, theirs=False) - expected).abs().max()) < 2e-5


@pytest.mark.parametrize("stabilised", [False, True])
def test_we_load_what_peft_writes(stabilised: bool, tmp_path: Path) -> None:
    model = build()
    base = their_base(model, tmp_path / "model", transformers.AutoModelForCausalLM)
    wanted = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "v_proj", "o_proj", "up_proj"],
        rank_pattern={"v_proj": 2},
        alpha_pattern={"layers.1.self_attn.v_proj": 3},
        use_rslora=stabilised,
        lora_dropout=0.1,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, wanted).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    adapter = load_adapter(model, tmp_path / "adapter")
    assert adapter.config.targets == ("q", "v", "out", "up") and adapter.config.rank == 4
    with torch.no_grad():
        gap = float((model(TOKENS) - theirs(TOKENS).logits).abs().max())
        assert gap < 1e-5
        assert float((model(TOKENS) - without_adapter(model)(TOKENS)).abs().max()) > 0.1
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_a_round_trip_is_bit_equal(tmp_path: Path) -> None:
    model, adapter = adapted(LoraConfig(4, 8.0, ("k", "v", "gate")))
    save_adapter(model, adapter, tmp_path)
    again = build()
    loaded = load_adapter(again, tmp_path)
    assert loaded.config == adapter.config
    before, after = dict(adapter.named_parameters()), dict(loaded.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_reward_model_brings_its_head(tmp_path: Path) -> None:
    model, adapter = adapted(LoraConfig(4, 8.0, ("q", "down")), head="scalar")
    with torch.no_grad():
        model.score.weight.mul_(3)  # as trained
    save_adapter(model, adapter, tmp_path / "adapter")
    sft = build()  # what it was made from: the same trunk and a vocabulary
    base = their_base(sft, tmp_path / "model", transformers.AutoModelForSequenceClassification, num_labels=1)
    base.config.pad_token_id = 0
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    rows = TOKENS.clamp(min=1)
    again = build("scalar")
    load_adapter(again, tmp_path / "adapter")
    with torch.no_grad():
        ours = model(rows)[:, -1]
        assert torch.allclose(theirs(rows).logits[:, 0], ours, atol=1e-5)
        assert torch.equal(again(rows)[:, -1], ours)


def test_one_matrix_of_theirs_may_be_three_of_ours() -> None:
    """GPT-2's c_attn: our changes as one of the sum of their ranks; a change of others falls on all three."""
    model, _ = adapted(LoraConfig(4, 8.0, ("q", "v")))
    layer = adapted_layers(model)[0][1]
    lora_a, lora_b, scale = adapter_folder._joined(layer.low_ranks(), layer.out_features)
    x = torch.randn(5, 32)
    with torch.no_grad():
        expected = layer(x) - layer.plain()(x)
        assert torch.allclose(scale * x @ lora_a.T @ lora_b.T, expected, atol=1e-5)
    assert lora_a.shape == (8, 32) and lora_b.shape == (64, 8)
    pieces = [Piece("q", 0, 32), Piece("k", 32, 48), Piece("v", 48, 64)]
    query, key, value = adapter_folder._split([(lora_a, lora_b, scale)], pieces)
    assert query is not None and key is None and value is not None
    assert torch.equal(query[0], layer.low_ranks()[0].lora_a) and torch.equal(value[1], layer.low_ranks()[1].lora_b)
    shared = adapter_folder._split([(lora_a, torch.ones(64, 8), 1.0)], pieces)
    assert all(part is not None and torch.equal(part[0], lora_a) for part in shared)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA'"),
        ({"use_dora": True}, "use_dora is True, a variant of LoRA that is not known here"),
        ({"bias": "all"}, "bias is 'all'; legal is 'none'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save is"),
        ({"r": 5}, "has rank 4, adapter_config.json says 5"),
        ({"r": "4"}, "r is '4'; legal is a whole number"),
    ],
)
def test_a_config_that_we_cannot_follow_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    model, adapter = adapted(LoraConfig(4, 8.0, ("q",)))
    save_adapter(model, adapter, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=message):
        load_adapter(build(), tmp_path)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model, adapter = adapted(LoraConfig(4, 8.0, ("v",)))
    save_adapter(model, adapter, tmp_path)
    with pytest.raises(ModelError, match="v: A and B have shapes"):
        load_adapter(build(num_kv_heads=4), tmp_path)
    shallow = Transformer(ModelConfig(50, 24, 32, 1, 4, 2, 8, 48))
    with pytest.raises(ModelError, match="layers.1.*has no place in this model"):
        load_adapter(shallow, tmp_path)
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="missing or damaged"):
        load_adapter(build(), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickle, which is never read"):
        load_adapter(build(), tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="adapter_config.json is missing"):
        load_adapter(build(), tmp_path)
