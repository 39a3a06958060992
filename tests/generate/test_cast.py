"""Copies whose matrices are cast once: the same bits, and no matrix is cast in a step any more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jielong.generate import decoders
from jielong.generate.cast import cast_copy
from jielong.generate.engine import Engine
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.tokenizer.tokenizer import Tokenizer
from jielong.train.lora import LoraConfig, attach

from ..model.conftest import FAMILIES, SIZES, randomise

BYTES = Tokenizer.from_merges([])
DECODERS = [
    name for name, fields in FAMILIES.items() if fields.get("decoder_layers") != 0 and not fields.get("encoder_layers")
]
CASTS = ("aten::to", "aten::_to_copy")
HALF = Runtime(device=torch.device("cpu"), dtype=torch.bfloat16)


TRANSLATORS = [
    name for name, fields in FAMILIES.items() if fields.get("encoder_layers") and fields.get("decoder_layers") != 0
]


def build(name: str) -> Transformer:
    sizes = {**SIZES, **FAMILIES[name], "vocab_size": BYTES.vocab_size, "max_length": 64}
    return randomise(Transformer(ModelConfig(**sizes))).eval()


class Casts(TorchDispatchMode):
    """Notes the shape of every matrix that becomes bfloat16 while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.dtype == torch.bfloat16 and func._schema.name in CASTS:
            self.shapes.append(tuple(args[0].shape) if args[0].dtype == torch.float32 else ())
        return found


@pytest.mark.parametrize("name", DECODERS)
def test_the_bits_are_the_models(name: str) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tokens = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), HALF.autocast():
        assert torch.equal(cast_copy(model, torch.bfloat16)(tokens), model(tokens))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("name", TRANSLATORS)
def test_a_translator_writes_with_such_a_copy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = build(name), []
    source = torch.randint(0, 256, (3, 7), generator=torch.Generator().manual_seed(1))

    def steps(copied: Any) -> torch.Tensor:
        monkeypatch.setattr(decoders, "cast_copy", copied)
        with torch.inference_mode():
            writing = decoders.begin_decoding(model, source, torch.ones_like(source), 2, 8, HALF)
            return torch.stack([writing.step(torch.full((6,), token)) for token in (1, 2, 3)])

    def counted(model: Transformer, dtype: torch.dtype) -> Transformer:
        calls.append(dtype)
        return cast_copy(model, dtype)

    assert torch.equal(steps(counted), steps(lambda model, dtype: model))
    assert calls == [torch.bfloat16]


def test_an_adapted_model_is_copied_with_its_adapter() -> None:
    model = build(DECODERS[0])
    adapter = attach(model, LoraConfig(2, 4.0, ("q", "down")), torch.Generator().manual_seed(1))
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.arange(20)[None]
    with torch.inference_mode(), HALF.autocast():
        assert torch.equal(cast_copy(model, torch.bfloat16)(tokens), model(tokens))


@pytest.mark.parametrize("name", DECODERS)
def test_no_matrix_of_the_layers_is_cast_in_a_step(name: str) -> None:
    model = build(name)
    tokens, width = torch.arange(5)[None], model.config.width
    cast = cast_copy(model, torch.bfloat16)
    counts = []
    for network in (model, cast):
        with torch.inference_mode(), HALF.autocast(), Casts() as casts:
            network(tokens)
        # of experts, whose weights have three sides, each is cast as it is chosen
        counts.append(sum(len(shape) == 2 and width in shape and 5 not in shape for shape in casts.shapes))
    assert counts[0] > 2 * model.config.decoder_layers
    assert counts[1] == 0 or model.config.num_experts


def test_an_engine_sees_what_was_learned_since() -> None:
    model = build(DECODERS[0])
    engine = Engine(model, BYTES, HALF)
    engine.runtime = HALF  # so small a model would be decoded in float32
    wish = {"max_new_tokens": 8, "temperature": 0.0}
    before = engine.generate([[1, 2, 3]], **wish)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    after = engine.generate([[1, 2, 3]], **wish)[0]
    assert before.logprobs != after.logprobs
    fresh = Engine(model, BYTES, HALF)
    fresh.runtime = HALF
    assert fresh.generate([[1, 2, 3]], **wish)[0] == after
