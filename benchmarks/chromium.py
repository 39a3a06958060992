"""A server and a Chromium for the scripts that look at the page."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip


@contextmanager
def served(model: str, options: Sequence[str]) -> Iterator[tuple[str, int]]:
    """`jielong serve MODEL` in a process of its own -> (its address, its process id), once it answers."""
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "jielong", "serve", model, "--port", "0", *options]
        process = subprocess.Popen(command, stderr=log, text=True)
        try:
            yield _address_when_ready(process, log), process.pid
        finally:
            process.terminate()
            process.wait(timeout=60)


def _address_when_ready(process: subprocess.Popen[str], log: Any) -> str:
    while process.poll() is None:
        time.sleep(0.2)
        log.seek(0)
        text = log.read()
        if '"event": "loaded"' in text or '"event": "listening"' in text:
            return "http://127.0.0.1:" + text.partition('"port": ')[2].partition(",")[0]
    log.seek(0)
    raise SystemExit(f"the server ended before it was ready:\n{log.read()}")


@contextmanager
def chromium() -> Iterator[Any]:
    """Chromium by way of playwright; leaves with a message where either is missing."""
    path = next((found for found in map(shutil.which, BROWSERS) if found), None)
    if path is None:
        raise SystemExit(f"no Chromium here (looked for {', '.join(BROWSERS)}); install the package chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise SystemExit("playwright is missing: pip install 'jielong[dev]'") from None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


def copy_run(run: Path, into: Path) -> Path:
    """A copy of a run folder without its corpora and checkpoints, so that what is kept beside it is thrown away."""
    left_out = shutil.ignore_patterns(
        "checkpoints", "*.jsonl.gz", "documents.jsonl", "rows.safetensors", "chat.sqlite*"
    )
    target = into / run.name
    shutil.copytree(run, target, ignore=left_out)
    return target
