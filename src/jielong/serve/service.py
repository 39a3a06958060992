"""What every endpoint works with: the engine's thread, the model under its name, the settings, the counters."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from jielong.serve.engine_thread import EngineThread, Loaded
from jielong.serve.errors import ApiError
from jielong.serve.metrics import Metrics
from jielong.serve.settings import ServeSettings

LOG = logging.getLogger("jielong.serve")
# From this many characters on, a text is made into ids beside the event loop, so that others need not wait for it.
_MANY_CHARACTERS = 20_000
T = TypeVar("T")


@dataclass
class Service:
    """model_name: what /v1/models calls the model; a request that names another gets a 404, never a look at a disk."""

    settings: ServeSettings
    engine: EngineThread
    model_name: str
    metrics: Metrics = field(default_factory=Metrics)

    def model(self, name: str | None, param: str | None = "model") -> Loaded:
        """The model that a request asks for. Raises ApiError 404 for another's name, 503 while there is none."""
        if name is not None and name != self.model_name:
            message = f"no model {name!r:.200} here; this server has {self.model_name!r}"
            raise ApiError(404, message, param=param, code="model_not_found")
        return self.engine.ready()


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
