"""/api/inside/…: what "Look inside" asks for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jielong.errors import JielongError
from jielong.model.transformer import Transformer
from jielong.serve.errors import bad_request
from jielong.serve.page import inside
from jielong.serve.page.bodies import Body, Text, fresh, read_body
from jielong.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")
MOST_BYTES = 1 << 20


class UseModel(Protocol):
    """Runs work(model, tokenizer) where the model may be used, and gives its result."""

    def __call__(self, work: Callable[[Transformer, Tokenizer], T]) -> Awaitable[T]: ...


class Turn(Body):
    role: Literal["system", "user", "assistant"]
    content: Text


class TextBody(Body):
    """A text, with what a translator has written of it so far; or a conversation."""

    text: Text = ""
    target: Text = ""
    messages: list[Turn] | None = Field(default=None, max_length=10_000)


def inside_routes(use: UseModel, name: str) -> list[Route]:
    """Maps, logit lens and steps of a text; neighbours of a token; positions; parameters. name: of the model."""

    async def looked(request: Request, tell: Callable[[Transformer, Tokenizer, inside.Looked], T]) -> T:
        body = await read_body(request, TextBody, MOST_BYTES)
        messages: list[Mapping[str, str]] | None = None
        if body.messages is not None:
            messages = [{"role": turn.role, "content": turn.content} for turn in body.messages]

        def work(model: Transformer, tokenizer: Tokenizer) -> T:
            return tell(model, tokenizer, inside.look(model, tokenizer, body.text, body.target, messages))

        return await told(work)

    async def told(work: Callable[[Transformer, Tokenizer], T]) -> T:
        try:
            return await use(work)
        except JielongError as error:
            raise bad_request(str(error)) from None

    async def attention(request: Request) -> Response:
        maps = await looked(request, inside.attention)
        return Response(maps, media_type="application/octet-stream", headers={"cache-control": "no-store"})

    async def lens(request: Request) -> Response:
        return fresh(await looked(request, inside.predictions))

    async def steps(request: Request) -> Response:
        return fresh(await looked(request, inside.steps))

    async def neighbours(request: Request) -> Response:
        written = request.query_params.get("token", "")
        if not written.isdecimal() or len(written) > 9:
            raise bad_request(f"token is {written!r:.40}; it must be the number of a token", "token")
        return fresh(await told(partial(_near, int(written))))

    async def positions(request: Request) -> Response:
        return fresh(await told(lambda model, tokenizer: inside.positions(model)))

    async def shape(request: Request) -> Response:
        return fresh(await told(lambda model, tokenizer: inside.shape(model, name)))

    return [
        Route("/api/inside/attention", attention, methods=["POST"]),
        Route("/api/inside/lens", lens, methods=["POST"]),
        Route("/api/inside/steps", steps, methods=["POST"]),
        Route("/api/inside/neighbours", neighbours, methods=["GET"]),
        Route("/api/inside/positions", positions, methods=["GET"]),
        Route("/api/inside/shape", shape, methods=["GET"]),
    ]


def _near(token: int, model: Transformer, tokenizer: Tokenizer) -> dict[str, Any]:
    return inside.near(model, tokenizer, token)
