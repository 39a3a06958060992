"""docs/serving.md: every command of the page is sent to a server, and every bound it names is the code's."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import httpx2
import pytest

from jielong.serve.settings import Limits

from .conftest import Running

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = [
    command
    for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
    for command in re.split(r"\n(?=curl )", block.replace("\\\n", " "))
]
REFUSED = {"-1": 400, "text/plain": 415, "evil.example": 403}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(live: Running, command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "curl"
    url = next(word for word in words if word.startswith("http://127.0.0.1:8000"))
    headers = dict(word.split(": ", 1) for flag, word in zip(words, words[1:], strict=False) if flag == "-H")
    content = next((word for flag, word in zip(words, words[1:], strict=False) if flag == "-d"), None)
    answer = httpx2.request(
        "GET" if content is None else "POST",
        url.replace("http://127.0.0.1:8000", live.url),
        headers=headers,
        content=None if content is None else content.encode(),
    )
    expected = next((status for part, status in REFUSED.items() if part in command), 200)
    assert answer.status_code == expected, answer.text
    if expected != 200:
        assert json.dumps(answer.json()) in TEXT  # word for word what the page shows


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) == 10


def test_bounds_are_the_codes() -> None:
    limits = Limits()
    assert f"| body | {limits.body_bytes >> 20} MiB, {limits.body_seconds:g} s |" in TEXT
    assert f"| head | {limits.header_bytes >> 10} KiB, {limits.header_seconds:g} s |" in TEXT
    assert f"| prompts × n of one request | {limits.sequences} |" in TEXT
    assert f"| sequences that wait, `--max-queue` | {limits.queue} |" in TEXT
    assert f"| requests in work | {limits.connections} |" in TEXT
