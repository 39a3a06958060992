"""The planted induction circuit: it attends as it says before any training, and training keeps what it gives."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.errors import ModelError
from jielong.lens.attention import attention_maps
from jielong.model.config import ModelConfig
from jielong.model.induction import plant_induction
from jielong.model.kernels import explicit_attention
from jielong.model.presets import preset_config
from jielong.model.transformer import Transformer

LINE = 40  # tokens, said twice


def planted(config: ModelConfig, seed: int = 1, plant: bool = True) -> Transformer:
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    if plant:
        plant_induction(model, generator)
    return model


def said_twice(vocab_size: int, rows: int, seed: int) -> Tensor:
    line = torch.randint(vocab_size, (rows, LINE), generator=torch.Generator().manual_seed(seed))
    return torch.cat((line, line), dim=1)


@torch.no_grad()
def attention_weights(model: Transformer, tokens: Tensor, layer: int) -> Tensor:
    """(B, N, T, T) of one layer, read off the oracle by giving it one-hot values."""
    config, length = model.config, tokens.shape[1]
    x, context = model._begin(tokens, None, None, causal=True)
    for number in range(layer):
        x = model.layers[number](x, context)
    block = model.layers[layer]
    mixed = block.attention.project(block.attention_norm(x)).unflatten(2, (-1, config.head_size))
    num_turned = config.num_heads + config.num_kv_heads
    turned = context.rotation.turn(mixed[:, :, :num_turned].transpose(1, 2))
    one_hot = torch.eye(length).expand(len(tokens), config.num_kv_heads, length, length)
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    return explicit_attention(turned[:, : config.num_heads], turned[:, config.num_heads :], one_hot, visible)


@pytest.mark.parametrize("preset", ["jie-xs", "jie-s", "jie-m", "jie-l"])
def test_heads_attend_as_they_say_before_any_training(preset: str) -> None:
    model = planted(preset_config(preset, vocab_size=1500, max_length=2 * LINE))
    tokens = said_twice(1500, rows=4, seed=3)
    previous = attention_weights(model, tokens, 0)[:, 0].diagonal(-1, dim1=1, dim2=2)
    assert previous.mean() > 0.75
    group = model.config.num_heads // model.config.num_kv_heads
    weights = attention_weights(model, tokens, 1)[:, ::group][:, :2, LINE:]  # of the second saying
    after_the_first = weights.diagonal(1, dim1=2, dim2=3).mean()  # what followed this token when it was said before
    assert after_the_first > 8 / (1.5 * LINE)  # eight times what looking everywhere alike would give


def learned(norm_at: str, width: int = 128) -> ModelConfig:
    """GPT-1's shape ("post") or GPT-2's ("pre") in small."""
    sizes = {"width": width, "decoder_layers": 4, "num_heads": 4, "num_kv_heads": 4, "ffn_width": 4 * width}
    shape = {**preset_config("gpt1", vocab_size=1500, max_length=2 * LINE).__dict__, **sizes, "head_size": width // 4}
    return ModelConfig(**{**shape, "norm_at": norm_at, "init_std": 0.0, "dropout": 0.0, "attention_dropout": 0.0})


@pytest.mark.parametrize(("norm_at", "width"), [("post", 128), ("pre", 128), ("post", 256)])
def test_heads_of_learned_positions_attend_as_they_say(norm_at: str, width: int) -> None:
    model = planted(learned(norm_at, width)).eval()
    previous, second = [], []
    for line in said_twice(1500, rows=4, seed=3):
        maps = attention_maps(model, line)["decoder"]
        previous.append(maps[0, 0].diagonal(-1).mean())
        second.append(maps[1, :2, LINE:].diagonal(1, dim1=1, dim2=2).mean())
    assert torch.stack(previous).mean() > 0.75
    assert torch.stack(second).mean() > 8 / (1.5 * LINE)


def test_waves_and_tokens_lie_in_directions_of_their_own() -> None:
    model = planted(learned("post"))
    positions, tokens = model.get_parameter("positions.weight").detach(), model.embed.weight.detach()
    assert float((tokens @ positions.T).abs().max()) < 1e-5
    length = tokens.norm(dim=1).mean().expand(2 * LINE)
    torch.testing.assert_close(positions.norm(dim=1), length, rtol=1e-4, atol=0)  # as long as a token
    steps = (positions[1:] * positions[:-1]).sum(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-4, atol=1e-5)  # a step is a step everywhere


def test_the_rest_of_the_model_is_as_drawn() -> None:
    config = preset_config("jie-s", vocab_size=300, max_length=64)
    plain, changed = planted(config, plant=False).state_dict(), planted(config).state_dict()
    untouched = [name for name, tensor in plain.items() if torch.equal(tensor, changed[name])]
    assert {name for name in plain if "norm" in name or "gate" in name or "up" in name} <= set(untouched)
    assert {"layers.2.attention.qkv.weight", "layers.3.attention.qkv.weight"} <= set(untouched)
    added = changed["embed.weight"] - plain["embed.weight"]
    assert torch.allclose(added, added[0].expand_as(added), atol=1e-6)  # one vector, the same for every token
    assert 0.9 < added[0].norm() / plain["embed.weight"].norm(dim=1).mean() < 1.1
    torch.testing.assert_close(changed["layers.3.ffn.down.weight"], 0.1 * plain["layers.3.ffn.down.weight"])


def test_a_seed_means_the_same_weights() -> None:
    config = preset_config("jie-s", vocab_size=300, max_length=64)
    first, again, other = (planted(config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["layers.1.attention.qkv.weight"], other["layers.1.attention.qkv.weight"])


@pytest.mark.parametrize("shape", ["rotary", "learned"])
def test_training_makes_use_of_it_and_finds_little_without(shape: str) -> None:
    """Eighty steps on lines said twice, never the same line again: only copying can beat ln V."""
    vocab_size = 200
    rotary = preset_config("jie-s", vocab_size, 2 * LINE)
    config = rotary if shape == "rotary" else dataclasses.replace(learned("post"), vocab_size=vocab_size)
    losses = {}
    for plant in (True, False):
        model = planted(config, plant=plant)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
        for step in range(80):
            tokens = said_twice(vocab_size, rows=8, seed=100 + step)
            loss = F.cross_entropy(model(tokens)[:, LINE:-1].flatten(0, 1), tokens[:, LINE + 1 :].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses[plant] = loss.item()
    assert losses[True] < 0.7 * math.log(vocab_size)
    assert losses[False] > 0.85 * math.log(vocab_size)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"decoder_layers": 1}, "decoder_layers is 1"),
        ({"positions": "sinusoidal"}, "positions is 'sinusoidal'"),
        ({"positions": "learned", "norm_at": "both"}, "norm_at is 'both'"),
        ({"positions": "learned", "embedding_scale": 2.0}, "embedding_scale is 2.0"),
        ({"positions": "learned", "decoder_layers": 1}, "decoder_layers is 1"),
        ({"positions": "learned", "head_size": 2}, "head_size is 2"),
        ({"norm": "layer"}, "norm is 'layer'"),
        ({"norm_at": "post"}, "norm_at is 'post'"),
        ({"rope_base": 1.5}, "rope_base is 1.5"),
    ],
)
def test_a_model_without_a_place_for_it_is_refused(changes: dict[str, object], named: str) -> None:
    from jielong.model.induction import check_induction

    config = dataclasses.replace(preset_config("jie-s", 300, 64), **changes)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=named):
        check_induction(config)
