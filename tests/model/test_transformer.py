from __future__ import annotations

import copy
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


def given_source(model: Transformer, tokens: Tensor) -> dict[str, Tensor]:
    return {"source": tokens[:, :9]} if model.config.encoder_layers and model.config.decoder_layers else {}


def test_every_family_is_near_float32_under_autocast(build_family, family: str, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family(family)
    exact = model(tokens, **given_source(model, tokens))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = model(tokens, **given_source(model, tokens))
    # Near ties of a router tip: then a token goes to another expert, rightly.
    tolerance = 0.5 if model.config.num_experts else 0.06
    assert (near.float() - exact).norm() < tolerance * exact.norm()
    near.float().logsumexp(-1).sum().backward()
    unread = ("pooler", "next_sentence")
    for name, parameter in model.named_parameters():
        assert name.startswith(unread) or (parameter.grad is not None and parameter.grad.isfinite().all()), name
        assert parameter.grad is None or parameter.grad.dtype == torch.float32


@torch.no_grad()
def test_every_family_runs_in_bfloat16_weights(build_family, family: str, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family(family).to(torch.bfloat16)
    logits = model(tokens, **given_source(model, tokens))
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


@torch.no_grad()
def test_dropout_is_for_training_alone(build_family, family: str, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    plain: Transformer = build_family(family)
    expected = plain(tokens, **given_source(plain, tokens))
    for dropouts in ({"dropout": 0.2}, {"attention_dropout": 0.2}):
        model: Transformer = build_family(family, **dropouts)
        model.load_state_dict(plain.state_dict())
        extra = given_source(model, tokens)
        assert torch.equal(model(tokens, **extra), expected)  # eval: as if there were none, and twice the same
        model.train()
        torch.manual_seed(1)
        first, second = model(tokens, **extra), model(tokens, **extra)
        assert not torch.equal(first, second) and not torch.equal(first, expected)
        torch.manual_seed(1)
        assert torch.equal(model(tokens, **extra), first)  # torch's generator decides


@torch.no_grad()
def test_dropout_falls_on_the_embeddings_and_on_each_sublayer(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    """With sublayers silent, what is dropped of the embeddings shows: a share p, the rest / (1 - p)."""
    model: Transformer = build_family("gpt2", dropout=0.3).train()
    left = 1 - round(0.3 * 256) / 256  # decided by a byte
    for name, parameter in model.named_parameters():
        if ".out." in name or ".down." in name:
            parameter.zero_()
    embedded = model.embed(tokens) + model.positions.weight[:24]
    seen: list[Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.layers[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    model(tokens)
    assert torch.equal(seen[0], seen[1])
    dropped = seen[0] == 0
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(seen[0], embedded / left * ~dropped)
    for end in ("attention.out.bias", "ffn.down.bias"):  # each sublayer now says 1 everywhere
        seen.clear()
        model.layers[0].get_parameter(end).fill_(1.0)
        model(tokens)
        said = seen[1] - seen[0]
        assert (said.abs() < 1e-3).float().mean().item() == pytest.approx(0.3, abs=0.03)
        torch.testing.assert_close(said[said.abs() > 1e-3], torch.tensor(1 / left).expand((said.abs() > 1e-3).sum()))
        model.layers[0].get_parameter(end).zero_()


@torch.no_grad()
def test_a_window_hides_what_is_further_back(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    """Two layers of window w reach 2 (w - 1) tokens back, no further."""
    model: Transformer = build_family("mistral", windows=(4,))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 61
    before, after = model(tokens), model(changed)
    moved = (before != after).any(-1).all(0)
    assert moved.tolist() == [5 <= t <= 11 for t in range(24)]
    assert torch.equal(build_family("mistral", windows=(24,))(tokens), build_family("mistral", windows=(0,))(tokens))


@torch.no_grad()
def test_an_encoder_sees_both_ways_and_order_matters(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family("bert")
    changed = tokens.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 61
    assert (model(tokens) != model(changed)).any(-1).all()
    assert not torch.allclose(model(tokens.flip(1)).flip(1), model(tokens), atol=1e-3)


@torch.no_grad()
def test_source_padding_and_other_sources_are_not_seen(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family("marian")
    source, segments = tokens[:, :10].clone(), torch.tensor([[1] * 4 + [2] * 4 + [0] * 2] * 3)
    targets = torch.tensor([[1] * 5 + [2] * 5] * 3)
    before = model(tokens[:, :10], targets, source=source, source_segments=segments)
    source[:, 8:] = (source[:, 8:] + 1) % 61
    assert torch.equal(model(tokens[:, :10], targets, source=source, source_segments=segments), before)
    source[:, 4:8] = (source[:, 4:8] + 1) % 61
    after = model(tokens[:, :10], targets, source=source, source_segments=segments)
    assert torch.equal(after[:, :5], before[:, :5]) and (after[:, 5:] != before[:, 5:]).any(-1).all()
    assert after.isfinite().all()


def test_init_weights_of_gpt2(build_family) -> None:  # type: ignore[no-untyped-def]
    """0.02, residual projections / sqrt(2 L), biases 0, norms 1; positions 0.02 as Hugging Face."""
    model: Transformer = build_family("gpt2", width=64, ffn_width=256, decoder_layers=4, init_std=0.02)
    model.init_weights(torch.Generator().manual_seed(3))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif name.endswith("norm.weight"):
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            into_stream = name.endswith(("out.weight", "down.weight"))
            spread = 0.02 / math.sqrt(8) if into_stream else 0.02
            assert parameter.std().item() == pytest.approx(spread, rel=0.1), name


@pytest.mark.parametrize("name", ["bert", "gpt1", "marian", "grok1", "two-stacks-rotary"])
def test_init_weights_of_others(build_family, name: str) -> None:  # type: ignore[no-untyped-def]
    """Where norms stand behind the sublayers nothing is scaled down; each stack counts its own layers."""
    model: Transformer = build_family(name, init_std=0.02, embedding_norm=name == "bert")
    model.init_weights(torch.Generator().manual_seed(3))
    for key, parameter in model.named_parameters():
        if key.endswith(("out.weight", "down.weight", "ffn.down")) and model.config.norm_at != "post":
            layers = model.config.encoder_layers if key.startswith("encoder.") else model.config.decoder_layers
            assert parameter.std().item() == pytest.approx(0.02 / math.sqrt(2 * layers), rel=0.1), key
        elif parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.25), key
        else:
            assert torch.equal(parameter, torch.full_like(parameter, float("norm.weight" in key))), key


def test_init_weights_of_narrow_post_norm_models(build_family) -> None:  # type: ignore[no-untyped-def]
    """Feed-forwards by both their widths, all else 1 / sqrt(D)."""
    model: Transformer = build_family("marian", ffn_width=128)
    model.init_weights(torch.Generator().manual_seed(3))
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.dim() == 2:
            spread = math.sqrt(2 / (32 + 128)) if ".ffn." in name else 1 / math.sqrt(32)
            assert parameter.std().item() == pytest.approx(spread, rel=0.1), name


def test_parameters_stand_in_the_order_of_the_draws(build) -> None:  # type: ignore[no-untyped-def]
    """init_weights draws in this order; another would change what every seed means."""
    names = [name for name, _ in build(tied=False).named_parameters()]
    layer = ["attention_norm.weight", "attention.qkv.weight", "attention.out.weight", "ffn_norm.weight",
             "ffn.gate.weight", "ffn.up.weight", "ffn.down.weight"]  # fmt: skip
    layers = [f"layers.{index}.{name}" for index in range(2) for name in layer]
    assert names == ["embed.weight", *layers, "norm.weight", "unembedding.weight"]


@torch.no_grad()
def test_a_copy_is_independent(build_family, family: str, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family(family)
    before = model(tokens, **given_source(model, tokens))
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(model(tokens, **given_source(model, tokens)), before)
    assert not twin(tokens, **given_source(twin, tokens)).any()
