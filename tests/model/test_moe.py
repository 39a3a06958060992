from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jielong.model.config import ModelConfig
from jielong.model.moe import Experts, explicit_experts, grouped_experts
from jielong.model.transformer import Transformer


def make_experts(activation: str = "swiglu", num_experts: int = 5, chosen: int = 2, normalise: bool = True) -> Experts:
    config = ModelConfig(
        vocab_size=9, max_length=8, width=12, decoder_layers=1, num_heads=1, num_kv_heads=1, head_size=12, ffn_width=7,
        activation=activation, num_experts=num_experts, experts_per_token=chosen, normalise_experts=normalise,
    )  # fmt: skip
    made = Experts(config, number=0)
    generator = torch.Generator().manual_seed(num_experts)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


@pytest.mark.parametrize("activation", ["swiglu", "geglu", "relu", "gelu"])
@pytest.mark.parametrize(("num_experts", "chosen"), [(1, 1), (5, 1), (5, 2), (5, 5), (40, 3)])
def test_grouped_equals_the_loop_with_gradients(activation: str, num_experts: int, chosen: int) -> None:
    experts = make_experts(activation, num_experts, chosen)
    rows = torch.randn(11, 12, generator=torch.Generator().manual_seed(1), requires_grad=True)
    upstream = torch.randn(11, 12, generator=torch.Generator().manual_seed(2))
    results = []
    for function in (grouped_experts, explicit_experts):
        logits = experts.route(rows)
        weights, picked = experts.weigh(logits, chosen)
        said = function(experts, rows, weights, picked)
        inputs = [rows, *experts.parameters()]
        results.append((said, *torch.autograd.grad(said, inputs, upstream)))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(choices=st.lists(st.permutations(range(4)), min_size=1, max_size=9), chosen=st.integers(1, 4))
def test_any_choice_is_served(choices: list[list[int]], chosen: int) -> None:
    """Experts that nobody, or everybody, chose included; weights need not sum to 1."""
    experts = make_experts(num_experts=4).double()
    picked = torch.tensor(choices)[:, :chosen]
    generator = torch.Generator().manual_seed(len(choices))
    rows = torch.randn(len(choices), 12, generator=generator, dtype=torch.float64)
    weights = torch.rand(picked.shape, generator=generator, dtype=torch.float64)
    fast, slow = (function(experts, rows, weights, picked) for function in (grouped_experts, explicit_experts))
    torch.testing.assert_close(fast, slow)


def test_weights_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    odds = logits.exp()
    weights, chosen = make_experts().weigh(logits, 2)  # Mixtral
    assert chosen[0].tolist() == [1, 2] and chosen[1, 0] == 0
    torch.testing.assert_close(weights[0], torch.stack((odds[0, 1], odds[0, 2])) / (odds[0, 1] + odds[0, 2]))
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    weights, chosen = make_experts(normalise=False).weigh(logits, 2)  # Grok-1
    assert chosen[0].tolist() == [1, 2]
    torch.testing.assert_close(weights[0], torch.stack((odds[0, 1], odds[0, 2])) / odds[0].sum())


def test_an_expert_nobody_chose_gets_no_gradient_but_zeros() -> None:
    experts = make_experts(num_experts=3)
    picked = torch.tensor([[0, 2], [2, 0]])
    grouped_experts(experts, torch.randn(2, 12), torch.ones(2, 2), picked).sum().backward()
    assert experts.up.grad is not None and experts.gate is not None and experts.gate.grad is not None
    assert not experts.up.grad[1].any() and experts.up.grad[0].any() and experts.gate.grad[2].any()


def test_the_router_stays_in_float32_under_autocast() -> None:
    experts = make_experts()
    rows = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
    exact = experts.route(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(experts.route(rows), exact)
        said = experts(rows[None])
    assert said.shape == (1, 6, 12) and (said[0].float() - experts(rows[None])[0]).norm() < 0.05 * said.float().norm()


def test_tokens_do_not_depend_on_their_neighbours(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    """No capacity: a crowded expert drops nobody."""
    model: Transformer = build_family("mixtral").double()
    crowd = tokens[:1].repeat(16, 1)  # sixteen times the same choices
    torch.testing.assert_close(model(crowd)[3:4], model(tokens[:1]), rtol=1e-9, atol=1e-9)


def test_a_copy_has_experts_of_its_own() -> None:
    experts = make_experts()
    twin = copy.deepcopy(experts)
    with torch.no_grad():
        twin.down.zero_()
    x = torch.randn(1, 3, 12)
    assert not twin(x).any() and experts(x).any()
