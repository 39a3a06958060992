"""The models that "Look inside" looks at: the folders' own, as they were saved, loaded when they are first asked for.

They are not the ones that answer: those' weights may be packed, and belong to the engine's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from jielong.folder import load
from jielong.model.transformer import Transformer
from jielong.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")


class Lens:
    """One model, called name: one question at a time, beside the event loop."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._loaded: tuple[Transformer, Tokenizer] | None = None
        self._turn = asyncio.Lock()

    async def use(self, work: Callable[[Transformer, Tokenizer], T]) -> T:
        """The result of work(model, tokenizer). Raises ModelError when the folder cannot be read any more."""
        async with self._turn:
            return await run_in_threadpool(self._work, work)

    def _work(self, work: Callable[[Transformer, Tokenizer], T]) -> T:
        if self._loaded is None:
            self._loaded = load(self._folder)
        return work(*self._loaded)
