"""GGUF, the file of llama.cpp and of what is built on it: weights, tokenizer and chat template in one.

The only module that imports the `gguf` package. Weights are F32, F16 or Q8_0 (blocks of 32 numbers in 8 bits with a
16-bit scale); vectors stay F32, as llama.cpp wants them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jielong.errors import ModelError, UsageError
from jielong.export.shape import PER_TOKEN, gguf_family, rope_divisors
from jielong.export.vocabulary import Vocabulary
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer

try:
    import gguf
except ImportError:  # an extra
    gguf = None  # type: ignore[assignment]

TYPES = ("F32", "F16", "Q8_0")
HALF_MAX = 65504.0

# Ours -> llama.cpp's, "attention.qkv" being three of theirs.
TOP_NAMES = {
    "embed.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "unembedding.weight": "output.weight",
}
LAYER_NAMES = {
    "attention_norm.weight": "attn_norm.weight",
    "attention.out.weight": "attn_output.weight",
    "attention.q_norm.weight": "attn_q_norm.weight",
    "attention.k_norm.weight": "attn_k_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "ffn.gate.weight": "ffn_gate.weight",
    "ffn.up.weight": "ffn_up.weight",
    "ffn.down.weight": "ffn_down.weight",
}
QKV_NAMES = ("attn_q", "attn_k", "attn_v")


@dataclass(frozen=True)
class _Placed:
    """One tensor of the file: what it is called, its values in float32, the type they are stored in."""

    name: str
    values: Tensor
    kind: str


def need_gguf() -> None:
    """Raises UsageError saying what to install when the extra is not there."""
    if gguf is None:
        raise UsageError("GGUF files are written through the package gguf; install it: pip install 'jielong[gguf]'")


def write_gguf(path: Path, model: Transformer, vocabulary: Vocabulary, kind: str, name: str) -> None:
    """Write the model as `kind` (F32, F16, Q8_0) to `path`; `name` is what llama.cpp shows.

    Tensors are converted one at a time. Raises ModelError for a shape that llama.cpp does not know, or for weights
    beyond what 16 bits can hold.
    """
    need_gguf()
    family = gguf_family(model.config)
    if not vocabulary.merges:
        raise ModelError("the tokenizer has no merges; llama.cpp loads none without. Train it with a larger vocab_size")
    writer = gguf.GGUFWriter(path, family)
    _add_shape(writer, model.config)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[{"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_vocabulary(writer, vocabulary)
    for placed in _tensors(model, family, kind, len(vocabulary.tokens)):
        shape = tuple(placed.values.shape)
        stored = gguf.GGMLQuantizationType[placed.kind]
        block, num_bytes = gguf.GGML_QUANT_SIZES[stored]
        # float16 stands for every type here: the real one is the last argument
        writer.add_tensor_info(
            placed.name, shape, np.dtype(np.float16), placed.values.numel() // block * num_bytes, stored
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for placed in _tensors(model, family, kind, len(vocabulary.tokens)):
        writer.write_tensor_data(gguf.quantize(placed.values.numpy(), gguf.GGMLQuantizationType[placed.kind]))
    writer.close()


def check_gguf(path: Path, model: Transformer, vocabulary: Vocabulary, kind: str) -> int:
    """Read the file back, dequantise, and compare every tensor with the model's; returns how many there are.

    Raises ModelError naming the first that is missing, additional, or further off than its type's rounding.
    """
    need_gguf()
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    num_tensors = len(found)
    for placed in _tensors(model, gguf_family(model.config), kind, len(vocabulary.tokens)):
        if placed.name not in found:
            raise ModelError(f"{path.name}: the tensor {placed.name} is missing")
        tensor = found.pop(placed.name)
        values = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type)))
        off = (values.reshape(placed.values.shape) - placed.values).abs()
        if not bool((off <= _rounding(placed)).all()):
            raise ModelError(
                f"{path.name}: {placed.name} is off by up to {float(off.max()):.3g}, beyond {kind}'s rounding"
            )
    if found:
        raise ModelError(f"{path.name}: it holds {sorted(found)[0]}, which the model does not have")
    return num_tensors


def _rounding(placed: _Placed) -> Tensor | float:
    """How far each number may be from the model's: nothing, half a step of float16, half a step of its block."""
    if placed.kind == "F32":
        return 0.0
    if placed.kind == "F16":
        return (placed.values.abs() * 2.0**-11).clamp(min=2.0**-25)
    blocks = placed.values.reshape(-1, 32)
    # the scale itself is rounded to 16 bits, which moves the block's largest number by up to 127 * 2**-11 / 127
    bound = blocks.abs().amax(dim=1, keepdim=True) * (0.5 / 127 + 2.0**-11) + 2.0**-20
    return bound.expand_as(blocks).reshape(placed.values.shape)


def _add_shape(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.decoder_layers)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_rope_dimension_count(config.head_size)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    kinds = [gguf.TokenType.NORMAL] * len(vocabulary.tokens)
    for numbers, kind in (
        (vocabulary.controls, gguf.TokenType.CONTROL),
        (vocabulary.added, gguf.TokenType.USER_DEFINED),
        (vocabulary.gaps, gguf.TokenType.UNUSED),
    ):
        for number in numbers:
            kinds[number] = kind
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.spelled)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{left} {right}" for left, right in vocabulary.merges])
    writer.add_add_bos_token(bool(vocabulary.prefix_ids))
    if vocabulary.bos_id is not None:
        writer.add_bos_token_id(vocabulary.bos_id)
    if vocabulary.eos_id is not None:
        writer.add_eos_token_id(vocabulary.eos_id)
    writer.add_pad_token_id(vocabulary.pad_id)
    if vocabulary.end_id is not None:
        writer.add_eot_token_id(vocabulary.end_id)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _tensors(model: Transformer, family: str, kind: str, num_tokens: int) -> Iterator[_Placed]:
    """The file's tensors in its order. Raises ModelError for a number that float16 cannot hold.

    num_tokens: rows of the embedding beyond the vocabulary, which others pad to round numbers, are left out.
    """
    divisors = rope_divisors(model.config)
    if divisors is not None:
        yield _Placed("rope_freqs.weight", divisors, "F32")
    for name, parameter in model.named_parameters():
        ours = parameter.detach()[:num_tokens] if name in PER_TOKEN else parameter.detach()
        for theirs, values in _split(name, ours.cpu().float(), model.config, family):
            stored = _stored_as(values, kind)
            if stored != "F32" and float(values.abs().max()) > HALF_MAX:
                raise ModelError(
                    f"{name} holds {float(values.abs().max()):.4g}; {stored} ends at {HALF_MAX:g}. Use --type F32"
                )
            yield _Placed(theirs, values.contiguous(), stored)


def _stored_as(values: Tensor, kind: str) -> str:
    """The type of one tensor: vectors F32; rows that blocks of 32 do not fill are F16 where Q8_0 is asked for."""
    if values.ndim == 1:
        return "F32"
    return "F16" if kind == "Q8_0" and values.shape[-1] % 32 else kind


def _split(name: str, values: Tensor, config: ModelConfig, family: str) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's name and tensor for our parameter; three of each for the fused q, k, v."""
    if name in TOP_NAMES:
        yield TOP_NAMES[name], values
        return
    _, index, rest = name.split(".", 2)
    if rest in LAYER_NAMES:
        yield f"blk.{index}.{LAYER_NAMES[rest]}", values
        return
    assert rest in ("attention.qkv.weight", "attention.qkv.bias"), name
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    parts = values.split([number * config.head_size for number in heads])
    for theirs, part, num_heads in zip(QKV_NAMES, parts, heads, strict=True):
        turned = family == "llama" and theirs != "attn_v"
        yield f"blk.{index}.{theirs}.{rest.rpartition('.')[2]}", pair_up(part, num_heads) if turned else part


def pair_up(rows: Tensor, num_heads: int) -> Tensor:
    """Rows of a q or k projection (N H, D) reordered so that the pairs that rotary positions turn stand side by side.

    We turn (i, i + H/2) of a head, as Hugging Face does and as llama.cpp does for qwen2 and qwen3; for llama it turns
    (2i, 2i + 1), as the first Llama release did. Scores do not change, for queries and keys are reordered alike.
    """
    return rows.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).reshape(rows.shape)
