"""Who may ask: keys, names of the server, pages of others, the log, and what the page's files may do."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.routing import Route

from jielong.errors import UsageError
from jielong.serve.api import build_app
from jielong.serve.journal import LogLines
from jielong.serve.pages import Pages, page_headers
from jielong.serve.security import Gate, host_name, is_public
from jielong.serve.service import LOG
from jielong.serve.settings import ServeSettings, read_keys

from .conftest import Lab
from .test_bad_input import refused

pytestmark = pytest.mark.anyio
KEYS = ("first-key-0123", "second-key-456")
BODY = {"prompt": [104] * 40, "max_tokens": 1}


def guarded(lab: Lab, **settings: Any) -> Lab:
    return Lab(lab.model, lab.tokenizer, ServeSettings(**settings))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# Keys.


async def test_every_route_needs_the_key(lab: Lab, tmp_path: Path) -> None:
    """All routes there are, read from the application, with every method: 401 but for the public list."""
    (tmp_path / "index.html").write_text("page")
    service = guarded(lab, api_keys=KEYS).service()
    app = build_app(service, pages=Pages(tmp_path))
    routes = [route for route in app.routes if isinstance(route, Route)]
    assert len(routes) > 12
    public = {route.path for route in routes if is_public(route.path)}
    assert public == {"/", "/inside", "/training", "/playground", "/health", "/web/{path:path}"}
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for path in [*(route.path for route in routes if not is_public(route.path)), "/nowhere", "/api/votes", "/web"]:
            for method in ("GET", "POST", "PUT", "OPTIONS", "HEAD"):
                answer = await client.request(method, path.replace("{model_id:path}", "tiny"))
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/")).status_code == 200
        refused(await client.get("/health"), 503, "loading")


async def test_keys(lab: Lab) -> None:
    async with guarded(lab, api_keys=KEYS).client() as client:
        for headers in (
            bearer(KEYS[0]),
            bearer(KEYS[1]),
            {"authorization": f"bearer  {KEYS[0]}"},
            {"x-api-key": KEYS[1]},
        ):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
        wrong = [
            "",
            "x",
            KEYS[0][:-1],
            KEYS[0] + "x",
            KEYS[0].upper(),
            f"{KEYS[0]},{KEYS[1]}",
            "\u00e9" * 9,
            "a" * 9000,
        ]
        for key in wrong:
            refused(await client.get("/v1/models", headers=[(b"authorization", b"Bearer " + key.encode())]), 401)
        refused(await client.get("/v1/models", headers={"authorization": KEYS[0]}), 401, "invalid_api_key")
        refused(await client.get("/v1/models", headers={"authorization": f"Basic {KEYS[0]}"}), 401)
        refused(await client.get(f"/v1/models?api_key={KEYS[0]}"), 401)


async def test_keys_are_compared_in_constant_time(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every known key is compared, whole, by hmac.compare_digest, whatever the first comparisons say."""
    import hmac

    seen: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def watch(one: bytes, other: bytes) -> bool:
        seen.append((one, other))
        return real(one, other)

    monkeypatch.setattr("jielong.serve.security.hmac.compare_digest", watch)
    async with guarded(lab, api_keys=KEYS).client() as client:
        await client.get("/v1/models", headers=bearer(KEYS[0]))
        await client.get("/v1/models", headers=bearer("wrong"))
    assert len(seen) == 4 and {len(value) for pair in seen for value in pair} == {32}


async def test_a_key_does_not_see_what_another_has_cached(lab: Lab) -> None:
    async with guarded(lab, api_keys=KEYS).client() as client:

        async def cached(key: str) -> int:
            answer = await client.post("/v1/completions", json=BODY, headers=bearer(key))
            found: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            return found

        assert await cached(KEYS[0]) == 0
        assert await cached(KEYS[0]) >= 32  # it is there, for who has put it there
        assert await cached(KEYS[1]) == 0
        assert await cached(KEYS[1]) >= 32


async def test_the_key_is_nowhere_to_be_read(lab: Lab, lines: io.StringIO) -> None:
    lab = guarded(lab, api_keys=KEYS, log_prompts=True)
    async with lab.client() as client:
        await client.post("/v1/completions", json=BODY, headers=bearer(KEYS[0]))
        await client.get("/v1/models", headers=bearer(KEYS[0] + "x"))
        told = (await client.get("/metrics", headers=bearer(KEYS[0]))).text
    assert not any(key in text for key in KEYS for text in (told, lines.getvalue(), repr(lab.settings)))


# Where it listens.


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org", "", "127.0.0.1.example.org"])
def test_a_public_address_needs_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="--api-key"):
        ServeSettings(host=host)
    ServeSettings(host=host, api_keys=KEYS)
    ServeSettings(host=host, insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.5"])
def test_loopback_needs_none(host: str) -> None:
    assert ServeSettings(host=host).is_loopback


@pytest.mark.parametrize("key", ["", "short", "has space in it", "tab\tin it here", "é" * 10, "a" * 513, "line\nbreak"])
def test_keys_that_cannot_be_sent(key: str) -> None:
    with pytest.raises(UsageError, match="API key 0"):
        ServeSettings(api_keys=(key,))


def test_other_settings(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="allowed origin"):
        ServeSettings(allowed_origins=("*",))
    with pytest.raises(UsageError, match="allowed origin"):
        ServeSettings(allowed_origins=("https://example.org/",))
    with pytest.raises(UsageError, match="port"):
        ServeSettings(port=70_000)
    (tmp_path / "keys").write_text("# ours\nfirst-key-0123\n\n  second-key-456\n")
    assert read_keys(tmp_path / "keys") == KEYS
    (tmp_path / "empty").write_text("# nothing\n")
    for name in ("empty", "missing"):
        with pytest.raises(UsageError, match=name):
            read_keys(tmp_path / name)


# Foreign names and foreign pages.


HERE = ["localhost", "localhost:8000", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000", "localhost."]
NOT_HERE = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
            "evil.example#localhost", "localhost@evil.example",
            "192.168.1.5", "[fe80::1]", "", " ", "0.0.0.0", "a" * 300]  # fmt: skip


async def test_names_of_the_server(client: httpx2.AsyncClient) -> None:
    for host in HERE:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == 200, host
    for host in NOT_HERE:
        for path in ("/v1/models", "/health", "/", "/nowhere"):
            refused(await client.get(path, headers={"host": host}), 403, "host_not_allowed")
    twice = [("host", "localhost"), ("host", "evil.example")]
    refused(await client.get("/v1/models", headers=twice), 403, "host_not_allowed")


async def test_names_of_a_public_server(lab: Lab) -> None:
    public = guarded(lab, host="0.0.0.0", insecure=True, allowed_hosts=("chat.example",))
    async with public.client() as client:
        for host in ("192.168.1.5:8000", "[fe80::1]:80", "chat.example", "Chat.Example:443", "localhost"):
            assert (await client.get("/v1/models", headers={"host": host})).status_code == 200, host
        for host in ("evil.example", "x.chat.example", "1.2.3.4.5"):
            refused(await client.get("/v1/models", headers={"host": host}), 403)


def test_host_name() -> None:
    assert [host_name(host) for host in ("A:1", "[::1]:2", "[::1]", "a.b.", "")] == ["a", "::1", "::1", "a.b", ""]
    strange = [
        "localhost:80.evil.example",
        "localhost:",
        "localhost:x",
        "[::1]x",
        "[::1",
        "localhost:1:2",
        "[localhost]",
    ]
    assert [host_name(host) for host in strange] == [""] * len(strange)


ORIGINS = ["http://evil.example", "https://localhost.evil.example", "null", "file://", "http://localhost:3000", "",
           "http://127.0.0.1:8000", "http://localhost:8000.evil.example", "chrome-extension://abc"]  # fmt: skip


async def test_pages_of_others_may_not_ask(client: httpx2.AsyncClient) -> None:
    """Simple requests, preflights, the null origin of a sandboxed frame, another port of this machine."""
    for origin in ORIGINS:
        for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("OPTIONS", "/v1/completions")):
            headers = {"origin": origin, "content-type": "text/plain"}
            answer = await client.request(method, path, content=json.dumps(BODY), headers=headers)
            refused(answer, 403, "origin_not_allowed")
            assert not any(name.startswith("access-control") for name in answer.headers)


async def test_a_form_or_a_simple_request_without_origin_is_no_json(client: httpx2.AsyncClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        refused(await client.post("/v1/completions", content=json.dumps(BODY), headers={"content-type": kind}), 415)


async def test_the_own_page_may_ask(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/completions", json=BODY, headers={"origin": "http://localhost:8000"})
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers


async def test_allowed_origins(lab: Lab) -> None:
    origin = "https://app.example"
    async with guarded(lab, api_keys=KEYS, allowed_origins=(origin,)).client() as client:
        ask = {"origin": origin, "access-control-request-method": "POST"}
        preflight = await client.options("/v1/completions", headers=ask)  # cannot carry a key
        assert preflight.status_code == 204 and preflight.headers["access-control-allow-origin"] == origin
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in preflight.headers and preflight.headers["vary"] == "origin"
        answer = await client.post("/v1/completions", json=BODY, headers={"origin": origin, **bearer(KEYS[0])})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == origin
        without = await client.post("/v1/completions", json=BODY, headers={"origin": origin})
        refused(without, 401)
        assert without.headers["access-control-allow-origin"] == origin  # so that the page can read why
        refused(await client.options("/v1/completions", headers={**ask, "origin": "https://other.example"}), 403)


# The log.


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    written = io.StringIO()
    sink = logging.StreamHandler(written)
    sink.setFormatter(LogLines())
    LOG.addHandler(sink)
    level, LOG.level = LOG.level, logging.INFO
    LOG.setLevel(logging.INFO)
    yield written
    LOG.removeHandler(sink)
    LOG.setLevel(level)


def records(lines: io.StringIO) -> list[dict[str, Any]]:
    """One JSON object a line, in printable ASCII, or the log could be forged."""
    text = lines.getvalue()
    assert text.isascii() and all(line.isprintable() for line in text.splitlines())
    return [json.loads(line) for line in text.splitlines()]


async def test_prompts_are_not_logged_unless_asked_for(lab: Lab, lines: io.StringIO) -> None:
    talk = {"messages": [{"role": "user", "content": "swordfish"}], "max_tokens": 3}
    for asked in (False, True):
        async with guarded(lab, log_prompts=asked).client() as client:
            await client.post("/v1/chat/completions", json=talk)
            await client.post("/v1/completions", json={"prompt": "swordfish", "max_tokens": 3, "stream": True})
            await client.post("/v1/chat/completions", json={**talk, "n": "swordfish"})
        assert ("swordfish" in lines.getvalue()) == asked
    assert [one["event"] for one in records(lines)].count("request") == 6


async def test_lines_cannot_be_forged(client: httpx2.AsyncClient, lines: io.StringIO) -> None:
    for path in ('/a%0d%0a{"event":"forged"}', "/%1b[31mred", "/%e2%80%a8x", "/%u000a", "/" + "a" * 3000):
        await client.get(path)
    found = records(lines)
    assert len(found) == 5 and {one["event"] for one in found} == {"request"}
    assert found[0]["path"] == '/a\r\n{"event":"forged"}' and len(found[-1]["path"]) == 200


def test_tracebacks_are_one_line() -> None:
    try:
        raise ValueError("first\nsecond \x1b[31m")
    except ValueError as error:
        record = logging.LogRecord(
            "uvicorn.error", 40, "", 0, "a\r\nb %s", ("c\n",), (ValueError, error, error.__traceback__)
        )
    line = LogLines().format(record)
    assert line.isprintable() and json.loads(line)["text"] == "a\r\nb c\n" and "second" in json.loads(line)["traceback"]


async def test_labels_are_ours(client: httpx2.AsyncClient) -> None:
    """What clients write cannot become a label: no forged metric, and no end of new ones."""
    for path in ("/x%22%7d 1%0aforged 1", "/v1/models/a", "/v1/models/b", "/web/../x"):
        await client.get(path)
    text = (await client.get("/metrics")).text
    assert "forged" not in text and 'path="other",status="404"' in text and 'path="/v1/models/",status="404"} 2' in text


# The page's files.


async def test_pages(lab: Lab, tmp_path: Path) -> None:
    web = tmp_path / "web"
    (web / "shell").mkdir(parents=True)
    (web / "index.html").write_text("<!doctype html>")
    (web / "shell" / "boot.js").write_text("export {}")
    (web / "icon.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "secret.txt").write_text("secret")
    app = build_app(lab.service(), pages=Pages(web))
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        page = await client.get("/")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        assert {name: page.headers[name] for name in page_headers()} == page_headers()
        script = await client.get("/web/shell/boot.js")
        assert script.headers["content-type"].startswith("text/javascript")
        assert script.headers["x-content-type-options"] == "nosniff"
        assert script.headers["cross-origin-resource-policy"] == "same-origin"
        assert (
            "content-security-policy" not in script.headers
        )  # no page: it would weigh on every first visit for nothing
        picture = await client.get("/web/icon.svg")  # a browser does show this one as a page
        assert {name: picture.headers[name] for name in page_headers()} == page_headers()
        again = await client.get("/web/shell/boot.js", headers={"if-none-match": script.headers["etag"]})
        assert again.status_code == 304 and again.content == b""
        for path in ("../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "shell/../../secret.txt",
                     "..%5csecret.txt", "/etc/passwd", "shell", "", "C:%5csecret.txt", "secret.txt%00.js"):  # fmt: skip
            answer = await client.get(f"/web/{path}")
            assert answer.status_code == 404 and "secret" not in answer.text.replace("secret.txt", ""), path


def test_the_policy_allows_nothing_from_elsewhere() -> None:
    policy = page_headers()["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "http" not in policy and "*" not in policy


async def test_other_protocols_are_not_spoken(lab: Lab) -> None:
    """A websocket would be a way around the checks of Host, Origin and key; it ends at the gate."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the gate let it through")

    scope = {"type": "websocket", "path": "/v1/models", "headers": [], "query_string": b""}
    await Gate(app, ServeSettings())(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]
