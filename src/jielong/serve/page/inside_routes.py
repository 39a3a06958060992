"""/api/inside/…: what "Look inside" asks for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jielong.errors import JielongError
from jielong.model.transformer import Transformer
from jielong.serve.errors import bad_request
from jielong.serve.page import inside
from jielong.serve.page.bodies import Body, Text, fresh, read_body
from jielong.serve.page.lens import Lens
from jielong.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")
MOST_BYTES = 1 << 20


class Turn(Body):
    role: Literal["system", "user", "assistant"]
    content: Text


class TextBody(Body):
    """A text, with what a translator has written of it so far; or a conversation. model: which reads it."""

    model: Text | None = None
    text: Text = ""
    target: Text = ""
    messages: list[Turn] | None = Field(default=None, max_length=10_000)


def inside_routes(lens_of: Callable[[str | None], Lens]) -> list[Route]:
    """Maps, logit lens and steps of a text; neighbours of a token; positions; parameters.

    lens_of: of the model of a name, or of the first for None; raises ApiError 404. Where nothing is sent, the name
    stands in the address: ?model=NAME.
    """

    async def looked(request: Request, tell: Callable[[Transformer, Tokenizer, inside.Looked], T]) -> T:
        body = await read_body(request, TextBody, MOST_BYTES)
        turns = None if body.messages is None else [turn.model_dump() for turn in body.messages]

        def work(model: Transformer, tokenizer: Tokenizer) -> T:
            return tell(model, tokenizer, inside.look(model, tokenizer, body.text, body.target, turns))

        return await _told(lens_of(body.model), work)

    async def attention(request: Request) -> Response:
        maps = await looked(request, inside.attention)
        return Response(maps, media_type="application/octet-stream", headers={"cache-control": "no-store"})

    async def lens(request: Request) -> Response:
        return fresh(await looked(request, inside.predictions))

    async def steps(request: Request) -> Response:
        return fresh(await looked(request, inside.steps))

    def named(request: Request) -> Lens:
        return lens_of(request.query_params.get("model"))

    async def neighbours(request: Request) -> Response:
        written = request.query_params.get("token", "")
        if not written.isdecimal() or len(written) > 9:
            raise bad_request(f"token is {written!r:.40}; it must be the number of a token", "token")
        return fresh(await _told(named(request), partial(_near, int(written))))

    async def positions(request: Request) -> Response:
        return fresh(await _told(named(request), lambda model, tokenizer: inside.positions(model)))

    async def shape(request: Request) -> Response:
        found = named(request)
        return fresh(await _told(found, lambda model, tokenizer: inside.shape(model, found.name)))

    return [
        Route("/api/inside/attention", attention, methods=["POST"]),
        Route("/api/inside/lens", lens, methods=["POST"]),
        Route("/api/inside/steps", steps, methods=["POST"]),
        Route("/api/inside/neighbours", neighbours, methods=["GET"]),
        Route("/api/inside/positions", positions, methods=["GET"]),
        Route("/api/inside/shape", shape, methods=["GET"]),
    ]


async def _told(lens: Lens, work: Callable[[Transformer, Tokenizer], T]) -> T:
    """What is found with the model. Raises ApiError 400 for what cannot be looked at, and when the folder is gone."""
    try:
        return await lens.use(work)
    except JielongError as error:
        raise bad_request(str(error)) from None


def _near(token: int, model: Transformer, tokenizer: Tokenizer) -> dict[str, Any]:
    return inside.near(model, tokenizer, token)
