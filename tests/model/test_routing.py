from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from jielong.errors import ModelError
from jielong.model.routing import Routing
from jielong.model.transformer import Transformer


def test_losses_by_hand() -> None:
    """Two tokens, two experts, one choice each: softmax (3/4, 1/4) and (1/2, 1/2), both choose expert 0."""
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()
    routing = Routing()
    routing.record(0, logits, torch.tensor([[0], [0]]), None)
    assert routing.shares().tolist() == [[1.0, 0.0]]
    assert routing.balance_loss().item() == pytest.approx(2 * (1.0 * 5 / 8))
    z_loss = (torch.tensor(4.0).log() ** 2 + torch.tensor(2.0).log() ** 2) / 2
    assert routing.z_loss().item() == pytest.approx(z_loss.item())
    # A second layer in perfect balance: both losses are means over layers.
    routing.record(3, torch.zeros(2, 2), torch.tensor([[0], [1]]), None)
    assert routing.balance_loss().item() == pytest.approx((5 / 4 + 1) / 2)
    assert routing.z_loss().item() == pytest.approx((z_loss.item() + torch.tensor(2.0).log().item() ** 2) / 2)


def test_padding_does_not_count() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    chosen = logits.topk(2).indices
    real = torch.tensor([[True, True, False], [False, True, True]])
    with_padding, without = Routing(), Routing()
    with_padding.record(0, logits.flatten(0, 1), chosen.flatten(0, 1), real)
    without.record(0, logits[real], chosen[real], None)
    torch.testing.assert_close(with_padding.balance_loss(), without.balance_loss())
    torch.testing.assert_close(with_padding.z_loss(), without.z_loss())
    torch.testing.assert_close(with_padding.shares(), without.shares())


def test_balance_is_that_of_hugging_face_over_the_choices() -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    routing = Routing()
    routing.record(0, logits, logits.topk(2).indices, None)
    theirs = mixtral.load_balancing_loss_func((logits,), num_experts=4, top_k=2)
    assert 2 * routing.balance_loss().item() == pytest.approx(theirs.item(), rel=1e-5)


def test_nothing_collected_is_said(build, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    routing = Routing()
    build().hidden(tokens, routing=routing)
    with pytest.raises(ModelError, match="no experts"):
        routing.balance_loss()


def losses_and_gradients(model: Transformer, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    routing = Routing()
    hidden = model.hidden(tokens, routing=routing)
    losses = torch.stack((hidden.square().mean(), routing.balance_loss(), routing.z_loss()))
    losses.sum().backward()
    return losses.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", ["mixtral", "grok1"])
def test_losses_teach_the_routers_also_under_checkpointing(build_family, name: str, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family(name, tie_embeddings=True)
    losses, gradients = losses_and_gradients(model, tokens)
    routers = [gradient for name, gradient in gradients.items() if name.endswith("router.weight")]
    assert len(routers) == 2 and all(router.any() for router in routers)
    for layer in model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    again, recomputed = losses_and_gradients(model, tokens)
    torch.testing.assert_close(again, losses)
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_both_stacks_write_under_numbers_of_their_own(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family("experts-relu")
    routing = Routing()
    model(tokens, source=tokens, routing=routing)
    assert sorted(routing.layers) == [0, 1, 2] and routing.shares().shape == (3, 3)
    torch.testing.assert_close(routing.shares().sum(1), torch.ones(3))


def test_no_routing_no_change(build_family, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model: Transformer = build_family("mixtral")
    assert torch.equal(model(tokens), model(tokens, routing=Routing()))
