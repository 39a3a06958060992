"""Compiled layers against the same model uncompiled, and what happens without a compiler.

torch's "aot_eager" compiler makes the same graphs as the real one and runs them as they are, in a second.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from jielong.data.batch import Batch
from jielong.model import kernels
from jielong.model.transformer import Transformer
from jielong.recipe.settings import RunSettings
from jielong.runtime import Runtime
from jielong.train import compiling
from jielong.train.compiling import compiled_layers, compiler_problem, uncompiled
from jielong.train.objectives import next_token

from ..model.conftest import small_decoder

CPU = Runtime(torch.device("cpu"), torch.float32)


def build() -> Transformer:
    return small_decoder(decoder_layers=3, num_kv_heads=1).train()


def packed_batch() -> Batch:
    tokens = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(1))
    segments = torch.tensor([[1] * 9 + [2] * 15, [1] * 20 + [0] * 4], dtype=torch.int32)
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[:, 1:] = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return Batch(tokens, mask, segments, int(mask.sum()))


def loss_and_gradients(model: Transformer) -> list[Tensor]:
    loss, _ = next_token(model, packed_batch())
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.slow
@pytest.mark.parametrize("plain_length", [0, 512])  # 0: torch's kernel, as on other devices
def test_compiled_layers_equal_the_plain_ones(plain_length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "PLAIN_LENGTH", plain_length)
    torch.compiler.reset()
    model = build()
    names, choice, slow = list(model.state_dict()), model.choose_kernels, loss_and_gradients(model)
    calls: list[str] = []
    with compiled_layers(model, CPU, backend="aot_eager") as problem:
        assert problem is None and list(model.state_dict()) == names
        assert all(layer._compiled_call_impl is not None for layer in model.layers)
        fast = loss_and_gradients(model)
        for layer in model.layers:
            layer.forward = lambda *_, told=calls: told.append("seen")  # type: ignore[misc, assignment]
    for ours, exact in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)
    assert model.choose_kernels is choice
    assert all(layer._compiled_call_impl is None for layer in model.layers)
    model.layers[0](None, None)
    assert calls == ["seen"], "outside the block layers run as they are written"


def test_to_decode_layers_run_as_they_are_written() -> None:
    torch.compiler.reset()
    model, tokens = build(), packed_batch().tokens
    plain, seen = model(tokens), list[int]()

    def compiler(graph: torch.fx.GraphModule, examples: list[Tensor]) -> torch.fx.GraphModule:
        seen.append(len(examples))
        return graph

    with compiled_layers(model, CPU, backend=compiler):  # type: ignore[arg-type]
        calls = [layer._compiled_call_impl for layer in model.layers]
        with pytest.raises(ZeroDivisionError), uncompiled(model):
            assert torch.equal(model(tokens), plain) and not seen
            raise ZeroDivisionError
        assert [layer._compiled_call_impl for layer in model.layers] == calls and None not in calls
        assert torch.allclose(model(tokens), plain, atol=1e-6) and seen
    with uncompiled(model):
        assert torch.equal(model(tokens), plain)
    assert all(layer._compiled_call_impl is None for layer in model.layers)


def test_without_a_compiler_training_goes_on_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object) -> object:
        raise RuntimeError("No working C++ compiler found\nand more lines")

    monkeypatch.setattr(torch, "compile", broken)
    assert compiler_problem(CPU) == "RuntimeError: No working C++ compiler found"
    model = build()
    with compiled_layers(model, CPU) as problem:
        assert problem == "RuntimeError: No working C++ compiler found"
        assert all(layer._compiled_call_impl is None for layer in model.layers)


def test_a_compiler_that_computes_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: torch.neg)
    assert "wrong result" in str(compiler_problem(CPU))


def test_models_without_layers_of_ours_are_left_alone() -> None:
    with compiled_layers(nn.Linear(2, 2), CPU) as problem:
        assert problem == "only a Transformer's layers are compiled"


def test_shared_out_weights_are_not_compiled() -> None:
    with pytest.raises(ValueError, match="compile goes with whole weights"):
        RunSettings(name="x", compile=True, tensor_parallel=2)
    assert RunSettings(name="x", compile=True).compile


def test_the_error_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    choice = model.choose_kernels
    monkeypatch.setattr(compiling, "compiler_problem", lambda runtime: None)
    with pytest.raises(ZeroDivisionError), compiled_layers(model, CPU):
        raise ZeroDivisionError
    assert model.choose_kernels is choice and all(layer._compiled_call_impl is None for layer in model.layers)
