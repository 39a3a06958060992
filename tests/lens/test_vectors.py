"""Neighbours and positions are what the model's tables say; the stream ends where the layers do."""

from __future__ import annotations

import pytest
import torch

from jielong.errors import ModelError, UsageError
from jielong.lens.vectors import likeness, neighbours, position_table, residual_stream

from .conftest import BuildFamily


def test_neighbours_are_the_nearest_by_angle(build_family: BuildFamily) -> None:
    model = build_family("jie")
    with torch.no_grad():
        model.embed.weight.zero_()
        model.embed.weight[:5, :2] = torch.tensor([[1.0, 0.0], [5.0, 0.5], [0.0, 1.0], [-3.0, 0.0], [1.0, 1.0]])
    ids, cosines = neighbours(model, 0, 3, num_tokens=5)
    assert ids.tolist() == [1, 4, 2]
    assert cosines.tolist() == pytest.approx([5 / 25.25**0.5, 0.5**0.5, 0.0], abs=1e-6)
    assert len(neighbours(model, 0, 99, num_tokens=5)[0]) == 4
    for token, number in ((-1, 3), (5, 3), (0, 0)):
        with pytest.raises(UsageError):
            neighbours(model, token, number, num_tokens=5)


def test_positions_of_each_kind(build_family: BuildFamily) -> None:
    rotary = position_table(build_family("jie"), 4, 99)
    assert torch.allclose(rotary[:, 0], torch.arange(4.0).cos())
    learned = build_family("gpt2")
    assert torch.equal(position_table(learned, 3, 5), learned.positions.weight[:3, :5])  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="num_positions is 0"):
        position_table(learned, 0, 5)


def test_likeness_is_the_cosine() -> None:
    found = likeness(torch.tensor([[3.0, 0.0], [2.0, 2.0], [0.0, 0.0]]))
    assert found.tolist() == [pytest.approx(row, abs=1e-6) for row in ([1, 0.5**0.5, 0], [0.5**0.5, 1, 0], [0, 0, 0])]


def test_the_stream_ends_at_the_logits(build_family: BuildFamily, tokens: torch.Tensor) -> None:
    model = build_family("jie")
    stream = residual_stream(model, tokens)
    assert stream.shape == (model.config.decoder_layers + 1, len(tokens), model.config.width)
    with torch.no_grad():
        assert torch.allclose(model.unembed(model.norm(stream[-1:]))[0], model(tokens[None])[0], atol=1e-5)
    with pytest.raises(ModelError, match="decoder"):
        residual_stream(build_family("bert"), tokens)
    with pytest.raises(ModelError, match="source"):
        residual_stream(build_family("marian"), tokens)
