from __future__ import annotations

import math

import torch

from jielong.model.layers import GatedFeedForward, RMSNorm
from jielong.model.positions import rotary_tables, rotate, rotate_back


def test_rms_norm_by_hand() -> None:
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 2.0])
    # rms of (3, 4) is sqrt(12.5)
    expected = torch.tensor([[3 / math.sqrt(12.5), 8 / math.sqrt(12.5)]])
    torch.testing.assert_close(norm(torch.tensor([[3.0, 4.0]])), expected)


def test_rms_norm_gradients() -> None:
    norm = RMSNorm(6, eps=1e-3).double()
    norm.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: norm(x), (x, norm.weight))


def test_rms_norm_equals_torch_also_in_bfloat16() -> None:
    norm = RMSNorm(32, eps=1e-5)
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.rms_norm(x, (32,), norm.weight, 1e-5)
    torch.testing.assert_close(norm(x), expected)
    assert torch.equal(norm(x, torch.bfloat16), norm(x).bfloat16())
    narrow = norm.bfloat16()(x.bfloat16())
    torch.testing.assert_close(narrow, torch.nn.functional.rms_norm(x.bfloat16().float(), (32,)).bfloat16())


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


def test_feed_forward_by_hand(build) -> None:  # type: ignore[no-untyped-def]
    layer = GatedFeedForward(build().config)
    x = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(3))
    gate, up = x @ layer.gate.weight.T, x @ layer.up.weight.T
    torch.testing.assert_close(layer(x), (gate / (1 + torch.exp(-gate)) * up) @ layer.down.weight.T)
