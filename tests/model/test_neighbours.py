"""The planted neighbour heads: they look where they say before any training, and training starts faster with them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from jielong.errors import ModelError
from jielong.lens.attention import attention_maps
from jielong.model.config import ModelConfig
from jielong.model.neighbours import DISTANCES, plant_neighbours
from jielong.model.presets import preset_config
from jielong.model.transformer import Transformer


def planted(config: ModelConfig, plant: bool = True) -> Transformer:
    model = Transformer(config).eval()
    generator = torch.Generator().manual_seed(1)
    model.init_weights(generator)
    if plant:
        plant_neighbours(model, generator)
    return model


@pytest.mark.parametrize("preset", ["jie-encoder-s", "jie-encoder-m"])
def test_heads_look_at_their_neighbours_before_any_training(preset: str) -> None:
    model = planted(preset_config(preset, vocab_size=900, max_length=64))
    tokens = torch.randint(900, (64,), generator=torch.Generator().manual_seed(2))
    first = attention_maps(model, tokens)["encoder"][0]
    for head, distance in enumerate(DISTANCES):
        assert first[head].diagonal(distance).mean() > 0.7, distance
    plain = attention_maps(planted(model.config, plant=False), tokens)["encoder"][0]
    assert max(float(plain[head].diagonal(distance).mean()) for head, distance in enumerate(DISTANCES)) < 0.1


def test_heads_that_share_keys_have_one_distance_each() -> None:
    config = dataclasses.replace(preset_config("jie-encoder-s", vocab_size=300, max_length=32), num_kv_heads=2)
    first = attention_maps(planted(config), torch.arange(32) * 7)["encoder"][0]
    assert first[0].diagonal(-1).mean() > 0.7 and first[2].diagonal(1).mean() > 0.7
    assert first[1].diagonal(-1).mean() < 0.3


def test_a_gap_between_known_neighbours_is_learnt_sooner() -> None:
    """The hidden token is the sum of its neighbours: without a head that finds them there is nothing but chance."""
    config = dataclasses.replace(preset_config("jie-encoder-s", vocab_size=24, max_length=16), token_types=0)
    after = {}
    for plant in (True, False):
        model, generator = planted(config, plant), torch.Generator().manual_seed(5)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(40):
            tokens = torch.randint(11, (64, 15), generator=generator)
            truth = tokens[:, 6] + tokens[:, 8]
            tokens[:, 7] = 23
            loss = F.cross_entropy(model.unembed(model.hidden(tokens)[:, 7]), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        after[plant] = loss.item()
    assert after[True] < after[False] - 0.5, after


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"positions": "learned"}, "positions is 'learned'"),
        ({"norm_at": "post"}, "norm_at is 'post'"),
        ({"encoder_layers": 0, "decoder_layers": 2, "head": "lm", "token_types": 0}, "encoder_layers is 0"),
    ],
)
def test_other_shapes_are_refused_by_the_field(changes: dict[str, Any], named: str) -> None:
    config = dataclasses.replace(preset_config("jie-encoder-s", vocab_size=300, max_length=32), **changes)
    with pytest.raises(ModelError, match=named):
        plant_neighbours(Transformer(config), torch.Generator())
