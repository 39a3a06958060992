"""LoRA: low-rank changes of linear layers that learn while the layers themselves stay frozen.

`attach` puts them in, `without_adapter` is the model as it was (the same weights, no memory of its own), `merge` adds
them to the weights and takes them out. `adapter_folder` reads and writes them as PEFT does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jielong.errors import UsageError, nearest
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer

# Linear layers of a Transformer by the end of their name -> the targets whose rows they hold, in this order. A fused
# matrix has a change of its own for each of q, k and v, as models that keep the three apart have.
TARGETS_OF = {
    "attention.qkv": ("q", "k", "v"),
    "attention.out": ("out",),
    "cross.q": ("q",),
    "cross.kv": ("k", "v"),
    "cross.out": ("out",),
    "ffn.gate": ("gate",),
    "ffn.up": ("up",),
    "ffn.down": ("down",),
}
TARGETS = ("q", "k", "v", "out", "gate", "up", "down")
HEADS = ("score", "classifier")  # they learn whole: a head that has just been made has nothing to hold on to


@dataclass(frozen=True)
class LoraConfig:
    """rank: R of a change. alpha: a change is multiplied by alpha / R, with rank_stabilised by alpha / sqrt(R).

    targets: which linear layers change, by TARGETS; q, k and v of cross-attention as well.
    Raises UsageError naming the field, its value and what is legal.
    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; Kalajdzievski 2023, arXiv:2312.03732 (rank_stabilised).
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    rank_stabilised: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"lora: rank = {self.rank} must be 1 or more")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise UsageError(f"lora: alpha = {self.alpha} must be a number above 0")
        if not self.targets:
            raise UsageError(f"lora: targets is empty; name one or more of {', '.join(TARGETS)}")
        for number, target in enumerate(self.targets):
            if target not in TARGETS:
                guess = nearest(target.removesuffix("_proj"), TARGETS)
                hint = f"; did you mean '{guess}'?" if guess else ""
                raise UsageError(f"lora: targets names '{target}'{hint} (legal: {', '.join(TARGETS)})")
            if target in self.targets[:number]:
                raise UsageError(f"lora: targets names '{target}' twice")

    def scale_at(self, rank: int) -> float:
        """What a change of this rank is multiplied by."""
        return self.alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


@dataclass(frozen=True)
class Piece:
    """The rows first ... last - 1 of a linear layer, which are those of one target."""

    target: str
    first: int
    last: int


class LowRank(nn.Module):
    """scale * B A x, added to some rows of a linear layer. lora_a: A (R, D_in). lora_b: B (rows, R)."""

    def __init__(self, piece: Piece, lora_a: Tensor, lora_b: Tensor, scale: float) -> None:
        super().__init__()
        assert lora_b.shape == (piece.last - piece.first, len(lora_a)), (piece, lora_a.shape, lora_b.shape)
        self.piece, self.scale = piece, scale
        self.lora_a = nn.Parameter(lora_a)
        self.lora_b = nn.Parameter(lora_b)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


class AdaptedLinear(nn.Linear):
    """A linear layer, its weights those of `plain` and frozen, and the changes of its rows by target."""

    def __init__(self, plain: nn.Linear, changes: Mapping[str, LowRank]) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.changes = nn.ModuleDict(changes)

    def forward(self, x: Tensor) -> Tensor:
        output = F.linear(x, self.weight, self.bias)
        for change in self.low_ranks():
            output[..., change.piece.first : change.piece.last] += change(x)
        return output

    def low_ranks(self) -> list[LowRank]:
        """Its changes, in the order of their rows."""
        return [change for change in self.changes.values() if isinstance(change, LowRank)]

    def plain(self) -> nn.Linear:
        """The layer without its changes, around the same weights."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight, layer.bias = self.weight, self.bias
        return layer


class Adapter(nn.Module):
    """All that learns of an adapted model, under names without dots: what a checkpoint holds in place of the model.

    The parameters are the model's own, so that loading a checkpoint into this one changes the model.
    """

    def __init__(self, model: Transformer, config: LoraConfig) -> None:
        super().__init__()
        self.config = config
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)


def pieces_of(name: str, config: ModelConfig) -> list[Piece] | None:
    """The targets whose rows the linear layer of this name holds; None for one that cannot be adapted."""
    targets = next((found for end, found in TARGETS_OF.items() if name.endswith(f".{end}")), None)
    if targets is None:
        return None
    rows = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    pieces, first = [], 0
    for target in targets:
        last = first + rows[target] * config.head_size if target in rows else -1
        pieces.append(Piece(target, first, last))
        first = last
    return pieces


def linear_layers(model: Transformer) -> Iterator[tuple[str, nn.Linear, list[Piece]]]:
    """(name, layer, its pieces) of every linear layer that can be adapted. Experts are no linear layers."""
    for name, module in model.named_modules():
        pieces = pieces_of(name, model.config) if isinstance(module, nn.Linear) else None
        if isinstance(module, nn.Linear) and pieces is not None:
            whole = [Piece(p.target, p.first, module.out_features if p.last < 0 else p.last) for p in pieces]
            yield name, module, whole


def attach(model: Transformer, config: LoraConfig, generator: torch.Generator) -> Adapter:
    """Freeze the model, put fresh changes into the layers that config.targets names, and return all that learns.

    A is N(0, 1/sqrt(D_in)), B is 0: the model computes what it did, to the bit. A scalar or class head stays trainable.
    Raises UsageError for a target that the model does not have.
    """
    found = list(linear_layers(model))
    check_targets(config.targets, {piece.target for _, _, pieces in found for piece in pieces})
    changes: dict[str, dict[str, LowRank]] = {}
    for name, layer, pieces in found:
        device = layer.weight.device
        for piece in pieces:
            if piece.target in config.targets:
                drawn = torch.randn(config.rank, layer.in_features, generator=generator) / math.sqrt(layer.in_features)
                zeros = torch.zeros(piece.last - piece.first, config.rank, device=device)
                change = LowRank(piece, drawn.to(device), zeros, config.scale_at(config.rank))
                changes.setdefault(name, {})[piece.target] = change
    return put_in(model, config, changes)


def put_in(model: Transformer, config: LoraConfig, changes: Mapping[str, Mapping[str, LowRank]]) -> Adapter:
    """Freeze the model and put the given changes, by layer and target, into it."""
    assert not any(isinstance(module, AdaptedLinear) for module in model.modules()), "the model has an adapter already"
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] in HEADS)
    for name, of_layer in changes.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        model.set_submodule(name, AdaptedLinear(layer, of_layer))
    return Adapter(model, config)


def check_targets(wanted: Collection[str], present: Collection[str]) -> None:
    """Raises UsageError for a target that a model does not have."""
    for target in wanted:
        if target not in present:
            legal = [name for name in TARGETS if name in present]
            raise UsageError(
                f"lora: targets names '{target}', but this model has no such linear layer (it has: "
                f"{', '.join(legal)}; experts cannot be adapted); leave it out"
            )


def adapted_layers(model: Transformer) -> list[tuple[str, AdaptedLinear]]:
    """(name, layer) of every layer that has changes."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, AdaptedLinear)]


@torch.no_grad()
def merge(model: Transformer) -> None:
    """Add the changes to the weights, in place, and put plain layers back. All of the model can learn afterwards."""
    for name, layer in adapted_layers(model):
        for change in layer.low_ranks():
            layer.weight[change.piece.first : change.piece.last] += change.scale * change.lora_b @ change.lora_a
        model.set_submodule(name, layer.plain())
    model.requires_grad_(True)


def shared_copy(model: Transformer) -> Transformer:
    """Other modules around the very same weights: costs no memory, and may be adapted on its own."""
    twin: Transformer = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    return twin


def without_adapter(model: Transformer) -> Transformer:
    """The model as it was before `attach`, around the same frozen weights; only to be read, as PPO's reference is."""
    twin = shared_copy(model)
    for name, layer in adapted_layers(twin):
        twin.set_submodule(name, layer.plain())
    return twin.eval()
