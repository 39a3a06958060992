"""The recurrent baseline: padding is not seen, a step at a time is the whole at once, folders come back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jielong.errors import ModelError
from jielong.model.recurrent import Recurrent, RecurrentConfig, is_recurrent, load_recurrent, save_recurrent

CONFIG = RecurrentConfig(vocab_size=20, max_length=16, width=8, layers=2, dropout=0.5)


@pytest.fixture
def model() -> Recurrent:
    model = Recurrent(CONFIG)
    model.init_weights(torch.Generator().manual_seed(1))
    return model.eval()


def test_padding_is_not_seen(model: Recurrent) -> None:
    source = torch.tensor([[3, 4, 5, 0, 0], [6, 7, 8, 9, 2]])
    segments = (source > 0).int()
    target = torch.tensor([[1, 5, 6], [1, 7, 8]])
    together = model.hidden_of(target, torch.ones_like(target), model.encode(source, segments), segments)
    short = model.encode(source[:1, :3], segments[:1, :3])
    alone = model.hidden_of(target[:1], torch.ones_like(target[:1]), short, segments[:1, :3])
    torch.testing.assert_close(together[:1], alone)
    assert not model.encode(source, segments)[0, 3:].any()


def test_steps_are_the_whole(model: Recurrent) -> None:
    source = torch.tensor([[3, 4, 5]])
    segments = torch.ones_like(source)
    memory, target = model.encode(source, segments), torch.tensor([[1, 9, 8, 7]])
    whole = model.hidden_of(target, torch.ones_like(target), memory, segments)
    state, pieces = model.begin(memory, segments), []
    for token in target[0]:
        piece, state = model.step(token.view(1, 1), state, memory, segments)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


def test_the_target_sees_the_source(model: Recurrent) -> None:
    target, ones = torch.tensor([[1, 9]]), torch.ones(1, 3, dtype=torch.int32)
    first, second = (model.encode(torch.tensor([row]), ones) for row in ([3, 4, 5], [3, 4, 6]))
    assert not torch.allclose(*(model.hidden_of(target, ones[:, :2], memory, ones) for memory in (first, second)))


def test_forget_gates_begin_open(model: Recurrent) -> None:
    bias = dict(model.named_parameters())["decoder.bias_ih_l0"]
    assert bias.tolist() == [0.0] * 8 + [1.0] * 8 + [0.0] * 16


def test_folder(model: Recurrent, tmp_path: Path) -> None:
    save_recurrent(model, tmp_path, {"stage": "x"})
    assert is_recurrent(tmp_path) and not is_recurrent(tmp_path / "other")
    again = load_recurrent(tmp_path)
    assert again.config == CONFIG
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "width": 10}))
    with pytest.raises(ModelError, match="does not fit config.json"):
        load_recurrent(tmp_path)


def test_sizes_out_of_range() -> None:
    with pytest.raises(ModelError, match="width is 7"):
        RecurrentConfig(20, 16, 7, 1)
