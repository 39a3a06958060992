"""Products in 8 bits: held to those of the rounded numbers, to float32 within the formats' rounding, and to bfloat16.

torch multiplies 8-bit floats on a CPU, too (slowly): all but the GPU's own kernel runs here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jielong.data.batch import Batch
from jielong.errors import UsageError
from jielong.model.transformer import Transformer
from jielong.recipe.settings import RunSettings
from jielong.runtime import Runtime
from jielong.train.fp8 import BACKWARD, FORWARD, Fp8Linear, check_fp8, fp8_layers, fp8_problem, quantise, scaled_product
from jielong.train.loop import train_step
from jielong.train.lora import LoraConfig, attach
from jielong.train.objectives import next_token
from jielong.train.optim import OptimizerConfig, build_optimizer

from ..model.conftest import small_decoder

CPU = Runtime(torch.device("cpu"), torch.bfloat16)
WIDE: dict[str, Any] = {"width": 64, "head_size": 16, "num_kv_heads": 2, "ffn_width": 96}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What is left of x, in float32."""
    narrow, scale = quantise(x, dtype)
    return narrow.float() * scale


def off_by(ours: Tensor, exact: Tensor) -> float:
    """The length of the difference over that of the exact one."""
    return float((ours.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("dtype", "bits"), [(FORWARD, 3), (BACKWARD, 2)])
@pytest.mark.parametrize("size", [1e-7, 1.0, 3e4])
def test_rounding_keeps_the_bits_of_the_format(dtype: torch.dtype, bits: int, size: float) -> None:
    x = size * drawn(64, 48)
    narrow, scale = quantise(x, dtype)
    assert narrow.dtype == dtype and narrow.is_contiguous() and scale.shape == () and scale.dtype == torch.float32
    assert float(narrow.float().abs().max()) == torch.finfo(dtype).max  # the range is filled
    normal = x.abs() > 2 * scale * torch.finfo(dtype).smallest_normal
    assert normal.float().mean() > 0.9
    error = ((narrow.float() * scale - x) / x).abs()[normal]
    assert float(error.max()) <= 2.0 ** -(bits + 1) * 1.001
    assert float(error.max()) > 2.0 ** -(bits + 2)
    assert quantise(x.bfloat16().t(), dtype)[0].is_contiguous()


def test_rounding_at_the_edges() -> None:
    assert torch.equal(rounded(torch.zeros(16, 16), FORWARD), torch.zeros(16, 16))
    for bad in (float("nan"), float("inf"), float("-inf")):
        x = drawn(16, 16)
        x[3, 5] = bad
        for dtype in (FORWARD, BACKWARD):
            assert not bool(rounded(x, dtype).isfinite().all()), "what is broken must not look whole"


@pytest.mark.parametrize("left_dtype", [FORWARD, BACKWARD])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_the_rounded_numbers(left_dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    x, weight = 5 * drawn(24, 32), 0.02 * drawn(48, 32, seed=1)
    (left, left_scale), (right, right_scale) = quantise(x, left_dtype), quantise(weight, FORWARD)
    found = scaled_product(left, right, (left_scale, right_scale), out_dtype, fast=False)
    exact = rounded(x, left_dtype) @ rounded(weight, FORWARD).t()
    assert found.dtype == out_dtype
    bound = 1e-5 if out_dtype == torch.float32 else 4e-3
    torch.testing.assert_close(found.float(), exact, rtol=bound, atol=bound * float(exact.abs().max()))


def run_layer(layer: nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of x."""
    x = x.clone().requires_grad_()
    output = layer(x)
    output.backward(gradient.to(output.dtype))
    assert x.grad is not None
    return output.detach(), x.grad


@pytest.mark.parametrize("shape", [(16, 32), (2, 24, 32), (3, 7, 32)])  # the last one's rows are filled up to 32
def test_a_layer_against_its_rounded_self_and_against_float32(shape: tuple[int, ...]) -> None:
    plain = nn.Linear(32, 48)
    with torch.no_grad():
        plain.weight.copy_(0.1 * drawn(48, 32, seed=2))
    x, gradient = drawn(*shape, seed=3), 1e-4 * drawn(*shape[:-1], 48, seed=4)
    exact_output, exact_d_x = run_layer(plain, x, gradient)
    exact = [exact_output, exact_d_x, plain.weight.grad, plain.bias.grad]
    plain.zero_grad()
    output, d_x = run_layer(Fp8Linear(plain), x, gradient)
    ours = [output, d_x, plain.weight.grad, plain.bias.grad]

    rows, weight, d_output = rounded(x, FORWARD), rounded(plain.weight.detach(), FORWARD), rounded(gradient, BACKWARD)
    by_hand = [
        rows @ weight.t() + plain.bias.detach(), d_output @ weight, d_output.flatten(0, -2).t() @ rows.flatten(0, -2)
    ]  # fmt: skip
    for found, expected in zip(ours, by_hand, strict=False):
        assert found is not None and found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    torch.testing.assert_close(ours[3], exact[3])  # the bias is added as ever
    for found, expected, bound in zip(ours, exact, (0.05, 0.09, 0.09), strict=False):
        assert found is not None and expected is not None
        assert 0.005 < off_by(found, expected) < bound  # rounded, and no more than that


@pytest.mark.parametrize("turned", [False, True])
def test_the_gpu_would_take_every_product(turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch asks of operands on a GPU and not on a CPU: ScaledBlas.cpp, and cuBLASLt's table of types."""
    kernel, seen = torch._scaled_mm, list[tuple[torch.dtype, torch.dtype, torch.dtype, bool]]()

    def checked(left: Tensor, right: Tensor, *scales: Tensor, out_dtype: torch.dtype, use_fast_accum: bool) -> Tensor:
        assert left.stride() == (left.shape[1], 1) and right.stride() == (1, right.shape[0])
        assert left.shape[1] % 16 == right.shape[1] % 16 == 0
        assert [(scale.numel(), scale.dtype) for scale in scales] == [(1, torch.float32)] * 2
        seen.append((left.dtype, right.dtype, out_dtype, use_fast_accum))
        return kernel(left, right, *scales, out_dtype=out_dtype, use_fast_accum=use_fast_accum)

    monkeypatch.setattr(torch, "_scaled_mm", checked)
    layer = Fp8Linear(nn.Linear(32, 48))
    x = drawn(5, 7, 32).bfloat16().requires_grad_()
    with CPU.autocast():
        output = layer(x)
    gradient = drawn(48, 7, 5).permute(2, 1, 0) if turned else drawn(1, 1, 48).expand(5, 7, 48)
    output.backward(gradient.to(output.dtype))
    wide, narrow = torch.float32, torch.bfloat16
    assert seen == [
        (FORWARD, FORWARD, narrow, True), (BACKWARD, FORWARD, narrow, False), (BACKWARD, FORWARD, wide, False)
    ]  # fmt: skip


def test_in_evaluation_a_layer_is_the_ordinary_one() -> None:
    plain = nn.Linear(32, 48)
    layer, x = Fp8Linear(plain.eval()), drawn(5, 32)
    assert not layer.training and torch.equal(layer(x), plain(x))
    assert not torch.equal(layer.train()(x), plain(x))


def test_under_autocast_the_output_is_narrow_and_the_weights_gradient_is_not() -> None:
    layer = Fp8Linear(nn.Linear(32, 48))
    x = drawn(16, 32).bfloat16().requires_grad_()
    with CPU.autocast():
        output = layer(x)
    output.sum().backward()
    assert output.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.bfloat16
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_what_needs_no_gradient_gets_none() -> None:
    layer = Fp8Linear(nn.Linear(32, 48))
    layer(drawn(16, 32)).sum().backward()  # the input needs none
    assert layer.weight.grad is not None
    frozen = Fp8Linear(nn.Linear(32, 48).requires_grad_(False))
    x = drawn(16, 32).requires_grad_()
    frozen(x).sum().backward()
    assert x.grad is not None and frozen.weight.grad is None


def test_within_the_block_and_after_it() -> None:
    model = small_decoder(**WIDE)
    names, parameters = list(model.state_dict()), list(model.parameters())
    with fp8_layers(model) as left_out:
        assert left_out is None
        kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        inside = {"attention.qkv", "attention.out", "ffn.gate", "ffn.up", "ffn.down"}
        assert {name.split(".", 2)[2] for name, kind in kinds.items() if kind is Fp8Linear} == inside
        assert len(kinds) == 2 * len(inside)
        assert list(model.state_dict()) == names
        assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert not any(isinstance(module, Fp8Linear) for module in model.modules())
    assert list(model.state_dict()) == names and model.training
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    with pytest.raises(ZeroDivisionError), fp8_layers(model):
        raise ZeroDivisionError
    assert not any(isinstance(module, Fp8Linear) for module in model.modules())


def test_what_is_left_out_is_told_once() -> None:
    odd = small_decoder(**{**WIDE, "ffn_width": 72})
    with fp8_layers(odd) as left_out:
        assert left_out is not None
        assert (
            left_out.startswith("not for all layers: ffn.gate is 64 x 72, not multiples of 16; ")
            and left_out.count("ffn.gate") == 1
        )
        assert isinstance(odd.layers[0].attention.qkv, Fp8Linear) and type(odd.layers[0].ffn.down) is nn.Linear
    experts = small_decoder(**WIDE, num_experts=4, experts_per_token=2)
    with fp8_layers(experts) as left_out:
        assert left_out == "not for all layers: experts are not multiplied in 8 bits"
        assert type(experts.layers[0].ffn.router) is nn.Linear
    adapted = small_decoder(**WIDE)
    attach(adapted, LoraConfig(2, 4.0, ("q", "down")), torch.Generator().manual_seed(0))
    with fp8_layers(adapted) as left_out:
        assert left_out == "not for all layers: attention.qkv has an adapter; ffn.down has an adapter"
    with fp8_layers(small_decoder(**{**WIDE, "width": 72, "ffn_width": 72, "head_size": 18})) as left_out:
        assert left_out is not None and left_out.startswith("for no layer: attention.qkv is 72 x ")
    with fp8_layers(nn.Linear(16, 16)) as left_out:
        assert left_out == "for no layer: only a Transformer's layers multiply in 8 bits"


def batch_of_steps(step: int) -> Batch:
    """Rows in which each token follows from the one before it."""
    starts = torch.randint(61, (8, 1), generator=torch.Generator().manual_seed(step))
    tokens = (starts + 7 * torch.arange(24)) % 61
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    return Batch(tokens, mask, torch.ones_like(tokens, dtype=torch.int32), int(mask.sum()))


def losses_of(model: Transformer, num_steps: int) -> list[float]:
    optimizer = build_optimizer(model, OptimizerConfig(5e-3))
    return [
        train_step(model, optimizer, [batch_of_steps(step)], next_token, CPU, 1.0, step + 1).loss
        for step in range(num_steps)
    ]


def test_a_small_model_learns_as_in_bfloat16() -> None:
    wide, narrow = small_decoder(**WIDE).train(), small_decoder(**WIDE).train()
    in_bfloat16 = losses_of(wide, 40)
    with fp8_layers(narrow):
        in_8_bits = losses_of(narrow, 40)
    assert in_bfloat16[0] > 4.5 and in_bfloat16[-1] < 0.02
    differences = [abs(ours - theirs) for ours, theirs in zip(in_8_bits, in_bfloat16, strict=True)]
    assert 0 < max(differences) < 0.1
    assert sum(differences[-10:]) / 10 < 0.01
    assert all(parameter.dtype == torch.float32 for parameter in narrow.parameters())


def test_the_same_steps_give_the_same_bits() -> None:
    """Scales come from the tensors at hand alone: so a run that was stopped goes on as if it had not been."""
    once, again = small_decoder(**WIDE).train(), small_decoder(**WIDE).train()
    with fp8_layers(once):
        losses = losses_of(once, 3)
    with fp8_layers(again):
        assert losses_of(again, 3) == losses
    assert all(torch.equal(one, other) for one, other in zip(once.parameters(), again.parameters(), strict=True))


@pytest.mark.slow
def test_a_layer_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    plain = nn.Linear(32, 48)
    x, gradient = drawn(2, 7, 32, seed=3), drawn(2, 7, 48, seed=4)
    slow = [*run_layer(Fp8Linear(plain), x, gradient), plain.weight.grad]
    plain.zero_grad()
    layer = Fp8Linear(plain)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)  # a question to the device would break it
    fast = [*run_layer(compiled, x, gradient), plain.weight.grad]
    for ours, theirs in zip(fast, slow, strict=True):
        assert ours is not None and theirs is not None
        torch.testing.assert_close(ours, theirs)
    assert off_by(fast[0], F.linear(x, plain.weight, plain.bias).detach()) > 0.005


def test_who_has_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"fp8 = true: the device is cpu, not a GPU of NVIDIA.*set run.fp8 = false"):
        check_fp8(CPU)
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "RTX 3090")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for capability, problem in (
        ((8, 6), "RTX 3090 has compute capability 8.6"), ((8, 9), None), ((9, 0), None), ((10, 0), None)
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert fp8_problem(gpu) == problem
    monkeypatch.setattr(torch.version, "cuda", None)
    assert fp8_problem(gpu) == "the device is cuda, not a GPU of NVIDIA"


def test_what_it_goes_with() -> None:
    for settings in ({"sharding": "full"}, {"tensor_parallel": 2}):
        with pytest.raises(ValueError, match="fp8 goes with whole weights"):
            RunSettings(name="x", fp8=True, **settings)
    with pytest.raises(ValueError, match="fp8 goes with bfloat16"):
        RunSettings(name="x", fp8=True, dtype="float32")
    assert RunSettings(name="x", fp8=True, compile=True).fp8
