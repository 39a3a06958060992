"""Parameters of ours and the tensors of theirs that they are made of: fused or apart, either way round.

One description, `pieces`, serves reading and writing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from jielong.errors import ModelError
from jielong.model.config import ModelConfig
from jielong.model.family import Family
from jielong.model.transformer import Transformer
from jielong.model.weights import TensorFiles

WHOLE = ...
MOST_THREADS = 4


@dataclass(frozen=True)
class Piece:
    """One tensor of theirs and its place in a parameter of ours.

    place: an index or a slice of our first axis, or all of it. half: None for all of theirs, else this half of their
    second axis. transposed: theirs is the other way round. leading: theirs has one more axis in front, of length 1.
    """

    theirs: str
    place: int | slice | EllipsisType = WHOLE
    transposed: bool = False
    half: int | None = None
    leading: bool = False

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of theirs whose place in ours has `shape`."""
        if self.half is not None:
            return (shape[0], 2 * shape[1], *shape[2:])
        if self.leading:
            return (1, *shape)
        return shape[::-1] if self.transposed else shape

    def ours(self, tensor: Tensor) -> Tensor:
        """Theirs as it goes to its place; a view."""
        if self.half is not None:
            return tensor.unflatten(1, (2, -1))[:, self.half]
        if self.leading:
            return tensor[0]
        return tensor.T if self.transposed else tensor

    def written(self, tensor: Tensor) -> Tensor:
        """What stands at its place, as theirs; contiguous and on the CPU."""
        tensor = tensor.T if self.transposed else tensor[None] if self.leading else tensor
        return tensor.contiguous().cpu()


def pieces(family: Family | None, config: ModelConfig, name: str) -> Iterator[Piece]:
    """The tensors of theirs that make up our parameter `name`, in the order of its first axis; itself without a family.

    One after the other, since a config.json may promise more experts than anyone could list.
    Raises ModelError when the family has no such parameter.
    """
    if family is None:
        yield Piece(name)
        return
    template, layer = _template(name)
    found = [theirs.replace("{i}", layer) for theirs in _spelled(family, config, template)]
    transposed, leading = template in family.transposed, template in family.leading
    if "{e}" in found[0]:
        for expert in range(config.num_experts):
            yield Piece(found[0].replace("{e}", str(expert)), expert)
    elif len(found) == 1:
        yield Piece(found[0], WHOLE, transposed, leading=leading)
    else:  # queries, keys and values, or the latter two
        heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads][-len(found) :]
        start = 0
        for theirs, num_heads in zip(found, heads, strict=True):
            end = start + num_heads * config.head_size
            yield Piece(theirs, slice(start, end), transposed)
            start = end


def _template(name: str) -> tuple[str, str]:
    """layers.3.attention.out.weight -> (layers.{i}.attention.out.weight, 3)."""
    first, _, rest = name.partition(".")
    index, _, last = rest.partition(".")
    return (f"{first}.{{i}}.{last}", index) if index.isdigit() else (name, "")


def _spelled(family: Family, config: ModelConfig, template: str) -> tuple[str, ...]:
    """Their templates of ours: of the whole name, or of the module with the ending behind it."""
    stem, dot, ending = template.rpartition(".")
    for key, rest in ((template, ""), (f"{config.head}/{stem}", f"{dot}{ending}"), (stem, f"{dot}{ending}")):
        if key in family.names:
            entry = family.names[key]
            return tuple(theirs + rest for theirs in ((entry,) if isinstance(entry, str) else entry))
    raise ModelError(f"the architecture {family.model_type} has no parameter {template!r}")


class _Undrawn(TorchFunctionMode):
    """First weights are not drawn: on the meta device they are nothing, but torch would import its compiler for it."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


def model_on_meta(config: ModelConfig) -> Transformer:
    """A model without memory or random numbers for weights. Raises ModelError for sizes beyond what torch counts."""
    try:
        with torch.device("meta"), _Undrawn():
            return Transformer(config)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"no model can be as large as this config says: {reason}") from None


def absent_pieces(family: Family | None, config: ModelConfig) -> dict[str, tuple[Piece, tuple[int, ...]]]:
    """Tensors that their model must have, as zeros, and ours lacks: name -> (piece, the shape of its place)."""
    if family is None:
        return {}
    constants = family.constants.get(config.head, {})
    found = {theirs: (Piece(theirs), shape) for theirs, shape in constants.items()}
    biases: dict[str, Any] = {name: True for name in family.zeros if not config.__dict__[name]}
    if not biases:
        return found
    ours = dict(model_on_meta(config).named_parameters())
    for name, meta in model_on_meta(replace(config, **biases)).named_parameters():
        if name not in ours:
            for piece in pieces(family, config, name):
                found[piece.theirs] = (piece, tuple(meta[piece.place].shape))
    return found


def parts_of(model: Transformer, family: Family | None) -> dict[str, tuple[Piece, Tensor]]:
    """Everything to be written: their name -> (piece, what stands at its place). The tensors are views."""
    parts = {
        piece.theirs: (piece, parameter.detach()[piece.place])
        for name, parameter in model.named_parameters()
        for piece in pieces(family, model.config, name)
    }
    dtype = model.embed.weight.dtype
    for theirs, (piece, shape) in absent_pieces(family, model.config).items():
        parts[theirs] = (piece, torch.zeros(shape, dtype=dtype))
    return parts


class ParameterReader:
    """Our parameters out of the files of a folder, one at a time so as to need little more memory than the model.

    fresh: modules that the folder may lack; they are then new, and a warning says so.
    """

    def __init__(
        self, files: TensorFiles, family: Family | None, config: ModelConfig, dtype: torch.dtype, fresh: tuple[str, ...]
    ) -> None:
        self.files, self.family, self.config, self.dtype, self.fresh = files, family, config, dtype, fresh
        self.used: set[str] = set()
        self.known = {self._usual(name): name for name in files.names()}  # their usual name -> the file's

    def _usual(self, name: str) -> str:
        for old, new in ({} if self.family is None else self.family.renamed).items():
            name = name.replace(old, new)
        return name

    def state(self, metas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All parameters; metas: one of its shape for each.

        Raises ModelError for a tensor that is missing, of a wrong shape or type, or left over.
        """
        new = sorted({name.partition(".")[0] for name in metas if self._is_fresh(name)})
        state = {
            name: self._draw(name, tuple(meta.shape)) for name, meta in metas.items() if name.startswith(tuple(new))
        }
        plans = {name: self._plan(name, meta) for name, meta in metas.items() if name not in state}
        self._check_rest()
        # Copying waits for the memory it goes to, and lets go of the interpreter meanwhile.
        with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
            shapes = [tuple(metas[name].shape) for name in plans]
            state |= zip(plans, pool.map(self._parameter, plans.values(), shapes), strict=True)
        if new:
            warnings.warn(
                f"{self.files.folder} has no {' and '.join(new)}: new weights were drawn; train before use",
                stacklevel=4,
            )
        return state

    def _is_fresh(self, name: str) -> bool:
        if not name.startswith(self.fresh):
            return False
        return self._find(next(pieces(self.family, self.config, name)).theirs) is None

    def _plan(self, name: str, meta: Tensor) -> list[tuple[Piece, str]]:
        """The pieces of a parameter and their names in the files, checked before room is made for any of them."""
        return [(piece, self._checked(piece, tuple(meta[piece.place].shape))) for piece in self._wanted(name)]

    def _parameter(self, plan: list[tuple[Piece, str]], shape: tuple[int, ...]) -> Tensor:
        """The parameter in `dtype`: a view of the file where it is there as we need it."""
        piece, theirs = plan[0]
        as_it_is = piece.place is WHOLE and not piece.transposed and piece.half is None
        if as_it_is and self.files.dtype(theirs) == self.dtype:
            return piece.ours(self.files.mapped(theirs))
        whole = torch.empty(shape, dtype=self.dtype)
        for piece, theirs in plan:
            whole[piece.place].copy_(piece.ours(self.files.passing(theirs)))
        return whole

    def _wanted(self, name: str) -> Iterator[Piece]:
        """The pieces of a parameter under the names that this folder has."""
        usual = pieces(self.family, self.config, name)
        if self.family is None or self._find(next(pieces(self.family, self.config, name)).theirs) is not None:
            return usual
        template, layer = _template(name)
        other: Piece | None = None
        if template in self.family.fused:
            theirs, half = self.family.fused[template]
            other = Piece(theirs.replace("{i}", layer), half=half)
        elif name == "embed.weight" and self.config.tie_embeddings and "unembedding" in self.family.names:
            other = Piece(f"{self.family.names['unembedding']}.weight")  # some writers keep the other of the two
        return usual if other is None or self._find(other.theirs) is None else iter([other])

    def _find(self, theirs: str) -> str | None:
        """The name in the files: the usual one, or that without the prefix, which models without a head have."""
        if theirs in self.known or self.family is None:
            return self.known.get(theirs)
        prefix = self.family.prefix
        return self.known.get(theirs.removeprefix(prefix)) if theirs.startswith(prefix) else None

    def _checked(self, piece: Piece, shape: tuple[int, ...]) -> str:
        found = self._find(piece.theirs)
        if found is None:
            raise ModelError(
                f"{self.files.folder}: the weights lack the tensor {piece.theirs!r} that config.json asks for"
            )
        wanted = piece.their_shape(shape)
        if self.files.shape(found) != wanted:
            raise ModelError(
                f"{self.files.where(found)}: {found} has shape {self.files.shape(found)}; config.json asks for {wanted}"
            )
        self.files.dtype(found)  # which refuses what is no floating-point number
        self.used.add(found)
        return found

    def _draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A head's last map starts at 0, which prefers no answer; what is before it as usual, always with one seed."""
        if name.endswith(".bias") or name.startswith(("classifier", "next_sentence")):
            return torch.zeros(shape, dtype=self.dtype)
        spread = self.config.init_std or self.config.width**-0.5
        return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * spread).to(self.dtype)

    def _check_rest(self) -> None:
        """Raises ModelError when the files hold what config.json leaves no room for."""
        for theirs, (_, shape) in absent_pieces(self.family, self.config).items():
            self._check_absent(theirs, shape)
        for usual, name in self.known.items():
            if name not in self.used and not self._says_nothing_new(usual):
                raise ModelError(
                    f"{self.files.where(name)}: it holds {name!r}, which config.json leaves no room for; "
                    "config and weights must be of one model"
                )

    def _check_absent(self, theirs: str, shape: tuple[int, ...]) -> None:
        assert self.family is not None
        found = self._find(theirs)
        if found is None:
            return
        self.used.add(found)
        if theirs not in self.family.constants.get(self.config.head, {}) and self.files.passing(found).any():
            raise ModelError(
                f'{self.files.where(found)}: {found} is not 0, but "jielong" in config.json says that this model '
                "has no such biases; if they were trained, take those lines out of config.json"
            )

    def _says_nothing_new(self, usual: str) -> bool:
        if self.family is None:
            return False
        tied = self.config.tie_embeddings and usual == f"{self.family.names.get('unembedding')}.weight"
        return tied or usual.endswith(self.family.skipped)
