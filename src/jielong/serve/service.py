"""What every endpoint works with: an engine for each model, under its name; the settings; the counters."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from jielong.serve.engine_thread import EngineThread
from jielong.serve.errors import ApiError
from jielong.serve.metrics import Metrics
from jielong.serve.settings import ServeSettings

LOG = logging.getLogger("jielong.serve")
# From this many characters on, a text is made into ids beside the event loop, so that others need not wait for it.
_MANY_CHARACTERS = 20_000
T = TypeVar("T")


@dataclass
class Service:
    """engines: one for each model served, a fixed table by name: a request that names another model gets a 404, never a
    look at a disk. The first of them answers where a request names none.
    """

    settings: ServeSettings
    engines: tuple[EngineThread, ...]
    metrics: Metrics

    @property
    def engine(self) -> EngineThread:
        """That of the first model."""
        return self.engines[0]

    @property
    def num_open(self) -> int:
        """Sequences that run or wait, of all models."""
        return sum(engine.num_open for engine in self.engines)

    def engine_of(self, name: str | None, param: str | None = "model") -> EngineThread:
        """The engine of the model that a request asks for; None: the first. Raises ApiError 404 for another's name."""
        if name is None:
            return self.engine
        for engine in self.engines:
            if engine.name == name:
                return engine
        here = " and ".join(repr(engine.name) for engine in self.engines)
        message = f"no model {name!r:.200} here; this server has {here}"
        raise ApiError(404, message, param=param, code="model_not_found")

    def living(self) -> list[EngineThread]:
        """The engines that answer. Raises ApiError 503 while a model is being loaded, and where none is left."""
        for engine in self.engines:
            if engine.state == "loading":
                engine.ready()
        found = [engine for engine in self.engines if engine.state in ("ready", "draining")]
        if not found:
            self.engine.ready()
        return found

    def start(self) -> None:
        """Start loading; must be called with the loop running."""
        for engine in self.engines:
            engine.start()

    async def drain(self, seconds: float) -> bool:
        """Take nothing new and wait for what runs, so long at most. Whether all of it has ended."""
        return all(await asyncio.gather(*(engine.drain(seconds) for engine in self.engines)))

    def halt(self) -> None:
        """Have the engines end after the step they are in; who still waits gets an error now."""
        for engine in self.engines:
            engine.halt()

    def stop(self) -> None:
        """`halt`, and wait for the threads."""
        self.halt()
        for engine in self.engines:
            engine.stop()


def partition(request: Request) -> str:
    """Whose prefix cache this is: the API key's, hashed; "" where there are no keys. `security` has put it there."""
    return str(request.scope.get("jielong.partition", ""))


def new_id(kind: str) -> str:
    """chatcmpl-5f2c..."""
    return f"{kind}-{secrets.token_hex(12)}"


async def beside_the_loop(num_characters: int, work: Callable[[], T]) -> T:
    """work(), in another thread when it has so much text to do that others would notice."""
    if num_characters < _MANY_CHARACTERS:
        return work()
    return await asyncio.get_running_loop().run_in_executor(None, work)


def log_event(event: str, values: Mapping[str, Any]) -> None:
    """One line of JSON in ASCII: whatever a client sent, it cannot begin a line of its own or colour a terminal."""
    LOG.info("%s", json.dumps({"event": event, **values}))
