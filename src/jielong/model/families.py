"""Every architecture of Hugging Face's that we read and write, as literal tables: `family.py` says what they mean.

Where theirs differ from what their config suggests, a comment says so. Source: transformers 5.23, the configuration and
modelling files of each family, and the hub's folders, whose names and keys are older in places.
"""

from __future__ import annotations

from jielong.model.family import Family
from jielong.model.llamas import LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE

_PLAIN_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_BIASES = {"qkv_bias": True, "out_bias": True, "ffn_bias": True}
_GPT_KEYS = {
    "vocab_size": ("vocab_size", ...),
    "n_positions": ("max_length", ...),
    "n_embd": ("width", ...),
    "n_layer": ("decoder_layers", ...),
    "n_head": ("num_heads", ...),
    "embd_pdrop": ("dropout", 0.1),
    "resid_pdrop": ("dropout", 0.1),
    "attn_pdrop": ("attention_dropout", 0.1),
    "layer_norm_epsilon": ("norm_eps", 1e-5),
    "initializer_range": ("init_std", 0.02),
    "tie_word_embeddings": ("tie_embeddings", True),
}
# How the head of several choices reads a row: its last token, one linear map, no activation.
_GPT_SUMMARY = {
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "summary_activation": None,
    "summary_proj_to_labels": True,
}
_GPT_IGNORED = ("summary_first_dropout", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id")
_GPT_NAMES: dict[str, str | tuple[str, ...]] = {
    "layers.{i}.attention_norm": "transformer.h.{i}.ln_1",
    "layers.{i}.attention.qkv": "transformer.h.{i}.attn.c_attn",
    "layers.{i}.attention.out": "transformer.h.{i}.attn.c_proj",
    "layers.{i}.ffn_norm": "transformer.h.{i}.ln_2",
    "layers.{i}.ffn.up": "transformer.h.{i}.mlp.c_fc",
    "layers.{i}.ffn.down": "transformer.h.{i}.mlp.c_proj",
    "unembedding": "lm_head",
    "score": "score",
    "classifier": "score",
    "choice/classifier": "multiple_choice_head.summary",
}
# A number added to all candidates alike; ours has none.
_CHOICE_BIAS = {"choice": {"multiple_choice_head.summary.bias": (1,)}}
_CONV1D = (
    "layers.{i}.attention.qkv.weight",
    "layers.{i}.attention.out.weight",
    "layers.{i}.ffn.up.weight",
    "layers.{i}.ffn.down.weight",
)

GPT2 = Family(
    model_type="gpt2",
    architectures={
        "GPT2LMHeadModel": "lm",
        "GPT2ForSequenceClassification": "labels",
        "GPT2DoubleHeadsModel": "choice",
        "GPT2Model": "lm",
    },
    keys={**_GPT_KEYS, "n_inner": ("ffn_width", None)},
    choices={"activation_function": ("activation", "gelu_new", _PLAIN_ACTIVATIONS)},
    fixed={
        **_GPT_SUMMARY,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    implied={"positions": "learned", "norm": "layer", "norm_at": "pre", **_BIASES},
    ignored=(*_GPT_IGNORED, "reorder_and_upcast_attn"),  # the latter is the same in float32
    prefix="transformer.",
    names={**_GPT_NAMES, "embed": "transformer.wte", "positions": "transformer.wpe", "norm": "transformer.ln_f"},
    transposed=_CONV1D,
    zeros=tuple(_BIASES),
    constants=_CHOICE_BIAS,
    skipped=(".attn.bias", ".attn.masked_bias"),  # the causal mask
)
OPENAI_GPT = Family(
    model_type="openai-gpt",
    architectures={
        "OpenAIGPTLMHeadModel": "lm",
        "OpenAIGPTForSequenceClassification": "labels",
        "OpenAIGPTDoubleHeadsModel": "choice",
        "OpenAIGPTModel": "lm",
    },
    keys=_GPT_KEYS,
    # Their "gelu" is the tanh form here, and their exact form has no name.
    choices={
        "afn": (
            "activation",
            "gelu",
            {"gelu": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"},
        )
    },
    fixed=_GPT_SUMMARY,
    implied={"positions": "learned", "norm": "layer", "norm_at": "post", **_BIASES},
    ignored=_GPT_IGNORED,
    prefix="transformer.",
    names={**_GPT_NAMES, "embed": "transformer.tokens_embed", "positions": "transformer.positions_embed"},
    transposed=_CONV1D,
    zeros=tuple(_BIASES),
    constants=_CHOICE_BIAS,
    skipped=(".attn.bias", "position_ids"),
)

_BERT_LAYER = "bert.encoder.layer.{i}."
_BERT_QUERY = _BERT_LAYER + "attention.self."
BERT = Family(
    model_type="bert",
    architectures={
        "BertForPreTraining": "masked_lm",
        "BertForMaskedLM": "masked_lm",
        "BertForSequenceClassification": "classes",
        "BertForMultipleChoice": "choice",
        "BertForQuestionAnswering": "span",
        "BertModel": "classes",
    },
    keys={
        "vocab_size": ("vocab_size", ...),
        "max_position_embeddings": ("max_length", ...),
        "hidden_size": ("width", ...),
        "num_hidden_layers": ("encoder_layers", ...),
        "num_attention_heads": ("num_heads", ...),
        "intermediate_size": ("ffn_width", ...),
        "hidden_dropout_prob": ("dropout", 0.1),
        "classifier_dropout": ("dropout", None),
        "attention_probs_dropout_prob": ("attention_dropout", 0.1),
        "layer_norm_eps": ("norm_eps", 1e-12),
        "type_vocab_size": ("token_types", 2),
        "initializer_range": ("init_std", 0.02),
    },
    choices={"hidden_act": ("activation", "gelu", _PLAIN_ACTIVATIONS)},
    fixed={
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    implied={
        "decoder_layers": 0,
        "positions": "learned",
        "norm": "layer",
        "norm_at": "post",
        "embedding_norm": True,
        "logit_bias": True,
        **_BIASES,
    },
    ignored=("use_cache", "pad_token_id", "bos_token_id", "eos_token_id"),
    prefix="bert.",
    names={
        "embed": "bert.embeddings.word_embeddings",
        "positions": "bert.embeddings.position_embeddings",
        "token_types": "bert.embeddings.token_type_embeddings",
        "embedding_norm": "bert.embeddings.LayerNorm",
        "encoder.{i}.attention.qkv": (_BERT_QUERY + "query", _BERT_QUERY + "key", _BERT_QUERY + "value"),
        "encoder.{i}.attention.out": _BERT_LAYER + "attention.output.dense",
        "encoder.{i}.attention_norm": _BERT_LAYER + "attention.output.LayerNorm",
        "encoder.{i}.ffn.up": _BERT_LAYER + "intermediate.dense",
        "encoder.{i}.ffn.down": _BERT_LAYER + "output.dense",
        "encoder.{i}.ffn_norm": _BERT_LAYER + "output.LayerNorm",
        "pooler": "bert.pooler.dense",
        "transform": "cls.predictions.transform.dense",
        "transform_norm": "cls.predictions.transform.LayerNorm",
        "logit_bias": "cls.predictions.bias",
        "next_sentence": "cls.seq_relationship",
        "classifier": "classifier",
        "span/classifier": "qa_outputs",
    },
    zeros=tuple(_BIASES),
    renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    skipped=("position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),  # tied
    fresh={"BertForMaskedLM": ("pooler", "next_sentence"), "BertModel": ("pooler", "classifier")},
)

_TARGET, _SOURCE = "model.decoder.layers.{i}.", "model.encoder.layers.{i}."
_SELF, _CROSS, _READ = _TARGET + "self_attn.", _TARGET + "encoder_attn.", _SOURCE + "self_attn."
MARIAN = Family(
    model_type="marian",
    architectures={"MarianMTModel": "lm"},
    keys={
        "vocab_size": ("vocab_size", ...),
        "max_position_embeddings": ("max_length", ...),
        "d_model": ("width", ...),
        "encoder_layers": ("encoder_layers", ...),
        "decoder_layers": ("decoder_layers", ...),
        "decoder_attention_heads": ("num_heads", ...),
        "encoder_attention_heads": ("num_heads", ...),
        "decoder_ffn_dim": ("ffn_width", ...),
        "encoder_ffn_dim": ("ffn_width", ...),
        "decoder_vocab_size": ("vocab_size", None),
        "dropout": ("dropout", 0.1),
        "attention_dropout": ("attention_dropout", 0.0),
        "init_std": ("init_std", 0.02),
    },
    choices={"activation_function": ("activation", "gelu", _PLAIN_ACTIVATIONS)},
    fixed={
        "tie_word_embeddings": True,  # else their encoder and decoder have embeddings of their own as well
        "share_encoder_decoder_embeddings": True,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "normalize_before": False,
        "normalize_embedding": False,
        "add_final_layer_norm": False,
        "is_encoder_decoder": True,
        "is_decoder": False,
    },
    implied={
        "positions": "sinusoidal",
        "norm": "layer",
        "norm_at": "post",
        "norm_eps": 1e-5,
        "logit_bias": True,
        **_BIASES,
    },
    ignored=(
        "use_cache",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "decoder_start_token_id",
        "forced_eos_token_id",
    ),
    scale="scale_embedding",
    prefix="model.",
    names={
        "embed": "model.shared",
        "encoder.{i}.attention.qkv": (_READ + "q_proj", _READ + "k_proj", _READ + "v_proj"),
        "encoder.{i}.attention.out": _READ + "out_proj",
        "encoder.{i}.attention_norm": _SOURCE + "self_attn_layer_norm",
        "encoder.{i}.ffn.up": _SOURCE + "fc1",
        "encoder.{i}.ffn.down": _SOURCE + "fc2",
        "encoder.{i}.ffn_norm": _SOURCE + "final_layer_norm",
        "layers.{i}.attention.qkv": (_SELF + "q_proj", _SELF + "k_proj", _SELF + "v_proj"),
        "layers.{i}.attention.out": _SELF + "out_proj",
        "layers.{i}.attention_norm": _TARGET + "self_attn_layer_norm",
        "layers.{i}.cross.q": _CROSS + "q_proj",
        "layers.{i}.cross.kv": (_CROSS + "k_proj", _CROSS + "v_proj"),
        "layers.{i}.cross.out": _CROSS + "out_proj",
        "layers.{i}.cross_norm": _TARGET + "encoder_attn_layer_norm",
        "layers.{i}.ffn.up": _TARGET + "fc1",
        "layers.{i}.ffn.down": _TARGET + "fc2",
        "layers.{i}.ffn_norm": _TARGET + "final_layer_norm",
        "logit_bias": "final_logits_bias",
    },
    leading=("logit_bias",),
    zeros=(*_BIASES, "logit_bias"),
    skipped=(
        "embed_positions.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "lm_head.weight",
    ),  # made, shared
)

# A model is written as the first that says all of it.
FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, MIXTRAL, QWEN3_MOE, GPT2, OPENAI_GPT, BERT, MARIAN)
