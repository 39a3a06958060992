"""What a client may ask about the server itself: models, the tokenizer, health, metrics, the description of the API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jielong import __version__
from jielong.errors import UsageError
from jielong.serve import metrics, openapi
from jielong.serve.engine_thread import EngineThread
from jielong.serve.errors import ApiError, bad_request, unavailable
from jielong.serve.intake import read
from jielong.serve.prompts import conversation_ids
from jielong.serve.schema import DetokenizeBody, TokenizeBody
from jielong.serve.service import Service, beside_the_loop
from jielong.serve.spelling import token_text
from jielong.serve.stream import answer


class Lookups:
    """The endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self, request: Request) -> Response:
        return answer({"object": "list", "data": [_described(engine) for engine in self._service.living()]})

    async def model(self, request: Request) -> Response:
        return answer(_described(self._service.engine_of(request.path_params["model_id"], param=None)))

    async def tokenize(self, request: Request) -> Response:
        body = await read(request, TokenizeBody, self._service.settings.limits)
        loaded = self._service.engine_of(body.model).ready()
        tokenizer = loaded.tokenizer
        if body.messages is not None:
            reply = body.add_generation_prompt is not False
            ids = await conversation_ids(body.messages, self._service.settings.persona, loaded, reply)
        elif body.add_special_tokens is not False:
            ids = await beside_the_loop(len(body.prompt or ""), partial(tokenizer.beginning, body.prompt or ""))
            ids = [*ids, *tokenizer.suffix_ids]
        else:
            ids = await beside_the_loop(len(body.prompt or ""), partial(tokenizer.encode, body.prompt or ""))
        texts = [token_text(tokenizer, token) for token in ids] if body.return_token_strs else None
        told = {"count": len(ids), "max_model_len": loaded.context, "tokens": ids, "token_strs": texts}
        return answer(told)

    async def detokenize(self, request: Request) -> Response:
        body = await read(request, DetokenizeBody, self._service.settings.limits)
        loaded = self._service.engine_of(body.model).ready()
        try:
            text = await beside_the_loop(len(body.tokens), partial(loaded.tokenizer.decode, body.tokens))
        except UsageError as error:
            raise bad_request(str(error), "tokens") from None
        return answer({"prompt": text})

    async def tokenizer_info(self, request: Request) -> Response:
        """What `lm-eval` needs to tokenise by this server and not by itself. The model's name is in the address."""
        loaded = self._service.engine_of(request.query_params.get("model")).ready()
        tokenizer = loaded.tokenizer

        def name(token: int | None) -> str | None:
            return None if token is None else tokenizer.name(token)

        told = {"bos_token": name(tokenizer.bos_id), "eos_token": name(tokenizer.eos_id)}
        told |= {"pad_token": name(tokenizer.pad_id), "chat_template": tokenizer.chat_template}
        return answer({**told, "vocab_size": tokenizer.vocab_size, "max_model_len": loaded.context})

    async def health(self, request: Request) -> Response:
        """200 when a request to any model would be taken, else 503."""
        for engine in self._service.engines:
            engine.ready()
            if engine.state == "draining":
                raise unavailable("the server is about to stop", "draining")
        return answer({"status": "ok"})

    async def version(self, request: Request) -> Response:
        return answer({"version": __version__})

    async def metrics(self, request: Request) -> Response:
        engines = self._service.engines
        counts = await asyncio.gather(*map(_counts, engines))
        told = dict(zip((engine.name for engine in engines), counts, strict=True))
        return Response(self._service.metrics.render(told), media_type=metrics.CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        return answer(openapi.document(__version__))


def _described(engine: EngineThread) -> dict[str, Any]:
    loaded = engine.ready()
    described = {"id": engine.name, "object": "model", "created": loaded.created, "owned_by": "jielong"}
    return {**described, "max_model_len": loaded.context}


async def _counts(engine: EngineThread) -> Mapping[str, float]:
    """What an engine counts; nothing while it loads, or when it is dead: the rest can still be told."""
    try:
        return await engine.call(engine.ready().batcher.stats)
    except ApiError:
        return {}
