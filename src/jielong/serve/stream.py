"""Server-sent events, and what happens when who asked has gone: the work ends within a step."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import ClassVar, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jielong.serve.errors import ApiError
from jielong.serve.metrics import Metrics

T = TypeVar("T")
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
DONE = b"data: [DONE]\n\n"
HEADERS = {"cache-control": "no-store"}
STREAM_HEADERS = {**HEADERS, "x-accel-buffering": "no"}  # nginx would else wait for more


def to_json(data: object) -> bytes:
    """Compact JSON, one line: line ends inside its texts are written as \\n."""
    return _ENCODER.encode(data).encode()


def event(data: object) -> bytes:
    """One event. No text in it can end it, for JSON has no line ends."""
    return b"data: " + to_json(data) + b"\n\n"


class Stencil:
    """A chunk that comes again and again with another text: what stands around the text is written once."""

    HOLE: ClassVar[str] = "\x00"  # nothing else in a chunk of ours is a control character

    def __init__(self, chunk: bytes) -> None:
        """chunk: has HOLE where the text will stand, once."""
        self._before, self._after = chunk.split(to_json(self.HOLE))

    def fill(self, text: str) -> bytes:
        return self._before + to_json(text) + self._after


def answer(data: object) -> Response:
    """A whole answer as JSON; for None, which is for a client that has left, nothing."""
    if data is None:
        return Response(status_code=499)
    return Response(to_json(data), media_type="application/json", headers=HEADERS)


class EventStream(Response):
    """Sends events as they come. An ApiError on the way becomes an event with `error`, which clients raise.

    abandon: called once when the client leaves before the end, or anything else ends the stream early.
    While nothing comes, as in the queue, a comment every PING_SECONDS keeps what is between from giving up.
    """

    media_type = "text/event-stream"
    PING_SECONDS: ClassVar[float] = 15.0

    def __init__(self, events: AsyncIterator[bytes], abandon: Callable[[], None], metrics: Metrics) -> None:
        self.status_code, self.background = 200, None
        self.init_headers(STREAM_HEADERS)
        self._events, self._abandon, self._metrics = events, abandon, metrics
        self._is_quiet = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending = asyncio.ensure_future(self._send_all(send))
        leaving = asyncio.ensure_future(_departure(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._metrics.disconnected.add(1)
                return
            sending.result()
        finally:
            leaving.cancel()
            if not sending.done() or sending.cancelled() or sending.exception() is not None:
                sending.cancel()
                self._abandon()

    async def _send_all(self, send: Send) -> None:
        pinging = asyncio.ensure_future(self._ping(send))
        try:
            async for chunk in self._events:
                self._is_quiet = False
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except ApiError as error:
            await send({"type": "http.response.body", "body": event(error.body), "more_body": True})
        finally:
            pinging.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ping(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self.PING_SECONDS)
            if self._is_quiet:
                await send({"type": "http.response.body", "body": b": still here\n\n", "more_body": True})
            self._is_quiet = True


async def unless_gone(request: Request, work: Awaitable[T], abandon: Callable[[], None], metrics: Metrics) -> T | None:
    """The result of work; None when the client has left, after which abandon has been called and work is cancelled."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_departure(request.receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        metrics.disconnected.add(1)
        return None
    finally:
        leaving.cancel()
        if not working.done() or working.cancelled() or working.exception() is not None:
            working.cancel()
            abandon()


async def _departure(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
