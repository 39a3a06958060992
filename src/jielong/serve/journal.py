"""The outermost layer: every request gets a number, a line in the log, a count, and an answer whatever happens."""

from __future__ import annotations

import json
import logging
import secrets
import sys
import time
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jielong.serve.errors import ApiError
from jielong.serve.metrics import Metrics
from jielong.serve.service import LOG, log_event

_FOLDERS = ("/v1/models/", "/web/", "/api/")
_MOST_PATH = 200


class Journal:
    """paths: those of the routes; a request to another one counts under "other", so that clients cannot make labels."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, number, status = time.monotonic(), f"req_{secrets.token_hex(8)}", 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers["x-request-id"], headers["x-content-type-options"] = number, "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            LOG.exception("a bug: request %s failed", number)
            if status:
                raise  # half an answer: the connection is closed
            error = ApiError(500, f"a bug in the server; its log says more under {number}", code="internal_error")
            await error.response()(scope, receive, sending)
        finally:
            self._note(scope, number, status, time.monotonic() - began)

    def _note(self, scope: Scope, number: str, status: int, seconds: float) -> None:
        path = scope["path"]
        label = path if path in self._paths else next((one for one in _FOLDERS if path.startswith(one)), "other")
        self._metrics.requests.add(1, label, str(status))
        self._metrics.request_seconds.observe(seconds)
        client = scope.get("client") or ("",)
        told = {"id": number, "client": client[0], "method": scope["method"][:20], "path": path[:_MOST_PATH]}
        log_event("request", {**told, "status": status, "seconds": round(seconds, 6)})


class LogLines(logging.Formatter):
    """Every record as one line of JSON in ASCII, tracebacks too: no text in it begins a line or colours a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {"time": round(record.created, 3), "level": record.levelname.lower()}
        message = record.getMessage()
        try:
            found = json.loads(message) if record.name == LOG.name else None
        except ValueError:
            found = None
        told.update(found if isinstance(found, dict) else {"event": "message", "text": message})
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def log_to_stderr() -> None:
    """Send what this package and uvicorn log to stderr, line by line. For a process that is a server."""
    sink = logging.StreamHandler(sys.stderr)
    sink.setFormatter(LogLines())
    for name in (LOG.name, "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [sink], False
        logger.setLevel(logging.INFO if name == LOG.name else logging.WARNING)
