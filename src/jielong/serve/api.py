"""The application: routes, and the layers before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from jielong.errors import StorageError
from jielong.serve.chat import Chat
from jielong.serve.completions import Completions
from jielong.serve.embeddings import Embeddings
from jielong.serve.errors import ApiError, answer_api_error, answer_http_error, answer_storage_error
from jielong.serve.journal import Journal
from jielong.serve.lookups import Lookups
from jielong.serve.pages import Pages
from jielong.serve.security import Gate
from jielong.serve.service import Service


def build_app(service: Service, more_routes: Sequence[Route] = (), pages: Pages | None = None) -> Starlette:
    """The ASGI application of a service. Its lifespan starts the engines and stops them.

    more_routes: what stands beside the API, such as the page's own /api/ routes; behind the same gate. pages: the page.
    """
    lookups = Lookups(service)
    routes = [
        Route("/v1/models", lookups.models, methods=["GET"]),
        Route("/v1/models/{model_id:path}", lookups.model, methods=["GET"]),
        Route("/v1/completions", Completions(service).post, methods=["POST"]),
        Route("/v1/chat/completions", Chat(service).post, methods=["POST"]),
        Route("/v1/embeddings", Embeddings(service).post, methods=["POST"]),
        Route("/tokenize", lookups.tokenize, methods=["POST"]),
        Route("/detokenize", lookups.detokenize, methods=["POST"]),
        Route("/tokenizer_info", lookups.tokenizer_info, methods=["GET"]),
        Route("/health", lookups.health, methods=["GET"]),
        Route("/version", lookups.version, methods=["GET"]),
        Route("/metrics", lookups.metrics, methods=["GET"]),
        Route("/openapi.json", lookups.openapi, methods=["GET"]),
        *more_routes,
        *(pages or Pages()).routes(),
    ]
    paths = frozenset(route.path for route in routes if "{" not in route.path)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.stop()

    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(Journal, metrics=service.metrics, paths=paths),
            Middleware(Gate, settings=service.settings),
        ],
        exception_handlers={
            ApiError: answer_api_error,
            HTTPException: answer_http_error,
            StorageError: answer_storage_error,
        },
    )
    app.router.redirect_slashes = False  # a redirect would repeat the Host header that somebody else has chosen
    return app
