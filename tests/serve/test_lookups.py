"""Ids and texts over HTTP, as `lm-eval` uses them in place of a tokenizer of its own; and embeddings."""

from __future__ import annotations

import base64
import struct
from typing import Any

import httpx2
import pytest
import torch

from jielong.serve.answers import DetokenizeAnswer, EmbeddingAnswer, TokenizeAnswer, TokenizerInfo
from jielong.tokenizer.chat import CHAT_TEMPLATE, render

from .conftest import CONTEXT, Lab

pytestmark = pytest.mark.anyio
TEXT = "the cat sat 你好 😀 <|end|>"


async def test_tokenize_and_back(client: httpx2.AsyncClient, lab: Lab) -> None:
    plain = await client.post(
        "/tokenize", json={"prompt": TEXT, "add_special_tokens": False, "return_token_strs": True}
    )
    found = TokenizeAnswer.model_validate(plain.json())
    assert found.tokens == lab.tokenizer.encode(TEXT) and found.count == len(found.tokens)
    assert found.token_strs is not None and len(found.token_strs) == found.count and found.max_model_len == CONTEXT
    back = await client.post("/detokenize", json={"tokens": found.tokens})
    assert DetokenizeAnswer.model_validate(back.json()).prompt == TEXT
    whole = await client.post("/tokenize", json={"prompt": TEXT})
    assert whole.json()["tokens"] == [lab.tokenizer.bos_id, *found.tokens] and whole.json()["token_strs"] is None
    empty = await client.post("/tokenize", json={"prompt": "", "add_special_tokens": False})
    assert empty.json()["tokens"] == []


async def test_tokenize_a_conversation(client: httpx2.AsyncClient, lab: Lab) -> None:
    talk = [{"role": "user", "content": "hi"}]
    asked = await client.post("/tokenize", json={"messages": talk})
    assert asked.json()["tokens"] == render(talk, lab.tokenizer, reply=True)[0]
    whole = await client.post("/tokenize", json={"messages": talk, "add_generation_prompt": False})
    assert whole.json()["tokens"] == render(talk, lab.tokenizer)[0]


async def test_tokenizer_info(client: httpx2.AsyncClient, lab: Lab) -> None:
    found = TokenizerInfo.model_validate((await client.get("/tokenizer_info")).json())
    assert (found.bos_token, found.eos_token, found.pad_token) == ("<|bos|>", "<|eos|>", "<|pad|>")
    assert found.chat_template == CHAT_TEMPLATE and found.vocab_size == lab.tokenizer.vocab_size


async def test_embeddings(client: httpx2.AsyncClient, lab: Lab) -> None:
    texts: list[Any] = ["the cat", "the cat sat there", "你"]
    answer = EmbeddingAnswer.model_validate((await client.post("/v1/embeddings", json={"input": texts})).json())
    for text, one in zip(texts, answer.data, strict=True):
        ids = torch.tensor([[lab.tokenizer.bos_id or 0, *lab.tokenizer.encode(text)]])
        with torch.inference_mode():
            mean = lab.model.hidden(ids)[0].mean(dim=0)
        assert one.embedding == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5)
    assert answer.usage.prompt_tokens == sum(len(lab.tokenizer.encode(text)) + 1 for text in texts)
    # LangChain sends ids, OpenAI's client asks for base64
    ids = [lab.tokenizer.bos_id, *lab.tokenizer.encode("the cat")]
    other = (
        await client.post("/v1/embeddings", json={"input": [ids], "encoding_format": "base64", "dimensions": 32})
    ).json()
    numbers = struct.unpack("<32f", base64.b64decode(other["data"][0]["embedding"]))
    assert list(numbers) == pytest.approx(answer.data[0].embedding, abs=1e-6)
