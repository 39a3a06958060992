from __future__ import annotations

import math

import pytest
import torch

from jielong.errors import ModelError
from jielong.model.config import ACTIVATIONS
from jielong.model.context import identity
from jielong.model.layers import (
    NONLINEARITIES,
    FeedForward,
    GatedFeedForward,
    LayerNorm,
    NoTokenTypes,
    RMSNorm,
    Softcap,
    build_dropout,
    build_scale,
)


def test_rms_norm_by_hand() -> None:
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 2.0])
    # rms of (3, 4) is sqrt(12.5)
    expected = torch.tensor([[3 / math.sqrt(12.5), 8 / math.sqrt(12.5)]])
    torch.testing.assert_close(norm(torch.tensor([[3.0, 4.0]])), expected)


def test_rms_norm_is_the_same_without_gradients() -> None:
    norm = RMSNorm(24, eps=1e-5)
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    for narrow in (x, x.bfloat16()):
        for dtype in (None, torch.bfloat16):
            with torch.no_grad():
                alone = norm(narrow, dtype)
            assert torch.equal(alone, norm(narrow, dtype)) and not alone.requires_grad


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


def test_layer_norm_by_hand() -> None:
    norm = LayerNorm(2, eps=0.0)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0])
    torch.testing.assert_close(norm(torch.tensor([[3.0, 7.0]])), torch.tensor([[-1.0, 7.0]]))  # mean 5, deviation 2
    assert norm(torch.ones(1, 2), torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_of_narrow_numbers_are_computed_wide(kind: type[RMSNorm | LayerNorm], dtype: torch.dtype) -> None:
    norm = kind(300, eps=1e-5)
    x = 200 * torch.randn(4, 300, generator=torch.Generator().manual_seed(1)).to(dtype)  # squares overflow float16
    exact = norm(x.double().float())
    found = norm.to(dtype)(x)
    assert found.dtype == dtype and (found.float() - exact).norm() < 0.01 * exact.norm()


def test_feed_forward_by_hand(build) -> None:  # type: ignore[no-untyped-def]
    layer = GatedFeedForward(build().config)
    x = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(3))
    gate, up = x @ layer.gate.weight.T, x @ layer.up.weight.T
    torch.testing.assert_close(layer(x), (gate / (1 + torch.exp(-gate)) * up) @ layer.down.weight.T)


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_nonlinearities_by_formula(name: str) -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    cube = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    expected = {
        "relu": x.clamp(min=0),
        "gelu": x / 2 * (1 + torch.erf(x / math.sqrt(2))),
        "gelu_tanh": x / 2 * (1 + cube),
        "silu": x * torch.sigmoid(x),
        "swiglu": x * torch.sigmoid(x),
        "geglu": x / 2 * (1 + cube),
    }
    torch.testing.assert_close(NONLINEARITIES[name](x), expected[name])
    assert set(NONLINEARITIES) == set(ACTIVATIONS)


def test_the_two_gelus_differ_a_little() -> None:
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    apart = (NONLINEARITIES["gelu"](x) - NONLINEARITIES["gelu_tanh"](x)).abs().max().item()
    assert 3e-4 < apart < 5e-4  # what the comment says


@pytest.mark.parametrize("name", ["gpt2", "transformer"])
def test_plain_feed_forward_by_hand(build_family, name: str) -> None:  # type: ignore[no-untyped-def]
    layer = build_family(name).layers[0].ffn
    assert isinstance(layer, FeedForward)
    x = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(3))
    inner = layer.nonlinearity(x @ layer.up.weight.T + layer.up.bias)
    torch.testing.assert_close(layer(x), inner @ layer.down.weight.T + layer.down.bias)


def test_softcap_bounds_and_keeps_small_numbers() -> None:
    cap = Softcap(30.0)
    assert cap(torch.tensor(1e6)).item() == 30.0 and cap(torch.tensor(-1e6)).item() == -30.0
    assert cap(torch.tensor(0.3)).item() == pytest.approx(0.3, rel=1e-4)
    assert cap(torch.tensor(15.0)).item() == pytest.approx(30 * math.tanh(0.5))


def test_options_that_are_off_cost_nothing() -> None:
    assert build_dropout(0.0) is identity and build_scale(1.0) is identity
    assert build_scale(2.0)(torch.tensor(3.0)).item() == 6.0


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    drop = build_dropout(0.3)
    torch.manual_seed(0)
    dropped = drop(torch.ones(200, 200))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)


def test_token_types(build_family, tokens: torch.Tensor) -> None:  # type: ignore[no-untyped-def]
    types = build_family("bert").token_types
    x = torch.zeros(3, 24, 32)
    torch.testing.assert_close(types(x, None), types.weight[0].expand_as(x))
    torch.testing.assert_close(types(x, tokens % 2), types.weight[tokens % 2])
    with pytest.raises(ModelError, match="token_types is 0"):
        NoTokenTypes()(x, tokens)


def test_dropout_by_bytes() -> None:
    """A share of the nearest 256th, and a scale of its own; torch's generator decides; none at all in eval()."""
    drop = build_dropout(0.1)
    torch.manual_seed(0)
    ones = torch.ones(301, 7, requires_grad=True)  # no multiple of eight
    dropped = drop(ones)
    assert dropped.unique().tolist() == pytest.approx([0.0, 256 / 230])
    torch.manual_seed(0)
    assert torch.equal(drop(ones), dropped)
    dropped.sum().backward()
    assert torch.equal(ones.grad, dropped.detach())
    assert drop.eval()(ones) is ones
