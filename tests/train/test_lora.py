"""Low-rank adapters: nothing changes at the start, only they learn, merging is the same function."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from jielong.data.batch import Batch
from jielong.errors import UsageError
from jielong.generate.engine import Engine
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.tokenizer.tokenizer import Tokenizer
from jielong.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from jielong.train.loop import FitConfig, fit
from jielong.train.lora import (
    TARGETS,
    AdaptedLinear,
    LoraConfig,
    adapted_layers,
    attach,
    check_targets,
    merge,
    shared_copy,
    without_adapter,
)
from jielong.train.objectives import next_token
from jielong.train.optim import OptimizerConfig, build_optimizer

RUNTIME = Runtime(torch.device("cpu"), torch.float32, seed=3)
ALL = LoraConfig(rank=4, alpha=8.0, targets=TARGETS)
WIDTH, FFN, HEAD, NUM_HEADS, NUM_KV, LAYERS = 32, 48, 8, 4, 2, 2


def build(head: str = "lm", seed: int = 0) -> Transformer:
    config = ModelConfig(
        vocab_size=50,
        max_length=24,
        width=WIDTH,
        decoder_layers=LAYERS,
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV,
        head_size=HEAD,
        ffn_width=FFN,
        head=head,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.eval()


def stirred(model: Transformer, seed: int = 1) -> None:
    """Put something into every B, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            for change in layer.low_ranks():
                change.lora_b.copy_(torch.randn(change.lora_b.shape, generator=generator) * 0.1)


def tokens(rows: int = 3, length: int = 16) -> torch.Tensor:
    return torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(9))


def batch(step: int) -> list[Batch]:
    rows = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(step))
    mask = torch.ones(4, 12, dtype=torch.bool)
    mask[:, 0] = False
    return [Batch(rows, mask, torch.ones(4, 12, dtype=torch.int32), int(mask.sum()))]


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("head", ["lm", "scalar"])
def test_a_fresh_adapter_changes_no_bit(head: str) -> None:
    model = build(head)
    with torch.no_grad():
        before = model(tokens())
        attach(model, ALL, generator())
        assert torch.equal(model(tokens()), before)


def test_the_whole_family_may_be_adapted() -> None:
    """Two stacks with biases: q, k, v and out of self- and of cross-attention, up and down; there is no gate."""
    config = ModelConfig(
        50, 24, WIDTH, LAYERS, NUM_HEADS, NUM_HEADS, HEAD, FFN, encoder_layers=1, positions="sinusoidal", norm="layer",
        activation="relu", qkv_bias=True, out_bias=True, ffn_bias=True,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(generator())
    model.eval()
    with torch.no_grad():
        before = model(tokens(), source=tokens(3, 7))
        with pytest.raises(UsageError, match="names 'gate', but this model has no such"):
            attach(model, ALL, generator())
        attach(model, LoraConfig(4, 8.0, ("q", "k", "v", "out", "up", "down")), generator())
        assert torch.equal(model(tokens(), source=tokens(3, 7)), before)
        names = {name for name, _ in adapted_layers(model)}
        assert len(names) == 4 + LAYERS * 7 and "layers.1.cross.kv" in names and "encoder.0.ffn.up" in names
        stirred(model)
        apart = model(tokens(), source=tokens(3, 7))
        merge(model)
        assert torch.allclose(model(tokens(), source=tokens(3, 7)), apart, atol=3e-5)
    assert float((apart - before).abs().max()) > 0.1


def test_experts_stay_as_they_are() -> None:
    config = ModelConfig(50, 24, WIDTH, 1, NUM_HEADS, NUM_KV, HEAD, FFN, num_experts=4, experts_per_token=2)
    model = Transformer(config)
    model.init_weights(generator())
    with pytest.raises(UsageError, match="names 'up'.*experts cannot be adapted"):
        attach(model, LoraConfig(4, 8.0, ("q", "up")), generator())
    attach(model, LoraConfig(4, 8.0, ("q", "v")), generator())
    assert {name for name, _ in adapted_layers(model)} == {"layers.0.attention.qkv"}


@pytest.mark.parametrize("targets", [("q",), ("v", "down"), TARGETS])
def test_only_the_named_layers_learn(targets: tuple[str, ...]) -> None:
    model = build()
    frozen = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    adapter = attach(model, LoraConfig(4, 8.0, targets), generator())
    sizes = {"q": NUM_HEADS * HEAD, "k": NUM_KV * HEAD, "v": NUM_KV * HEAD, "out": WIDTH}
    inputs = {"out": NUM_HEADS * HEAD, "down": FFN}
    outputs = {**sizes, "gate": FFN, "up": FFN, "down": WIDTH}
    expected = LAYERS * sum(4 * (inputs.get(target, WIDTH) + outputs[target]) for target in targets)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in learning) == expected
    assert sum(parameter.numel() for parameter in adapter.parameters()) == expected

    optimizer = build_optimizer(model, OptimizerConfig(1e-2))
    for _ in fit(model, optimizer, batch, next_token, lambda step: 1.0, RUNTIME, FitConfig(num_steps=3)):
        pass
    moments = sum(state["exp_avg"].numel() for state in optimizer.state.values())
    assert moments == expected, "the optimizer keeps moments of the adapter alone"
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in frozen.items())
    assert all(
        float(change.lora_b.detach().abs().max()) > 0
        for _, layer in adapted_layers(model)
        for change in layer.low_ranks()
    )


def test_training_learns() -> None:
    model = build()
    attach(model, LoraConfig(8, 16.0, TARGETS), generator())
    optimizer = build_optimizer(model, OptimizerConfig(2e-2, weight_decay=0.0))
    same = batch(0)
    losses = [s.loss for s in fit(model, optimizer, lambda _: same, next_token, lambda _: 1.0, RUNTIME, FitConfig(40))]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float64, 1e-9), (torch.float32, 3e-5)])
@pytest.mark.parametrize("stabilised", [False, True])
def test_merged_is_the_same_function(stabilised: bool, dtype: torch.dtype, gap: float) -> None:
    model = build()
    attach(model, LoraConfig(4, 8.0, TARGETS, stabilised), generator())
    stirred(model)
    model.to(dtype)
    with torch.no_grad():
        apart = model(tokens())
        reference = without_adapter(model)(tokens())
        whole = copy.deepcopy(model)
        merge(whole)
        assert torch.allclose(whole(tokens()), apart, atol=gap, rtol=0)
    assert float((apart - reference).abs().max()) > 0.1
    assert [name for name, _ in whole.named_parameters()] == [name for name, _ in build().named_parameters()]
    assert all(parameter.requires_grad for parameter in whole.parameters())


def test_merged_by_hand() -> None:
    model = build()
    attach(model, LoraConfig(4, 8.0, ("k",)), generator())
    stirred(model)
    layer = model.get_submodule("layers.1.attention.qkv")
    assert isinstance(layer, AdaptedLinear)
    (change,) = layer.low_ranks()
    expected = layer.weight.detach().clone()
    first = NUM_HEADS * HEAD
    expected[first : first + NUM_KV * HEAD] += 8.0 / 4 * (change.lora_b @ change.lora_a).detach()
    merge(model)
    assert torch.allclose(dict(model.named_parameters())["layers.1.attention.qkv.weight"], expected, atol=1e-6)


def test_without_the_adapter_it_is_the_old_model_and_costs_nothing() -> None:
    model = build()
    with torch.no_grad():
        before = model(tokens())
    attach(model, ALL, generator())
    stirred(model)
    reference = without_adapter(model)
    with torch.no_grad():
        assert torch.equal(reference(tokens()), before) and not torch.equal(model(tokens()), before)
    places = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in reference.parameters()} <= places
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert reference.state_dict().keys() == build().state_dict().keys()


def test_two_adapters_may_share_a_trunk() -> None:
    first = build()
    second = shared_copy(first)
    attach(first, ALL, generator(1))
    attach(second, ALL, generator(2))
    stirred(first, 1)
    with torch.no_grad():
        assert torch.equal(second(tokens()), build()(tokens())) and not torch.equal(first(tokens()), second(tokens()))


def test_a_fresh_head_learns_whole() -> None:
    model = build("scalar")
    adapter = attach(model, LoraConfig(2, 4.0, ("q",)), generator())
    assert model.score.weight.requires_grad and not model.embed.weight.requires_grad
    assert "score/weight" in dict(adapter.named_parameters())


def test_a_checkpoint_holds_only_the_adapter_and_going_on_is_bit_equal(tmp_path: Path) -> None:
    def run(steps: int, start: int = 0, folder: Path | None = None) -> dict[str, torch.Tensor]:
        model = build()
        adapter = attach(model, ALL, generator())
        optimizer = build_optimizer(model, OptimizerConfig(1e-2))
        if start:
            found = latest_checkpoint(tmp_path)
            assert found is not None
            load_checkpoint(found, {"model": adapter}, {"optimizer": optimizer})
        config = FitConfig(num_steps=steps, start=start)
        for _ in fit(model, optimizer, batch, next_token, lambda step: 1.0, RUNTIME, config):
            pass
        if folder is not None:
            save_checkpoint(folder, steps, {"model": adapter}, {"optimizer": optimizer}, {})
        return {name: value.clone() for name, value in model.state_dict().items()}

    whole = run(6)
    run(3, folder=tmp_path)
    resumed = run(6, start=3)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    saved = (tmp_path / "step-000003" / "model.safetensors").stat().st_size
    adapter_bytes = sum(4 * value.numel() for name, value in whole.items() if ".changes." in name)
    assert saved < adapter_bytes + 8000


def test_an_adapted_model_decodes_as_its_merged_self(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a b c"], 263)
    model = Transformer(ModelConfig(263, 32, WIDTH, 1, 2, 1, 16, FFN))
    model.init_weights(generator())
    attach(model, ALL, generator())
    stirred(model)
    whole = copy.deepcopy(model)
    merge(whole)
    asked = {"max_new_tokens": 8, "temperature": 0.0}
    replies = [Engine(each.eval(), tokenizer, RUNTIME).generate(["a", "b c"], **asked) for each in (model, whole)]
    assert [reply.tokens for reply in replies[0]] == [reply.tokens for reply in replies[1]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("q_proj",)}, "targets names 'q_proj'; did you mean 'q'"),
        ({"targets": ("gat",)}, "targets names 'gat'; did you mean 'gate'"),
        ({"targets": ("q", "q")}, "names 'q' twice"),
        ({"targets": ()}, "targets is empty"),
        ({"rank": 0}, "rank = 0 must be 1 or more"),
        ({"alpha": 0.0}, "alpha = 0.0 must be a number above 0"),
        ({"alpha": float("inf")}, "alpha = inf"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LoraConfig(**{"rank": 4, "alpha": 8.0, "targets": ("q",), **settings})


def test_a_target_that_the_model_lacks_is_named() -> None:
    with pytest.raises(
        UsageError, match="targets names 'gate', but this model has no such linear layer .it has: q, up"
    ):
        check_targets(("q", "gate"), {"up", "q"})
