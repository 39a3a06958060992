"""The process: uvicorn with a time limit on request heads, a drain at SIGTERM, and an exit at the second SIGINT.

uvicorn enters here only.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from jielong.errors import UsageError
from jielong.serve.engine_thread import EngineThread
from jielong.serve.errors import bad_request
from jielong.serve.service import Service, log_event
from jielong.serve.settings import ServeSettings

KEEP_ALIVE_SECONDS = 30
# What a stopping server still gives its last answers to reach their clients, once the engine has made them.
_LAST_BYTES_SECONDS = 5
_BACKLOG = 512
_INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C has ended


class Connection(H11Protocol):
    """One connection. A request's head must come within a time, so that nobody holds connections by dripping bytes."""

    header_seconds = 30.0
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()  # a request is being answered; its body has a time limit of its own
        elif self._patience is None:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._forget()  # from here on uvicorn's limit for idle connections holds
        if self.conn.trailing_data[0] and self.cycle.response_complete:
            self._expect_head()  # the beginning of another request is here already

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets an error object too, and the connection ends."""
        body = bad_request(msg, code="invalid_http").text.encode()
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _expect_head(self) -> None:
        self._patience = self.loop.call_later(self.header_seconds, self.transport.close)

    def _forget(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


class Server(uvicorn.Server):
    """The first signal drains: what runs is finished, what comes is told 503. A second SIGINT ends it at once."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        settings = service.settings

        class Bounded(Connection):
            header_seconds = settings.limits.header_seconds

        config = uvicorn.Config(
            app,
            http=Bounded,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # who asks is who is connected, whatever a header says
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_LAST_BYTES_SECONDS,
            h11_max_incomplete_event_size=settings.limits.header_bytes,
            backlog=_BACKLOG,
        )
        super().__init__(config)
        self._service = service
        self._stopping: asyncio.Task[None] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._signalled = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal, in the main thread, anywhere between two instructions: only hand it to the loop."""
        if self._signalled and sig == signal.SIGINT:
            os._exit(_INTERRUPTED)  # nothing here needs to be put in order; the engine may be in the middle of a step
        self._signalled = True
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        """Drain, then end. To be called on the loop."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        service, seconds = self._service, self._service.settings.drain_seconds
        log_event("draining", {"sequences": service.num_open, "seconds": seconds})
        if not await service.drain(seconds):
            log_event("drain_timeout", {"sequences": service.num_open})
            service.halt()
        self.should_exit = True


def listen(settings: ServeSettings) -> socket.socket:
    """The socket to serve on. Raises UsageError when the address is not ours or taken."""
    host = settings.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(_BACKLOG)  # who connects from now on waits, and is not refused
    except OSError as error:
        raise UsageError(
            f"cannot listen at {settings.host}:{settings.port}: {error.strerror or error}; choose another --port"
        ) from None
    taken.setblocking(False)
    return taken


def serve_until_stopped(app: ASGIApp, service: Service, taken: socket.socket) -> None:
    """Serve until a signal. Raises what made loading a model fail."""
    server = Server(app, service)
    for engine in service.engines:
        engine.on_death = server_ends(server, engine)
    host, port, *_ = taken.getsockname()
    log_event("listening", {"host": host, "port": port, "models": [engine.name for engine in service.engines]})
    server.run(sockets=[taken])
    for engine in service.engines:
        if engine.error is not None and not engine.was_ready:
            raise engine.error


def server_ends(server: Server, engine: EngineThread) -> Callable[[BaseException], None]:
    """What happens when an engine dies: a model that cannot be loaded ends the server; a later failure is logged, and
    /health tells it, so that whoever watches can start the server anew."""

    def on_death(error: BaseException) -> None:
        what = f"{type(error).__name__}: {error}"
        log_event("engine_died", {"model": engine.name, "error": what, "loaded": engine.was_ready})
        if not engine.was_ready:
            server.should_exit = True

    return on_death
