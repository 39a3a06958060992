"""A copy of a model made for decoding: weights packed once, modules replaced by what takes the fewest steps.

The copy runs the model's own `forward`; only its parts are others. Embeddings, and small matrices in float32, are the
model's own tensors, all else is copied: a model that is trained later must be packed anew, for a part of what it learns
would be seen and the rest not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jielong.errors import ModelError, UsageError
from jielong.generate.quantize import KINDS, PackedProduct, Product, available, build_product, compute_dtype, fastest
from jielong.generate.quick import QuickAttention
from jielong.model.attention import Attention
from jielong.model.context import Context
from jielong.model.heads import HeadedModel
from jielong.model.kernels import CrossKernel, SelfKernel, steady_attention, steady_weighing
from jielong.model.layers import FeedForward, GatedFeedForward, RMSNorm
from jielong.model.moe import Experts
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime

WEIGHTS = ("auto", *KINDS)
# Below this size a CPU decodes in float32 although the runtime says bfloat16. Measured tokens a second, bfloat16 over
# float32: at 1.3M, 3.4M and 14M parameters 1.3, 1.6 and 2.2 in a batch of 64, but 0.6, 0.75 and 0.85 alone, for a small
# product is over sooner than its operands are cast. Where the gain is small, exactness is worth more.
_SMALL_PARAMETERS = 2_000_000
_PROBED_BYTES = 128 << 20  # of float32 weights: more than caches hold, and still soon done
# A function of each number is shared among torch's threads from here on: GELU among all of them, SiLU among as many as
# have twice as much each.
_NUM_A_THREAD = 16384
_VECTOR_STEP = 32  # so many floats, or a divisor of that, torch computes such a function of at a time


def pack(model: Transformer, weights: str) -> Transformer:
    """A copy of `model` for decoding on a CPU, its weights of one of `WEIGHTS`; "auto" tries which is fastest.

    Everything but matrix products and what is between them stays in float32. Raises UsageError for another kind,
    for a model elsewhere than on a CPU or with an adapter in place; ModelError for one that gives no tokens.
    """
    if weights not in WEIGHTS:
        raise UsageError(f"weights is {weights!r}; legal are {', '.join(WEIGHTS)}")
    if model.embed.weight.device.type != "cpu":
        raise UsageError(f"packed weights are for a CPU; the model is on {model.embed.weight.device}")
    if model.config.head != "lm":
        raise ModelError(f"this model has a {model.config.head!r} head and gives no tokens; only 'lm' is decoded")
    others = {type(part).__name__ for part in model.modules() if isinstance(part, nn.Linear)} - {"Linear"}
    if others:  # what they add to the product would be lost
        found = ", ".join(sorted(others))
        raise UsageError(f"packed weights are for plain linear layers; this model has {found}; merge them")
    kind = choose_kind(model) if weights == "auto" else weights
    packed = copy_sharing(model)
    packed.compute_dtype = compute_dtype(kind)
    packed.choose_kernels = partial(_choose_kernels, packed.choose_kernels)
    packed._read = PackedHead(build_product(packed.unembed_weight, packed.logit_bias, kind))
    if not model.config.tie_embeddings:
        del packed.unembedding
    _replace(packed, kind)
    return packed.eval()


def copy_sharing(model: Transformer) -> Transformer:
    """A copy whose parts may be replaced; until then its tensors are the model's own."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def choose_kind(model: Transformer) -> str:
    """What "auto" means for this model here: float32 when it is small, else the fastest kind of 8 bits or more."""
    if sum(parameter.numel() for parameter in model.parameters()) < _SMALL_PARAMETERS:
        return "float32"
    found, num_bytes = [], 0
    for module in model.modules():
        if isinstance(module, nn.Linear) and num_bytes < _PROBED_BYTES:
            found.append(module.weight)
            num_bytes += module.weight.numel() * 4
    return fastest(found)


class PackedHead:
    """The "lm" head over packed weights; stands where the model keeps its reader."""

    def __init__(self, product: Product) -> None:
        self.product = product

    def __call__(self, model: HeadedModel, hidden: Tensor, segments: Tensor | None) -> Tensor:
        return self.product(model._scale_logits(hidden))


class QuickNorm:
    """RMSNorm in four calls, x / hypot(|x|, sqrt(D eps)) * sqrt(D) weight: the formula of `RMSNorm`, rounded otherwise.

    torch's own is put together from six on a CPU.
    """

    def __init__(self, norm: RMSNorm) -> None:
        size = norm.weight.numel()
        self.weight = norm.weight.detach().float() * math.sqrt(size)
        self.least = torch.tensor(math.sqrt(size * norm.eps))

    def __call__(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        wide = x if x.dtype == torch.float32 else x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        normed = torch.div(wide, torch.hypot(length, self.least)).mul_(self.weight)
        dtype = dtype or x.dtype
        return normed if dtype == torch.float32 else normed.to(dtype)


def whole_rows(rows: Tensor) -> Sequence[Tensor]:
    """Rows (R, F) in blocks of which no thread of torch gets a part of a row, to compute a function of each number.

    A function of what is left over behind the last whole vector of a thread rounds otherwise than one of vectors, so
    that a row which is cut has other bits; and where it is cut depends on how many rows there are.
    """
    num, width = rows.shape
    most = torch.get_num_threads()
    few = min(most, -(-num * width // (2 * _NUM_A_THREAD)))
    if num * width <= _NUM_A_THREAD or num % most == num % few == 0:
        return (rows,)
    return rows.split(max(1, _NUM_A_THREAD // width))


def by_whole_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) of x (..., F), a function of each number, whose bits do not depend on how many rows there are."""
    joined = x.is_contiguous() and x.shape[-1] % _VECTOR_STEP  # torch takes them for one row, and vectors go on
    if x.numel() <= _NUM_A_THREAD and not joined:
        return function(x)
    rows = x.flatten(0, -2)
    found = [function(block) for block in whole_rows(F.pad(rows, (0, 1))[:, :-1] if joined else rows)]
    return (found[0] if len(found) == 1 else torch.cat(found)).view(x.shape)


class _FusedGate:
    """SwiGLU in three calls: gate with its SiLU, up with the multiplication, down."""

    def __init__(self, ffn: GatedFeedForward) -> None:
        half = torch.bfloat16
        gate, up = ffn.gate.weight.detach(), ffn.up.weight.detach()
        self.gate = PackedProduct(gate, ffn.gate.bias, half, half, "swish")
        self.up = PackedProduct(up, ffn.up.bias, half, half)
        self.down = build_product(ffn.down.weight, ffn.down.bias, "bfloat16")

    def __call__(self, x: Tensor, context: Context | None = None) -> Tensor:
        return self.down(self.up.times(x, self.gate(x)))


class JoinedGate:
    """Gate and up as one product."""

    def __init__(self, ffn: GatedFeedForward, kind: str) -> None:
        bias = None if ffn.gate.bias is None else torch.cat((ffn.gate.bias, ffn.up.bias))
        self.gate_up = build_product(torch.cat((ffn.gate.weight, ffn.up.weight)), bias, kind)
        self.down = build_product(ffn.down.weight, ffn.down.bias, kind)
        self.nonlinearity = ffn.nonlinearity

    def __call__(self, x: Tensor, context: Context | None = None) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(by_whole_rows(self.nonlinearity, gate) * up)


def _replace(module: nn.Module, kind: str) -> None:
    """Put packed parts in the places of a module's own; plain objects, which cost less to call than modules."""
    for name, child in list(module.named_children()):
        part = _part(child, kind)
        if part is not None:
            delattr(module, name)
            setattr(module, name, part)
        elif isinstance(child, Experts):
            if compute_dtype(kind) == torch.bfloat16:
                _round_experts(child)
        else:
            if isinstance(child, FeedForward):
                child.nonlinearity = partial(by_whole_rows, child.nonlinearity)
            _replace(child, kind)


def _part(module: nn.Module, kind: str) -> Callable[..., Tensor] | None:
    """What stands for a module in the copy; None where it stays, with its children replaced."""
    if isinstance(module, Attention):
        _replace(module, kind)
        plain = type(module) is Attention  # else it has norms of its own
        return QuickAttention(module.heads, module.qkv if plain else module.project, module.out)
    if isinstance(module, GatedFeedForward):
        fused = kind == "bfloat16" and module.nonlinearity is F.silu and available(kind)
        return _FusedGate(module) if fused else JoinedGate(module, kind)
    if isinstance(module, RMSNorm):
        return QuickNorm(module)
    return build_product(module.weight, module.bias, kind) if isinstance(module, nn.Linear) else None


def _round_experts(experts: Experts) -> None:
    """Experts are multiplied by torch itself, each a few rows; the router stays in float32."""
    for name, weight in list(experts.named_parameters(recurse=False)):
        setattr(experts, name, nn.Parameter(weight.detach().bfloat16(), requires_grad=False))


def _choose_kernels(
    usual: Callable[..., tuple[SelfKernel, CrossKernel]],
    device: torch.device,
    dtype: torch.dtype,
    length: int,
    cached: bool,
    dropout: float,
) -> tuple[SelfKernel, CrossKernel]:
    """The usual kernels, but steady ones where there is a cache."""
    return (steady_attention, steady_weighing) if cached else usual(device, dtype, length, cached, dropout)


def decoding_runtime(model: Transformer, runtime: Runtime | None) -> Runtime:
    """Where and in what dtype to decode: the runtime's, but float32 for a small model on a CPU."""
    if runtime is None:
        return Runtime(device=next(model.parameters()).device, dtype=torch.float32)
    small = sum(parameter.numel() for parameter in model.parameters()) < _SMALL_PARAMETERS
    return replace(runtime, dtype=torch.float32) if small and runtime.device.type == "cpu" else runtime
