from __future__ import annotations

import torch

from jielong.model.attention import Attention, CrossAttention, NormedAttention, build_heads
from jielong.model.context import identity
from jielong.model.layers import Softcap
from jielong.model.transformer import Transformer


def test_rows_of_the_fused_projection(build_family) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family("qwen3")  # 4 heads of q, 2 of k, 2 of v, each of 12
    attention = model.layers[0].attention
    assert isinstance(attention, NormedAttention) and attention.qkv.weight.shape == (8 * 12, 32)
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(1))
    queries, keys, values = (x @ attention.qkv.weight.T).view(1, 3, 8, 12).split([4, 2, 2], dim=2)

    def normed(y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    expected = (normed(queries, attention.q_norm.weight), normed(keys, attention.k_norm.weight), values)
    torch.testing.assert_close(attention.project(x), torch.cat(expected, dim=2).flatten(2))


def test_what_a_config_names_is_built(build_family) -> None:  # type: ignore[no-untyped-def]
    grok, marian, gpt3 = build_family("grok1"), build_family("marian"), build_family("gpt3")
    assert build_heads(grok.config, 1).cap == Softcap(2.0) and build_heads(marian.config, 1).cap is identity
    assert [layer.attention.heads.window for layer in gpt3.layers] == [0, 5]
    assert [layer.attention.heads.layer for layer in gpt3.layers] == [0, 1]
    assert type(marian.layers[0].attention) is Attention and type(marian.layers[0].cross) is CrossAttention
    assert marian.layers[0].cross.kv.bias is not None and grok.layers[0].attention.out.bias is None
    assert not [key for key in marian.state_dict() if key.startswith("encoder.") and "cross" in key]
