"""The 2017 model against torch.nn.Transformer: outputs and all gradients.

torch's stacks end in a norm, also in post-norm, where the paper and we have none; here theirs is left out.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from jielong.model.context import segment_positions
from jielong.model.layers import LayerNorm
from jielong.model.transformer import Layer, Transformer

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor")
SOURCE_PADDING = torch.zeros(3, 9, dtype=torch.bool)
SOURCE_PADDING[0, 6:], SOURCE_PADDING[1, :2] = True, True
TARGET_PADDING = torch.zeros(3, 12, dtype=torch.bool)
TARGET_PADDING[2, 8:] = True


Pair = tuple[tuple[Tensor, ...], Tensor]  # our parameters, which stacked by rows are theirs


def linear(ours: nn.Module, theirs: nn.Module) -> list[Pair]:
    return [((ours.weight,), theirs.weight), ((ours.bias,), theirs.bias)]


def layer_pairs(ours: Layer, theirs: nn.Module) -> list[Pair]:
    pairs: list[Pair] = [((ours.attention.qkv.weight,), theirs.self_attn.in_proj_weight)]
    pairs += [((ours.attention.qkv.bias,), theirs.self_attn.in_proj_bias)]
    pairs += linear(ours.attention.out, theirs.self_attn.out_proj)
    pairs += linear(ours.ffn.up, theirs.linear1) + linear(ours.ffn.down, theirs.linear2)
    norms = [ours.attention_norm, ours.ffn_norm]
    if isinstance(theirs, nn.TransformerDecoderLayer):
        norms.insert(1, ours.cross_norm)
        pairs += linear(ours.cross.out, theirs.multihead_attn.out_proj)
        pairs += [((ours.cross.q.weight, ours.cross.kv.weight), theirs.multihead_attn.in_proj_weight)]
        pairs += [((ours.cross.q.bias, ours.cross.kv.bias), theirs.multihead_attn.in_proj_bias)]
    for norm, number in zip(norms, (1, 2, 3), strict=False):
        pairs += linear(norm, getattr(theirs, f"norm{number}"))
    return pairs


def model_pairs(model: Transformer, theirs: nn.Transformer, norm_first: bool) -> list[Pair]:
    pairs = []
    for ours, other in zip(model.encoder, theirs.encoder.layers, strict=True):
        pairs += layer_pairs(ours, other)
    for ours, other in zip(model.layers, theirs.decoder.layers, strict=True):
        pairs += layer_pairs(ours, other)
    if norm_first:
        assert isinstance(model.encoder_norm, LayerNorm) and isinstance(model.norm, LayerNorm)
        pairs += linear(model.encoder_norm, theirs.encoder.norm) + linear(model.norm, theirs.decoder.norm)
    return pairs


@torch.no_grad()
def copy_to_torch(pairs: list[Pair]) -> None:
    for ours, theirs in pairs:
        theirs.copy_(torch.cat(ours))


def close(ours: Tensor, theirs: Tensor, name: str = "") -> None:
    assert (ours - theirs).norm() <= 1e-5 * (1e-3 + theirs.norm()), name


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_decoder_equals_torch(build_family, tokens: Tensor, norm_first: bool, activation: str) -> None:  # type: ignore[no-untyped-def]
    places = {"norm_at": "pre" if norm_first else "post", "activation": activation}
    model: Transformer = build_family("marian", logit_bias=False, **places)
    theirs = nn.Transformer(
        32, 4, 2, 2, dim_feedforward=48, dropout=0.0, activation=activation, batch_first=True, norm_first=norm_first
    )
    if not norm_first:
        theirs.encoder.norm = theirs.decoder.norm = None
    pairs = model_pairs(model, theirs, norm_first)
    copy_to_torch(pairs)
    source, target = tokens[:, :9], tokens[:, 9:21]
    theirs.train()  # in eval it takes a path of its own, without gradients

    segments, source_segments = (~TARGET_PADDING).int(), (~SOURCE_PADDING).int()

    def embed(ids: Tensor, inside: Tensor) -> Tensor:
        return model.positions.add(model.embed(ids) * 32**0.5, segment_positions(inside))

    slow = theirs(
        embed(source, source_segments),
        embed(target, segments),
        tgt_mask=torch.ones(12, 12, dtype=torch.bool).triu(1),
        src_key_padding_mask=SOURCE_PADDING,
        tgt_key_padding_mask=TARGET_PADDING,
        memory_key_padding_mask=SOURCE_PADDING,
    )
    memory = model.encode(source, source_segments)
    fast = model.hidden(target, segments, memory=memory, memory_segments=source_segments)
    real = (segments > 0)[..., None]
    close(fast * real, slow * real)

    upstream = torch.randn(fast.shape, generator=torch.Generator().manual_seed(2)) * real
    mine = [model.embed.weight, *(part for ours, _ in pairs for part in ours)]
    found = iter(torch.autograd.grad((fast * upstream).sum(), mine))
    expected = iter(torch.autograd.grad((slow * upstream).sum(), [model.embed.weight, *(other for _, other in pairs)]))
    close(next(found), next(expected))
    for ours, _ in pairs:
        close(torch.cat([next(found) for _ in ours]), next(expected))


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layer_equals_torch(build_family, tokens: Tensor, norm_first: bool) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family(
        "bert", norm_at="pre" if norm_first else "post", encoder_layers=1, embedding_norm=False, norm_eps=1e-5
    )
    theirs = nn.TransformerEncoderLayer(
        32, 4, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
    )
    copy_to_torch(layer_pairs(model.encoder[0], theirs))
    segments = torch.ones_like(tokens)
    segments[0, 20:], segments[1, :5] = 0, 0
    x = model.token_types(model.positions.add(model.embed(tokens), segment_positions(segments)), None)
    slow = theirs(x, src_key_padding_mask=segments == 0)
    if norm_first:
        slow = model.encoder_norm(slow)
    real = (segments > 0)[..., None]
    close(model.hidden(tokens, segments) * real, slow * real)


def test_a_stack_without_norm_differs_from_torchs_default(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    """What the docstring says: torch.nn.Transformer normalises behind a post-norm stack, the paper does not."""
    model: Transformer = build_family("transformer")
    assert not [name for name in model.state_dict() if name.startswith(("norm.", "encoder_norm."))]
    default = nn.Transformer(32, 4, 2, 2, dim_feedforward=48)
    assert list(default.encoder.norm.parameters()) and list(default.decoder.norm.parameters())
