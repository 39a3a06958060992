"""A request's body: read within bounds of size and time, parsed as strict JSON, and held to its schema."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from jielong.serve.errors import ApiError, bad_request
from jielong.serve.settings import Limits

BodyT = TypeVar("BodyT", bound=BaseModel)

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_TYPE_TRIED = re.compile(r"\[|^(constrained-)?str$")
_PROMPTS = ("prompt", "input")
CLOSE = {"connection": "close"}  # the rest of a body that is not read would be taken for a request


async def read(request: Request, model_class: type[BodyT], limits: Limits) -> BodyT:
    """The body as an instance of model_class.

    Raises ApiError: 415 unless it calls itself JSON, 413 when it is too long, 408 when it does not come in time, 400
    when it is no JSON object or not as the schema wants it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also what keeps foreign pages out: a browser sends text/plain across origins without asking, JSON it does not.
        raise ApiError(415, f"content-type is {kind!r:.100}; send application/json", headers=CLOSE)
    try:
        body = await asyncio.wait_for(_collect(request, limits.body_bytes), limits.body_seconds)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body was not here within {limits.body_seconds:g} seconds", headers=CLOSE) from None
    except ClientDisconnect:
        raise ApiError(400, "the client left before its body was here") from None
    return validate(model_class, parse(body))


async def _collect(request: Request, most_bytes: int) -> bytes:
    length = request.headers.get("content-length", "0")
    chunks, size = [], int(length) if length.isdigit() and len(length) < 20 else 0
    if size <= most_bytes:
        size = 0
        async for chunk in request.stream():
            chunks.append(chunk)
            size += len(chunk)
            if size > most_bytes:
                break
    if size > most_bytes:
        raise ApiError(413, f"the body is longer than {most_bytes} bytes", code="body_too_long", headers=CLOSE)
    return b"".join(chunks)


def parse(body: bytes) -> Any:
    """JSON to Python. Raises ApiError 400 also for what Python would take: NaN, double keys, lone surrogates."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_without_doubles)
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8 at byte {error.start}", code="invalid_json") from None
    except UnicodeEncodeError:
        raise bad_request("the body holds half a character: a lone surrogate", code="invalid_json") from None
    except RecursionError:
        raise bad_request("the body's JSON is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise bad_request(f"the body is not JSON: {str(error):.200}", code="invalid_json") from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _without_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def validate(model_class: type[BodyT], value: Any) -> BodyT:
    """An instance of model_class. Raises ApiError 400 naming the first wrong field."""
    if not isinstance(value, Mapping):
        raise bad_request("the body must be a JSON object")
    try:
        return model_class.model_validate(value)
    except ValidationError as error:
        details: list[Any] = error.errors(include_url=False)
    # Where a field may be of several types each of them has an error; the one that got furthest is what was meant.
    first = [detail for detail in details if detail["loc"][:1] == details[0]["loc"][:1]]
    raise _explained(max(first, key=lambda detail: len(detail["loc"])))


def _explained(detail: Mapping[str, Any]) -> ApiError:
    """One pydantic error as a client should read it."""
    place, kind = list(detail["loc"]), detail["type"]
    if kind == "value_error":  # from a validator of our own: the text says which field
        return bad_request(str(detail["ctx"]["error"]))
    if place[0] in _PROMPTS and kind != "missing":
        text = "must be a text, a list of token ids, or a list of texts or of lists of ids; no list may be empty"
        return bad_request(f"{place[0]}: {text}", str(place[0]))
    # pydantic names the type it tried, too: "stop", "list[constrained-str]", 0
    place = [part for part in place if isinstance(part, int) or not _TYPE_TRIED.search(part)]
    if kind == "missing":
        return bad_request(f"{_dotted(place)} is required", _dotted(place))
    shown = json.dumps(detail["input"], default=str)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    message = str(detail["msg"]).replace("Input should be a valid integer", "must be a whole number")
    message = message.replace("Input should be a valid", "must be a").replace("Input should be", "must be")
    return bad_request(f"{_dotted(place)} is {shown}: {message}", _dotted(place))


def _dotted(place: Sequence[str | int]) -> str:
    """messages[0].role"""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
