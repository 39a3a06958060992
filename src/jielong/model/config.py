"""The shape of a model: one frozen dataclass from which everything else is built and counted."""

from __future__ import annotations

from dataclasses import dataclass

from jielong.errors import ModelError

HEADS = ("lm", "scalar")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder in the manner of Llama: RMSNorm before each sublayer, rotary positions, SwiGLU, no biases.

    max_length is the longest context the rotary tables are made for. head_size need not be width / num_heads.
    num_kv_heads < num_heads shares each key and value head among num_heads / num_kv_heads query heads.
    head: "lm" gives logits over the vocabulary, "scalar" one number a token (reward model, critic).
    Raises ModelError naming the field, its value and what is legal.
    Source: Touvron et al. 2023, arXiv:2302.13971, section 2.2; Ainslie et al. 2023, arXiv:2305.13245 (shared kv heads).
    """

    vocab_size: int
    max_length: int
    width: int
    decoder_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    ffn_width: int
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    head: str = "lm"

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "max_length", "width", "decoder_layers", "num_heads", "num_kv_heads", "head_size")
        values = {name: self.__dict__[name] for name in (*sizes, "ffn_width")}
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelError(f"{name} is {value!r}; it must be a whole number, 1 or more")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(f"num_kv_heads is {self.num_kv_heads}; it must divide num_heads, {self.num_heads}")
        if self.head_size % 2:
            raise ModelError(f"head_size is {self.head_size}; rotary positions turn pairs, so it must be even")
        if self.rope_base <= 1 or self.norm_eps <= 0:
            raise ModelError(f"rope_base is {self.rope_base} (legal: > 1), norm_eps is {self.norm_eps} (legal: > 0)")
        if self.head not in HEADS:
            raise ModelError(f"head is {self.head!r}; legal are {', '.join(HEADS)}")
