"""How much memory training and generating take, from the config alone. Estimates: docs/speed.md sets them beside it."""

from __future__ import annotations

from jielong.errors import UsageError
from jielong.model.config import ModelConfig
from jielong.model.kernels import KEPT_LENGTH
from jielong.model.logprobs import CHUNK_BYTES, CHUNK_BYTES_ELSEWHERE
from jielong.plan.count import count_parameters, num_cross_layers

WEIGHT_BYTES = 4  # weights, gradients and both moments of AdamW are float32
CHUNK_COPIES = 4  # of a chunk of logits: in the compute dtype, in float32, as probabilities, as gradients
HIDDEN_TOKENS = 0.15  # of a masked language model's tokens have logits, all at once
# int8 and int4: a 16-bit scale for every 32 weights, as llama.cpp's Q8_0 and Q4_0 have it.
WEIGHT_BITS = {"float32": 32.0, "bfloat16": 16.0, "int8": 8.5, "int4": 4.5}
# ddp: every device holds everything. zero-2: gradients and moments are divided among the devices. fsdp: weights too.
# Rajbhandari et al. 2019, arXiv:1910.02054, figure 1: plain data parallelism, P_os+g, P_os+g+p.
SHARDINGS = ("ddp", "zero-2", "fsdp")


def training_memory(
    config: ModelConfig,
    batch_tokens: int,
    length: int,
    compute_bytes: int = 2,
    sharding: str = "ddp",
    num_devices: int = 1,
    recompute: bool = False,
) -> dict[str, int]:
    """Bytes by part, on each device, while training on batch_tokens tokens at once there (one micro-batch).

    length: of a row. compute_bytes: 2 for bfloat16, 4 for float32. With two stacks, batch_tokens on either side.
    activations: what the forward pass keeps for the backward one, see `_kept_bytes`; with recompute only the stream
    that enters each layer, and one layer whole: a third more operations, which MFU does not count. working: the
    gradients of what one layer keeps, while the backward pass is in it. copies: the weights cast to bfloat16; with
    "fsdp" instead the largest two units gathered in the compute dtype, one in use and one on its way. logits: chunks of
    them, and the gradients of the loss, which are made on the way forward.
    All parts are there at once where gradients of an earlier micro-batch are; see `training_memory_bytes`.
    Raises UsageError for an unknown sharding.
    """
    if sharding not in SHARDINGS:
        raise UsageError(f"sharding is {sharding!r}; legal are {', '.join(SHARDINGS)}")
    num_parameters = sum(count_parameters(config).values())
    mine = -(-num_parameters // num_devices)  # this device's part
    whole = WEIGHT_BYTES * num_parameters
    copies = compute_bytes * num_parameters if compute_bytes < WEIGHT_BYTES else 0
    return {
        "weights": WEIGHT_BYTES * mine if sharding == "fsdp" else whole,
        "gradients": whole if sharding == "ddp" else WEIGHT_BYTES * mine,
        "optimizer": 2 * (whole if sharding == "ddp" else WEIGHT_BYTES * mine),
        "copies": 2 * _largest_unit(config) * compute_bytes if sharding == "fsdp" and num_devices > 1 else copies,
        "activations": batch_tokens * _kept_bytes(config, length, compute_bytes, recompute),
        "working": batch_tokens * _kept_bytes(config, length, compute_bytes, False) // _num_layers(config),
        "logits": _logits_bytes(config, batch_tokens, compute_bytes, CHUNK_BYTES_ELSEWHERE),
    }


def _num_layers(config: ModelConfig) -> int:
    return config.encoder_layers + config.decoder_layers


def _logits_bytes(config: ModelConfig, batch_tokens: int, compute_bytes: int, chunk_bytes: int) -> int:
    """Of a language model chunks of float32 logits of chunk_bytes, and the gradients of hidden states and unembedding.

    Of a masked one the logits of all hidden tokens. Other heads make few numbers a row.
    """
    if config.head == "masked_lm":
        return round(HIDDEN_TOKENS * batch_tokens) * config.vocab_size * (compute_bytes + 4)
    if config.head != "lm":
        return 0
    chunks = CHUNK_COPIES * min(batch_tokens * config.vocab_size * 4, chunk_bytes)
    return chunks + batch_tokens * config.width * compute_bytes + WEIGHT_BYTES * config.vocab_size * config.width


def _largest_unit(config: ModelConfig) -> int:
    """Parameters of what is gathered at once: a layer, or the embedding where that is larger."""
    parts = count_parameters(config)
    return max((parts["attention"] + parts["ffn"] + parts["router"]) // _num_layers(config), parts["embedding"])


def _kept_bytes(config: ModelConfig, length: int, compute_bytes: int, recompute: bool) -> int:
    """Bytes a token that the forward pass keeps.

    Each layer: the residual stream twice (float32), each norm's output, q k v and their turned copies, the attention
    output, gate (if any), up and their product, for each expert that the token is sent to, with its rows before and
    after; and probabilities where attention is explicit. Cross-attention: the stream once more, q, k, v, the output.
    """
    width, heads = config.width, config.num_heads * config.head_size
    kv_heads = config.num_kv_heads * config.head_size
    ffn = (3 if config.gated else 2) * config.ffn_width * max(1, config.experts_per_token)
    extra = 3 * width * config.experts_per_token + (2 * width if config.norm_at == "both" else 0)
    extra += 2 * width if config.dropout else 0
    same = 2 * width * 4 + (2 * width + 2 * heads + 2 * (heads + 2 * kv_heads) + ffn + extra) * compute_bytes
    encoder = same + _probabilities(config, length, causal=False) * compute_bytes
    decoder = same + _probabilities(config, length, causal=True) * compute_bytes
    if num_cross_layers(config):
        kept = width + 2 * heads + 2 * kv_heads + _probabilities(config, length, causal=False)
        decoder += width * 4 + kept * compute_bytes
    stacks = bool(config.encoder_layers) + bool(config.decoder_layers)
    if recompute:
        whole = max(encoder if config.encoder_layers else 0, decoder if config.decoder_layers else 0)
        streams = (config.encoder_layers + config.decoder_layers) * width * 4
        return streams + whole + stacks * 2 * width * 4
    return config.encoder_layers * encoder + config.decoder_layers * decoder + stacks * 2 * width * 4


def fp8_saving(config: ModelConfig, batch_tokens: int) -> dict[str, int]:
    """Bytes by part that training in bfloat16 does not hold where linear layers multiply in 8 bits (train/fp8.py).

    Such a layer keeps its input and its weights for the way back in one byte a number instead of two. But gate and up
    have each an input of their own, which else they share, and a ReLU keeps what goes into down for itself. Layers
    whose widths the kernels do not take, and experts, save nothing.
    """
    width, heads = config.width, config.num_heads * config.head_size
    kv_heads = config.num_kv_heads * config.head_size
    # of each linear layer of self-attention and feed-forward: numbers in, numbers out, bytes fewer of each number in
    own = [(width, heads + 2 * kv_heads, 1), (heads, width, 1)]
    if not config.num_experts:
        own += [(width, config.ffn_width, 0)] * 2 if config.gated else [(width, config.ffn_width, 1)]
        own.append((config.ffn_width, width, -1 if config.activation == "relu" else 1))
    across = [(width, heads, 1), (width, 2 * kv_heads, 0), (heads, width, 1)]  # the source is not in the plan
    saved = {"copies": 0, "activations": 0}
    for layers, products in ((_num_layers(config), own), (num_cross_layers(config), across)):
        for num_in, num_out, fewer in products:
            if num_in % 16 == num_out % 16 == 0:
                saved["copies"] += layers * num_in * num_out
                saved["activations"] += layers * batch_tokens * num_in * fewer
    return saved


def _probabilities(config: ModelConfig, length: int, causal: bool) -> int:
    """Numbers a token and layer of the explicit attention: about half of all keys where the future is skipped.

    It is explicit in rows up to KEPT_LENGTH, and in all rows of a model whose scores are capped. Written out step by
    step, for the cap or for dropout on its weights, it keeps more than one number a key. Longer rows with that dropout
    are counted as on a GPU; on a CPU torch's own kernel keeps the numbers for them too.
    """
    everything = config.num_heads * length
    if config.attention_softcap or (config.attention_dropout and length <= KEPT_LENGTH):
        return 5 * everything // 2
    if length > KEPT_LENGTH:
        return 0
    return config.num_heads * (length + 64) // 2 if causal else everything


def training_memory_bytes(
    config: ModelConfig,
    batch_tokens: int,
    length: int,
    compute_bytes: int = 2,
    accumulate: int = 1,
    fp8: bool = False,
) -> int:
    """The most that training on a CPU holds at once, beside what Python and its libraries do.

    accumulate: micro-batches a step. With one, gradients come as fast as activations go, and the smaller of the two
    fits into the place of the larger. fp8: linear layers multiply in 8 bits, as they do on a GPU.
    """
    parts = training_memory(config, batch_tokens, length, compute_bytes)
    if fp8:
        for part, saved in fp8_saving(config, batch_tokens).items():
            parts[part] -= saved
    parts["logits"] = _logits_bytes(config, batch_tokens, compute_bytes, CHUNK_BYTES)
    shared = min(parts["gradients"], parts["activations"]) if accumulate == 1 else 0
    return sum(parts.values()) - shared


def least_devices(config: ModelConfig, length: int, memory_bytes: int) -> int | None:
    """The least power of two of devices that hold the model while it trains; None where no number of them does.

    With fsdp, bfloat16, recomputation and one row of `length` on each, which is not divided.
    """
    for exponent in range(17):
        if sum(training_memory(config, length, length, 2, "fsdp", 2**exponent, True).values()) <= memory_bytes:
            return int(2**exponent)
    return None


def weight_bytes(config: ModelConfig, form: str) -> int:
    """Bytes of the weights as `form`, one of WEIGHT_BITS; all of them, for all experts have to be held."""
    return round(sum(count_parameters(config).values()) * WEIGHT_BITS[form] / 8)


def cache_bytes(config: ModelConfig, batch: int, length: int, compute_bytes: int = 2) -> int:
    """Bytes of keys and values held while generating: `batch` rows of `length` tokens.

    With two stacks also those of cross-attention, for sources of `length`. Windows do not make it smaller: the cache
    keeps what has left them.
    """
    layers = config.decoder_layers + num_cross_layers(config)
    return 2 * layers * config.num_kv_heads * config.head_size * batch * length * compute_bytes


def serving_memory(config: ModelConfig, form: str, batch: int, length: int) -> dict[str, int]:
    """{"weights", "cache"} in bytes; keys and values are float32 beside float32 weights, bfloat16 beside others."""
    compute_bytes = 4 if form == "float32" else 2
    return {"weights": weight_bytes(config, form), "cache": cache_bytes(config, batch, length, compute_bytes)}
