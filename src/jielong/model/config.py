"""The shape of a model: one frozen dataclass from which everything else is built and counted."""

from __future__ import annotations

from dataclasses import dataclass

from jielong.errors import ModelError, nearest

POSITIONS = ("rotary", "learned", "sinusoidal")
NORMS = ("rms", "layer")
NORM_PLACES = ("pre", "post", "both")
ACTIVATIONS = ("swiglu", "geglu", "relu", "gelu", "gelu_tanh", "silu")
HEADS = ("lm", "scalar", "masked_lm", "classes", "choice", "span")
POOLINGS = ("cls", "mean")


@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies stretched for a context longer than the one trained on, the fast ones left alone.

    A wavelength under original_length / high_frequency keeps its frequency, one over original_length / low_frequency
    has it divided by factor, and those between are blended. Needed by Llama 3.1 and later.
    Source: the Llama 3.1 release; Hugging Face calls it rope_type "llama3".
    """

    factor: float
    low_frequency: float
    high_frequency: float
    original_length: int


@dataclass(frozen=True)
class ModelConfig:
    """A Transformer by its numbers. What kind it is follows from encoder_layers and decoder_layers, either may be 0.

    The defaults are those of our own presets, a decoder in the manner of Llama: RMSNorm before each sublayer, rotary
    positions, SwiGLU, no biases. Every other field says which preset needs it.
    Raises ModelError naming the field, its value and what is legal.
    Source: Vaswani et al. 2017, arXiv:1706.03762 (the two stacks); Touvron et al. 2023, arXiv:2302.13971, section 2.2
    (the defaults); Ainslie et al. 2023, arXiv:2305.13245 (shared kv heads).
    """

    vocab_size: int
    max_length: int  # the longest row: rotary and sinusoidal tables are made for it, learned positions end with it
    width: int
    decoder_layers: int
    num_heads: int
    num_kv_heads: int  # fewer than num_heads share each kv head among num_heads / num_kv_heads query heads: llama-3
    head_size: int  # need not be width / num_heads: qwen3
    ffn_width: int  # of one expert where there are experts
    encoder_layers: int = 0  # transformer-base, bert-base
    positions: str = "rotary"  # learned: gpt1, gpt2, bert-base; sinusoidal: transformer-base
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | None = None  # llama-3.1
    norm: str = "rms"  # layer: transformer-base, bert-base, gpt2
    norm_at: str = "pre"  # post: transformer-base, bert-base, gpt1; both (before and after each sublayer): grok-1
    norm_eps: float = 1e-5
    embedding_norm: bool = False  # a norm on the sum of embeddings: bert-base
    # relu: transformer-base; gelu (exact): bert-base; gelu_tanh: gpt2; geglu: grok-1; silu: most Marian translators
    activation: str = "swiglu"
    qkv_bias: bool = False  # gpt2, bert-base, qwen2; of cross-attention as well
    out_bias: bool = False  # of the attention's output projection: gpt2, bert-base
    ffn_bias: bool = False  # transformer-base, gpt2, bert-base
    qk_norm: bool = False  # RMSNorm over each head of queries and keys: qwen3
    windows: tuple[int, ...] = (0,)  # how many keys up to itself a query sees, 0 = all; repeated over layers: gpt3-175b
    embedding_scale: float = 1.0  # sqrt(width): transformer-base; 78.38: grok-1
    logit_scale: float = 1.0  # 0.577: grok-1
    attention_softcap: float = 0.0  # c: scores become c tanh(score / c), 0 = off; 30: grok-1
    logit_bias: bool = False  # one number a vocabulary entry: bert-base, Marian
    token_types: int = 0  # how many sentences a row tells apart by an embedding: bert-base
    num_experts: int = 0  # 0 = one feed-forward, no router: mixtral-8x7b, grok-1, qwen3-30b-a3b
    experts_per_token: int = 0
    normalise_experts: bool = True  # weights of the chosen experts sum to 1: mixtral-8x7b; not so: grok-1
    dropout: float = 0.0  # of the embeddings and each sublayer's output, while training: transformer-base, bert-base
    attention_dropout: float = 0.0  # of the attention's weights: bert-base, gpt2
    init_std: float = 0.0  # 0 = 1 / sqrt(width), which suits narrow models; 0.02: gpt2, bert-base
    tie_embeddings: bool = True
    head: str = "lm"  # scalar: reward model, critic; masked_lm (with next-sentence): bert-base; classes, choice, span
    num_labels: int = 1  # of "classes"
    pooling: str = "cls"  # what classes and choice of an encoder read: [CLS], bert-base; mean: recipes/bert-films.toml

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_length", "width", "num_heads", "num_kv_heads", "head_size", "ffn_width"):
            self._whole(name, 1)
        for name in ("encoder_layers", "decoder_layers", "token_types", "num_experts", "experts_per_token"):
            self._whole(name, 0)
        self._whole("num_labels", 1)
        for name, legal in (
            ("positions", POSITIONS),
            ("norm", NORMS),
            ("norm_at", NORM_PLACES),
            ("activation", ACTIVATIONS),
            ("head", HEADS),
            ("pooling", POOLINGS),
        ):
            self._one_of(name, legal)
        self._check_attention()
        self._check_rest()

    @property
    def gated(self) -> bool:
        """Whether the feed-forward has a third matrix, the gate."""
        return self.activation in ("swiglu", "geglu")

    def window(self, layer: int) -> int:
        """How many keys a query of this decoder layer sees, itself included; 0 for all."""
        return self.windows[layer % len(self.windows)]

    def _whole(self, name: str, least: int) -> None:
        value = self.__dict__[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ModelError(f"{name} is {value!r}; it must be a whole number, {least} or more")

    def _one_of(self, name: str, legal: tuple[str, ...]) -> None:
        value = self.__dict__[name]
        if value not in legal:
            near = nearest(str(value), legal)
            hint = f"; did you mean {near}?" if near else ""
            raise ModelError(f"{name} is {value!r}; legal are {', '.join(legal)}{hint}")

    def _check_attention(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelError(f"num_kv_heads is {self.num_kv_heads}; it must divide num_heads, {self.num_heads}")
        if self.positions == "rotary" and self.head_size % 2:
            raise ModelError(f"head_size is {self.head_size}; rotary positions turn pairs, so it must be even")
        if self.positions == "sinusoidal" and self.width % 2:
            raise ModelError(
                f"width is {self.width}; sinusoidal positions are half sine, half cosine, so it must be even"
            )
        if self.rope_base <= 1 or self.norm_eps <= 0:
            raise ModelError(f"rope_base is {self.rope_base} (legal: > 1), norm_eps is {self.norm_eps} (legal: > 0)")
        if not self.windows or any(isinstance(w, bool) or not isinstance(w, int) or w < 0 for w in self.windows):
            raise ModelError(f"windows is {self.windows!r}; it must hold whole numbers, 0 (all keys) or more")
        if any(self.windows) and not self.decoder_layers:
            raise ModelError(f"windows is {self.windows!r}; an encoder sees the whole row, so only (0,) is legal here")
        if self.attention_softcap < 0:
            raise ModelError(f"attention_softcap is {self.attention_softcap}; it must be 0 (off) or more")

    def _check_rest(self) -> None:
        if self.encoder_layers + self.decoder_layers == 0:
            raise ModelError("encoder_layers and decoder_layers are both 0; a model needs layers in one of them")
        if not 0 <= self.experts_per_token <= self.num_experts or (self.num_experts and not self.experts_per_token):
            raise ModelError(
                f"experts_per_token is {self.experts_per_token}; with num_experts = {self.num_experts} legal are "
                f"{f'1 to {self.num_experts}' if self.num_experts else '0 only'}"
            )
        if self.num_experts and self.ffn_bias:
            raise ModelError("ffn_bias is on, but experts have no biases; turn it off, or set num_experts = 0")
        if self.token_types and self.decoder_layers:
            raise ModelError(f"token_types is {self.token_types}; only an encoder-only model tells sentences apart")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= self.__dict__[name] < 1:
                raise ModelError(f"{name} is {self.__dict__[name]}; it must be at least 0 and under 1")
        if self.head == "masked_lm" and self.decoder_layers:
            raise ModelError("head is 'masked_lm', which reads both directions; decoder_layers must be 0")
        if self.pooling == "mean" and (self.decoder_layers or self.head not in ("classes", "choice")):
            raise ModelError("pooling is 'mean', which the heads 'classes' and 'choice' of an encoder have; set 'cls'")
        if self.head == "lm" and not self.decoder_layers:
            raise ModelError("head is 'lm', which needs a decoder; set decoder_layers, or head = 'masked_lm'")
