from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from jielong.errors import UsageError
from jielong.train.checkpoint import load_checkpoint, save_checkpoint
from jielong.train.lora import LoraConfig, attach
from jielong.train.optim import MuonAdamW, OptimizerConfig, build_optimizer, decay_groups, set_learning_rate

from ..model.conftest import small_decoder


class Tied(nn.Module):
    """An embedding that is also the output matrix, one norm, one frozen matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.LayerNorm(3)
        self.out = nn.Linear(3, 5)
        self.out.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def test_matrices_decay_vectors_do_not_and_a_tied_matrix_counts_once() -> None:
    model = Tied()
    matrices, vectors = decay_groups(list(model.parameters()), 0.1)
    assert matrices["weight_decay"] == 0.1 and vectors["weight_decay"] == 0.0
    assert [id(p) for p in matrices["params"]] == [id(model.embed.weight)]  # type: ignore[attr-defined]
    assert {id(p) for p in vectors["params"]} == {id(p) for p in (model.norm.weight, model.norm.bias, model.out.bias)}  # type: ignore[attr-defined]


def test_first_step_by_hand() -> None:
    # Adam's first step is the rate times the sign of the gradient; decay takes rate * 0.5 of a matrix besides.
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(1.0)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    (3.0 * model.weight.sum() - 2.0 * model.bias.sum()).backward()
    optimizer.step()
    assert model.weight.item() == pytest.approx(1 - 0.1 * 0.5 - 0.1, abs=1e-6)
    assert model.bias.item() == pytest.approx(1 + 0.1, abs=1e-6)


def test_optimizer_is_fused_and_takes_its_settings() -> None:
    config = OptimizerConfig(learning_rate=1e-3, weight_decay=0.2, beta1=0.8, beta2=0.99, eps=1e-5)
    optimizer = build_optimizer(Tied(), config)
    for group, decay in zip(optimizer.param_groups, (0.2, 0.0), strict=True):
        assert group["fused"] is True
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-3, (0.8, 0.99), 1e-5, decay)


def test_learning_rate_is_peak_times_multiplier() -> None:
    optimizer = build_optimizer(Tied(), OptimizerConfig(learning_rate=0.01))
    assert set_learning_rate(optimizer, 0.5) == pytest.approx(0.005)
    assert set_learning_rate(optimizer, 0.25) == pytest.approx(0.0025)  # of the peak, not of what was there
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0025, 0.0025])


@pytest.mark.parametrize(
    "bad",
    [
        {"learning_rate": 0.0}, {"weight_decay": -1.0}, {"beta1": 1.0}, {"beta2": -0.1}, {"eps": 0.0},
        {"matrix_learning_rate": -1.0}, {"matrix_learning_rate": 0.0},
    ],
)  # fmt: skip
def test_bad_settings_are_named(bad: dict[str, float]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(UsageError, match=f"{name} = {value}"):
        OptimizerConfig(**{"learning_rate": 0.1, **bad})


def test_nothing_to_train_is_an_error() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UsageError, match="no trainable parameter"):
        build_optimizer(model, OptimizerConfig(learning_rate=0.1))


class Layered(nn.Module):
    """An embedding, two layers with a matrix, a router and a norm each, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(4, 6), "down": nn.Linear(6, 4), "router": nn.Linear(4, 2)}) for _ in range(2)
        )
        self.head = nn.Linear(4, 7)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer["down"](layer["up"](x).relu() * layer["router"](x).sum(dim=-1, keepdim=True))
        return self.head(x)


MUON = OptimizerConfig(learning_rate=0.003, weight_decay=0.1, matrix_learning_rate=0.02)


def train(model: Layered, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        tokens = torch.randint(7, (5, 3), generator=torch.Generator().manual_seed(step))
        model(tokens).square().mean().backward()
        set_learning_rate(optimizer, 1 / (step + 1))
        optimizer.step()
        optimizer.zero_grad()


def layered() -> Layered:
    torch.manual_seed(3)
    return Layered()


def test_muon_trains_the_matrices_inside_layers_and_adamw_the_rest() -> None:
    model = layered()
    muon, *adamw = build_optimizer(model, MUON).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    wanted = {f"layers.{number}.{name}.weight" for number in range(2) for name in ("up", "down")}
    assert {names[id(parameter)] for parameter in muon["params"]} == wanted
    assert {names[id(p)] for group in adamw for p in group["params"]} == set(names.values()) - wanted
    assert (muon["initial_lr"], adamw[0]["initial_lr"]) == (0.02, 0.003)


def test_muon_and_adamw_step_as_torchs_own_two_would() -> None:
    one, two = layered(), layered()
    train(one, build_optimizer(one, MUON), range(4))
    matrices = [p for n, p in two.named_parameters() if "up.weight" in n or "down.weight" in n]
    rest = [p for p in two.parameters() if all(p is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.95)
    adamw = torch.optim.AdamW(decay_groups(rest, 0.1), lr=0.003, betas=(0.9, 0.95), fused=True)
    for step in range(4):
        tokens = torch.randint(7, (5, 3), generator=torch.Generator().manual_seed(step))
        two(tokens).square().mean().backward()
        for optimizer, peak in ((muon, 0.02), (adamw, 0.003)):
            for group in optimizer.param_groups:
                group["lr"] = peak / (step + 1)
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, two.get_parameter(name)), name


def test_muon_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    whole = layered()
    optimizer = build_optimizer(whole, MUON)
    train(whole, optimizer, range(3))
    save_checkpoint(tmp_path, 3, {"model": whole}, {"optimizer": optimizer}, {})
    train(whole, optimizer, range(3, 6))
    resumed = layered()
    again = build_optimizer(resumed, MUON)
    load_checkpoint(tmp_path / "step-000003", {"model": resumed}, {"optimizer": again})
    train(resumed, again, range(3, 6))
    assert all(torch.equal(p, resumed.get_parameter(name)) for name, p in whole.named_parameters())
    assert isinstance(again, MuonAdamW)


def test_where_only_matrices_of_layers_learn_muon_is_alone(tmp_path: Path) -> None:
    """A LoRA adapter: nothing is left for AdamW, which would not be made of nothing."""

    def adapted() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = small_decoder(0)
        adapter = attach(model, LoraConfig(2, 4.0, ("q", "down")), torch.Generator().manual_seed(1))
        return adapter, build_optimizer(model, MUON)

    def step(adapter: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        sum((parameter - 1).square().sum() for parameter in adapter.parameters()).backward()  # type: ignore[union-attr]
        assert set_learning_rate(optimizer, 0.5) == pytest.approx(0.01)
        optimizer.step()
        optimizer.zero_grad()

    adapter, optimizer = adapted()
    before = [parameter.detach().clone() for parameter in adapter.parameters()]
    step(adapter, optimizer)
    assert all(not torch.equal(old, new) for old, new in zip(before, adapter.parameters(), strict=True))
    save_checkpoint(tmp_path, 1, {"model": adapter}, {"optimizer": optimizer}, {})
    resumed, again = adapted()
    load_checkpoint(tmp_path / "step-000001", {"model": resumed}, {"optimizer": again})
    for one, its_optimizer in ((adapter, optimizer), (resumed, again)):
        step(one, its_optimizer)
    assert all(torch.equal(one, two) for one, two in zip(adapter.parameters(), resumed.parameters(), strict=True))


def test_a_model_without_layers_is_adamws_alone() -> None:
    """As the LSTMs of `--set translate.architecture=recurrent` on a recipe that asks for Muon."""
    model = Tied()
    optimizer = build_optimizer(model, MUON)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in model.parameters() if p.requires_grad
    }
    assert optimizer.param_groups[0]["initial_lr"] == MUON.learning_rate
