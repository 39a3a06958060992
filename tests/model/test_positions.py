from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from jielong.model.config import RopeScaling
from jielong.model.positions import (
    Turned,
    Unturned,
    rotary_tables,
    rotate,
    rotate_back,
    scaled_frequencies,
    sinusoidal_table,
)
from jielong.model.transformer import Transformer


def test_rotary_turns_the_pair_i_and_i_plus_half() -> None:
    cos, sin = rotary_tables(length=3, head_size=4, base=100.0)
    x = torch.tensor([1.0, 0.0, 0.0, 2.0])  # pair 0 is (1, 0), pair 1 is (0, 2)
    turned = rotate(x, cos[2], sin[2])
    # at position 2 pair 0 turns by 2 radians, pair 1 by 2 * 100^(-2/4) = 0.2
    expected = torch.tensor([math.cos(2), -2 * math.sin(0.2), math.sin(2), 2 * math.cos(0.2)])
    torch.testing.assert_close(turned, expected)
    torch.testing.assert_close(rotate_back(turned, cos[2], sin[2]), x)


def test_rotary_products_depend_on_distance_alone() -> None:
    cos, sin = rotary_tables(length=40, head_size=8, base=10000.0)
    generator = torch.Generator().manual_seed(2)
    query, key = torch.randn(8, generator=generator), torch.randn(8, generator=generator)
    near = rotate(query, cos[7], sin[7]) @ rotate(key, cos[4], sin[4])
    far = rotate(query, cos[37], sin[37]) @ rotate(key, cos[34], sin[34])
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_rotation_scales_and_goes_back(scale: float) -> None:
    cos, sin = rotary_tables(length=5, head_size=4, base=100.0)
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(2))
    turned = Turned(cos, sin)
    torch.testing.assert_close(turned.turn(x, scale=scale), scale * rotate(x, cos, sin))
    torch.testing.assert_close(turned.turn_back(turned.turn(x)), x)
    own = Turned(cos.expand(2, 5, 4), sin.expand(2, 5, 4))  # rows with positions of their own: heads come between
    torch.testing.assert_close(own.turn(x, -3, scale), turned.turn(x, None, scale))
    assert torch.equal(Unturned().turn(x, -3, scale), scale * x)
    assert torch.equal(Unturned().turn_back(x, None, scale), scale * x)


def test_scaled_frequencies_by_hand() -> None:
    scaling = RopeScaling(factor=8.0, low_frequency=1.0, high_frequency=4.0, original_length=8192)
    turns = torch.tensor([100.0, 4.0, 2.5, 1.0, 0.1])  # in the original context
    frequencies = turns * 2 * math.pi / 8192
    found = scaled_frequencies(frequencies, scaling) / frequencies
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, (1 + 1 / 8) / 2, 1 / 8, 1 / 8]))


def test_scaled_tables_equal_those_of_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    module = pytest.importorskip("transformers.models.llama.modeling_llama")
    parameters = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=2, max_position_embeddings=512, rope_parameters=parameters
    )
    theirs = module.LlamaRotaryEmbedding(config)
    cos, sin = theirs(torch.zeros(1, 1, 64), torch.arange(512)[None])
    ours = rotary_tables(512, 32, 500000.0, RopeScaling(8.0, 1.0, 4.0, 64))
    # Theirs are 1 / base^(2i/H), rounded otherwise; the last bit of a frequency grows with the position.
    torch.testing.assert_close(ours[0], cos[0], rtol=0, atol=5e-5)
    torch.testing.assert_close(ours[1][:, 16:], sin[0][:, 16:], rtol=0, atol=5e-5)


def test_sinusoids_by_hand() -> None:
    table = sinusoidal_table(length=9, width=6)
    for position in (0, 1, 8):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[position, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 3 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_longest_wavelength_and_that_positions_do_not_repeat() -> None:
    """Common mistakes: the longest wavelength is 2 pi 10000 (here nearly), not 10000, and no position comes back."""
    table = sinusoidal_table(length=20001, width=512).double()
    lowest = 10000 ** (-2 * 255 / 512)
    assert 2 * math.pi / lowest == pytest.approx(60611, rel=1e-4)
    apart = (table[1:] - table[0]).norm(dim=1)
    assert apart.argmin() == 0 and apart[0].item() == pytest.approx(3.71, abs=0.01)
    assert apart[9999].item() == pytest.approx(23.3, abs=0.05)


@torch.no_grad()
def test_the_papers_order_is_a_permutation(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    """With the paper's columns (sine, cosine, sine, ...), and every weight at the residual stream permuted alike, the
    logits are the same: so from scratch it is the same model."""
    model: Transformer = build_family("marian").double()
    model.positions.table = model.positions.table.double()
    before = model(tokens, source=tokens[:, :9])
    order = torch.stack((torch.arange(16), torch.arange(16, 32)), dim=1).flatten()  # 0 16 1 17 ...
    paper = sinusoidal_table(64, 32)[:, order]
    for position in (1, 40):
        for i in range(16):
            angle = position / 10000 ** (2 * i / 32)
            assert paper[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert paper[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    model.positions.table.copy_(paper)
    reads = ("embed.weight", "qkv.weight", "cross.q.weight", "cross.kv.weight", "ffn.up.weight")
    writes = ("out.weight", "out.bias", "ffn.down.weight", "ffn.down.bias", "norm.weight", "norm.bias")
    for name, parameter in model.named_parameters():
        if name.endswith(reads):
            parameter.copy_(parameter[:, order])
        elif name.endswith(writes):
            parameter.copy_(parameter[order])
    torch.testing.assert_close(model(tokens, source=tokens[:, :9]), before, rtol=1e-6, atol=1e-6)
    model.positions.table.copy_(sinusoidal_table(64, 32))  # for foreign weights the order does matter
    assert (model(tokens, source=tokens[:, :9]) - before).abs().max() > 0.01


def test_tables_follow_the_weights_and_stay_out_of_the_state(build_family) -> None:  # type: ignore[no-untyped-def]
    for name in ("jie", "transformer"):
        model = build_family(name)
        assert not [key for key in model.state_dict() if key.startswith("positions")]
        for buffer in model.positions.buffers():
            assert buffer.shape[0] == 64 and buffer.device == model.embed.weight.device
    assert build_family("gpt2").state_dict()["positions.weight"].shape == (64, 32)
