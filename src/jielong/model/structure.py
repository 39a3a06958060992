"""From encoder-decoder to decoder-only in four switches: the models of the structure lab (docs/structure.md).

With all four off this is the package's encoder-decoder, with all four on its decoder over source and target in one row;
tests hold it to both. It is a laboratory: it trains and is measured, and is not served or exported.
Source: H. W. Chung, "Shaping the future of AI from the history of Transformer", Stanford CS25, 2024, which names the
four differences; He et al. 2018, "Layer-wise coordination between encoder and decoder", and Dong et al. 2019,
arXiv:1905.03197 (prefix LM), had three of them. Notation: B batch, S source length, T target length, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jielong.errors import ModelError
from jielong.model.config import ModelConfig
from jielong.model.context import Context, as_bias
from jielong.model.kernels import split_heads
from jielong.model.transformer import Layer, Transformer


@dataclass(frozen=True)
class Structure:
    """The switches, each off in an encoder-decoder and on in a decoder.

    one_attention: a target token attends to source and target in one softmax, by one set of weights, instead of in two
    sublayers. one_stack: the same layers read source and target. layer_by_layer: layer l of the target reads what
    layer l of the source was given, instead of what its last layer gives. causal_source: no token of the source sees
    those after it.
    """

    one_attention: bool = False
    one_stack: bool = False
    layer_by_layer: bool = False
    causal_source: bool = False


ENCODER_DECODER = Structure()
DECODER_ONLY = Structure(one_attention=True, one_stack=True, layer_by_layer=True, causal_source=True)


@dataclass
class Joint:
    """Implements `context.Cache` for one forward pass: each layer's keys of the source stand before the target's.

    lengths: (B,) int64, tokens of each source: where the positions of its target go on. sources: by layer, keys and
    values (B, K, S, H).
    """

    lengths: Tensor
    sources: list[tuple[Tensor, Tensor]]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Source and target behind each other, (B, K, S + T, H)."""
        before, told = self.sources[layer]
        return torch.cat((before, keys), dim=2), torch.cat((told, values), dim=2)

    def source(self, layer: int, project: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Cross-attention's keys and values; not kept, for the layer that reads them runs once."""
        return project()


@dataclass(frozen=True)
class Read:
    """A source as it was read.

    states: L + 1 tensors (B, S, D), the embedded tokens and what each layer leaves. segments: (B, S) int, 1 = real,
    0 = padding. context: of the pass.
    """

    states: list[Tensor]
    segments: Tensor
    context: Context


class StructuredTransformer(Transformer):
    """The two stacks of a config, connected as a Structure says. Rotary positions and norms before the sublayers only.

    Raises ModelError for a config without two stacks or with other positions or norms, and for stacks of different
    depth where the structure pairs their layers.
    """

    def __init__(self, config: ModelConfig, structure: Structure) -> None:
        super().__init__(config)
        depths = (config.encoder_layers, config.decoder_layers)
        if not all(depths):
            raise ModelError(f"a structure joins two stacks; encoder_layers and decoder_layers are {depths}")
        if config.positions != "rotary" or config.norm_at != "pre" or any(config.windows):
            raise ModelError(
                "a structure wants positions 'rotary', norm_at 'pre' and no windows, as the default config"
            )
        if depths[0] != depths[1] and (structure.one_stack or structure.layer_by_layer):
            raise ModelError(f"one_stack and layer_by_layer pair the layers; encoder and decoder have {depths}")
        self.structure = structure
        if structure.one_attention:
            self.layers = nn.ModuleList(Layer(config, i, 0, depths[0] + i) for i in range(depths[1]))
        if structure.one_stack:
            self.encoder, self.encoder_norm = self.layers, self.norm

    def read(self, source: Tensor, segments: Tensor) -> Read:
        """A batch of sources padded on the right: (B, S) int64 tokens; (B, S) int segments, 1 = real, 0 = padding."""
        x, context = self._begin(source, segments, None, causal=self.structure.causal_source)
        states = [x]
        for layer in self.encoder:
            assert isinstance(layer, Layer)
            x = Layer.forward(layer, x, context)  # of a layer with cross-attention, that part is the target's alone
            states.append(x)
        return Read(states, segments, context)

    def target_hidden(self, tokens: Tensor, read: Read) -> Tensor:
        """(B, T) target tokens, padded on the right, -> (B, T, D) after the final norm."""
        joint = self._joint(read) if self.structure.one_attention else None
        x, context = self._begin(tokens, None, joint, causal=True)
        if joint is not None:
            context.mask.biases[0] = self._bias(read.segments, tokens.shape[1], context.dtype)
        else:
            context.memory_bias = as_bias((read.segments > 0)[:, None, :], context.dtype)
        for number, layer in enumerate(self.layers):
            context.memory = self._memory(read, number)
            x = layer(x, context)
        normed: Tensor = self.norm(x)
        return normed

    def _memory(self, read: Read, layer: int) -> Tensor:
        """What a layer's cross-attention reads, normed: the last layer's output, or what the layer beside was given."""
        state = read.states[layer if self.structure.layer_by_layer else -1]
        normed: Tensor = self.encoder_norm(state)
        return normed

    def _joint(self, read: Read) -> Joint:
        """Keys and values of the source under each layer's own weights of self-attention."""
        sources = []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            state = read.states[number] if self.structure.layer_by_layer else self.encoder_norm(read.states[-1])
            mixed = layer.attention.project(layer.attention_norm(state, read.context.dtype))
            _, keys, values = split_heads(mixed, read.context, layer.attention.heads)
            sources.append((keys, values))
        return Joint((read.segments > 0).sum(dim=1), sources)

    @staticmethod
    def _bias(segments: Tensor, num_targets: int, dtype: torch.dtype) -> Tensor:
        """(B, T, S + T): a target token sees the real source and the target up to itself."""
        real = (segments > 0)[:, None, :].expand(-1, num_targets, -1)
        triangle = torch.ones(num_targets, num_targets, dtype=torch.bool, device=segments.device).tril()
        return as_bias(torch.cat((real, triangle.expand(len(segments), -1, -1)), dim=2), dtype)

    @torch.inference_mode()
    def greedy(self, source: Tensor, segments: Tensor, first: int, end: int, limit: int) -> list[list[int]]:
        """The likeliest targets, at most `limit` tokens and up to `end`, without it; first: begins each target."""
        read = self.read(source, segments)
        tokens = torch.full((len(source), 1), first, dtype=torch.int64, device=source.device)
        ended = torch.zeros(len(source), dtype=torch.bool, device=source.device)
        while tokens.shape[1] <= limit and not bool(ended.all()):
            chosen = self.unembed(self.target_hidden(tokens, read)[:, -1]).argmax(dim=-1)
            ended |= chosen == end
            tokens = torch.cat((tokens, chosen[:, None]), dim=1)
        rows = tokens[:, 1:].tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]
