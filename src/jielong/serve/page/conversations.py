"""/api/conversations: the history as the page reads and writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jielong.serve.page.bodies import Body, Name, Text, fresh, missing, read_body
from jielong.serve.page.history import History, Message

MOST_BYTES = 8 << 20  # of a body: a long answer with the alternatives of each of its tokens
Title = Annotated[str, Field(max_length=200)]


class NewConversation(Body):
    id: Name
    title: Title = ""
    system: Text = ""


class Changes(Body):
    title: Title | None = None
    system: Text | None = None
    leaf: Name | Literal[""] | None = None


class NewMessage(Body):
    """note: what the page keeps beside a message, for example which model wrote it and how fast."""

    id: Name
    parent: Name | Literal[""] = ""
    role: Literal["user", "assistant"]
    content: Text
    note: dict[str, str | float | int | bool | None] = Field(default_factory=dict, max_length=20)
    tokens: list[Any] | None = None


def conversation_routes(history: History) -> list[Route]:
    """List and create; read, change, delete; add a message; the tokens of a message."""

    async def listed(request: Request) -> Response:
        return fresh({"conversations": await run_in_threadpool(history.conversations)})

    async def create(request: Request) -> Response:
        body = await read_body(request, NewConversation, MOST_BYTES)
        await run_in_threadpool(history.create, body.id, body.title, body.system)
        return fresh({"id": body.id}, 201)

    async def read(request: Request) -> Response:
        found = await run_in_threadpool(history.conversation, request.path_params["name"])
        if found is None:
            raise missing("conversation")
        return fresh(found)

    async def change(request: Request) -> Response:
        changes: Mapping[str, str] = (await read_body(request, Changes, MOST_BYTES)).model_dump(exclude_none=True)
        if not await run_in_threadpool(history.change, request.path_params["name"], changes):
            raise missing("conversation")
        return fresh(dict(changes))

    async def remove(request: Request) -> Response:
        if not await run_in_threadpool(history.remove, request.path_params["name"]):
            raise missing("conversation")
        return Response(status_code=204)

    async def add(request: Request) -> Response:
        body = await read_body(request, NewMessage, MOST_BYTES)
        message = Message(body.id, body.parent, body.role, body.content, body.note, body.tokens)
        state = await run_in_threadpool(history.add, request.path_params["name"], message)
        if state.startswith("no "):
            raise missing("message" if state == "no parent" else "conversation")
        return fresh({"id": body.id, "state": state}, 201 if state == "added" else 200)

    async def tokens(request: Request) -> Response:
        found = await run_in_threadpool(history.tokens, request.path_params["name"], request.path_params["message"])
        return fresh({"tokens": found})

    one = "/api/conversations/{name}"
    return [
        Route("/api/conversations", listed, methods=["GET"]),
        Route("/api/conversations", create, methods=["POST"]),
        Route(one, read, methods=["GET"]),
        Route(one, change, methods=["PATCH"]),
        Route(one, remove, methods=["DELETE"]),
        Route(one + "/messages", add, methods=["POST"]),
        Route(one + "/messages/{message}/tokens", tokens, methods=["GET"]),
    ]
