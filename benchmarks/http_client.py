"""A small HTTP client for load: one connection a request, events told with the time at which they came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Heard:
    """What came of one request. first, last, gaps: seconds, from sending; of events with text. status 0: none came."""

    status: int = 0
    text: str = ""
    first: float = 0.0
    last: float = 0.0
    gaps: list[float] = field(default_factory=list)
    num_tokens: int = 0
    error: str = ""
    is_whole: bool = False


async def ask(port: int, body: Mapping[str, Any], leave_after: float | None = None) -> Heard:
    """POST /v1/completions. leave_after: close the connection after so many seconds, whatever has come."""
    heard = Heard()
    try:
        await asyncio.wait_for(_ask(port, body, heard), leave_after)
    except asyncio.TimeoutError:
        pass
    return heard


async def _ask(port: int, body: Mapping[str, Any], heard: Heard) -> None:
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    began = time.perf_counter()
    try:
        writer.write(head.encode() + content)
        heard.status = int((await reader.readline()).split()[1])
        while (await reader.readline()).strip():
            pass
        if not body.get("stream"):
            _read_answer(json.loads(await reader.read()), heard)
            heard.last = time.perf_counter() - began
            return
        async for line in reader:
            if line.startswith(b"data: "):
                _read_event(line[6:].strip(), heard, time.perf_counter() - began)
    finally:
        writer.close()


def _read_answer(answer: Mapping[str, Any], heard: Heard) -> None:
    if "error" in answer:
        heard.error = answer["error"]["message"]
        return
    heard.text, heard.is_whole = answer["choices"][0]["text"], True
    heard.num_tokens = answer["usage"]["completion_tokens"]


def _read_event(data: bytes, heard: Heard, now: float) -> None:
    if data == b"[DONE]":
        heard.is_whole = True
        return
    event = json.loads(data)
    if "error" in event:
        heard.error = event["error"]["message"]
    elif event["choices"]:
        heard.text += event["choices"][0]["text"]
        heard.gaps.append(now - (heard.last or now))
        heard.first, heard.last = heard.first or now, now
    else:
        heard.num_tokens = event["usage"]["completion_tokens"]


async def get(port: int, path: str) -> tuple[int, bytes]:
    """(status, body) of a GET."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")
        return int(head.split()[1]), content
    finally:
        writer.close()
