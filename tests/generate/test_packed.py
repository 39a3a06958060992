"""Copies packed for decoding: the same model, of every family, and for float32 the same bits in any company."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from jielong.errors import ModelError, UsageError
from jielong.generate.batching import Batcher
from jielong.generate.packed import WEIGHTS, choose_kind, pack
from jielong.generate.quantize import KINDS, available
from jielong.generate.requests import Request
from jielong.generate.sampling import Sampling
from jielong.generate.simple import generate
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.tokenizer.tokenizer import Tokenizer
from jielong.train.lora import LoraConfig, attach

from ..model.conftest import FAMILIES, SIZES, randomise

BYTES = Tokenizer.from_merges([])
DECODERS = [
    name for name, fields in FAMILIES.items() if fields.get("decoder_layers") != 0 and not fields.get("encoder_layers")
]
# Mean difference of log-probabilities from the model's, nats.
GAPS = {"float32": 1e-5, "float16": 0.01, "bfloat16": 0.05, "int8": 0.05, "int4": 0.3}


def build(name: str, **changes: object) -> Transformer:
    sizes = {**SIZES, **FAMILIES[name], "vocab_size": BYTES.vocab_size, "max_length": 64, **changes}
    return randomise(Transformer(ModelConfig(**sizes))).eval()


@pytest.fixture
def threads() -> Iterator[None]:
    """Whatever a test sets, torch has afterwards as many threads as before."""
    num = torch.get_num_threads()
    yield
    torch.set_num_threads(num)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DECODERS)
def test_a_packed_model_says_what_the_model_says(name: str, kind: str) -> None:
    model = build(name)
    tokens = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode():
        found = pack(model, kind)(tokens).float().log_softmax(dim=-1)
        expected = model(tokens).log_softmax(dim=-1)
    assert (found - expected).abs().mean() < GAPS[kind]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model(tokens).requires_grad and model.compute_dtype is None


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_is_served_as_the_oracle_decodes(name: str) -> None:
    """Greedy and drawn, float32: token by token, with neighbours, chunks and the prefix cache at work."""
    model = build(name)
    source = random.Random(3)
    batcher = Batcher(model, BYTES, max_rows=5, prefill_tokens=10)
    requests = []
    for number in range(8):
        prompt = tuple(range(20)) * (number % 2) + tuple(source.randrange(256) for _ in range(source.randint(1, 20)))
        requests.append(Request(prompt, source.randint(2, 20), Sampling(float(number % 2)), seed=number))
    numbers = [batcher.submit(request) for request in requests]
    made: dict[int, list[int]] = {number: [] for number in numbers}
    while not batcher.is_idle:
        for delta in batcher.step():
            made[delta.request] += delta.tokens
    for number, request in zip(numbers, requests, strict=True):
        generator = torch.Generator().manual_seed(request.seed)
        temperature = request.sampling.temperature
        assert made[number] == generate(
            model, request.prompt, request.max_new_tokens, temperature=temperature, generator=generator,
            stop_ids=BYTES.stop_ids,
        )  # fmt: skip
    assert batcher.stats()["cached_tokens"] >= 16


@pytest.mark.skipif(not available("float32"), reason="no oneDNN in this torch: tokens are the same, bits may not be")
@pytest.mark.parametrize(
    ("name", "kind"), [(name, "float32") for name in ("jie", "gpt2", "gpt3", "qwen3")] + [("jie", "float16")]
)
def test_float32_is_the_same_bits_in_any_company(name: str, kind: str) -> None:
    """Wider and longer than the other tests' models: contexts over many blocks, products of 2048 inputs."""
    if not available(kind):
        pytest.skip(f"no {kind} kernel here")
    model = build(name, max_length=400, width=64, head_size=16, num_heads=4, ffn_width=2048, decoder_layers=2)
    source = random.Random(5)
    beginning = tuple(source.randrange(256) for _ in range(200))
    requests = []
    for number in range(6):
        own = tuple(source.randrange(256) for _ in range(source.randint(1, 60)))
        prompt = beginning[: source.choice([0, 40, 200])] + own
        requests.append(Request(prompt, 6, Sampling(), seed=number, logprobs=0, stop_ids=frozenset()))

    def said(batcher: Batcher, asked: list[Request]) -> list[list[tuple[int, float | None]]]:
        numbers = [batcher.submit(request) for request in asked]
        made: dict[int, list[tuple[int, float | None]]] = {number: [] for number in numbers}
        while not batcher.is_idle:
            for delta in batcher.step():
                made[delta.request] += [(entry.id, entry.logprob) for entry in delta.logprobs]
        return list(made.values())

    alone = [
        said(Batcher(model, BYTES, cache_bytes=0, prefill_tokens=1000, weights=kind), [request])[0]
        for request in requests
    ]
    for prefill_tokens in (7, 64):
        assert said(Batcher(model, BYTES, prefill_tokens=prefill_tokens, max_rows=4, weights=kind), requests) == alone


def test_what_is_not_packed() -> None:
    model = build("jie")
    with pytest.raises(UsageError, match="'int5'; legal are auto, float32"):
        pack(model, "int5")
    with pytest.raises(ModelError, match="'scalar' head"):
        pack(Transformer(replace(model.config, head="scalar")), "float32")
    with pytest.raises(UsageError, match="on meta"):
        pack(model.to("meta"), "float32")
    assert WEIGHTS[0] == "auto"


def test_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("jie")
    assert choose_kind(model) == "float32"  # it is small
    monkeypatch.setattr("jielong.generate.packed._SMALL_PARAMETERS", 0)
    seen = []
    monkeypatch.setattr("jielong.generate.packed.fastest", lambda weights: seen.append(len(weights)) or "bfloat16")
    assert pack(model, "auto").compute_dtype == torch.bfloat16
    assert seen == [5 * model.config.decoder_layers]


@pytest.mark.parametrize(
    ("activation", "width", "num_threads"),
    [("swiglu", 688, 2), ("swiglu", 688, 3), ("geglu", 684, 2), ("silu", 688, 4), ("silu", 684, 1), ("gelu", 688, 3),
     ("gelu_tanh", 1000, 3)],
)  # fmt: skip
@torch.inference_mode()
def test_no_row_is_cut_among_threads(activation: str, width: int, num_threads: int, threads: None) -> None:
    """As of 49 rows the second of two threads begins within one; nor do vectors go on from row to row."""
    ffn = pack(build("jie", activation=activation, ffn_width=width), "float32").layers[0].ffn
    row = 0.5 * torch.randn(1, 1, SIZES["width"], generator=torch.Generator().manual_seed(1))
    expected = ffn(row.repeat(1, 4, 1))[:, :1]
    torch.set_num_threads(num_threads)
    for num_rows in (5, 48, 49, 53, 128, 191):
        assert torch.equal(ffn(row.repeat(1, num_rows, 1)), expected.expand(1, num_rows, -1)), num_rows
        assert torch.equal(ffn(row.repeat(num_rows, 1, 1)), expected.expand(num_rows, 1, -1)), num_rows


def test_a_model_with_an_adapter_in_place_is_refused() -> None:
    model = build(DECODERS[0])
    attach(model, LoraConfig(2, 4.0, ("q",)), torch.Generator().manual_seed(1))
    with pytest.raises(UsageError, match="AdaptedLinear; merge"):
        pack(model, "float32")
