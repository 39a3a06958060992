"""`jielong serve` as a process: signals, exit codes, what it says, and the error of a model that is none."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import jielong
from jielong.cli import main
from jielong.folder import save

from .conftest import Lab, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
SOURCE = Path(jielong.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(lab.model, lab.tokenizer, folder)
    return folder


class Process:
    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "jielong", "serve", str(folder), "--port", "0", *options]
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.events: list[dict[str, Any]] = []
        self.said: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)
        self._lines.put("")

    def event(self, name: str, seconds: float = 60) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while True:
            line = self._lines.get(timeout=max(0.01, end - time.monotonic()))
            assert line, f"it ended before {name}: {self.said}"
            self.said.append(line)
            if line.startswith("{") and json.loads(line)["event"] == name:
                found: dict[str, Any] = json.loads(line)
                return found

    def ready(self) -> str:
        url = f"http://127.0.0.1:{self.event('listening')['port']}"
        wait_until(lambda: httpx2.get(f"{url}/health").status_code == 200, 60)
        return url

    def rest(self) -> str:
        lines = []
        while line := self._lines.get(timeout=10):
            lines.append(line)
        return "".join(lines)

    def ends(self, seconds: float = 30) -> int:
        return self.process.wait(timeout=seconds)


@pytest.fixture
def started(folder: Path) -> Iterator[Any]:
    processes: list[Process] = []

    def start(*options: str, model: Path = folder) -> Process:
        processes.append(Process(model, *options))
        return processes[-1]

    yield start
    for one in processes:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait(timeout=10)
        if one.process.stderr is not None:
            one.process.stderr.close()


LONG = {"prompt": "the cat", "max_tokens": 150, "ignore_eos": True, "n": 16}


def test_a_killed_server_and_one_that_is_told_to_stop(started: Any, folder: Path) -> None:
    """kill -9 leaves no lock and no half file: the next one starts on the same folder and port. SIGTERM, in the middle
    of a stream: the stream ends whole, new requests are told 503 or find nobody, the exit code is 0."""
    before = sorted(path.name for path in folder.iterdir())
    killed = started()
    port = killed.ready().rpartition(":")[2]
    killed.process.kill()
    killed.ends()
    assert sorted(path.name for path in folder.iterdir()) == before

    server = started("--port", port)
    url = server.ready()
    assert url.endswith(port)
    with httpx2.Client(base_url=url, timeout=60) as client:
        with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
            pieces = answer.iter_lines()
            assert next(pieces).startswith("data: {")
            server.process.send_signal(signal.SIGTERM)
            server.event("draining")
            try:
                assert httpx2.post(f"{url}/v1/completions", json=LONG).status_code == 503
                assert httpx2.get(f"{url}/health").json()["error"]["code"] == "draining"
            except httpx2.TransportError:
                pass  # it was quicker
            rest = [line for line in pieces if line]
    assert rest[-1] == "data: [DONE]"
    assert sum('"finish_reason":"length"' in line for line in rest) == 16
    assert server.ends() == 0


def test_the_second_interrupt_ends_it_at_once(started: Any) -> None:
    server = started("--drain-seconds", "60")
    url = server.ready()
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        many = json.dumps({**LONG, "n": 128, "stream": True}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.sendall(head.encode() + f"content-length: {len(many)}\r\n\r\n".encode() + many)
        assert connection.recv(100)
        server.process.send_signal(signal.SIGINT)
        server.event("draining")
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.ends(10) == 130
        assert time.monotonic() - began < 5


def test_a_model_that_cannot_be_loaded_ends_the_server(started: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    server = started(model=tmp_path)
    assert server.ends(60) == 1
    text = server.rest()
    assert "error: " in text and str(tmp_path) in text and "Traceback" not in text


def test_two_models_are_served_and_stopped_together(started: Any, folder: Path, other: Lab, tmp_path: Path) -> None:
    save(other.model, other.tokenizer, tmp_path / "second")
    server = started("--beside", str(tmp_path / "second"), "--name", "first", "--keep", str(tmp_path))
    assert server.event("listening")["models"] == ["first", "second"]
    url = f"http://127.0.0.1:{json.loads(server.said[-1])['port']}"
    wait_until(lambda: httpx2.get(f"{url}/health").status_code == 200, 60)
    assert [one["id"] for one in httpx2.get(f"{url}/v1/models").json()["data"]] == ["first", "second"]
    with httpx2.Client(base_url=url, timeout=60) as client:
        asked = {**LONG, "max_tokens": 40, "stream": True}
        with (
            client.stream("POST", "/v1/completions", json={**asked, "model": "first"}) as one,
            client.stream("POST", "/v1/completions", json={**asked, "model": "second"}) as two,
        ):
            texts = [one.iter_lines(), two.iter_lines()]
            assert all(next(text).startswith("data: {") for text in texts)
            server.process.send_signal(signal.SIGTERM)
            server.event("draining")
            assert [[line for line in text if line][-1] for text in texts] == ["data: [DONE]"] * 2
    assert server.ends() == 0
    assert (tmp_path / "chat.sqlite").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--port", "TAKEN"], "cannot listen at 127.0.0.1"),
        (["--api-key", "short"], "API key 0"),
        (["--api-key-file", "none.txt"], "none.txt"),
        (["--allow-origin", "*"], "allowed origin"),
        (["--system", "none.toml"], "no such persona file"),
        (["--name", ""], "the model's name"),
    ],
)
def test_wrong_use(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    options: list[str],
    message: str,
) -> None:
    """One message and exit code 2, before anything is loaded."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        options = [str(taken.getsockname()[1]) if option == "TAKEN" else option for option in options]
        monkeypatch.setattr(sys, "argv", ["jielong", "serve", str(folder), *options])
        with pytest.raises(SystemExit) as left:
            main()
    told = capsys.readouterr().err
    assert left.value.code == 2 and message in told.replace("\n", " ") and "Traceback" not in told
