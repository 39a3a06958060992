from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from jielong.errors import ModelError
from jielong.model import kernels
from jielong.model.transformer import Transformer


class ListCache:
    """A cache that keeps, per layer and row, an enlarging buffer: the plainest thing that meets the protocol."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.lengths = torch.zeros(rows, dtype=torch.int64)
        self.capacity = capacity
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self.layers:
            shape = (keys.shape[0], keys.shape[1], self.capacity, keys.shape[3])
            self.layers[layer] = (torch.zeros(shape), torch.zeros(shape))
        for held, new in zip(self.layers[layer], (keys, values), strict=True):
            for row, start in enumerate(self.lengths.tolist()):
                end = min(start + new.shape[2], self.capacity)
                held[row, :, start:end] = new[row, :, : end - start]
        return self.layers[layer]


@pytest.mark.parametrize("kv_heads", [1, 4])
@torch.no_grad()
def test_cached_equals_uncached_on_ragged_rows(build, tokens: Tensor, kv_heads: int) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build(num_kv_heads=kv_heads)
    full = model(tokens)  # (3, 24, V)
    cache = ListCache(rows=3, capacity=24)
    prompts = torch.tensor([5, 9, 2])  # right-padded to 9
    logits = model(tokens[:, :9], cache=cache)
    for row, length in enumerate(prompts.tolist()):
        torch.testing.assert_close(logits[row, :length], full[row, :length], rtol=1e-4, atol=1e-4)
    cache.lengths += prompts
    for width in (1, 1, 3, 1):  # one token a step, and several at once
        at = cache.lengths[:, None] + torch.arange(width)
        logits = model(tokens.gather(1, at), cache=cache)
        torch.testing.assert_close(logits, full.gather(1, at[..., None].expand_as(logits)), rtol=1e-4, atol=1e-4)
        cache.lengths += width


@pytest.mark.parametrize("head", ["lm", "scalar"])
@pytest.mark.parametrize("plain_length", [0, 512])  # 0: SDPA
def test_packed_equals_unpacked(build, tokens: Tensor, head: str, plain_length: int, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(kernels, "PLAIN_LENGTH", plain_length)
    model: Transformer = build(head=head)
    first, second = tokens[0:1, :10], tokens[1:2, :12]
    packed = torch.cat((first, second, torch.zeros(1, 2, dtype=torch.int64)), dim=1)
    segments = torch.tensor([[1] * 10 + [2] * 12 + [0] * 2])
    together = model(packed, segments)
    torch.testing.assert_close(together[:, :10], model(first), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[:, 10:22], model(second), rtol=1e-4, atol=1e-5)

    changed = packed.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 61
    other = model(changed, segments)
    assert torch.equal(other[:, 10:22], together[:, 10:22])  # document 2 knows nothing of document 1
    assert not torch.equal(other[:, 3:10], together[:, 3:10])


def test_gradients_of_packed_equal_the_sum_of_unpacked(build, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build()
    model(tokens[0:1, :10]).logsumexp(-1).sum().backward()
    model(tokens[1:2, :12]).logsumexp(-1).sum().backward()
    apart = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    packed = torch.cat((tokens[0:1, :10], tokens[1:2, :12]), dim=1)
    model(packed, torch.tensor([[1] * 10 + [2] * 12])).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, apart[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("head", ["lm", "scalar"])
@torch.no_grad()
def test_rows_do_not_depend_on_padding_or_neighbours(build, tokens: Tensor, head: str) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build(head=head)
    alone = model(tokens[:1, :7])
    for width, pad_id in ((8, 0), (24, 0), (24, 60)):
        padded = torch.full((3, width), pad_id)
        padded[0, :7] = tokens[0, :7]
        padded[1:] = tokens[1:, :width]
        segments = torch.ones(3, width, dtype=torch.int32)
        segments[0, 7:] = 0
        torch.testing.assert_close(model(padded, segments)[:1, :7], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_causal(build, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build()
    changed = tokens.clone()
    changed[:, 15] = (changed[:, 15] + 1) % 61
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :15], after[:, :15], rtol=0, atol=0)
    assert (before[:, 15:] != after[:, 15:]).any(-1).all()


@torch.no_grad()
def test_one_segment_equals_none(build, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build()
    torch.testing.assert_close(model(tokens, torch.ones_like(tokens)), model(tokens), rtol=1e-5, atol=1e-6)


def test_bfloat16_is_near_float32(build, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build(num_kv_heads=4)
    exact = model.hidden(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = model.hidden(tokens)
    assert (near.float() - exact).norm() < 0.05 * exact.norm()
    cast = build(num_kv_heads=4).to(torch.bfloat16)
    assert cast(tokens).dtype == torch.bfloat16  # whole model in bfloat16, as for decoding
    assert (cast.hidden(tokens).float() - exact).norm() < 0.1 * exact.norm()


def test_scalar_head_stays_float32_under_autocast(build, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build(head="scalar")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.hidden(tokens)
        scores = model.unembed(hidden)
    assert scores.shape == tokens.shape and scores.dtype == torch.float32
    torch.testing.assert_close(scores, hidden.float() @ model.score.weight[0])


def test_init_weights_spreads_and_seed(build) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build(tied=False, head="scalar")
    model.init_weights(torch.Generator().manual_seed(3))
    first = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.init_weights(torch.Generator().manual_seed(3))
    assert all(torch.equal(first[name], parameter) for name, parameter in model.named_parameters())
    usual = 1 / math.sqrt(32)
    expected = {"embed.weight": usual, "ffn.up.weight": usual}
    expected |= {"attention.out.weight": usual / 2, "ffn.down.weight": usual / 2}
    expected["score.weight"] = 1 / math.sqrt(33)  # 2 layers: residual projections / sqrt(4)
    for name, parameter in first.items():
        if name.endswith("norm.weight"):
            assert torch.equal(parameter, torch.ones_like(parameter))
        for end, spread in expected.items():
            if name.endswith(end):
                assert parameter.std().item() == pytest.approx(spread, rel=0.35 if "score" in name else 0.1)


def test_two_forwards_are_bit_equal(build, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build().train()
    assert torch.equal(model(tokens), model(tokens))


def test_too_long_a_row_says_the_limit(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelError, match="65 tokens.*at most 64"):
        build()(torch.zeros(1, 65, dtype=torch.int64))
