from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from jielong.folder import save
from jielong.serve.api import build_app
from jielong.serve.page.history import History
from jielong.serve.page.routes import Places, page_routes
from jielong.serve.server import Server, listen
from jielong.serve.settings import ServeSettings

from ..conftest import Lab, wait_until

WEB = Path(__file__).resolve().parents[3] / "src" / "jielong" / "serve" / "web"
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip


@dataclass
class Site:
    """A server with the page, in a thread of this process. runs: the folder that the served run lies in."""

    url: str
    places: Places
    history: History
    service: Any
    lab: Lab
    server: Server

    @property
    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url)


def write_run(folder: Path, steps: int = 30) -> None:
    """A run folder as `jielong run` leaves it in the middle: two stages done, one running, one to come."""
    folder.mkdir(parents=True)
    stages = ("pretrain", "sft", "ppo", "evaluate")
    tables = "".join(f'[{name}]\nkind = "{name}"\n' for name in stages)
    (folder / "recipe.toml").write_text(f'[run]\nname = "{folder.name}"\n{tables}')
    rule = {"rule": "predicts better than a 5-gram", "passed": True, "shown": "0.4 against 0.8"}
    (folder / "report.json").write_text(json.dumps({"stages": {"pretrain": {"rules": [rule]}}}))
    (folder / "report.html").write_text("<!doctype html><style>p { color: teal }</style><p>the report</p>")
    for number, name in enumerate(stages[:3], start=1):
        stage = folder / f"0{number}-{name}"
        stage.mkdir()
        (stage / "stage.json").write_text(json.dumps({"name": name, "kind": name}))
        lines = [{"step": step, "loss_nats": 7 / step, "note": "x"} for step in range(1, steps + 1)]
        for line in lines[9::10]:
            line["heldout_loss_nats"] = 8 / line["step"]
        (stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if number < 3:
            (stage / "DONE").write_text("{}")
            (stage / "seconds.json").write_text('{"seconds": 75.0}')
    samples = [{"prompt": f"question {i}", "base": "base says", "sft": "sft says", "skill": "echo"} for i in range(20)]
    (folder / "02-sft" / "samples.json").write_text(json.dumps(samples))
    heard = [(10, "ba"), (20, "babble"), (10, "a ba"), (30, "a word")]  # stopped behind step 20, gone on from before 10
    said = [{"step": step, "samples": [{"prompt": "once", "text": text}]} for step, text in heard]
    (folder / "01-pretrain" / "spoken.jsonl").write_text("".join(json.dumps(one) + "\n" for one in said) + '{"step": 4')


@contextmanager
def serving(
    lab: Lab, folder: Path, port: int = 0, keys: tuple[str, ...] = (), beside: Lab | None = None
) -> Iterator[Site]:
    """A server over the tiny model that keeps its things in `folder`, which must hold a run. beside: a second model."""
    labs = [lab] if beside is None else [lab, beside]
    folders = tuple(folder / stage / "model" for stage, _ in zip(("03-ppo", "02-sft"), labs, strict=False))
    for one, place in zip(labs, folders, strict=True):
        save(one.model, one.tokenizer, place)
    places = Places(folders, folder, folder / "chat.sqlite", folder / "votes.jsonl")
    history = History(places.history)
    own = Lab(lab.model, lab.tokenizer, ServeSettings(port=port, api_keys=keys))
    service = own.service() if beside is None else own.beside(beside)
    taken = listen(service.settings)
    server = Server(build_app(service, page_routes(service, places, history)), service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    thread.start()
    try:
        with httpx2.Client(base_url=url) as client:
            wait_until(lambda: client.get("/health").status_code == 200)
        yield Site(url, places, history, service, lab, server)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        history.close()
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def site(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("runs") / "quick"
    write_run(folder)
    with serving(lab, folder) as found:
        yield found


@pytest.fixture
def client(site: Site) -> Iterator[httpx2.Client]:
    with site.client as found:
        yield found


def events(text: str) -> list[Any]:
    """The events of a stream, parsed, without its [DONE]."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


# A real browser.


def find_browser() -> str | None:
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium. Where there is none the test is skipped, but not where JIELONG_CI is set.

    One for each file: while playwright's own loop runs in this thread, asynchronous tests of other files could not.
    """
    must = bool(os.environ.get("JIELONG_CI"))
    path = find_browser()
    if path is None:
        reason = f"no Chromium here (looked for {', '.join(BROWSERS)}); install the package chromium"
        pytest.fail(reason) if must else pytest.skip(reason)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        reason = "playwright is not installed: pip install 'jielong[dev]'"
        pytest.fail(reason) if must else pytest.skip(reason)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield found
        found.close()


def until(page: Any, expression: str, seconds: float = 8.0) -> None:
    """Waits for an expression in the page to be true. Playwright's own waiting evaluates strings, which CSP forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never true: {expression}"
        page.wait_for_timeout(30)


@dataclass
class Watch:
    """What a page must not do. expected: parts of console errors that a test provokes."""

    wrong: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()

    def over(self, tab: Any, url: str) -> None:
        tab.on("console", lambda message: self._console(message))
        tab.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        tab.on("request", lambda request: self._request(request.url, url))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and not any(part in message.text for part in self.expected):
            self.wrong.append(f"console {message.type}: {message.text}")

    def _request(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:", "blob:")):
            self.wrong.append(f"request to elsewhere: {asked}")


@pytest.fixture(scope="module")
def modules(browser: Any, site: Site) -> Iterator[Any]:
    """A page whose modules are called by themselves: one for all tests of a file, as a fresh one takes its time."""
    context = browser.new_context(base_url=site.url)
    page, watch = context.new_page(), Watch()
    watch.over(page, site.url)
    page.goto("/playground")
    yield page
    context.close()
    assert not watch.wrong, "\n".join(watch.wrong)


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def tab(browser: Any, site: Site, watch: Watch) -> Iterator[Any]:
    """A fresh tab on the site. Any console error, CSP violation or request to elsewhere fails the test."""
    context = browser.new_context(base_url=site.url, locale="en-GB", viewport={"width": 1200, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(8000)
    watch.over(page, site.url)
    yield page
    context.close()
    assert not watch.wrong, "\n".join(watch.wrong)
