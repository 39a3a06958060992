"""Training with 8-bit floats as an option: the products of the layers' linear maps, on GPUs that multiply them.

Weights stay what they are (float32, learned in float32); so do embeddings, norms, attention itself, routers, experts
and heads. A linear layer rounds what it multiplies: inputs and weights to e4m3 (4 bits of exponent, 3 of mantissa),
gradients to e5m2, which reach further and are coarser. Each tensor is scaled by one number before, so that its largest
value fills the range; the number is found anew each time and never leaves the device, so that nothing is kept between
steps, a checkpoint is what it was, and a run that was stopped goes on to the bit. Outside training (`model.eval()`)
the layers multiply as ever: what is measured on the way is the model that will be saved.
Source: Micikevicius et al. 2022, arXiv:2209.05433, for the two formats and which of them stands where; its scales come
from the past, ours from the tensor at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from jielong.errors import UsageError
from jielong.model.moe import Experts
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.train.lora import linear_layers

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # the kernels take sizes that are multiples of it; rows are filled up, a layer's widths cannot be
LEAST_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0


def fp8_problem(device: torch.device) -> str | None:
    """Why this device does not multiply 8-bit floats, None where it does."""
    if device.type != "cuda" or torch.version.cuda is None:  # AMD's have other formats under the same name
        return f"the device is {device.type}, not a GPU of NVIDIA"
    capability = torch.cuda.get_device_capability(device)
    if capability >= LEAST_CAPABILITY:
        return None
    return f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}"


def check_fp8(runtime: Runtime) -> None:
    """Raises UsageError where a run that asks for 8-bit products would have none."""
    problem = fp8_problem(runtime.device)
    if problem is not None:
        raise UsageError(
            f"[run] fp8 = true: {problem}, and 8-bit products need one of compute capability 8.9 or more (Ada, "
            "Hopper and later); set run.fp8 = false, or run this on such a GPU"
        )


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x, rounded to 8 bits after a division by its scale; and the scale, () float32, on x's device.

    Returned row-major, as the kernels want it. A NaN or an infinite number makes everything NaN, so that it is noticed.
    """
    most = torch.finfo(dtype).max
    low, high = x.aminmax()  # in one pass, without a copy of x
    scale = torch.maximum(-low, high).float() / most
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)  # of zeros
    # Rounding may lift the largest number above the range, which e4m3 would make a NaN.
    return (x.float() / scale).clamp(-most, most).to(dtype).contiguous(), scale


def scaled_product(
    left: Tensor, right: Tensor, scales: tuple[Tensor, Tensor], dtype: torch.dtype, fast: bool
) -> Tensor:
    """left (m, k) times the transpose of right (n, k), both in 8 bits and row-major, and both scales: (m, n) in dtype.

    k and n must be multiples of MULTIPLE. fast: sums are kept in fewer bits, as is usual on the way forward.
    """
    product: Tensor = torch._scaled_mm(left, right.t(), *scales, out_dtype=dtype, use_fast_accum=fast)
    return product


class _Product(torch.autograd.Function):
    """x (M, K) times the transpose of weight (N, K), in 8 bits: (M, N) in dtype.

    What is kept for the way back is in 8 bits, too. The gradient of x is in x's dtype, that of the weight in its own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        rows, rows_scale = quantise(x, FORWARD)
        matrix, matrix_scale = quantise(weight, FORWARD)
        ctx.save_for_backward(rows, rows_scale, matrix, matrix_scale)
        ctx.dtypes = x.dtype, weight.dtype
        return scaled_product(rows, matrix, (rows_scale, matrix_scale), dtype, fast=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, rows_scale, matrix, matrix_scale = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        d_output, scale = quantise(gradient, BACKWARD)  # (M, N)
        d_x = d_weight = None
        # The kernels take row-major times the transpose of row-major and nothing else: hence the copies.
        if ctx.needs_input_grad[0]:
            d_x = scaled_product(d_output, matrix.t().contiguous(), (scale, matrix_scale), x_dtype, fast=False)
        if ctx.needs_input_grad[1]:
            turned = d_output.t().contiguous(), rows.t().contiguous()  # (N, M), (K, M)
            d_weight = scaled_product(*turned, (scale, rows_scale), weight_dtype, fast=False)
        return d_x, d_weight, None


class Fp8Linear(nn.Linear):
    """A linear layer around the weights of `plain`, which multiplies in 8 bits while it is trained."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.train(plain.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.linear(x, self.weight, self.bias)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        rows = x.flatten(0, -2)  # (M, K)
        num_rows = rows.shape[0]
        missing = -num_rows % MULTIPLE  # the gradient of the weights is a sum over rows, to which zeros add nothing
        if missing:
            rows = F.pad(rows, (0, 0, 0, missing))
        product: Tensor = _Product.apply(rows, self.weight, dtype)
        if missing:  # else the way back would copy the gradient into a larger one of zeros, for nothing
            product = product[:num_rows]
        output = product.view(*x.shape[:-1], -1)
        return output if self.bias is None else output + self.bias.to(dtype)

    def plain(self) -> nn.Linear:
        """The layer as it was, around the same weights."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight, layer.bias = self.weight, self.bias
        return layer.train(self.training)


@contextmanager
def fp8_layers(model: nn.Module) -> Iterator[str | None]:
    """Within the block, linear layers of the Transformers in `model` are trained in 8 bits; yields what is not and why.

    That is "not for all layers: ...", "for no layer: ...", or None where all are. Names and weights stay as they are,
    and afterwards the modules are plain again.
    """
    models = [one for one in model.modules() if isinstance(one, Transformer)]
    left_out: dict[str, None] = {}
    changed = 0
    for one in models:
        for name, layer, _ in list(linear_layers(one)):
            why = _why_not(layer)
            if why is None:
                one.set_submodule(name, Fp8Linear(layer))
                changed += 1
            else:
                left_out[f"{name.split('.', 2)[-1]} {why}"] = None  # once, not for each layer
        if any(isinstance(module, Experts) for module in one.modules()):
            left_out["experts are not multiplied in 8 bits"] = None
    why_not = "; ".join(left_out) or (None if changed else "only a Transformer's layers multiply in 8 bits")
    try:
        yield why_not and f"{'not for all layers' if changed else 'for no layer'}: {why_not}"
    finally:
        for one in models:
            for name, layer, _ in list(linear_layers(one)):
                if isinstance(layer, Fp8Linear):
                    one.set_submodule(name, layer.plain())


def _why_not(layer: nn.Linear) -> str | None:
    """Why a linear layer stays as it is, None where it is one for 8 bits."""
    if type(layer) is not nn.Linear:
        return "has an adapter"
    if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE:
        return f"is {layer.in_features} x {layer.out_features}, not multiples of {MULTIPLE}"
    return None
