"""Packed products are held to the product with the weights as they come back from rounding."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from jielong.errors import UsageError
from jielong.generate import quantize
from jielong.generate.quantize import (
    GROUP,
    KINDS,
    LEAST_ROWS,
    available,
    build_product,
    compute_dtype,
    fastest,
    restored,
    round_int4,
    round_int8,
)

# Largest difference from the reference, as a part of its largest number. Of bfloat16 and int4 it is that of bfloat16
# inputs and outputs, 8 bits; of int8 that of inputs of 8 bits with a sign.
TOLERANCES = {"float32": 1e-5, "float16": 1e-5, "bfloat16": 1e-2, "int8": 1.5e-2, "int4": 1e-2}


def make(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(48, 64), (96, 32), (32, 2048), (37, 50)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_match_the_dequantised_reference(kind: str, shape: tuple[int, int], bias: bool) -> None:
    if not available(kind):
        pytest.skip(f"this torch or this machine has no {kind} kernel")
    weight, x = make(*shape), make(5, shape[1], 1) * torch.tensor([1e-3, 0.3, 1.0, 9.0, 400.0])[:, None]
    added = make(1, shape[0], 2)[0] if bias else None
    fits = kind != "int4" or (shape[0] % 16 == 0 and shape[1] % GROUP == 0)
    expected = F.linear(x, restored(weight, kind if fits else "int8"), added)
    found = build_product(weight, added, kind)(x.view(1, 5, -1).to(compute_dtype(kind)))
    assert found.dtype == compute_dtype(kind) and found.shape == (1, 5, shape[0])
    gap = (found[0].float() - expected).abs().amax(dim=1)
    limit = TOLERANCES[kind if fits else "int8"] * expected.abs().amax(dim=1)
    assert (gap < limit).all(), (gap / expected.abs().amax(dim=1)).tolist()  # of each row by itself


def test_rounding_is_to_the_nearest() -> None:
    weight = make(24, 64)
    numbers, scale = round_int8(weight)
    assert numbers.dtype == torch.int8 and int(numbers.abs().amax()) == 127
    assert ((restored(weight, "int8") - weight).abs() <= scale[:, None] * 0.5001).all()
    numbers, scale, _ = round_int4(weight)
    assert (int(numbers.min()), int(numbers.max())) == (0, 15)
    gap = (restored(weight, "int4") - weight).abs().unflatten(1, (-1, GROUP))
    assert (gap <= scale[..., None] * 0.55).all()  # a little more than half: scale and zero are bfloat16
    assert torch.equal(restored(torch.zeros(16, 32), "int8"), torch.zeros(16, 32))
    assert restored(torch.zeros(16, 32), "int4").abs().max() < 1e-20


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", [(96, 32), (768, 96), (64, 2048), (300, 128)])
def test_a_row_does_not_depend_on_its_neighbours(kind: str, shape: tuple[int, int]) -> None:
    """To the bit, from LEAST_ROWS rows on; int8 whatever there is: its sums are of whole numbers."""
    if not available(kind):
        pytest.skip(f"this torch or this machine has no {kind} kernel")
    product = build_product(make(*shape), None, kind)
    x = make(300, shape[1], 3).to(compute_dtype(kind))
    whole = product(x)
    for num in (*range(LEAST_ROWS[kind], 18), 31, 64, 65):
        assert torch.equal(product(x[:num]), whole[:num]), num
    assert torch.equal(product(x[100:107]), whole[100:107])  # nor on its place
    x[5:] = 1000.0
    assert torch.equal(product(x)[:5], whole[:5])


def test_what_is_missing_gives_way_to_the_next_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = make(32, 64), make(3, 64, 1)
    expected = F.linear(x, weight)
    monkeypatch.setattr(quantize, "torch_is_steady", lambda num_out, num_in: False)
    for missing in (("int4",), ("int8", "int4"), KINDS[2:], KINDS[1:], KINDS):
        monkeypatch.setattr(quantize, "available", lambda kind, missing=missing: kind not in missing)
        for kind in ("int4", "int8", "float32"):
            found = build_product(weight, None, kind)(x).float()
            assert (found - expected).abs().max() < 0.2 * expected.abs().max()
    assert isinstance(build_product(weight, None, "int4"), functools.partial)


def test_a_kernel_that_fails_or_lies_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(product: object, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not implemented for this processor")

    def lies(product: object, x: torch.Tensor) -> torch.Tensor:
        return x * 0

    for wrong in (fails, lies):
        monkeypatch.setattr(quantize.PackedProduct, "__call__", wrong)
        assert not available.__wrapped__("float32")
    with pytest.raises(UsageError, match="'int5'; legal are auto, float32, float16, bfloat16, int8, int4"):
        available("int5")


def test_the_fastest_is_taken_and_a_smaller_one_only_for_a_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"float32": 1.0, "float16": 0.95, "bfloat16": 0.9, "int8": 0.95}
    order = iter(())

    def timed(products: object, rows: list[torch.Tensor]) -> float:
        return next(order)

    monkeypatch.setattr(quantize, "available", lambda kind: True)
    monkeypatch.setattr(quantize, "_seconds", timed)
    for change, expected in (({}, "float32"), ({"bfloat16": 0.8}, "bfloat16"), ({"int8": 0.5}, "int8")):
        seconds |= change
        order = iter([seconds[kind] for kind in KINDS[:4] for _ in range(5)])
        assert fastest([make(32, 32)]) == expected
    monkeypatch.setattr(quantize, "available", lambda kind: kind == "float32")
    order = iter([1.0] * 5)
    assert fastest([make(32, 32)]) == "float32"


def test_small_matrices_are_torchs_where_that_is_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    product = build_product(make(40, 24), None, "float32")
    assert isinstance(product, quantize.PlainProduct | quantize.PackedProduct)
    plain = quantize.PlainProduct(make(40, 24), make(1, 40)[0])
    x = make(600, 24, 5)
    for num in (1, 3, 5, 256, 257, 600):
        torch.testing.assert_close(plain(x[None, :num])[0], F.linear(x[:num], plain.weight, plain.bias))
    if quantize.torch_is_steady(40, 24):
        assert torch.equal(plain(x[:600])[:5], plain(x[:5]))
    monkeypatch.setattr(quantize.PlainProduct, "__call__", lambda self, x: F.linear(x, self.weight) + len(x))
    assert not quantize.torch_is_steady.__wrapped__(40, 24)  # what depends on other rows is found out
