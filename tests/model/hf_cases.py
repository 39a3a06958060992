"""Tiny random models of `transformers`, one for each shape that we read, shared by the tests of the model folder."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

VOCAB, LENGTH, PAD = 61, 64, 60

_ROTARY = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": LENGTH, "pad_token_id": PAD, "bos_token_id": 1,
    "eos_token_id": 2, "initializer_range": 0.2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
_GPT = {
    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD,
}  # fmt: skip
_BERT = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": LENGTH, "pad_token_id": PAD, "initializer_range": 0.2,
}  # fmt: skip
_MARIAN = {
    "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": LENGTH,
    "pad_token_id": PAD, "decoder_start_token_id": PAD, "eos_token_id": 2, "bos_token_id": 1, "init_std": 0.2,
    "forced_eos_token_id": None,
}  # fmt: skip
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

# name -> (class, model_type of its config, settings)
DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "llama", _ROTARY),
    "llama-tied-mha": ("LlamaForCausalLM", "llama", {**_ROTARY, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama-one-kv-head": ("LlamaForCausalLM", "llama", {**_ROTARY, "num_key_value_heads": 1, "head_dim": 6}),
    "llama-biases": ("LlamaForCausalLM", "llama", {**_ROTARY, "attention_bias": True, "mlp_bias": True}),
    "llama-3.1": ("LlamaForCausalLM", "llama", {**_ROTARY, "rope_parameters": _LLAMA3}),
    "mistral": ("MistralForCausalLM", "mistral", {**_ROTARY, "sliding_window": 5, "head_dim": 12}),
    "mistral-odd-heads": ("MistralForCausalLM", "mistral", {
        **_ROTARY, "sliding_window": None, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 12}),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", _ROTARY),
    "qwen2-tied": ("Qwen2ForCausalLM", "qwen2", {**_ROTARY, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", {**_ROTARY, "head_dim": 12}),
    "qwen3-biases": ("Qwen3ForCausalLM", "qwen3", {**_ROTARY, "head_dim": 8, "attention_bias": True}),
    "mixtral": ("MixtralForCausalLM", "mixtral", {**_ROTARY, **_EXPERTS}),
    "mixtral-window": ("MixtralForCausalLM", "mixtral", {**_ROTARY, **_EXPERTS, "sliding_window": 5}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", "qwen3_moe", {
        **_ROTARY, **_EXPERTS, "head_dim": 8, "moe_intermediate_size": 24, "norm_topk_prob": False}),
    "qwen3-moe-normalised": ("Qwen3MoeForCausalLM", "qwen3_moe", {
        **_ROTARY, **_EXPERTS, "head_dim": 8, "moe_intermediate_size": 24, "norm_topk_prob": True}),
    "gpt2": ("GPT2LMHeadModel", "gpt2", _GPT),
    "gpt2-inner": ("GPT2LMHeadModel", "gpt2", {**_GPT, "n_inner": 40, "activation_function": "relu"}),
    "gpt2-untied": ("GPT2LMHeadModel", "gpt2", {**_GPT, "tie_word_embeddings": False}),
    "gpt1": ("OpenAIGPTLMHeadModel", "openai-gpt", _GPT),
}  # fmt: skip
SCORERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama-scalar": ("LlamaForSequenceClassification", "llama", {**_ROTARY, "num_labels": 1}),
    "llama-classes": ("LlamaForSequenceClassification", "llama", {**_ROTARY, "num_labels": 3}),
    "mistral-scalar": ("MistralForSequenceClassification", "mistral", {**_ROTARY, "num_labels": 1}),
    "qwen2-scalar": ("Qwen2ForSequenceClassification", "qwen2", {**_ROTARY, "num_labels": 1}),
    "qwen3-classes": ("Qwen3ForSequenceClassification", "qwen3", {**_ROTARY, "head_dim": 8, "num_labels": 3}),
    "mixtral-scalar": ("MixtralForSequenceClassification", "mixtral", {**_ROTARY, **_EXPERTS, "num_labels": 1}),
    "qwen3-moe-scalar": ("Qwen3MoeForSequenceClassification", "qwen3_moe", {
        **_ROTARY, **_EXPERTS, "head_dim": 8, "moe_intermediate_size": 24, "num_labels": 1}),
    "gpt2-classes": ("GPT2ForSequenceClassification", "gpt2", {**_GPT, "num_labels": 3}),
    "gpt2-scalar": ("GPT2ForSequenceClassification", "gpt2", {**_GPT, "num_labels": 1}),
    "gpt1-classes": ("OpenAIGPTForSequenceClassification", "openai-gpt", {**_GPT, "num_labels": 3}),
}  # fmt: skip
BERTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForPreTraining", "bert", _BERT),
    "bert-tanh": ("BertForPreTraining", "bert", {**_BERT, "hidden_act": "gelu_new", "type_vocab_size": 3}),
    "bert-masked": ("BertForMaskedLM", "bert", _BERT),
    "bert-classes": ("BertForSequenceClassification", "bert", {**_BERT, "num_labels": 3}),
    "bert-choice": ("BertForMultipleChoice", "bert", _BERT),
    "bert-span": ("BertForQuestionAnswering", "bert", _BERT),
    "bert-bare": ("BertModel", "bert", _BERT),
}
TRANSLATORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "marian": ("MarianMTModel", "marian", {**_MARIAN, "scale_embedding": True, "activation_function": "swish"}),
    "marian-relu": ("MarianMTModel", "marian", {**_MARIAN, "activation_function": "relu"}),
}
CHOOSERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt1-choice": ("OpenAIGPTDoubleHeadsModel", "openai-gpt", _GPT),
    "gpt2-choice": ("GPT2DoubleHeadsModel", "gpt2", _GPT),
}
CASES = {**DECODERS, **SCORERS, **BERTS, **TRANSLATORS, **CHOOSERS}


def make_theirs(case: str, vocab_size: int = VOCAB) -> Any:
    """Their model in eval mode. Biases and norms are random too: one left out, or two exchanged, must show."""
    name, model_type, settings = CASES[case]
    torch.manual_seed(sum(map(ord, case)))
    config = transformers.AutoConfig.for_model(model_type, **{**settings, "vocab_size": vocab_size})
    model = transformers.__dict__.get(name) or getattr(transformers, name)
    theirs = model(config).eval()
    with torch.no_grad():
        for tensor in (*theirs.parameters(), *(b for n, b in theirs.named_buffers() if n == "final_logits_bias")):
            if tensor.dim() == 1 or tensor.shape[0] == 1:
                tensor.add_(0.1 * torch.randn(tensor.shape))
    return theirs


def padded(side: str, rows: int = 3, length: int = 20) -> tuple[Tensor, Tensor]:
    """(tokens (B, T), segments (B, T)): rows of several lengths, padding at one side; "none" for no padding.

    No token is PAD, in the padding neither: whoever looks at it must be told by the segments alone.
    """
    tokens = torch.randint(3, PAD, (rows, length), generator=torch.Generator().manual_seed(7))
    lengths = torch.tensor([length] * rows if side == "none" else [length, length - 7, 4][:rows])
    index = torch.arange(length)
    real = index < lengths[:, None] if side != "left" else index >= length - lengths[:, None]
    return tokens, real.long()
