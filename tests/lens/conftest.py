"""Tiny models of every family, those of tests/model, and a text in ids."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer

from ..model.conftest import FAMILIES, SIZES, randomise

BuildFamily = Callable[[str], Transformer]


@pytest.fixture
def build_family() -> BuildFamily:
    """build_family(name): a tiny model of FAMILIES, random and in eval mode."""
    return lambda name: randomise(Transformer(ModelConfig(**{**SIZES, **FAMILIES[name]}))).eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(3, 60, (20,), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def source() -> Tensor:
    return torch.randint(3, 60, (13,), generator=torch.Generator().manual_seed(8))
