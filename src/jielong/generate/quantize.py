"""Matrix products with weights packed once: float32, float16, bfloat16, 8 and 4 bits, on a CPU.

The one place for operations of torch that are not in its documentation. Each is tried out before it is used
(`available`), and a test holds it to the product with the weights as they come back from rounding (`restored`). Where
one is missing the next larger kind takes its place.

float32, bfloat16: oneDNN's own order of the weights. A row of the product has the same bits whatever rows are beside
it, from LEAST_ROWS rows on, which torch's own float32 product has not. But a call of oneDNN takes 20 microseconds
more, so a small float32 matrix is multiplied by torch where that is found to be as steady at the sizes in STEADY_SIZES,
to which rows are filled up (`PlainProduct`).
float16: FBGEMM's; inputs, sums and outputs in float32. A row's sums do not depend on how many there are. For few rows
it reads more weights a second than the bfloat16 product, for many (a long prompt) it computes half as fast.
int8: each output's weights are whole numbers of -127 .. 127 times a factor, each input row whole numbers of 8 bits
times its own factor; sums of whole numbers are exact. int4: 16 levels between the least and the greatest of each 32
weights; inputs in bfloat16.
"""

from __future__ import annotations

import bisect
import functools
import math
import time
import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.errors import UsageError

KINDS = ("float32", "float16", "bfloat16", "int8", "int4")
# Fewer rows than these round otherwise than more; sums of whole numbers are exact.
LEAST_ROWS = {"float32": 4, "float16": 1, "bfloat16": 2, "int8": 1, "int4": 1}
STEADY_SIZES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_UNFILLED = frozenset((1, *STEADY_SIZES))
_SMALL_WEIGHTS = 1 << 20
GROUP = 32  # weights that share a scale in int4
_TRIAL_SHAPE = (64, 64)

Product = Callable[[Tensor], Tensor]  # (..., D) -> (..., N)


def compute_dtype(kind: str) -> torch.dtype:
    """What a product of this kind takes and gives at its best."""
    return torch.bfloat16 if kind in ("bfloat16", "int4") else torch.float32


def build_product(weight: Tensor, bias: Tensor | None, kind: str) -> Product:
    """x (..., D) -> x weight^T + bias (..., N), with the weights (N, D) packed as `kind`, or the next larger one."""
    weight, bias = weight.detach().float(), None if bias is None else bias.detach().float()
    wanted = kind
    while not (available(wanted) and _fits(weight, wanted)):
        if wanted == "float32":
            return functools.partial(F.linear, weight=weight, bias=bias)
        wanted = KINDS[KINDS.index(wanted) - 1]
    dtype = compute_dtype(kind)
    if kind == "float32" and weight.numel() <= _SMALL_WEIGHTS and torch_is_steady(*weight.shape):
        return PlainProduct(weight, bias)
    if wanted == "int8":
        return Int8Product(weight, bias, dtype)
    if wanted == "int4":
        return Int4Product(weight, bias)
    if wanted == "float16":
        return HalfProduct(weight, bias, dtype)
    return PackedProduct(weight, bias, compute_dtype(wanted), dtype)


def _fits(weight: Tensor, kind: str) -> bool:
    """Whether the kernel of this kind takes a matrix of this shape."""
    return kind != "int4" or (weight.shape[0] % 16 == 0 and weight.shape[1] % GROUP == 0)


class PlainProduct:
    """Weights as they are, and as many rows as one of STEADY_SIZES, those beyond the given ones zeros.

    One row alone is multiplied as it is: fewer than LEAST_ROWS are not steady in any case.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self._columns = weight.T

    def __call__(self, x: Tensor) -> Tensor:
        shape, most = x.shape, STEADY_SIZES[-1]
        rows = x.reshape(-1, shape[-1])  # torch may take a product of three dimensions apart, row by row
        num = rows.shape[0]
        if num in _UNFILLED:
            found = self.into(rows)
        elif num > most:
            found = torch.cat([self(rows[start : start + most]) for start in range(0, num, most)])
        else:
            filled = torch.cat((rows, rows.new_zeros(steady_size(num) - num, shape[-1])))
            found = self.into(filled)[:num]
        return found.view((*shape[:-1], -1))

    def into(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """The product of rows (R, D), as many as they are, put into out (R, N) where that is given."""
        if self.bias is None:
            return torch.mm(rows, self._columns, out=out)
        return torch.addmm(self.bias, rows, self._columns, out=out)


def steady_size(num_rows: int) -> int:
    """As how many rows so few are multiplied, at most STEADY_SIZES[-1]: see `PlainProduct`."""
    return num_rows if num_rows in _UNFILLED else STEADY_SIZES[bisect.bisect_left(STEADY_SIZES, num_rows)]


class PackedProduct:
    """Weights in oneDNN's order, in float32 or bfloat16. dtype: what it gives. nonlinearity: "none" or "swish"."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        weight_dtype: torch.dtype,
        dtype: torch.dtype,
        nonlinearity: str = "none",
    ) -> None:
        self.weight_dtype, self.dtype, self.nonlinearity = weight_dtype, dtype, nonlinearity
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(weight_dtype), None)
        self.bias = None if bias is None else bias.to(weight_dtype)

    def __call__(self, x: Tensor) -> Tensor:
        x = x if x.dtype == self.weight_dtype else x.to(self.weight_dtype)  # asking is quicker than a copy of nothing
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, self.nonlinearity, [], "")
        return found if found.dtype == self.dtype else found.to(self.dtype)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The product, multiplied by `other` place by place before it is rounded."""
        x = x if x.dtype == self.weight_dtype else x.to(self.weight_dtype)
        found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias, "mul")
        return found if found.dtype == self.dtype else found.to(self.dtype)


class HalfProduct:
    """Weights in float16, inputs and sums in float32. dtype: what it gives."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.packed, self.dtype = torch.ops.quantized.linear_prepack_fp16(weight, bias), dtype

    def __call__(self, x: Tensor) -> Tensor:
        x = x if x.dtype == torch.float32 else x.float()
        found: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return found if found.dtype == self.dtype else found.to(self.dtype)


class Int8Product:
    """Whole numbers of 8 bits on both sides.

    Each row is divided by its own largest number, then rounded to 127ths: its neighbours do not change what it gets.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        numbers, scale = round_int8(weight)
        engine = torch.backends.quantized.engine
        with warnings.catch_warnings():  # the tensor type is deprecated; `available` will tell when it is gone
            warnings.simplefilter("ignore")
            zeros = torch.zeros(len(scale), dtype=torch.int64)
            quantised = torch._make_per_channel_quantized_tensor(numbers, scale.double(), zeros, 0)
            try:
                torch.backends.quantized.engine = "fbgemm"  # the one that takes the inputs' scale from outside
                self.packed = torch.ops.quantized.linear_prepack(quantised, None)
            finally:
                torch.backends.quantized.engine = engine
        self.bias, self.dtype = bias, dtype

    def __call__(self, x: Tensor) -> Tensor:
        x = x if x.dtype == torch.float32 else x.float()
        largest = torch.linalg.vector_norm(x, math.inf, dim=-1, keepdim=True).clamp_(min=1e-30)  # (..., 1)
        found: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x / largest, 1 / 127, 128, self.packed
        ).mul_(largest)  # (..., N)
        if self.bias is not None:
            found += self.bias
        return found if found.dtype == self.dtype else found.to(self.dtype)


class Int4Product:
    """Weights of 4 bits, GROUP of a row to a scale and a zero; inputs and what it gives in bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        numbers, scale, zero = round_int4(weight)
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
        self.scales = torch.stack((scale, zero), dim=-1).transpose(0, 1).contiguous().bfloat16()  # (D / GROUP, N, 2)
        self.bias = None if bias is None else bias.bfloat16()

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        found: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.scales)
        if self.bias is not None:
            found += self.bias
        return found.view(*x.shape[:-1], -1)


def round_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) -> whole numbers (N, D) int8 and a scale a row (N,), their product the weight nearly."""
    scale = weight.abs().amax(dim=1).clamp(min=1e-30) / 127
    return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def round_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, D) -> numbers 0..15 (N, D) int32, scale and zero (N, D / GROUP): (number - 8) * scale + zero is the weight.

    scale and zero are rounded to bfloat16, as they are kept, before the numbers are found.
    """
    groups = weight.unflatten(1, (-1, GROUP))  # (N, D / GROUP, GROUP)
    least, most = groups.amin(dim=2), groups.amax(dim=2)
    scale = ((most - least) / 15).clamp(min=1e-30).bfloat16().float()
    zero = ((most + least) / 2 + scale / 2).bfloat16().float()  # numbers 0 and 15 lie 7.5 scales to both sides of this
    numbers = ((groups - zero[..., None]) / scale[..., None] + 8).round().clamp(0, 15)
    return numbers.flatten(1).to(torch.int32), scale, zero


def restored(weight: Tensor, kind: str) -> Tensor:
    """The weights (N, D) as a product of this kind has them, in float32."""
    weight = weight.detach().float()
    if kind == "int8":
        numbers, scale = round_int8(weight)
        return numbers * scale[:, None]
    if kind == "int4":
        numbers, scale, zero = round_int4(weight)
        return ((numbers.unflatten(1, (-1, GROUP)) - 8) * scale[..., None] + zero[..., None]).flatten(1)
    return weight.half().float() if kind == "float16" else weight.to(compute_dtype(kind)).float()


@functools.cache
def available(kind: str) -> bool:
    """Whether this torch on this machine has the kernel, and it gives what it should."""
    if kind not in KINDS:
        raise UsageError(f"weights is {kind!r}; legal are auto, {', '.join(KINDS)}")
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(_TRIAL_SHAPE, generator=generator), torch.randn(3, _TRIAL_SHAPE[1], generator=generator)
    expected = F.linear(x, restored(weight, kind))
    try:
        product: Product
        if kind == "int8":
            product = Int8Product(weight, None, torch.float32)
        elif kind == "int4":
            product = Int4Product(weight, None)
        elif kind == "float16":
            product = HalfProduct(weight, None, torch.float32)
        else:
            product = PackedProduct(weight, None, compute_dtype(kind), compute_dtype(kind))
        found = product(x).float()
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool((found - expected).abs().max() < 0.05 * expected.abs().max())


@functools.cache
def torch_is_steady(num_out: int, num_in: int) -> bool:
    """Whether `PlainProduct` gives a row the same bits at every place among each of STEADY_SIZES, here and now."""
    generator = torch.Generator().manual_seed(0)
    product = PlainProduct(torch.randn(num_out, num_in, generator=generator), None)
    row = torch.randn(1, num_in, generator=generator)
    rows = row.repeat(STEADY_SIZES[-1], 1)
    alone = product(rows[: STEADY_SIZES[0]])[:1]
    return all(torch.equal(product(rows[:size]), alone.expand(size, -1)) for size in STEADY_SIZES)


def fastest(weights: Sequence[Tensor], kinds: Sequence[str] = KINDS[:4], gain: float = 1.15) -> str:
    """Which kind multiplies one row by these matrices soonest; a smaller one only where it is `gain` times as fast.

    Takes a fraction of a second. What it finds may change with the machine's other work; name a kind for results that
    are to be the same every time.
    """
    best, best_seconds = kinds[0], math.inf
    with torch.inference_mode():
        for kind in kinds:
            if not available(kind):
                continue
            products = [build_product(weight, None, kind) for weight in weights]
            rows = [torch.ones(LEAST_ROWS[kind], weight.shape[1], dtype=compute_dtype(kind)) for weight in weights]
            seconds = min(_seconds(products, rows) for _ in range(5))
            if seconds * gain < best_seconds:
                best, best_seconds = kind, seconds
    return best


def _seconds(products: Sequence[Product], rows: Sequence[Tensor]) -> float:
    started = time.perf_counter()
    for product, row in zip(products, rows, strict=True):
        product(row)
    return time.perf_counter() - started
