"""Cached decoding equals the whole forward for every family that decodes, with the cache that the engine uses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jielong.errors import ModelError
from jielong.generate.cache import KeyValueCache
from jielong.model.transformer import Transformer

SOURCE = torch.randint(61, (3, 10), generator=torch.Generator().manual_seed(8))
SOURCE_SEGMENTS = torch.ones(3, 10, dtype=torch.int32)
SOURCE_SEGMENTS[1, 7:] = 0
SOURCE_SEGMENTS[2, :4] = 0


def make_cache(model: Transformer, rows: int, capacity: int = 24) -> KeyValueCache:
    return KeyValueCache(model.config, rows, capacity, torch.float32, torch.device("cpu"))


def full_logits(model: Transformer, tokens: Tensor) -> Tensor:
    if model.config.encoder_layers:
        return model(tokens, source=SOURCE, source_segments=SOURCE_SEGMENTS)
    return model(tokens)


def given_source(model: Transformer) -> dict[str, Any]:
    """What `hidden` needs beside the tokens."""
    if not model.config.encoder_layers:
        return {}
    return {"memory": model.encode(SOURCE, SOURCE_SEGMENTS), "memory_segments": SOURCE_SEGMENTS}


@torch.no_grad()
def test_cached_equals_uncached_on_ragged_rows(build_family, decoder_family: str, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family(decoder_family)
    full, extra = full_logits(model, tokens), given_source(model)
    cache = make_cache(model, 3)
    prompts = torch.tensor([5, 9, 2])  # right-padded to 9
    logits = model.unembed(model.hidden(tokens[:, :9], cache=cache, **extra))
    for row, length in enumerate(prompts.tolist()):
        torch.testing.assert_close(logits[row, :length], full[row, :length], rtol=1e-4, atol=1e-4)
    cache.advance(prompts)
    for width in (1, 1, 3, 1, 1, 1, 1):  # one token a step, and several at once; past every window
        at = cache.lengths[:, None] + torch.arange(width)
        logits = model.unembed(model.hidden(tokens.gather(1, at), cache=cache, **extra))
        torch.testing.assert_close(logits, full.gather(1, at[..., None].expand_as(logits)), rtol=1e-4, atol=1e-4)
        cache.advance(torch.full((3,), width))


@torch.no_grad()
def test_a_full_context_can_be_decoded_to_its_end(build_family, decoder_family: str) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family(decoder_family, max_length=12)
    tokens = torch.randint(61, (3, 12), generator=torch.Generator().manual_seed(7))
    cache, extra = make_cache(model, 3, 12), given_source(model)
    parts = []
    for start in range(12):
        parts.append(model.unembed(model.hidden(tokens[:, start : start + 1], cache=cache, **extra)))
        cache.advance(torch.ones(3, dtype=torch.int64))
    torch.testing.assert_close(torch.cat(parts, dim=1), full_logits(model, tokens), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["transformer", "two-stacks-rotary"])
def test_the_source_is_projected_once_and_follows_its_rows(build_family, name: str, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family(name)
    full, extra = full_logits(model, tokens), given_source(model)
    cache = make_cache(model, 3)
    calls = []
    for layer in model.layers:
        layer.cross.kv.register_forward_hook(lambda *_: calls.append(1))
    model.hidden(tokens[:, :4], cache=cache, **extra)
    cache.advance(torch.full((3,), 4))
    kept = torch.tensor([2, 1])
    cache.select(kept)
    for at in range(4, 8):  # the memory itself is not needed any more
        hidden = model.hidden(tokens[kept, at : at + 1], cache=cache, memory_segments=SOURCE_SEGMENTS[kept])
        torch.testing.assert_close(model.unembed(hidden)[:, 0], full[kept, at], rtol=1e-4, atol=1e-4)
        cache.advance(torch.ones(2, dtype=torch.int64))
    assert len(calls) == len(model.layers)


@torch.no_grad()
def test_beams_of_one_sentence_may_change_places(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family("marian")
    beams = tokens[:1].repeat(3, 1)
    beams[1, 2:], beams[2, 2:] = tokens[1, 2:], tokens[2, 2:]
    source, segments = SOURCE[2:].repeat(3, 1), SOURCE_SEGMENTS[2:].repeat(3, 1)
    order = torch.tensor([2, 0, 0])
    full = model(beams[order], source=source, source_segments=segments)
    cache, memory = make_cache(model, 3), model.encode(source, segments)
    model.hidden(beams[:, :5], cache=cache, memory=memory, memory_segments=segments)
    cache.advance(torch.full((3,), 5))
    sources = dict(cache.sources)
    cache.select(order, same_sources=True)
    assert all(cache.sources[layer] is sources[layer] for layer in sources)
    hidden = model.hidden(beams[order, 5:6], cache=cache, memory_segments=segments)
    torch.testing.assert_close(model.unembed(hidden)[:, 0], full[:, 5], rtol=1e-4, atol=1e-4)


def test_what_is_missing_or_too_much_is_said(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family("marian")
    with pytest.raises(ModelError, match="attends to a source: give"):
        model(tokens)
    with pytest.raises(ModelError, match="attends to a source: give"):
        model(tokens, cache=make_cache(model, 3))
    with pytest.raises(ModelError, match="a row has 65 tokens.*at most 64"):
        model(tokens, source=torch.zeros(3, 65, dtype=torch.int64))
    with pytest.raises(ModelError, match="token_types are given"):
        model(tokens, source=SOURCE, token_types=tokens)
    decoder: Transformer = build_family("jie")
    with pytest.raises(ModelError, match="no encoder"):
        decoder(tokens, source=SOURCE)
    with pytest.raises(ModelError, match="no two stacks"):
        decoder.hidden(tokens, memory=torch.zeros(3, 10, 32))
