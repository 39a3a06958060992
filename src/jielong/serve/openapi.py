"""/openapi.json: the API as OpenAPI 3.1 describes it, written from the models that requests are held to."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from jielong.serve import answers, schema

_TEMPLATE = "#/components/schemas/{model}"
_STATUSES = {
    "400": "The request is wrong; nothing was done.",
    "401": "No API key, or none that is known.",
    "403": "The page, the host name or the use is refused.",
    "404": "No such model.",
    "408": "The body did not come in time.",
    "413": "The body is too long.",
    "415": "The body does not call itself application/json.",
    "429": "The queue is full; Retry-After says when to come back.",
    "431": "The headers are too long.",
    "500": "The model's scores are no numbers.",
    "503": "Loading, about to stop, or dead.",
}
_ALWAYS = ("401", "403", "431", "503")
_POSTED = ("400", "404", "408", "413", "415", "429", "500", *_ALWAYS)

# path -> (method, operation, what it is for, request, answer, media types of the answer)
_PATHS: dict[str, tuple[str, str, str, type[BaseModel] | None, type[BaseModel] | None, tuple[str, ...]]] = {
    "/v1/models": ("get", "list_models", "The models served.", None, answers.ModelsAnswer, ("application/json",)),
    "/v1/models/{model_id}": ("get", "get_model", "One model.", None, answers.ModelAnswer, ("application/json",)),
    "/v1/completions": (
        "post", "complete", "Continue or score texts.", schema.CompletionBody, answers.CompletionAnswer,
        ("application/json", "text/event-stream"),
    ),
    "/v1/chat/completions": (
        "post", "chat", "Answer in a conversation.", schema.ChatBody, answers.ChatAnswer,
        ("application/json", "text/event-stream"),
    ),
    "/v1/embeddings": (
        "post", "embed", "Vectors of texts.", schema.EmbeddingBody, answers.EmbeddingAnswer, ("application/json",),
    ),
    "/tokenize": (
        "post", "tokenize", "Text to ids.", schema.TokenizeBody, answers.TokenizeAnswer, ("application/json",),
    ),
    "/detokenize": (
        "post", "detokenize", "Ids to text.", schema.DetokenizeBody, answers.DetokenizeAnswer, ("application/json",),
    ),
    "/tokenizer_info": ("get", "tokenizer_info", "Special tokens.", None, answers.TokenizerInfo, ("application/json",)),
    "/health": ("get", "health", "Whether requests are taken.", None, answers.HealthAnswer, ("application/json",)),
    "/version": ("get", "version", "The version.", None, answers.VersionAnswer, ("application/json",)),
    "/metrics": ("get", "metrics", "Counters for Prometheus.", None, None, ("text/plain",)),
    "/openapi.json": ("get", "openapi", "This description.", None, None, ("application/json",)),
}  # fmt: skip


@cache
def document(version: str) -> dict[str, Any]:
    """The whole description."""
    requests = {one[3]: "validation" for one in _PATHS.values() if one[3] is not None}
    replies = {one[4]: "serialization" for one in _PATHS.values() if one[4] is not None}
    models: Any = [*requests.items(), *replies.items(), (answers.ErrorAnswer, "serialization")]
    references, definitions = models_json_schema(models, ref_template=_TEMPLATE)
    paths: dict[str, Any] = {}
    for path, (method, operation, text, request, reply, media_types) in _PATHS.items():
        reference = {} if reply is None else references[(reply, "serialization")]
        kinds = {
            kind: {"schema": reference if kind == "application/json" else {"type": "string"}} for kind in media_types
        }
        described: dict[str, Any] = {"operationId": operation, "summary": text}
        described["responses"] = {
            "200": {"description": "Done.", "content": kinds},
            **_errors(request is not None, path),
        }
        if request is not None:
            body = {"application/json": {"schema": references[(request, "validation")]}}
            described["requestBody"] = {"required": True, "content": body}
        if _parameters(path):
            described["parameters"] = _parameters(path)
        if path == "/health":
            described["security"] = []
        paths[path] = {method: described}
    return {
        "openapi": "3.1.0",
        "info": {"title": "jielong", "version": version, "description": "The API of OpenAI, for local models."},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _parameters(path: str) -> list[dict[str, Any]]:
    """What stands in the address."""
    if "{model_id}" in path:
        return [{"name": "model_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    if path == "/tokenizer_info":
        return [{"name": "model", "in": "query", "required": False, "schema": {"type": "string", "maxLength": 1000}}]
    return []


def _errors(has_body: bool, path: str) -> dict[str, Any]:
    names_one = "{" in path or path == "/tokenizer_info"
    statuses = _POSTED if has_body else (*_ALWAYS, "404") if names_one else _ALWAYS
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
    return {status: {"description": _STATUSES[status], "content": content} for status in sorted(statuses)}
