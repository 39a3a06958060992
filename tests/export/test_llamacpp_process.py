"""The process that llama.cpp runs in, as its owner sees it. A small program stands for it, so that it may misbehave."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jielong.errors import ModelError
from jielong.export import llamacpp
from jielong.export.llamacpp import Listening

# Listens, takes one request, sends the bytes that it was given, and is gone.
PROGRAM = """
import json, os, socket, sys
sys.stdin.readline()
server = socket.create_server(("127.0.0.1", 0))
print(json.dumps({"address": f"http://127.0.0.1:{server.getsockname()[1]}"}), flush=True)
connection, _ = server.accept()
connection.recv(65536)
connection.sendall(bytes.fromhex(sys.argv[1]))
connection.shutdown(socket.SHUT_WR)
"""
WHOLE = b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"content": "a"}'
PIECE = b'data: {"content": "a"}\n\n'
HALF = {
    "head": b"HTTP/1.1 200 OK\r\n",
    "body": WHOLE[:-4],
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(PIECE), PIECE),
    "nothing": b"",
}


@contextmanager
def listening(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> Iterator[Listening]:
    monkeypatch.setattr(llamacpp, "_command", lambda path: [sys.executable, "-c", PROGRAM, answer.hex()])
    server = Listening(Path("x.gguf"), 1, 8, 1)
    try:
        yield server
    finally:
        server.close()
        assert server._process.poll() is not None


def test_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(monkeypatch, WHOLE) as server:
        assert server.post({}) == {"content": "a"}
        with pytest.raises(ModelError, match="does not answer"):
            server.post({})


@pytest.mark.parametrize("half", HALF)
def test_one_that_goes_in_the_middle_is_told(monkeypatch: pytest.MonkeyPatch, half: str) -> None:
    with listening(monkeypatch, HALF[half]) as server, pytest.raises(ModelError, match="does not answer"):
        server.post({})


def test_a_stream_that_breaks_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(monkeypatch, HALF["chunk"]) as server:
        pieces = server.stream({})
        assert next(pieces) == "a"
        with pytest.raises(ModelError, match="does not answer"):
            next(pieces)


def test_ctrl_c_in_a_terminal_is_not_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """There it stops an answer: a signal to all of a group, in which the process must not be."""
    with listening(monkeypatch, WHOLE) as server:
        assert os.getpgid(server._process.pid) != os.getpgrp()


class Interrupted:
    """Stands for the pipe that an owner reads while somebody presses Ctrl-C."""

    def readline(self) -> bytes:
        raise KeyboardInterrupt

    def close(self) -> None:
        pass


def test_who_stops_waiting_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, begin = list[Any](), subprocess.Popen

    def interrupted(*args: Any, **options: Any) -> Any:
        process = begin(*args, **options)
        process.stdout.close()
        process.stdout = Interrupted()
        begun.append(process)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt), listening(monkeypatch, WHOLE):
        pass
    assert begun[0].poll() is not None
