"""Question and answer of a check: what is asked of a model, and what it said. Light: llama.cpp's process imports it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Probe:
    """What is asked: prompts (ids) to go on from, texts to tokenize, a conversation to render (None: no chat)."""

    prompts: list[list[int]]
    num_tokens: int
    texts: list[str]
    conversation: list[dict[str, str]] | None


@dataclass(frozen=True)
class Answer:
    """What the exported model said: new tokens a prompt, their log-probabilities in nats ([]: not known), ids a text.

    chat: the ids of the conversation, ready for a reply.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    ids: list[list[int]]
    chat: list[int] | None
