"""jielong (接龙): from raw text to an aligned chat, in one package.

The names below are the promised interface; everything else is reachable but may change. They are imported when first
used, so that `import jielong` and `jielong --help` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jielong.align.reward import RewardModel as RewardModel
    from jielong.data.batch import Batch as Batch
    from jielong.data.curate import curate as curate
    from jielong.data.world import World as World
    from jielong.errors import JielongError as JielongError
    from jielong.folder import load as load
    from jielong.folder import save as save
    from jielong.generate.engine import Completion as Completion
    from jielong.generate.engine import Engine as Engine
    from jielong.model.config import ModelConfig as ModelConfig
    from jielong.model.logprobs import scored_logprobs as scored_logprobs
    from jielong.model.transformer import Transformer as Transformer
    from jielong.recipe import parse_recipe as parse_recipe
    from jielong.runtime import Runtime as Runtime
    from jielong.runtime import detect as detect
    from jielong.stages.pipeline import run_recipe as run  # noqa: F401
    from jielong.tokenizer.chat import render as render
    from jielong.tokenizer.tokenizer import Tokenizer as Tokenizer
    from jielong.train.loop import fit as fit
    from jielong.train.loop import train_step as train_step

__version__ = "0.1.0"

_PUBLIC = {
    "Batch": "jielong.data.batch",
    "Completion": "jielong.generate.engine",
    "Engine": "jielong.generate.engine",
    "JielongError": "jielong.errors",
    "ModelConfig": "jielong.model.config",
    "RewardModel": "jielong.align.reward",
    "Runtime": "jielong.runtime",
    "Tokenizer": "jielong.tokenizer.tokenizer",
    "Transformer": "jielong.model.transformer",
    "World": "jielong.data.world",
    "curate": "jielong.data.curate",
    "detect": "jielong.runtime",
    "fit": "jielong.train.loop",
    "load": "jielong.folder",
    "parse_recipe": "jielong.recipe",
    "render": "jielong.tokenizer.chat",
    "run": "jielong.stages.pipeline",
    "save": "jielong.folder",
    "scored_logprobs": "jielong.model.logprobs",
    "train_step": "jielong.train.loop",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'jielong' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), "run_recipe" if name == "run" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
