"""The Transformer: tokens in, what the head says out. Encoder-only, decoder-only or both, by its two layer counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jielong.errors import ModelError
from jielong.model.attention import Attention, CrossAttention, NormedAttention, build_heads
from jielong.model.config import ModelConfig
from jielong.model.context import Cache, Context, Mask, as_bias, segment_positions, visible_source
from jielong.model.heads import HeadedModel
from jielong.model.kernels import choose_capped_kernels, choose_kernels
from jielong.model.layers import (
    FeedForward,
    GatedFeedForward,
    LayerNorm,
    NoNorm,
    NoTokenTypes,
    RMSNorm,
    TokenTypes,
    build_dropout,
    build_norm,
    build_scale,
)
from jielong.model.moe import Experts
from jielong.model.positions import build_positions
from jielong.model.routing import Routing

Sublayer = Attention | CrossAttention | FeedForward | GatedFeedForward | Experts
Norm = RMSNorm | LayerNorm | NoNorm
Drop = Callable[[Tensor], Tensor]


def _norm_before(x: Tensor, context: Context, sublayer: Sublayer, norm: Norm, after: Norm, drop: Drop) -> Tensor:
    return x + drop(sublayer(norm(x, context.dtype), context))


def _norm_behind(x: Tensor, context: Context, sublayer: Sublayer, norm: Norm, after: Norm, drop: Drop) -> Tensor:
    normed: Tensor = norm(x + drop(sublayer(x, context)))
    return normed


def _norm_on_both_sides(x: Tensor, context: Context, sublayer: Sublayer, norm: Norm, after: Norm, drop: Drop) -> Tensor:
    return x + drop(after(sublayer(norm(x, context.dtype), context)))


_PLACES = {"pre": _norm_before, "post": _norm_behind, "both": _norm_on_both_sides}


class Layer(nn.Module):
    """Self-attention, then a feed-forward or experts, each added to x and with a norm before, behind or on both sides.

    pre: x + f(norm(x)), as GPT-2 and since. post: norm(x + f(x)), as in 2017, BERT and GPT-1. both:
    x + norm(f(norm(x))), as Grok-1. number: the layer's, counted over both stacks.
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.1; Xiong et al. 2020, arXiv:2002.04745, on pre and post.
    """

    def __init__(self, config: ModelConfig, index: int, window: int, number: int, cross: bool = False) -> None:
        super().__init__()
        heads = build_heads(config, index, window)
        self.attention_norm = build_norm(config)
        self.attention = (NormedAttention if config.qk_norm else Attention)(config, heads)
        self.attention_post_norm = _post_norm(config)
        if cross:
            self.cross_norm = build_norm(config)
            self.cross = CrossAttention(config, build_heads(config, index))
            self.cross_post_norm = _post_norm(config)
        self.ffn_norm = build_norm(config)
        self.ffn: FeedForward | GatedFeedForward | Experts
        if config.num_experts:
            self.ffn = Experts(config, number)
        else:
            self.ffn = (GatedFeedForward if config.gated else FeedForward)(config)
        self.ffn_post_norm = _post_norm(config)
        self.drop = build_dropout(config.dropout)
        self.add = _PLACES[config.norm_at]

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = self.add(x, context, self.attention, self.attention_norm, self.attention_post_norm, self.drop)
        return self.add(x, context, self.ffn, self.ffn_norm, self.ffn_post_norm, self.drop)


class CrossLayer(Layer):
    """A decoder layer that also attends to the source, between its own attention and the feed-forward."""

    def __init__(self, config: ModelConfig, index: int, window: int, number: int) -> None:
        super().__init__(config, index, window, number, cross=True)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = self.add(x, context, self.attention, self.attention_norm, self.attention_post_norm, self.drop)
        x = self.add(x, context, self.cross, self.cross_norm, self.cross_post_norm, self.drop)
        return self.add(x, context, self.ffn, self.ffn_norm, self.ffn_post_norm, self.drop)


def _post_norm(config: ModelConfig) -> Norm:
    """The norm of a sublayer's output, which only norm_at = "both" has."""
    return build_norm(config) if config.norm_at == "both" else NoNorm()


def _final_norm(config: ModelConfig, num_layers: int) -> Norm:
    """The norm behind a stack; after post-norm layers there is none, nor without layers."""
    return build_norm(config) if num_layers and config.norm_at != "post" else NoNorm()


class Transformer(HeadedModel):
    """A model built from its config; call `init_weights` before training it.

    tokens: (B, T) int64. segments: (B, T) int, 0 = padding, k = k-th document of the row: attention stays inside a
    segment and positions restart with it; None says that every row is one document of full length, which needs no
    mask. Padding may stand on either side. cache: see `context.Cache`; then tokens are those after the ones held.
    source, source_segments: (B, S), what an encoder-decoder translates from; the k-th target of a row reads the k-th
    source. token_types: (B, T) int64, which sentence a token is of (BERT). routing: collects router statistics.

    Source: Vaswani et al. 2017, arXiv:1706.03762. The paper's model has no norm behind its stacks, and so has ours with
    norm_at = "post" (torch.nn.Transformer adds one); its attention has no biases; it shares one matrix between source,
    target and output, as ours does where tie_embeddings is on.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        num_encoder, num_decoder = config.encoder_layers, config.decoder_layers
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.positions = build_positions(config)
        self.token_types = TokenTypes(config) if config.token_types else NoTokenTypes()
        self.embedding_norm: Norm = build_norm(config) if config.embedding_norm else NoNorm()
        self.encoder = nn.ModuleList(Layer(config, i, 0, i) for i in range(num_encoder))
        self.encoder_norm = _final_norm(config, num_encoder)
        kind = CrossLayer if num_encoder else Layer
        self.layers = nn.ModuleList(kind(config, i, config.window(i), num_encoder + i) for i in range(num_decoder))
        self.norm = _final_norm(config, num_decoder)
        self.drop = build_dropout(config.dropout)
        self.scale_embedding = build_scale(config.embedding_scale)
        self.compute_dtype: torch.dtype | None = None  # of what norms return, without autocast; None: the weights'
        self.recompute = False  # in training, keep what goes into a layer alone and compute the rest again
        self.choose_kernels = choose_capped_kernels if config.attention_softcap else choose_kernels
        self.add_head(config)
        self.build_tables()

    def build_tables(self) -> None:
        """Make the tables of positions on the device of the weights; they are no part of the state."""
        self.positions.build_tables(self.embed.weight.device)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Matrices and embeddings N(0, init_std), or N(0, 1/sqrt(D)) where that is 0; biases 0, norms 1.

        Where norms stand before the sublayers, projections into the residual stream are divided by sqrt(2 L), L the
        layers of their stack. The scalar head is N(0, 1/sqrt(D+1)). Learned positions are drawn like the rest, as
        Hugging Face does it and GPT-1 and BERT did; OpenAI's code of GPT-2 halves theirs, to 0.01.
        With init_std = 0 and norms behind the sublayers, feed-forwards are N(0, sqrt(2 / (D + F))), as tensor2tensor
        starts all its matrices: at 1 / sqrt(D) their output outweighs the x it is added to. Reversing 12 letters, 64
        wide, the loss after 300 steps was 0.7 nats instead of 1.3 (means of two seeds).

        At 0.02 the attention of a narrow model starts all but uniform, and heads that copy form late: 128 wide, on
        repeated lines, the loss of the second copy after 400 steps was 2.9 nats instead of 3.8.

        Source: Radford et al. 2019 (GPT-2), section 2.3, for the residual scaling; Stiennon et al. 2020,
        arXiv:2009.01325, for the head of a reward model.
        """
        for name, parameter in self.named_parameters():
            parameter.copy_(self.start_of(name, parameter.shape, generator))

    def start_of(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """What `init_weights` puts into a parameter, which draws for them in their order."""
        if name.endswith("norm.weight"):
            return torch.ones(shape)
        if name.endswith("bias"):
            return torch.zeros(shape)
        # Drawn on the CPU, so that a seed means the same weights on every device.
        return torch.randn(shape, generator=generator) * self._spread(name)

    def _spread(self, name: str) -> float:
        """The standard deviation with which a matrix starts."""
        config = self.config
        if name == "score.weight":
            return 1 / math.sqrt(config.width + 1)
        if config.norm_at == "post" and not config.init_std and ".ffn." in name and not name.endswith("router.weight"):
            return math.sqrt(2 / (config.width + config.ffn_width))
        usual = config.init_std or 1 / math.sqrt(config.width)
        into_stream = name.endswith(("attention.out.weight", "cross.out.weight", "ffn.down.weight", "ffn.down"))
        if config.norm_at == "post" or not into_stream:
            return usual
        num_layers = config.encoder_layers if name.startswith("encoder.") else config.decoder_layers
        return usual / math.sqrt(2 * num_layers)

    def encode(self, source: Tensor, segments: Tensor | None = None, routing: Routing | None = None) -> Tensor:
        """The source read by the encoder: (B, S) tokens and segments -> (B, S, D), the decoder's `memory`.

        Raises ModelError when the model has no encoder or a row is longer than max_length.
        """
        if not len(self.encoder):
            raise ModelError("a source is given, but this model has no encoder (its encoder_layers is 0)")
        x, context = self._begin(source, segments, None, causal=False)
        context.routing = routing
        return self._through(self.encoder, self.encoder_norm, x, context)

    def hidden(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        cache: Cache | None = None,
        memory: Tensor | None = None,
        memory_segments: Tensor | None = None,
        token_types: Tensor | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """(B, T) tokens -> (B, T, D) after the final norm, of the decoder where there is one.

        memory, memory_segments: `encode`'s result and what went into it. With a cache that has read the memory, memory
        may be None; its segments are needed at every step.
        Raises ModelError when a row is longer than the model's max_length, or memory is missing or out of place.
        """
        causal = len(self.layers) > 0
        x, context = self._begin(tokens, segments, cache, causal, token_types)
        context.routing = routing
        if memory is not None or memory_segments is not None:
            self._add_memory(context, segments, memory, memory_segments)
        layers, norm = (self.layers, self.norm) if causal else (self.encoder, self.encoder_norm)
        return self._through(layers, norm, x, context)

    def hidden_of(self, tokens: Tensor, segments: Tensor, memory: Tensor, memory_segments: Tensor) -> Tensor:
        """`hidden` of targets beside their sources, as a translator learns them."""
        return self.hidden(tokens, segments, None, memory, memory_segments)

    def residuals(self, tokens: Tensor, memory: Tensor | None = None) -> Iterator[Tensor]:
        """The residual stream of a decoder, (B, T, D) each: the embedded tokens, then what each layer leaves.

        memory (B, S, D): what `encode` made of the source that it reads. unembed(norm(x)) of the last is what `forward`
        gives. Layers run as they are asked for. Raises ModelError as `hidden` does.
        """
        x, context = self._begin(tokens, None, None, causal=True)
        if memory is not None:
            self._add_memory(context, None, memory, None)
        yield x
        for layer in self.layers:
            x = layer(x, context)
            yield x

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        cache: Cache | None = None,
        source: Tensor | None = None,
        source_segments: Tensor | None = None,
        token_types: Tensor | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """unembed(hidden(...)): logits (B, T, V), or what `unembed` says of the config's head."""
        memory = None if source is None else self.encode(source, source_segments, routing)
        return self.unembed(
            self.hidden(tokens, segments, cache, memory, source_segments, token_types, routing), segments
        )

    def _begin(
        self,
        tokens: Tensor,
        segments: Tensor | None,
        cache: Cache | None,
        causal: bool,
        token_types: Tensor | None = None,
    ) -> tuple[Tensor, Context]:
        """The embedded tokens (B, T, D) and what the layers of the stack need to know."""
        device, length, most = tokens.device, tokens.shape[1], self.config.max_length
        if length > most:
            raise ModelError(
                f"a row has {length} tokens, but the model reads at most {most} (max_length); shorten the row or build "
                "the model with a greater max_length"
            )
        slots = torch.arange(length, device=device)  # (T,)
        positions = slots if segments is None else segment_positions(segments)
        if cache is not None:
            assert causal and segments is None, "a cache is for decoding, where each row is one document"
            # padded queries may stand beyond the end
            positions = slots = (cache.lengths.to(device)[:, None] + slots).clamp_(max=most - 1)  # (B, T)
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else self.compute_dtype or self.embed.weight.dtype
        dropout = self.config.attention_dropout if self.training else 0.0
        attend, weigh = self.choose_kernels(device, dtype, length, cache is not None, dropout)
        x = self.token_types(self.positions.add(self.scale_embedding(self.embed(tokens)), positions), token_types)
        context = Context(
            dtype=dtype,
            rotation=self.positions.rotation(positions, dtype),
            mask=Mask(causal, slots, dtype, segments),
            attend=attend,
            weigh=weigh,
            dropout=dropout,
            cache=cache,
            real=None if segments is None else segments > 0,
        )
        return self.drop(self.embedding_norm(x)), context

    def _add_memory(
        self, context: Context, segments: Tensor | None, memory: Tensor | None, memory_segments: Tensor | None
    ) -> None:
        if not (len(self.encoder) and len(self.layers)):
            raise ModelError("memory is given, but this model has no two stacks for one to read the other")
        context.memory = memory
        if memory_segments is not None:
            context.memory_bias = as_bias(visible_source(segments, memory_segments), context.dtype)

    def _through(self, layers: Iterable[nn.Module], norm: Norm, x: Tensor, context: Context) -> Tensor:
        again = self.recompute and torch.is_grad_enabled()
        for layer in layers:
            x = checkpoint(layer, x, context, use_reentrant=False) if again else layer(x, context)
        normed: Tensor = norm(x)
        return normed
