"""What the page sends and gets: strict bodies in, JSON that nothing keeps out."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from jielong.serve.errors import ApiError, bad_request

MOST_CHARACTERS = 1 << 20
Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Name = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
Model = TypeVar("Model", bound=BaseModel)


class Body(BaseModel):
    """A request's body: an unknown key is an error, and nothing is guessed into another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


async def read_body(request: Request, kind: type[Model], most_bytes: int) -> Model:
    """The body as `kind`. Raises ApiError: 415 for another media type, 413 when it or a text in it is too large, 400
    when it is wrong.

    Unlike `intake.read` it takes bodies of megabytes, and knows every key.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(415, f"content-type is {media_type!r:.60}; it must be application/json")
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > most_bytes:
            raise ApiError(413, f"the body is larger than {most_bytes} bytes", headers={"connection": "close"})
    try:
        return kind.model_validate_json(bytes(content))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "string_too_long" and first["ctx"]["max_length"] == MOST_CHARACTERS:
            raise ApiError(413, f"{where}: {first['msg']}", param=where, code="body_too_long") from None
        raise bad_request(f"{where or 'body'}: {first['msg']}", where or None) from None


def fresh(value: Any, status: int = 200) -> Response:
    """JSON that no cache keeps."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Response(text.encode(), status, media_type="application/json", headers={"cache-control": "no-store"})


def missing(what: str) -> ApiError:
    return ApiError(404, f"there is no such {what}; it may have been deleted in another window")
