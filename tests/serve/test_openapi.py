"""The description of the API says what is true: every route is in it, and no generated request breaks the server."""

from __future__ import annotations

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from jielong.serve.api import build_app
from jielong.serve.openapi import document
from jielong.serve.pages import FACES, REPORT

from .conftest import Lab, Running


@pytest.mark.anyio
async def test_every_route_is_described(lab: Lab, client: httpx2.AsyncClient) -> None:
    found = (await client.get("/openapi.json")).json()
    assert found == document(found["info"]["version"])
    routes = {
        (route.path.replace(":path", ""), method.lower())
        for route in build_app(lab.service()).routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    routes = {(path, method) for path, method in routes if path not in (*FACES, REPORT) and not path.startswith("/web")}
    assert {(path, method) for path, methods in found["paths"].items() for method in methods} == routes


def test_bounds_are_described() -> None:
    """Every number, text and list that a client may send has its bounds in the description, too."""
    open_ended = []

    def look(schema: object, where: str) -> None:
        if isinstance(schema, list):
            for number, one in enumerate(schema):
                look(one, f"{where}[{number}]")
        if not isinstance(schema, dict):
            return
        wanted = {
            "integer": ("minimum", "maximum"),
            "number": ("maximum",),
            "string": ("maxLength", "pattern", "enum", "const"),
        }
        kind = schema.get("type")
        if isinstance(kind, str) and kind in wanted and not any(word in schema for word in wanted[kind]):
            open_ended.append(where)
        if kind == "array" and "maxItems" not in schema:
            open_ended.append(where)
        for key, value in schema.items():
            look(value, f"{where}.{key}")

    schemas = document("0")["components"]["schemas"]
    for name in (
        "CompletionBody",
        "ChatBody",
        "EmbeddingBody",
        "TokenizeBody",
        "DetokenizeBody",
        "ChatMessage",
        "TextPart",
    ):
        look(schemas[name], name)
    assert not open_ended


CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_generated_request_breaks_it(live: Running, mode: str) -> None:
    """Requests that follow the description, and requests that break it, NUL and all: no 5xx, and as described."""
    schema = schemathesis.openapi.from_dict(document("0"))
    schema.config.generation.update(modes=[schemathesis.GenerationMode(mode)])
    checked = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode == "negative" and operation.method == "get":
            continue  # nothing to break

        @settings(
            max_examples=12, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def probe(case: schemathesis.Case) -> None:
            nonlocal checked
            answer = case.call(base_url=live.url, timeout=30)
            case.validate_response(answer, checks=list(CHECKS))
            checked += 1

        strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))
        from hypothesis import given

        given(strategy)(probe)()
    assert checked > 40
    assert httpx2.get(f"{live.url}/health").status_code == 200
