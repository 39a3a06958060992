"""LangChain's ChatOpenAI and OpenAIEmbeddings against a running server: the answers, the stream, usage and reasons."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from jielong.generate.engine import Engine
from jielong.tokenizer.chat import render

from .conftest import NAME, Lab, Running

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("langchain_openai") is None, reason="langchain-openai is not installed: jielong[peers]"
)
QUESTION = "who sat there?"


def chat(live: Running, **settings: Any) -> Any:
    from langchain_openai import ChatOpenAI

    base = f"{live.url}/v1"
    return ChatOpenAI(model=NAME, base_url=base, api_key="none", temperature=0, max_tokens=20, **settings)


def test_an_answer_and_a_stream(live: Running, lab: Lab) -> None:
    ids, _ = render([{"role": "user", "content": QUESTION}], lab.tokenizer, reply=True)
    [expected] = Engine(lab.model, lab.tokenizer).generate([ids], max_new_tokens=20, temperature=0)
    told = chat(live).invoke(QUESTION)
    assert told.content == expected.text
    assert told.response_metadata["finish_reason"] == expected.finish_reason
    assert told.usage_metadata["input_tokens"] == len(ids)
    assert told.usage_metadata["output_tokens"] == len(expected.tokens)
    pieces = list(chat(live, stream_usage=True).stream(QUESTION))
    assert "".join(piece.content for piece in pieces) == expected.text
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert whole.usage_metadata["output_tokens"] == len(expected.tokens)
    assert whole.response_metadata["finish_reason"] == expected.finish_reason


def test_roles_parts_batches_and_odds(live: Running) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

    parts = HumanMessage(content=[{"type": "text", "text": "who "}, {"type": "text", "text": "sat?"}])
    turns = [SystemMessage("be short"), HumanMessage("hello"), AIMessage("hello"), parts]
    told = chat(live, logprobs=True, top_logprobs=2).invoke(turns)
    odds = told.response_metadata["logprobs"]["content"]
    assert odds and all(len(one["top_logprobs"]) == 2 for one in odds)
    one, other = chat(live).batch([QUESTION, "it sat"])
    assert one.content == chat(live).invoke(QUESTION).content and isinstance(other.content, str)


def test_embeddings_of_texts(live: Running) -> None:
    """Told to send texts: by default it sends ids of OpenAI's own vocabulary, which are another model's."""
    from langchain_openai import OpenAIEmbeddings

    base = f"{live.url}/v1"
    peer = OpenAIEmbeddings(model=NAME, base_url=base, api_key="none", check_embedding_ctx_length=False)
    one, other = peer.embed_documents(["the cat", "the mat"])
    assert len(one) == 32 and one != other and sum(x * x for x in one) == pytest.approx(1, abs=1e-4)
    assert peer.embed_query("the cat") == pytest.approx(one, abs=1e-5)


def test_errors_are_its_errors(live: Running) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="context"):
        chat(live, max_retries=0).invoke("a " * 400)
    with pytest.raises(openai.NotFoundError):
        chat(live, max_retries=0).bind(model="another").invoke("a")
