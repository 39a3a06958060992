"""Downloads against a server on this machine that can break off, refuse and lie."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from jielong.data.download import download
from jielong.data.sources import Source, read_documents, resolve
from jielong.errors import DataError

BODY = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(BODY).hexdigest()


class Server:
    """What the server does, set by each test; and the Range headers that it was asked with."""

    def __init__(self) -> None:
        self.body = BODY
        self.has_ranges = True
        self.etag = '"v1"'
        self.breaks_after: list[int] = []  # bytes after which each of the first answers is cut off
        self.statuses: list[int] = []  # statuses of the first answers, in place of the file
        self.ranges: list[str | None] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/file.txt"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        if self.statuses:
            request.send_error(self.statuses.pop(0))
            return
        if request.path == "/moved":
            request.send_response(302)
            request.send_header("Location", self.url)
            request.end_headers()
            return
        start = 0
        if asked and self.has_ranges and request.headers.get("If-Range") in (None, self.etag):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(self.body):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(self.body)}")
                request.end_headers()
                return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        if self.etag:
            request.send_header("ETag", self.etag)
        request.send_header("Content-Length", str(len(self.body) - start))
        request.end_headers()
        piece = self.body[start:]
        request.wfile.write(piece[: self.breaks_after.pop(0)] if self.breaks_after else piece)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    found = Server()
    thread = threading.Thread(target=found.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    found.http.shutdown()
    found.http.server_close()


def fetch(server: Server, target: Path, sha256: str | None = SHA256) -> Path:
    return download(server.url, target, sha256, wait=lambda _: None)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_file_with_progress_and_nothing_left_beside(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    target = download(server.url, tmp_path / "sub" / "file.txt", SHA256, lambda *figures: seen.append(figures))
    assert target.read_bytes() == BODY and names(target.parent) == ["file.txt"]
    assert seen[0] == (0, len(BODY)) and seen[-1] == (len(BODY), len(BODY))


def test_broken_line_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.breaks_after = [300_000, 200_000]
    assert fetch(server, tmp_path / "file.txt").read_bytes() == BODY
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_next_call_goes_on_after_all_attempts_failed(server: Server, tmp_path: Path) -> None:
    server.breaks_after = [1000] * 5
    with pytest.raises(
        DataError, match="5 times, last: the connection ended after 5000 of 1048576 bytes; 5000 bytes are kept"
    ):
        fetch(server, tmp_path / "file.txt")
    assert names(tmp_path) == ["file.txt.part", "file.txt.part.tag"]
    assert fetch(server, tmp_path / "file.txt").read_bytes() == BODY
    assert server.ranges[-1] == "bytes=5000-" and names(tmp_path) == ["file.txt"]


def test_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.has_ranges, server.breaks_after = False, [300_000]
    assert fetch(server, tmp_path / "file.txt").read_bytes() == BODY
    assert server.ranges == [None, "bytes=300000-"]


def test_file_that_changed_meanwhile_is_not_patched_together(server: Server, tmp_path: Path) -> None:
    server.breaks_after = [1000] * 5
    with pytest.raises(DataError):
        fetch(server, tmp_path / "file.txt", None)
    server.body, server.etag = BODY[::-1], '"v2"'
    assert fetch(server, tmp_path / "file.txt", None).read_bytes() == BODY[::-1]


def test_without_tag_and_checksum_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    server.etag, server.breaks_after = "", [1000]
    assert fetch(server, tmp_path / "file.txt", None).read_bytes() == BODY
    assert server.ranges == [None, None]


def test_part_that_is_already_whole(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.txt.part").write_bytes(BODY)
    assert fetch(server, tmp_path / "file.txt").read_bytes() == BODY
    (tmp_path / "longer.part").write_bytes(BODY + b"more")
    assert fetch(server, tmp_path / "longer").read_bytes() == BODY


def test_wrong_checksum_keeps_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"sha256 is {SHA256}, expected {'0' * 64}; nothing was kept"):
        fetch(server, tmp_path / "file.txt", "0" * 64)
    assert names(tmp_path) == []


def test_missing_page_is_not_tried_again_and_a_busy_server_is(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(DataError, match="HTTP 404"):
        fetch(server, tmp_path / "file.txt")
    assert len(server.ranges) == 1
    server.statuses = [503, 429]
    assert fetch(server, tmp_path / "file.txt").read_bytes() == BODY


def test_redirect_and_refused_connection(server: Server, tmp_path: Path) -> None:
    moved = server.url.replace("/file.txt", "/moved")
    assert download(moved, tmp_path / "a", SHA256).read_bytes() == BODY
    with pytest.raises(DataError, match="failed 5 times"):
        download("http://127.0.0.1:9/none", tmp_path / "b", wait=lambda _: None)


def test_a_source_downloads_once(server: Server, tmp_path: Path) -> None:
    server.body = b"once upon a time"
    source = Source("it", "books/a.txt", url=server.url)
    for _ in range(2):
        assert [document.text for document in read_documents(source, tmp_path)] == ["once upon a time"]
    assert len(server.ranges) == 1 and resolve(source, tmp_path) == tmp_path / "books" / "a.txt"


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/a", "file:///etc/passwd", "hf://models/a/b/c", "hf://datasets/a"])
def test_other_addresses_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="hf://datasets/OWNER/NAME/FILE"):
        download(url, tmp_path / "a")


def test_hub_files_come_through_huggingface_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    cached = tmp_path / "cached"
    cached.write_bytes(BODY)

    def hf_hub_download(**options: object) -> str:
        asked.append(options)
        return str(cached)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=hf_hub_download))
    target = download("hf://datasets/some/set@main/data/part 1.jsonl", tmp_path / "a.jsonl", SHA256)
    assert target.read_bytes() == BODY and cached.exists()
    assert asked == [
        {"repo_id": "some/set", "filename": "data/part 1.jsonl", "repo_type": "dataset", "revision": "main"}
    ]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"jielong\[curate\]"):
        download("hf://datasets/some/set/a.jsonl", tmp_path / "b.jsonl")
