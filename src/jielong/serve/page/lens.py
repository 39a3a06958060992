"""The model that "Look inside" looks at: the folder's own, as it was saved, loaded when it is first asked for.

It is not the one that answers: that one's weights may be packed, and belong to the engine's thread.
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
    """One question at a time, beside the event loop."""

    def __init__(self, folder: Path) -> None:
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
