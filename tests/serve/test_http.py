"""Bytes on a socket: slow, endless, half and foolish requests, and clients that leave."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

from jielong.serve.settings import Limits, ServeSettings

from .conftest import Lab, Running, running, wait_until

LIMITS = Limits(body_bytes=20_000, header_seconds=0.4, body_seconds=0.4)


@pytest.fixture(scope="module")
def impatient(lab: Lab) -> Iterator[Running]:
    with running(Lab(lab.model, lab.tokenizer, ServeSettings(port=0, limits=LIMITS)).service()) as found:
        yield found


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def heard(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    data = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            return data
        if not piece:
            return data
        data += piece


def wait_for(connection: socket.socket, text: bytes) -> None:
    """Read until `text` has come: the head of an answer may come before its first event."""
    data = b""
    while text not in data:
        piece = connection.recv(65536)
        assert piece, data
        data += piece


def spoken(server: Running, *pieces: bytes) -> bytes:
    with connect(server) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server has heard enough
        return heard(connection)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error(answer: bytes) -> dict[str, str]:
    found: dict[str, str] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return found


def post(body: bytes, *headers: str, path: str = "/v1/completions", version: str = "1.1") -> bytes:
    head = [f"POST {path} HTTP/{version}", "host: localhost", "content-type: application/json", *headers]
    if not any(header.startswith(("content-length", "transfer-encoding")) for header in headers):
        head.append(f"content-length: {len(body)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


SHORT = b'{"prompt": "a", "max_tokens": 1}'
CLOSE = "connection: close"


def answers(server: Running) -> None:
    assert status(spoken(server, post(SHORT, CLOSE))) == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: a\x00b\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\nZZ\r\n",
    ],
)
def test_what_is_no_http(impatient: Running, request_bytes: bytes) -> None:
    answer = spoken(impatient, request_bytes)
    assert status(answer) == 400 and error(answer)["type"] == "invalid_request_error"
    answers(impatient)


def test_http_1_0_and_head_and_pipelining(impatient: Running) -> None:
    old = spoken(impatient, b"GET /health HTTP/1.0\r\n\r\n")
    assert status(old) == 200 and old.endswith(b'{"status":"ok"}')
    head = spoken(impatient, b"HEAD /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    assert status(head) == 200 and head.endswith(b"\r\n\r\n")
    both = spoken(impatient, post(SHORT) + b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" + post(SHORT, CLOSE))
    assert both.count(b"HTTP/1.1 200") == 3 and both.count(b'"text_completion"') == 2


def test_a_long_head(impatient: Running) -> None:
    answer = spoken(impatient, b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 300_000)
    assert answer == b"" or status(answer) in (400, 431)
    answers(impatient)


def test_bytes_that_drip(impatient: Running) -> None:
    """Neither a head nor a body may take for ever, however alive the connection looks."""
    for request in (
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 5000,
        post(SHORT, "content-length: 5000"),
    ):
        began = time.monotonic()
        with connect(impatient) as connection:
            connection.settimeout(0.05)
            answer = b""
            for number in range(len(request) + 5000):
                try:
                    if number < 4:
                        connection.sendall(request[number * 60 : number * 60 + 60])
                    else:
                        connection.sendall(b" ")
                    answer += connection.recv(1000)
                    break
                except TimeoutError:
                    continue
                except OSError:
                    break
            assert time.monotonic() - began < 15
        assert answer == b"" or status(answer) == 408
    answers(impatient)


def test_a_connection_that_says_nothing(impatient: Running) -> None:
    with connect(impatient) as connection:
        assert heard(connection) == b""
    with connect(impatient) as connection:  # the second request of a connection has a limit, too
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET /hea")
        assert heard(connection).count(b"HTTP/1.1 200") == 1


def test_bodies_without_end(impatient: Running) -> None:
    head = post(b"", "transfer-encoding: chunked")
    answer = spoken(impatient, head, *[b"400\r\n" + b"x" * 1024 + b"\r\n"] * 30)
    assert answer == b"" or (status(answer) == 413 and error(answer)["code"] == "body_too_long")
    liar = spoken(impatient, post(b"{}", "content-length: 99999999"))
    assert status(liar) == 413
    short = spoken(impatient, post(b"{}", "content-length: 500"))  # the rest never comes
    assert status(short) == 408
    answers(impatient)


def test_a_client_that_waits_to_be_asked_for_its_body(impatient: Running) -> None:
    with connect(impatient) as connection:
        connection.sendall(post(b"", "content-length: 32", "expect: 100-continue", CLOSE))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(SHORT)
        assert status(heard(connection)) == 200
    assert status(spoken(impatient, post(b"", "content-length: 99999999", "expect: 100-continue"))) == 413


@pytest.mark.parametrize("stream", [True, False])
def test_a_socket_that_closes_ends_the_work(lab: Lab, stream: bool) -> None:
    """As `openai`, curl and a browser leave: the socket is closed, in the middle of an answer or before it."""
    lab = Lab(lab.model, lab.tokenizer, ServeSettings(port=0))
    service, batcher = lab.gated()
    with running(service) as server:
        try:
            body = {"prompt": "a", "max_tokens": 100, "n": 3, "ignore_eos": True, "stream": stream}
            connection = connect(server)
            connection.sendall(post(json.dumps(body).encode()))
            wait_until(lambda: service.engine.num_open == 3)
            batcher.allow(3)
            wait_until(lambda: batcher.num_steps == 3)
            if stream:
                wait_for(connection, b"data: {")
            connection.close()
            wait_until(lambda: service.metrics.disconnected.values[()] == 1)
            batcher.allow(1)
            wait_until(lambda: service.engine.num_open == 0)
            assert batcher.num_running == 0 and batcher.num_steps <= 4
        finally:
            batcher.free()


def test_a_drain_that_takes_too_long_tells_the_clients(lab: Lab) -> None:
    lab = Lab(lab.model, lab.tokenizer, ServeSettings(port=0, drain_seconds=0))
    service, batcher = lab.gated()
    with running(service) as server, connect(server) as connection:
        body = {"prompt": "a", "max_tokens": 100, "ignore_eos": True, "stream": True}
        connection.sendall(post(json.dumps(body).encode()))
        wait_until(lambda: service.engine.num_open == 1)
        assert server.server.loop is not None
        server.server.loop.call_soon_threadsafe(server.server.stop)
        wait_until(lambda: service.engine.state == "stopped")
        last = [line for line in heard(connection).split(b"\r\n") if line.startswith(b"data: ")][-1]
        batcher.free()
    assert json.loads(last.strip().removeprefix(b"data: "))["error"]["code"] == "stopped"


def test_half_closed_connections_get_their_answer(live: Running) -> None:
    """A client that closes its sending side only, as `nc -N` does, still wants to hear."""
    with connect(live) as connection:
        connection.sendall(post(SHORT, CLOSE))
        connection.shutdown(socket.SHUT_WR)
        answer = heard(connection)
    assert answer == b"" or status(answer) == 200


def test_a_client_that_does_not_read(live: Running) -> None:
    """Its answer waits for it; others do not."""
    body = {"prompt": "a", "max_tokens": 150, "n": 3, "ignore_eos": True, "stream": True, "logprobs": 20}
    with connect(live) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(post(json.dumps(body).encode()))
        answers(live)
    wait_until(lambda: live.service.engine.num_open == 0)
    answers(live)
