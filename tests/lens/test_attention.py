"""The recorded maps are what the model uses, look as masks say, and equal those of `transformers`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jielong.errors import ModelError
from jielong.lens.attention import CROSS, _Recorder, attention_maps, head_figures, telling_head
from jielong.model.context import Context, Heads, Mask, visible_keys
from jielong.model.hf import load_model
from jielong.model.kernels import choose_capped_kernels, choose_kernels, explicit_attention
from jielong.model.positions import Unturned
from jielong.model.transformer import Transformer

from ..model.conftest import FAMILIES
from ..model.hf_cases import make_theirs
from .conftest import BuildFamily


def reads_source(model: Transformer) -> bool:
    return model.config.encoder_layers > 0 and model.config.decoder_layers > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_have_the_shapes_and_hide_what_is_hidden(
    name: str, build_family: BuildFamily, tokens: Tensor, source: Tensor
) -> None:
    model = build_family(name)
    config, both = model.config, reads_source(model)
    maps = attention_maps(model, tokens, source if both else None)
    num_heads = config.num_heads
    expected = {}
    if config.decoder_layers:
        expected["decoder"] = (config.decoder_layers, num_heads, 20, 20)
    if both:
        expected[CROSS] = (config.decoder_layers, num_heads, 20, 13)
    if config.encoder_layers:
        expected["encoder"] = (config.encoder_layers, num_heads, *(2 * (13 if both else 20,)))
    assert {kind: tuple(weights.shape) for kind, weights in maps.items()} == expected
    for kind, weights in maps.items():
        assert weights.dtype == torch.float32
        assert (weights.sum(dim=-1) - 1).abs().max() < 1e-5
        for layer, found in enumerate(weights):
            if kind != "decoder":
                assert (found > 0).all()
                continue
            seen = visible_keys(torch.arange(20), 20, window=config.window(layer))[0]
            assert ((found > 0) == seen).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_recording_pass_is_the_ordinary_pass(
    name: str, build_family: BuildFamily, tokens: Tensor, source: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states made of the recorded weights and the values equal those of the kernels that ship."""
    model = build_family(name)
    memory = model.encode(source[None]) if reads_source(model) else None
    expected = model.hidden(tokens[None], memory=memory)
    monkeypatch.setattr(model, "choose_kernels", _Recorder().choose)
    recorded_memory = model.encode(source[None]) if reads_source(model) else None
    found = model.hidden(tokens[None], memory=recorded_memory)
    assert expected.abs().max() > 0.1
    assert (found - expected).abs().max() < 1e-5


def test_output_is_weights_times_values() -> None:
    """One kernel call by hand: 4 query heads, 2 kv heads, a window of 3, against the oracle."""
    generator = torch.Generator().manual_seed(0)
    heads = Heads(num_heads=4, num_kv_heads=2, head_size=6, layer=0, window=3)
    mixed = torch.randn(1, 7, 8 * 6, generator=generator)
    recorder = _Recorder()
    context = Context(
        dtype=torch.float32,
        rotation=Unturned(),
        mask=Mask(True, torch.arange(7), torch.float32),
        attend=recorder.attend,
        weigh=recorder.weigh,
    )
    output = recorder.attend(mixed, context, heads)  # (1, 7, 24)
    queries, keys, values = mixed.view(1, 7, 8, 6).transpose(1, 2).split((4, 2, 2), dim=1)
    seen = visible_keys(torch.arange(7), 7, window=3)
    expected = explicit_attention(queries, keys, values, seen[:, None]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    weights = recorder.maps["decoder"][0]  # (4, 7, 7)
    by_hand = (weights @ values[0].repeat_interleave(2, dim=0)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(output[0], by_hand, rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_was(build_family: BuildFamily, tokens: Tensor) -> None:
    for name, chooser in (("jie", choose_kernels), ("learned-capped-window", choose_capped_kernels)):
        model = build_family(name)
        before, state = model(tokens[None]), dict(model.__dict__)
        attention_maps(model, tokens)
        assert model.choose_kernels is chooser and model.__dict__ == state
        assert torch.equal(model(tokens[None]), before)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_source_alone_shows_the_encoder(build_family: BuildFamily, source: Tensor) -> None:
    maps = attention_maps(build_family("marian"), None, source)
    assert list(maps) == ["encoder"]


def test_half_precision_gives_float32_maps(build_family: BuildFamily, tokens: Tensor) -> None:
    model = build_family("jie")
    exact = attention_maps(model, tokens)["decoder"]
    found = attention_maps(model.bfloat16(), tokens)["decoder"]
    assert found.dtype == torch.float32 and (found - exact).abs().max() < 0.1


def test_what_cannot_be_looked_at_is_said(build_family: BuildFamily, tokens: Tensor, source: Tensor) -> None:
    with pytest.raises(ModelError, match=r"call model.eval\(\)"):
        attention_maps(build_family("jie").train(), tokens)
    with pytest.raises(ModelError, match="no encoder"):
        attention_maps(build_family("jie"), tokens, source)
    with pytest.raises(ModelError, match="attends to a source"):
        attention_maps(build_family("marian"), tokens)
    with pytest.raises(ModelError, match="at most 64"):
        attention_maps(build_family("jie"), torch.zeros(65, dtype=torch.int64))
    broken = build_family("jie")
    with torch.no_grad():
        broken.embed.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        attention_maps(broken, tokens)


# Against `transformers`


@pytest.mark.parametrize(
    "case",
    ["llama", "llama-biases", "llama-3.1", "mistral", "qwen2", "qwen3", "mixtral", "gpt2", "gpt1", "llama-scalar",
     "bert", "bert-classes"],
)  # fmt: skip
def test_parity_with_transformers(case: str, tokens: Tensor, tmp_path: Path) -> None:
    ours, theirs = both_read(case, tmp_path)
    attentions = theirs(tokens[None], output_attentions=True).attentions
    (found,) = attention_maps(ours, tokens).values()
    same(found, attentions)


@pytest.mark.parametrize("case", ["marian", "marian-relu"])
def test_parity_of_translators(case: str, tokens: Tensor, source: Tensor, tmp_path: Path) -> None:
    ours, theirs = both_read(case, tmp_path)
    made = theirs(input_ids=source[None], decoder_input_ids=tokens[None], output_attentions=True)
    maps = attention_maps(ours, tokens, source)
    same(maps["encoder"], made.encoder_attentions)
    same(maps["decoder"], made.decoder_attentions)
    same(maps[CROSS], made.cross_attentions)


def both_read(case: str, folder: Path) -> tuple[Transformer, Any]:
    theirs = make_theirs(case)
    theirs.save_pretrained(folder)
    theirs.set_attn_implementation("eager")  # the only one that gives its weights away
    return load_model(folder).eval(), theirs


def same(found: Tensor, attentions: tuple[Tensor, ...]) -> None:
    expected = torch.cat(attentions).detach()  # (L, N, T, S)
    assert found.shape == expected.shape
    assert expected.std() > 0.01  # uniform maps would be equal too
    assert (found - expected).abs().max().item() <= 1e-5


# Figures of the heads


def test_figures_by_hand() -> None:
    weights = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.5, 0.3]])[None, None]  # (1, 1, 3, 3)
    figures = head_figures("decoder", weights)
    assert figures.to_first is not None and figures.to_self is not None and figures.to_previous is not None
    assert figures.to_first.item() == pytest.approx(0.35)
    assert figures.to_self.item() == pytest.approx(0.4)
    assert figures.to_previous.item() == pytest.approx(0.5)
    assert figures.elsewhere.item() == pytest.approx(0.25)  # 0 and 0.5
    last = -sum(p * math.log(p) for p in (0.2, 0.5, 0.3))
    assert figures.entropy_nats.item() == pytest.approx((math.log(2) + last) / 2)


def test_the_telling_head_is_not_one_that_rests_on_the_first_token() -> None:
    rests, copies = torch.zeros(3, 3), torch.zeros(3, 3)
    rests[:, 0] = 1.0
    copies[0, 0] = copies[1, 0] = copies[2, 1] = 1.0
    weights = torch.stack([torch.stack([rests, rests]), torch.stack([rests, copies])])
    assert telling_head(head_figures("decoder", weights).elsewhere) == (1, 1)
    assert telling_head(head_figures(CROSS, torch.stack([weights[1]])).elsewhere) == (0, 0)


def test_one_token_has_figures_too() -> None:
    figures = head_figures("decoder", torch.ones(2, 3, 1, 1))
    assert figures.to_previous is not None
    assert all(bool(values.isfinite().all()) for values in (figures.entropy_nats, figures.elsewhere))
    assert bool((figures.to_previous == 0).all())
