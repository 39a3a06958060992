"""A chunk from a stencil is, to the byte, the one that is written as a whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jielong.serve.replies import Envelope
from jielong.serve.stream import Stencil

TEXTS = ["", "a", 'he said "no"\\', "\n\r\t\x00\x1f", "接龙 😀", "</script> {}[]", "\u2028\x7f", "\\u0000", "x\n\n"]


@pytest.mark.parametrize("tells_usage", [False, True])
@pytest.mark.parametrize("model", ["quickstart", 'a "model"', "接龙 {}"])
def test_a_stencil_writes_what_the_encoder_writes(model: str, tells_usage: bool) -> None:
    envelope = Envelope("chat.completion.chunk", "chatcmpl-0", model)

    def choice(text: str) -> dict[str, Any]:
        return {"index": 3, "delta": {"content": text}, "logprobs": None, "finish_reason": None}

    stencil = Stencil(envelope.event(choice(Stencil.HOLE), tells_usage))
    for text in TEXTS:
        chunk = stencil.fill(text)
        assert chunk == envelope.event(choice(text), tells_usage)
        assert json.loads(chunk[6:])["choices"][0]["delta"]["content"] == text and chunk.count(b"\n") == 2
