from __future__ import annotations

import pytest
import torch

from jielong.generate.simple import generate
from jielong.model.transformer import Transformer


def greedy_by_hand(model: Transformer, tokens: list[int], num: int) -> list[int]:
    tokens = list(tokens)
    for _ in range(num):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[-num:]


def test_greedy_is_argmax_of_the_full_forward(model: Transformer) -> None:
    assert generate(model, [3, 60, 9], 12, temperature=0.0) == greedy_by_hand(model, [3, 60, 9], 12)


def test_stops_after_the_stop_token_and_keeps_it(model: Transformer) -> None:
    free = generate(model, [7], 10, temperature=1.0)
    stop = free[4]
    assert stop not in free[:4]
    assert generate(model, [7], 10, temperature=1.0, stop_ids=(stop,)) == free[:5]
    assert generate(
        model, [7, free[0]], 1, temperature=0.0, stop_ids=(free[0],)
    )  # a stop id in the prompt stops nothing


@pytest.mark.parametrize("length", [30, 31, 32])
def test_ends_with_the_context(model: Transformer, length: int) -> None:
    assert len(generate(model, [5] * length, 9, temperature=0.0)) == 32 - length


def test_generator_decides(model: Transformer) -> None:
    def draw(seed: int) -> list[int]:
        return generate(model, [7, 8], 8, generator=torch.Generator().manual_seed(seed))

    assert draw(1) == draw(1) != draw(2)
    assert generate(model, [7, 8], 8) == draw(0)
    assert generate(model, [7, 8], 0) == []
