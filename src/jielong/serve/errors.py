"""What a client is told when a request cannot be served: one error object for everything, as OpenAI's API has it.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

Statuses: 400 bad input, 401 no or a wrong key, 403 refused place or use, 404, 405, 408, 413, 415, 429 queue full, 431,
500 our own bug, 503 loading, draining or dead, 507 what the page keeps cannot be written. OpenAI's clients repeat a
request at 408, 409, 429 and from 500 on, so that bad input must never be one of those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
    507: "server_error",
}


class ApiError(Exception):
    """A request that ends with an error object. param: the wrong field, as "messages[0].role". code: for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def text(self) -> str:
        """The body as JSON in ASCII: whatever a client sent and the message quotes can be written."""
        return json.dumps(self.body)

    def response(self) -> Response:
        return Response(self.text, self.status, self.headers, media_type="application/json")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, code: str) -> ApiError:
    """503: not now. A client should come back after a while."""
    return ApiError(503, message, code=code, headers={"retry-after": "5"})


async def answer_api_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of ApiError."""
    assert isinstance(error, ApiError)
    return error.response()


async def answer_storage_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of a file that cannot be written (any more): conversations and votes of the page."""
    return no_room(error).response()


def no_room(error: Exception) -> ApiError:
    """507 for a StorageError."""
    return ApiError(507, str(error), code="cannot_be_kept", headers={"x-should-retry": "false"})


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of what its router raises: no such path, no such method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"no such path: {request.url.path!r:.200}; the paths are listed in /openapi.json"
    elif error.status_code == 405:
        message = f"{request.method!r:.40} is no method of this path; see /openapi.json"
    else:
        message = error.detail
    return ApiError(error.status_code, message, headers=error.headers).response()
