"""Both ends of the lab are models that are tested elsewhere; what lies between sees what its switches say."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from jielong.errors import ModelError
from jielong.model.config import ModelConfig
from jielong.model.structure import DECODER_ONLY, ENCODER_DECODER, Structure, StructuredTransformer
from jielong.model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=20, max_length=32, width=32, encoder_layers=2, decoder_layers=2, num_heads=4, num_kv_heads=2,
    head_size=8, ffn_width=48,
)  # fmt: skip
ALL = [Structure(*switches) for switches in itertools.product((False, True), repeat=4)]
LENGTHS = (5, 3, 6)


def build(structure: Structure, config: ModelConfig = CONFIG) -> StructuredTransformer:
    model = StructuredTransformer(config, structure)
    model.init_weights(torch.Generator().manual_seed(1))
    return model.eval()


def sources(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three sources of different length, padded on the right with what must not matter."""
    tokens = torch.randint(3, 20, (3, max(LENGTHS)), generator=torch.Generator().manual_seed(seed))
    return tokens, (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).int()


TARGETS = torch.randint(3, 20, (3, 4), generator=torch.Generator().manual_seed(9))


def logits(model: StructuredTransformer, source: Tensor, segments: Tensor, targets: Tensor = TARGETS) -> Tensor:
    return model.unembed(model.target_hidden(targets, model.read(source, segments)))


@torch.no_grad()
def test_with_all_switches_off_it_is_the_encoder_decoder() -> None:
    model, plain = build(ENCODER_DECODER), Transformer(CONFIG)
    plain.load_state_dict(model.state_dict())
    source, segments = sources()
    expected = plain.eval()(TARGETS, source=source, source_segments=segments)
    assert torch.allclose(logits(model, source, segments), expected, atol=1e-5)


@torch.no_grad()
def test_with_all_switches_on_it_is_a_decoder_over_one_row() -> None:
    model, plain = build(DECODER_ONLY), Transformer(replace(CONFIG, encoder_layers=0))
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder")}
    plain.load_state_dict(state)
    assert len(list(model.parameters())) == len(list(plain.parameters()))
    source, segments = sources()
    found = logits(model, source, segments)
    for row, length in enumerate(LENGTHS):
        whole = torch.cat((source[row, :length], TARGETS[row]))[None]
        assert torch.allclose(found[row], plain.eval()(whole)[0, length:], atol=1e-5)


@pytest.mark.parametrize("structure", ALL, ids=str)
@torch.no_grad()
def test_padding_and_the_future_are_not_seen(structure: Structure) -> None:
    model = build(structure)
    source, segments = sources()
    found = logits(model, source, segments)
    other = torch.where(segments > 0, source, 7)
    assert torch.allclose(logits(model, other, segments), found, atol=1e-5)
    changed = TARGETS.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 20
    after = logits(model, source, segments, changed)
    assert torch.allclose(after[:, :2], found[:, :2], atol=1e-5)
    assert not torch.allclose(after[:, 2:], found[:, 2:], atol=1e-3)


@pytest.mark.parametrize("structure", ALL, ids=str)
@torch.no_grad()
def test_the_source_is_read_causally_or_both_ways(structure: Structure) -> None:
    model = build(structure)
    source, segments = sources()
    last = source.clone()
    last[0, 4] = (last[0, 4] + 1) % 20  # the last token of the first source
    first_states = [model.read(tokens, segments).states[-1][0, 0] for tokens in (source, last)]
    assert torch.allclose(*first_states, atol=1e-6) == structure.causal_source
    assert not torch.allclose(logits(model, last, segments)[0], logits(model, source, segments)[0], atol=1e-3)


@pytest.mark.parametrize("structure", ALL, ids=str)
def test_every_weight_learns(structure: Structure) -> None:
    model = build(structure).train()
    source, segments = sources()
    logits(model, source, segments).logsumexp(dim=-1).sum().backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    last = f"encoder.{CONFIG.encoder_layers - 1}."  # layer by layer nothing reads what the source's last layer gives
    unread = structure.layer_by_layer and not structure.one_stack
    norm = {"encoder_norm.weight"} if unread and structure.one_attention else set()
    assert {name for name in idle if not (unread and name.startswith(last))} == norm


def test_shared_weights_are_shared_and_counted_once() -> None:
    counts = {structure: sum(p.numel() for p in build(structure).parameters()) for structure in ALL}
    layers = CONFIG.decoder_layers
    kv, width = CONFIG.num_kv_heads * CONFIG.head_size, CONFIG.width
    cross = layers * (2 * width * width + 2 * width * kv + width)  # q, out, k and v, its norm
    ordinary = sum(p.numel() for p in Transformer(replace(CONFIG, encoder_layers=0)).layers.parameters())
    base = counts[ENCODER_DECODER]
    assert base - counts[Structure(one_attention=True)] == cross
    assert base - counts[Structure(one_stack=True)] == ordinary + width  # and the encoder's final norm
    assert counts[DECODER_ONLY] == base - cross - ordinary - width
    assert counts[Structure(layer_by_layer=True, causal_source=True)] == base


@pytest.mark.parametrize("structure", [ENCODER_DECODER, DECODER_ONLY], ids=str)
def test_greedy_ends_at_the_end(structure: Structure) -> None:
    model = build(structure)
    source, segments = sources()
    free = model.greedy(source, segments, first=1, end=-1, limit=6)
    assert [len(row) for row in free] == [6, 6, 6]
    for row in range(3):  # alone as in the batch
        alone = model.greedy(source[row : row + 1, : LENGTHS[row]], segments[row : row + 1, : LENGTHS[row]], 1, -1, 6)
        assert alone == [free[row]]
    end = free[0][2]
    assert model.greedy(source, segments, 1, end, 6)[0] == free[0][: free[0].index(end)]


@pytest.mark.parametrize(
    ("change", "structure", "said"),
    [
        ({"encoder_layers": 0}, ENCODER_DECODER, "joins two stacks"),
        ({"positions": "sinusoidal"}, ENCODER_DECODER, "wants positions 'rotary'"),
        ({"encoder_layers": 3}, Structure(one_stack=True), "pair the layers"),
        ({"encoder_layers": 3}, Structure(layer_by_layer=True), "pair the layers"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], structure: Structure, said: str) -> None:
    config = ModelConfig(**{**asdict(CONFIG), **change})  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=said):
        StructuredTransformer(config, structure)
