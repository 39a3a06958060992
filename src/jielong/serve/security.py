"""Who may ask: a gate before every route. What is not expressly let through is refused.

- The Host header must name this server, so that no foreign name can be made to lead here (DNS rebinding).
- A request from a web page (it has an Origin) must come from a page of this server or of an allowed origin.
- Where API keys are set every path needs one, but for a short public list.
- What a request may cost before a route sees it is bounded here and in `intake`.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jielong.serve.errors import ApiError
from jielong.serve.pages import FACES, REPORT
from jielong.serve.settings import LOOPBACK_NAMES, ServeSettings

# The page and its parts hold nothing secret; it asks for the key before it asks the API for anything.
PUBLIC_PATHS = frozenset({*FACES, REPORT, "/health"})
PUBLIC_FOLDER = "/web/"
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]+))(?::[0-9]{1,5})?")
METHODS, HEADERS = "GET, POST, OPTIONS", "authorization, content-type, x-api-key"
"""What allowed origins may send."""


class Gate:
    """Checks Host, Origin and key, answers preflights, and marks whose prefix cache a request uses."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings
        self._keys = [_digest(key) for key in settings.api_keys]
        self._num_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket, which nothing here speaks
            await send({"type": "websocket.close"})
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        foreign = origin is not None and origin in self._settings.allowed_origins
        if foreign and origin is not None:
            send = _with_cors(send, origin)
        try:
            partition = self._check(scope, headers, foreign)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if foreign and scope["method"] == "OPTIONS":
            await Response(status_code=204)(scope, receive, send)
            return
        scope["jielong.partition"] = partition
        self._num_open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_open -= 1

    def _check(self, scope: Scope, headers: Headers, foreign: bool) -> str:
        """The partition of the prefix cache. Raises ApiError for what is refused."""
        if self._num_open >= self._settings.limits.connections:
            raise ApiError(503, "too many requests are open", code="overloaded", headers={"retry-after": "1"})
        self._check_head(scope, headers, foreign)
        # A preflight cannot carry the key: it asks whether it may.
        return "" if foreign and scope["method"] == "OPTIONS" else self._check_key(scope["path"], headers)

    def _check_head(self, scope: Scope, headers: Headers, foreign: bool) -> None:
        size = sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope["query_string"])
        if size + len(scope["path"]) > self._settings.limits.header_bytes:
            raise ApiError(431, f"the headers are longer than {self._settings.limits.header_bytes} bytes")
        hosts = headers.getlist("host")
        # HTTP/1.0 may leave it out; a browser never does, and it is browsers that can be led here by a foreign name.
        if len(hosts) > 1 or not all(self._is_here(host) for host in hosts):
            raise ApiError(
                403,
                f"the Host header is {', '.join(hosts)!r:.200}, which is no name of this server; "
                "start it with --allow-host NAME if it is one",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        own = hosts and origin in (f"http://{hosts[0]}", f"https://{hosts[0]}")
        if origin is not None and not (foreign or own):
            raise ApiError(
                403,
                f"the page's origin {origin!r:.200} may not ask here; start the server with --allow-origin to let it",
                code="origin_not_allowed",
            )

    def _is_here(self, host: str) -> bool:
        """Whether a Host header names this server. The port does not matter: it may be another before a tunnel."""
        name = host_name(host)
        if not name:
            return False
        if name in LOOPBACK_NAMES or name == self._settings.host or name in self._settings.allowed_hosts:
            return True
        # An address cannot be rebound; but on loopback no other one than those above can be meant.
        return not self._settings.is_loopback and _is_address(name)

    def _check_key(self, path: str, headers: Headers) -> str:
        """The partition of the prefix cache. Raises ApiError 401 unless the key is known or the path is public."""
        if not self._keys or is_public(path):
            return ""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = _digest(key)
        # All are compared, each in constant time, so that the time tells neither how much was right nor which one.
        matches = [hmac.compare_digest(digest, known) for known in self._keys]
        if not any(matches):
            text = (
                "this server needs an API key: send the header Authorization: Bearer KEY"
                if not key
                else "unknown API key"
            )
            raise ApiError(401, text, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return digest.hex()[:32]


def is_public(path: str) -> bool:
    """Whether a path is served without a key."""
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDER)


def host_name(host: str) -> str:
    """The name of a Host header, without its port: "LocalHost:8000" -> "localhost", "[::1]:80" -> "::1"; else ""."""
    found = _HOST.fullmatch(host.strip().lower())
    return (found[1] or found[2].rstrip(".")) if found else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _digest(key: str) -> bytes:
    """Keys are compared as digests: all equally long."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _with_cors(send: Send, origin: str) -> Send:
    """Adds what lets a page of this origin read the answer. Never credentials: a key is a header, not a cookie."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            headers["access-control-allow-origin"] = origin
            headers["access-control-allow-methods"], headers["access-control-allow-headers"] = METHODS, HEADERS
            headers.add_vary_header("origin")
        await send(message)

    return sending
