"""POST /v1/embeddings: one vector a text, the mean of the model's last hidden states, of length 1."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from starlette.requests import Request
from starlette.responses import Response

from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.serve.engine_thread import EngineThread
from jielong.serve.errors import ApiError, bad_request
from jielong.serve.intake import read
from jielong.serve.prompts import check_room, prompt_rows
from jielong.serve.schema import EmbeddingBody
from jielong.serve.service import Service
from jielong.serve.stream import answer, unless_gone


@torch.inference_mode()
def embed(model: Transformer, runtime: Runtime, ids: Sequence[int]) -> list[float]:
    """The embedding of one text, D numbers whose squares sum to 1 (or all 0 where the mean is).

    The mean over all positions of the hidden states that the model would predict from, bos included: in a decoder each
    tells of what stands before it, so that the mean is of all prefixes. Of a translator: what its encoder makes of the
    text.
    """
    with runtime.autocast():
        tokens = torch.tensor([list(ids)], device=runtime.device)
        hidden = (model.encode(tokens) if model.config.encoder_layers else model.hidden(tokens))[0]  # (T, D)
    vector: list[float] = F.normalize(hidden.float().mean(dim=0), dim=0).tolist()
    return vector


class Embeddings:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def post(self, request: Request) -> Response:
        service = self._service
        body = await read(request, EmbeddingBody, service.settings.limits)
        engine = service.engine_of(body.model)
        loaded = engine.ready()
        width = loaded.config.width
        if body.dimensions is not None and body.dimensions != width:
            raise bad_request(f"dimensions is {body.dimensions}: this model's embeddings have {width}", "dimensions")
        rows = await prompt_rows(body.input, loaded, "input")
        if len(rows) > service.settings.limits.sequences:
            raise bad_request(f"{len(rows)} texts; {service.settings.limits.sequences} are legal", "input")
        check_room(rows, loaded, 0, "input")
        _check_ids(rows, loaded.tokenizer.vocab_size)
        if engine.state != "ready":
            raise ApiError(503, "the server is about to stop", code="draining", headers={"retry-after": "5"})
        vectors = await unless_gone(request, _all(rows, engine), lambda: None, service.metrics)
        if vectors is None:
            return answer(None)
        data = [
            {"object": "embedding", "index": index, "embedding": _written(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        num_tokens = sum(map(len, rows))
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        engine.metrics.tokens.add(num_tokens, "prompt")
        return answer({"object": "list", "data": data, "model": engine.name, "usage": usage})


async def _all(rows: Sequence[Sequence[int]], engine: EngineThread) -> list[list[float]]:
    """One text at a time, so that those who are being answered need not wait for all of them."""
    batcher = engine.ready().batcher
    return [await engine.call(partial(embed, batcher.model, batcher.runtime, row)) for row in rows]


def _check_ids(rows: Sequence[Sequence[int]], vocab_size: int) -> None:
    wrong = next((token for row in rows for token in row if token >= vocab_size), None)
    if wrong is not None:
        raise bad_request(f"input holds the id {wrong}; the model's ids go from 0 to {vocab_size - 1}", "input")


def _written(vector: Sequence[float], encoding: str | None) -> Any:
    """The numbers, or their float32 bytes (little-endian) in base64, which is what OpenAI's client asks for."""
    if encoding != "base64":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
