from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.model import logprobs as module
from jielong.model.logprobs import (
    check_mask,
    hidden_logprobs,
    masked_mean,
    scored_logprobs,
    summed_nats,
    token_logprobs,
)
from jielong.model.transformer import Transformer

SEGMENTS = torch.tensor([[1] * 9 + [2] * 12 + [0] * 3, [1] * 24, [1] * 2 + [2] * 2 + [3] * 20])


def make_mask() -> Tensor:
    mask = torch.rand(3, 24, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[:, 0] = False
    mask[:, 1:] &= (SEGMENTS[:, 1:] == SEGMENTS[:, :-1]) & (SEGMENTS[:, 1:] != 0)
    return mask


def slow(model: Transformer, tokens: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """All logits, one cross entropy a token, and the entropy from its definition."""
    logits = model(tokens, SEGMENTS)[:, :-1].float() / temperature
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(3, 23)
    spread = torch.distributions.Categorical(logits=logits).entropy()
    return F.pad(-losses, (1, 0)) * mask, F.pad(spread, (1, 0)) * mask


def test_token_logprobs_by_hand() -> None:
    # Two equal logits, then odds 1 : 3. Entry t tells of token t by the logits at t - 1; the last logits tell of none.
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3)], [5.0, -5.0]]])
    found = token_logprobs(logits, torch.tensor([[1, 0, 1]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, math.log(0.5), math.log(0.75)]]))
    half = token_logprobs(logits, torch.tensor([[1, 0, 0]]), temperature=0.5)  # odds 1 : 9
    torch.testing.assert_close(half, torch.tensor([[0.0, math.log(0.5), math.log(0.1)]]))


def test_token_logprobs_equal_cross_entropy(build, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    logits = build()(tokens)
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(3, 23)
    torch.testing.assert_close(token_logprobs(logits, tokens)[:, 1:], -losses)
    assert not token_logprobs(logits, tokens)[:, 0].any()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kept_bytes", [0, 2**20])  # probabilities computed again, or kept
@pytest.mark.parametrize("weight_of_entropy", [0.0, 0.7])
def test_scored_logprobs_values_and_gradients(
    build, tokens: Tensor, tied: bool, kept_bytes: int, weight_of_entropy: float, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(module, "KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(module, "CHUNK_BYTES", 61 * 4 * 5)  # five rows a chunk; the number of rows is no multiple
    model: Transformer = build(tied=tied)
    mask = make_mask()
    upstream = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(2))

    def backward(pair: tuple[Tensor, Tensor | None]) -> dict[str, Tensor]:
        model.zero_grad()
        total = (pair[0] * upstream[0]).sum()
        if weight_of_entropy and pair[1] is not None:
            total = total + weight_of_entropy * (pair[1] * upstream[1]).sum()
        total.backward()
        return {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    expected, found = slow(model, tokens, mask, 1.3), scored_logprobs(model, tokens, SEGMENTS, mask, 1.3)
    assert found[1] is not None and found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)
    slow_gradients, fast_gradients = backward(expected), backward(found)
    assert slow_gradients.keys() == fast_gradients.keys()
    for name, gradient in slow_gradients.items():
        torch.testing.assert_close(fast_gradients[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kept_bytes", [0, 2**20])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("weight_of_entropy", [0.0, 0.7])
def test_logit_scale_and_bias_count(  # type: ignore[no-untyped-def]
    build_family, tokens: Tensor, kept_bytes: int, temperature: float, weight_of_entropy: float, monkeypatch
) -> None:
    """Values and gradients, the bias's among them, equal those of all logits made at once."""
    monkeypatch.setattr(module, "KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(module, "CHUNK_BYTES", 61 * 4 * 5)
    model: Transformer = build_family("jie", logit_scale=0.577, logit_bias=True)
    upstream = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(2))
    results = []
    for pair in (
        slow(model, tokens, make_mask(), temperature),
        scored_logprobs(model, tokens, SEGMENTS, make_mask(), temperature),
    ):
        assert pair[1] is not None
        total = (pair[0] * upstream[0]).sum() + weight_of_entropy * (pair[1] * upstream[1]).sum()
        results.append((*pair, *torch.autograd.grad(total, list(model.parameters()))))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_hidden_logprobs_of_a_translation(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family("marian")
    source, mask = tokens[:, :7], torch.ones(3, 24, dtype=torch.bool)
    mask[:, 0] = False
    hidden = model.hidden(tokens, memory=model.encode(source))
    found, nothing = hidden_logprobs(model, hidden, tokens, mask, entropy=False)
    assert nothing is None
    torch.testing.assert_close(found, token_logprobs(model(tokens, source=source), tokens), rtol=1e-4, atol=1e-5)


def test_entropy_is_left_out_when_not_asked_for(build, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build()
    with_entropy, _ = scored_logprobs(model, tokens, SEGMENTS, make_mask())
    without, nothing = scored_logprobs(model, tokens, SEGMENTS, make_mask(), entropy=False)
    assert nothing is None and torch.equal(with_entropy, without)


def test_nothing_scored(build, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    found, entropy = scored_logprobs(build(), tokens, None, torch.zeros(3, 24, dtype=torch.bool))
    found.sum().backward()
    assert entropy is not None and not found.any() and not entropy.any()


def test_certain_tokens_still_teach_in_bfloat16(build) -> None:  # type: ignore[no-untyped-def]
    """At p = 0.9999 a bfloat16 probability is 1; the gradient 1 - p must not become 0."""
    hidden = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[9.25], [0.0]], dtype=torch.bfloat16, requires_grad=True)
    logprob, _ = module._LinearLogprobs.apply(hidden, weight, None, torch.tensor([0]), False)
    logprob.sum().backward()
    missing = 1 / (1 + math.exp(9.25))  # 1 - p
    assert weight.grad[0].item() == pytest.approx(missing, rel=0.01)
    assert weight.grad[1].item() == pytest.approx(-missing, rel=0.01)


def test_very_unlikely_token_has_a_finite_logprob() -> None:
    weight = torch.tensor([[200.0], [0.0]])
    logprob, entropy = module._LinearLogprobs.apply(torch.ones(1, 1), weight, None, torch.tensor([1]), True)
    assert logprob.item() == -200.0 and entropy.item() == 0.0


@pytest.mark.parametrize("row", [0, 1])
def test_mask_of_unscorable_tokens_is_refused(row: int) -> None:
    good = make_mask()
    check_mask(good, SEGMENTS)
    for place in [(row, 0), (0, 9), (0, 21), (0, 23), (2, 4)]:  # first of the row, first of a segment, padding
        bad = good.clone()
        bad[place] = True
        with pytest.raises(AssertionError, match="the mask scores"):
            check_mask(bad, SEGMENTS)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_states_that_tell_are_those_before_the_scored_tokens(share: float, dtype: torch.dtype) -> None:
    """To the bit what indexing says, and its gradient: the twin of the faster gathering."""
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(3, 9, 4, generator=generator).to(dtype).requires_grad_()
    mask = torch.rand(3, 9, generator=generator) < share
    mask[:, 0] = False
    slow, fast = hidden[:, :-1][mask[:, 1:]], module._tellers(hidden, mask)
    assert torch.equal(slow, fast)
    upstream = torch.randn(slow.shape, generator=generator).to(dtype)
    for given, expected in zip(*(torch.autograd.grad(one, hidden, upstream) for one in (fast, slow)), strict=True):
        assert given.dtype == dtype and torch.equal(given, expected)


def test_masked_mean() -> None:
    values = torch.tensor([[1.0, 2.0, 30.0]])
    assert masked_mean(values, torch.tensor([[True, True, False]])).item() == 1.5
    assert masked_mean(values, torch.tensor([[False, False, False]])).item() == 0.0


@pytest.mark.parametrize("kept_bytes", [0, 2**20])
def test_a_frozen_unembedding_gets_no_gradient_and_the_rest_the_same(
    build, tokens: Tensor, kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(module, "KEPT_BYTES", kept_bytes)
    model: Transformer = build(tied=False)
    found = []
    for frozen in (False, True):
        model.zero_grad()
        model.unembed_weight.requires_grad_(not frozen)
        scored_logprobs(model, tokens, SEGMENTS, make_mask(), entropy=False)[0].sum().backward()
        assert (model.unembed_weight.grad is None) == frozen
        found.append([p.grad.clone() for p in model.parameters() if p is not model.unembed_weight])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("family", ["jie", "biased"])
def test_rows_beyond_the_vocabulary_have_no_probability_and_no_gradient(
    build_family, tokens: Tensor, family: str
) -> None:  # type: ignore[no-untyped-def]
    """As if the model had ended where the tokenizer does; the plain twin cuts the logits."""
    changes = {"logit_scale": 0.577, "logit_bias": True} if family == "biased" else {}
    model: Transformer = build_family("jie", tie_embeddings=False, **changes)
    num, temperature = 50, 0.7
    tokens = tokens.clamp(max=num - 1)
    logits = model(tokens, SEGMENTS)[..., :num]
    expected = token_logprobs(logits, tokens, temperature) * make_mask()
    spread = torch.distributions.Categorical(logits=logits[:, :-1].float() / temperature).entropy()
    found, entropy = scored_logprobs(model, tokens, SEGMENTS, make_mask(), temperature, vocab_size=num)
    assert entropy is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(entropy, F.pad(spread, (1, 0)) * make_mask(), rtol=1e-4, atol=1e-5)
    found.sum().backward()
    gradient = model.unembed_weight.grad
    assert gradient is not None and gradient[:num].any() and not gradient[num:].any()


def slow_sum(model: Transformer, hidden: Tensor, tokens: Tensor, smoothing: float, z_weight: float) -> Tensor:
    """All logits at once, torch's own cross entropy with label smoothing, and log Z by torch.logsumexp."""
    logits = model.unembed(hidden)[:, :-1][make_mask()[:, 1:]].float()
    labels = tokens[:, 1:][make_mask()[:, 1:]]
    loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    return loss + z_weight * logits.logsumexp(dim=1).square().sum()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("smoothing", "z_weight"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.3), (0.1, 0.3)])
def test_summed_nats_values_and_gradients(  # type: ignore[no-untyped-def]
    build_family, tokens: Tensor, tied: bool, smoothing: float, z_weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 61 * 4 * 5)  # five rows a chunk; the number of rows is no multiple
    model: Transformer = build_family("jie", tie_embeddings=tied, logit_scale=0.577, logit_bias=True)
    results = []
    for slow_way in (True, False):
        hidden = model.hidden(tokens, SEGMENTS)
        if slow_way:
            loss = slow_sum(model, hidden, tokens, smoothing, z_weight)
            nats = slow_sum(model, hidden, tokens, 0.0, 0.0)
        else:
            loss, nats = summed_nats(model, hidden, tokens, make_mask(), smoothing, z_weight)
            assert loss.dtype == torch.float32 and not nats.requires_grad
        results.append((loss, nats, *torch.autograd.grad(0.37 * loss, list(model.parameters()))))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("frozen", ["unembedding", "trunk"])
def test_summed_nats_makes_only_the_gradients_that_are_asked_for(build, tokens: Tensor, frozen: str) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build(tied=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("unembedding") != (frozen == "unembedding"))
    loss, nats = summed_nats(model, model.hidden(tokens, SEGMENTS), tokens, make_mask())
    kept = [found is not None for found in loss.grad_fn.saved_tensors]  # type: ignore[union-attr]
    assert kept == [frozen == "unembedding", frozen == "trunk", False]
    loss.backward()
    assert loss.item() == nats.item()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


def test_summed_nats_in_bfloat16_keep_a_float32_gradient_of_the_unembedding(build, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build(tied=False)
    gradients = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden = model.hidden(tokens, SEGMENTS).detach()
            loss, _ = summed_nats(model, hidden, tokens, make_mask())
        gradients.append(torch.autograd.grad(loss, model.unembed_weight)[0])
    assert gradients[1].dtype == torch.float32
    assert (gradients[1] - gradients[0]).norm() < 0.01 * gradients[0].norm()  # bfloat16 has 8 bits


def test_nothing_scored_sums_to_nothing(build, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build()
    loss, nats = summed_nats(model, model.hidden(tokens), tokens, torch.zeros(3, 24, dtype=torch.bool))
    loss.backward()
    assert loss.item() == nats.item() == 0.0 and not model.unembed_weight.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("way", ["summed", "one by one"])
def test_nothing_is_made_for_gradients_that_nobody_records(  # type: ignore[no-untyped-def]
    build, tokens: Tensor, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under no_grad the weights still say that they may have gradients."""
    told: list[tuple[bool, ...]] = []
    function = module._SummedNats if way == "summed" else module._LinearLogprobs
    forward = function.forward

    def watched(ctx: Any, *inputs: Any) -> Any:
        told.append(ctx.needs_input_grad)
        return forward(ctx, *inputs)

    monkeypatch.setattr(function, "forward", staticmethod(watched))
    model: Transformer = build()
    with torch.no_grad():
        hidden = model.hidden(tokens, SEGMENTS)
        (summed_nats if way == "summed" else hidden_logprobs)(model, hidden, tokens, make_mask())
    assert len(told) == 1 and not any(told[0])


@pytest.mark.parametrize("way", ["summed", "one by one"])
def test_products_in_bfloat16_have_steady_numbers_of_rows(  # type: ignore[no-untyped-def]
    build, tokens: Tensor, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is scored differs in number from step to step; zeros stand below it, and nothing comes out of them."""
    model: Transformer = build(tied=False)
    shapes: list[int] = []
    linear = F.linear

    def watched(rows: Tensor, weight: Tensor) -> Tensor:
        shapes.append(len(rows))
        return linear(rows, weight)

    results = []
    for steady_rows in (1, 64):
        monkeypatch.setattr(module, "STEADY_ROWS", steady_rows)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.hidden(tokens, SEGMENTS)
            with monkeypatch.context() as patch:
                patch.setattr(module.F, "linear", watched)
                if way == "summed":
                    loss = summed_nats(model, hidden, tokens, make_mask())[0]
                else:
                    loss = hidden_logprobs(model, hidden, tokens, make_mask(), entropy=False)[0].sum()
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    num_scored = int(make_mask().sum())
    assert shapes == [num_scored, 64] and num_scored < 64
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)
