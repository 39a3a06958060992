"""Every option against a Transformer written out from the papers: one document and one head at a time."""

from __future__ import annotations

import cmath
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from jielong.model import kernels
from jielong.model.config import ACTIVATIONS, ModelConfig, RopeScaling
from jielong.model.transformer import Transformer


class Reference:
    """The forward pass of one document, in the words of the papers. Shares no code with the package."""

    def __init__(self, model: Transformer) -> None:
        self.config = model.config
        self.state = dict(model.named_parameters())

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.state[f"{name}.weight"].T
        return y + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else y

    def norm(self, name: str, x: Tensor, kind: str | None = None) -> Tensor:
        weight, eps = self.state[f"{name}.weight"], self.config.norm_eps
        if (kind or self.config.norm) == "rms":
            return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + self.state[f"{name}.bias"]

    def curve(self, x: Tensor) -> Tensor:
        if self.config.activation == "relu":
            return torch.where(x > 0, x, 0 * x)
        if self.config.activation == "gelu":
            return x * (1 + torch.erf(x / math.sqrt(2))) / 2
        if self.config.activation in ("swiglu", "silu"):
            return x / (1 + torch.exp(-x))
        return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2

    def turned(self, x: Tensor) -> Tensor:
        """x (T, N, H): pair j of a head is the complex number x[j] + i x[j + H/2], turned by position * frequency."""
        size, config = x.shape[-1], self.config
        factors = []
        for j in range(size // 2):
            frequency, scaling = config.rope_base ** (-2 * j / size), config.rope_scaling
            if scaling is not None:
                wavelength = 2 * math.pi / frequency
                if wavelength > scaling.original_length / scaling.low_frequency:
                    frequency /= scaling.factor
                elif wavelength >= scaling.original_length / scaling.high_frequency:
                    kept = scaling.original_length / wavelength - scaling.low_frequency
                    kept /= scaling.high_frequency - scaling.low_frequency
                    frequency = (1 - kept) * frequency / scaling.factor + kept * frequency
            factors.append([cmath.exp(1j * position * frequency) for position in range(len(x))])
        table = torch.tensor(factors, dtype=torch.complex128).T[:, None]  # (T, 1, H/2)
        turned = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * table
        return torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Any) -> Tensor:
        """q (T, N, H), k and v (S, K, H), visible(t, s) -> bool. Gives (T, N H)."""
        seen = torch.tensor([[visible(t, s) for s in range(len(k))] for t in range(len(q))])
        heads = []
        for n in range(self.config.num_heads):
            kv = n * self.config.num_kv_heads // self.config.num_heads
            scores = q[:, n] @ k[:, kv].T / math.sqrt(self.config.head_size)  # (T, S)
            if self.config.attention_softcap:
                scores = self.config.attention_softcap * torch.tanh(scores / self.config.attention_softcap)
            odds = torch.exp(scores) * seen
            heads.append(odds / odds.sum(-1, keepdim=True) @ v[:, kv])
        return torch.cat(heads, dim=1)

    def self_attention(self, name: str, x: Tensor, causal: bool, window: int) -> Tensor:
        config = self.config
        mixed = self.linear(f"{name}.qkv", x).view(len(x), -1, config.head_size)
        q, k, v = mixed.split([config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=1)
        if config.qk_norm:
            q, k = self.norm(f"{name}.q_norm", q, "rms"), self.norm(f"{name}.k_norm", k, "rms")
        if config.positions == "rotary":
            q, k = self.turned(q), self.turned(k)
        seen = lambda t, s: not causal or (s <= t and (not window or t - s < window))  # noqa: E731
        return self.linear(f"{name}.out", self.attend(q, k, v, seen))

    def cross_attention(self, name: str, x: Tensor, memory: Tensor) -> Tensor:
        q = self.linear(f"{name}.q", x).view(len(x), -1, self.config.head_size)
        k, v = self.linear(f"{name}.kv", memory).view(len(memory), -1, self.config.head_size).chunk(2, dim=1)
        return self.linear(f"{name}.out", self.attend(q, k, v, lambda t, s: True))

    def feed_forward(self, name: str, x: Tensor) -> Tensor:
        if self.config.num_experts:
            return torch.stack([self.experts(name, row) for row in x])
        up = self.linear(f"{name}.up", x)
        gated = self.config.activation in ("swiglu", "geglu")
        return self.linear(f"{name}.down", self.curve(self.linear(f"{name}.gate", x)) * up if gated else self.curve(up))

    def experts(self, name: str, x: Tensor) -> Tensor:
        logits = self.state[f"{name}.router.weight"] @ x
        probabilities = torch.exp(logits) / torch.exp(logits).sum()
        chosen = sorted(range(len(logits)), key=(-logits).tolist().__getitem__)[: self.config.experts_per_token]
        total = sum(probabilities[e] for e in chosen) if self.config.normalise_experts else 1.0
        said = torch.zeros_like(x)
        for e in chosen:
            inner = self.state[f"{name}.up"][e] @ x
            if f"{name}.gate" in self.state:
                inner = self.curve(self.state[f"{name}.gate"][e] @ x) * inner
            else:
                inner = self.curve(inner)
            said = said + probabilities[e] / total * (self.state[f"{name}.down"][e] @ inner)
        return said

    def add(self, layer: str, part: str, x: Tensor, function: Any) -> Tensor:
        if self.config.norm_at == "post":
            return self.norm(f"{layer}.{part}_norm", x + function(x))
        y = function(self.norm(f"{layer}.{part}_norm", x))
        return x + (self.norm(f"{layer}.{part}_post_norm", y) if self.config.norm_at == "both" else y)

    def embed(self, tokens: Tensor, types: Tensor | None) -> Tensor:
        config, rows = self.config, []
        for position, token in enumerate(tokens.tolist()):
            row = self.state["embed.weight"][token] * config.embedding_scale
            if config.positions == "learned":
                row = row + self.state["positions.weight"][position]
            if config.positions == "sinusoidal":
                angles = [position / 10000 ** (2 * i / config.width) for i in range(config.width // 2)]
                row = row + torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
            if config.token_types:
                row = row + self.state["token_types.weight"][0 if types is None else int(types[position])]
            rows.append(row)
        x = torch.stack(rows)
        return self.norm("embedding_norm", x) if config.embedding_norm else x

    def stack(self, prefix: str, x: Tensor, causal: bool, memory: Tensor | None = None) -> Tensor:
        config = self.config
        for i in range(config.decoder_layers if causal else config.encoder_layers):
            layer, window = f"{prefix}.{i}", config.windows[i % len(config.windows)] if causal else 0
            x = self.add(layer, "attention", x, lambda y: self.self_attention(f"{layer}.attention", y, causal, window))  # noqa: B023
            if memory is not None:
                x = self.add(layer, "cross", x, lambda y: self.cross_attention(f"{layer}.cross", y, memory))  # noqa: B023
            x = self.add(layer, "ffn", x, lambda y: self.feed_forward(f"{layer}.ffn", y))  # noqa: B023
        final = "norm" if causal else "encoder_norm"
        return x if config.norm_at == "post" else self.norm(final, x)

    def logits(self, tokens: Tensor, source: Tensor, types: Tensor | None) -> Tensor:
        config = self.config
        if not config.decoder_layers:
            hidden = self.stack("encoder", self.embed(tokens, types), causal=False)
            hidden = self.norm("transform_norm", self.curve(self.linear("transform", hidden)))
        else:
            memory = self.stack("encoder", self.embed(source, None), causal=False) if config.encoder_layers else None
            hidden = self.stack("layers", self.embed(tokens, None), causal=True, memory=memory)
        matrix = self.state["embed.weight" if config.tie_embeddings else "unembedding.weight"]
        logits = config.logit_scale * (hidden @ matrix.T)
        return logits + self.state["logit_bias"] if config.logit_bias else logits


def pack(documents: list[list[Tensor]], which: int, left: int, right: int) -> tuple[Tensor, Tensor]:
    """Rows of documents as (tokens, segments): `which` is 0 for targets, 1 for sources. Padded on both sides."""
    rows = [torch.cat([pair[which] for pair in row]) for row in documents]
    length = max(len(row) for row in rows) + left + right
    tokens = torch.randint(61, (len(rows), length), generator=torch.Generator().manual_seed(3))  # padding is anything
    segments = torch.zeros(len(rows), length, dtype=torch.int32)
    for index, row in enumerate(documents):
        start = left if index == 0 else length - len(rows[index])
        for number, pair in enumerate(row, start=1):
            end = start + len(pair[which])
            tokens[index, start:end], segments[index, start:end] = pair[which], number
            start = end
    return tokens, segments


def compare(model: Transformer, tolerance: float, gradients: bool = True) -> None:
    """Logits of packed and padded rows, and all gradients, beside those of the reference document by document."""
    generator = torch.Generator().manual_seed(11)
    sizes = [[(9, 5), (6, 8)], [(17, 12)]]
    documents = [[[torch.randint(61, (n,), generator=generator) for n in pair] for pair in row] for row in sizes]
    tokens, segments = pack(documents, 0, left=4, right=3)
    source, source_segments = pack(documents, 1, left=2, right=1)
    config = model.config
    types = torch.randint(2, tokens.shape, generator=generator) if config.token_types else None
    two_stacks = config.encoder_layers > 0 and config.decoder_layers > 0
    extra = {"source": source, "source_segments": source_segments} if two_stacks else {"token_types": types}
    fast = model(tokens, segments, **extra)
    upstream = torch.randn(fast.shape, generator=generator, dtype=fast.dtype)

    reference, total = Reference(model), torch.zeros((), dtype=fast.dtype)
    for index, row in enumerate(documents):
        for number, pair in enumerate(row, start=1):
            place = segments[index] == number
            slow = reference.logits(pair[0], pair[1], None if types is None else types[index][place])
            torch.testing.assert_close(fast[index][place], slow, rtol=tolerance, atol=tolerance)
            total = total + (slow * upstream[index][place]).sum()
    if not gradients:
        return
    parameters = {name: p for name, p in model.named_parameters() if not name.startswith(("pooler", "next_sentence"))}
    expected = torch.autograd.grad(total, list(parameters.values()))
    real = (segments > 0)[..., None]
    found = torch.autograd.grad((fast * upstream * real).sum(), list(parameters.values()))
    for name, ours, exact in zip(parameters, found, expected, strict=True):
        assert (ours - exact).norm() <= tolerance * (1 + exact.norm()), name


def test_every_family_equals_the_reference(build_family, family: str) -> None:  # type: ignore[no-untyped-def]
    compare(build_family(family).double(), 1e-5)


@pytest.mark.parametrize("block", [5, 64])
def test_every_family_equals_the_reference_in_float32(  # type: ignore[no-untyped-def]
    build_family, family: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, in blocks that do not divide the length (where windows skip keys), gradients included."""
    monkeypatch.setattr(kernels, "BLOCK_LENGTH", block)
    compare(build_family(family), 2e-4)


def test_long_rows_and_other_devices_equal_the_reference(  # type: ignore[no-untyped-def]
    build_family, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's kernel, which long rows take, in place of ours."""
    monkeypatch.setattr(kernels, "PLAIN_LENGTH", 0)
    compare(build_family(family).double(), 1e-5)


def test_whole_rows_need_no_segments(build_family, family: str) -> None:  # type: ignore[no-untyped-def]
    model = build_family(family).double()
    tokens = torch.randint(61, (2, 11), generator=torch.Generator().manual_seed(1))
    source = torch.randint(61, (2, 7), generator=torch.Generator().manual_seed(2))
    two_stacks = model.config.encoder_layers > 0 and model.config.decoder_layers > 0
    fast = model(tokens, source=source) if two_stacks else model(tokens)
    for row in range(2):
        slow = Reference(model).logits(tokens[row], source[row], None)
        torch.testing.assert_close(fast[row], slow, rtol=1e-5, atol=1e-5)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Any legal combination of options, with one or no encoder layer."""
    kind = draw(st.sampled_from(["encoder", "decoder", "both"]))
    decoder = kind != "encoder"
    kv_heads, experts = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([0, 0, 3]))
    flag = st.booleans()
    return ModelConfig(
        vocab_size=61, max_length=32, width=16, encoder_layers=int(kind != "decoder"), decoder_layers=int(decoder),
        num_heads=4, num_kv_heads=kv_heads, head_size=draw(st.sampled_from([2, 6])), ffn_width=24,
        positions=draw(st.sampled_from(["rotary", "learned", "sinusoidal"])), rope_base=100.0,
        rope_scaling=draw(st.sampled_from([None, RopeScaling(4.0, 1.0, 3.0, 16)])),
        norm=draw(st.sampled_from(["rms", "layer"])), norm_at=draw(st.sampled_from(["pre", "post", "both"])),
        norm_eps=1e-3, embedding_norm=draw(flag),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        qkv_bias=draw(flag), out_bias=draw(flag), ffn_bias=draw(flag) and not experts, qk_norm=draw(flag),
        windows=draw(st.sampled_from([(0,), (2,), (30,)])) if decoder else (0,),
        embedding_scale=draw(st.sampled_from([1.0, 3.0])), logit_scale=draw(st.sampled_from([1.0, 0.3])),
        attention_softcap=draw(st.sampled_from([0.0, 0.7])), logit_bias=draw(flag),
        token_types=0 if decoder else draw(st.sampled_from([0, 2])), num_experts=experts,
        experts_per_token=draw(st.integers(1, 3)) if experts else 0, normalise_experts=draw(flag),
        tie_embeddings=draw(flag), head="lm" if decoder else "masked_lm",
    )  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=configs(), seed=st.integers(0, 2**16))
def test_any_combination_equals_the_reference(config: ModelConfig, seed: int) -> None:
    model, generator = Transformer(config), torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    compare(model.double().eval(), 1e-5, gradients=False)
