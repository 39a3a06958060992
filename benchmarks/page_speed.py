"""What the page costs: bytes, time to first use, large attention walls, long histories and metrics, CPU of streaming.

    python benchmarks/page_speed.py runs/quickstart [--repeats 5]

The server is a process of its own, the browser Chromium by way of playwright; both share the machine. The run folder is
copied; the copy gets a conversation of 10,000 messages and a metrics.jsonl of a million lines.

wire     bytes of a first visit of each face, as they are sent (gzip), and how many requests
usable   from the start of loading, with nothing cached, to the face's main control being there, painted and alive
wall     from pressing Look to all maps of a text of 128 tokens being painted
history  from the start of loading to the last message of 10,000 being shown
metrics  from the start of loading to the curves of a million lines being shown
stream   CPU of the server's main thread (everything but the engine), per token, with 20 clients that stream
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from chromium import chromium, copy_run, served
from http_client import ask
from table import machine, markdown_table

from jielong.runtime import detect, environment
from jielong.serve.page.history import History

READY = {
    "/": "document.querySelector('.composer textarea')",
    "/inside": "document.querySelector('.lens td')",
    "/training": "document.querySelector('.chart path.line')",
    "/playground": "document.querySelector('.losscurve .train[d]')",
}
NUM_MESSAGES, NUM_LINES, NUM_CLIENTS, NUM_TOKENS = 10_000, 1_000_000, 20, 150
LONG = "c" * 32
# Resolves with the milliseconds since loading began, after the frame in which the expression became true was painted.
WAIT = """(expression) => new Promise((resolve, reject) => {
  const ready = () => EXPRESSION;
  const painted = () => requestAnimationFrame(() => setTimeout(() => resolve(performance.now())));
  const end = performance.now() + 60000;
  const look = () => {
    if (ready()) painted();
    else if (performance.now() > end) reject(new Error(`not within a minute: ${expression}`));
    else setTimeout(look, 4);
  };
  look();
})"""


def wait_for(page: Any, expression: str) -> float:
    return float(page.evaluate(WAIT.replace("EXPRESSION", expression), expression))


def prepare(run: Path) -> None:
    """The long conversation and the long metrics file."""
    history = History(run / "chat.sqlite")
    history.create(LONG, "ten thousand", "")
    with history._open() as file:
        rows = [
            (f"{i:08x}", LONG, f"{i - 1:08x}" if i else "", ("user", "assistant")[i % 2]) for i in range(NUM_MESSAGES)
        ]
        file.executemany(
            "INSERT INTO messages (id, conversation, parent, role, content, note, tokens, created) "
            "VALUES (?, ?, ?, ?, 'A turn with **markdown** and 中文 in it.', '{}', NULL, 0)",
            rows,
        )
        file.execute("UPDATE conversations SET leaf = ?", (f"{NUM_MESSAGES - 1:08x}",))
    history.close()
    stage = run / "09-long"
    stage.mkdir()
    (stage / "stage.json").write_text('{"name": "long", "kind": "pretrain"}')
    with (stage / "metrics.jsonl").open("w") as file:
        for step in range(1, NUM_LINES + 1):
            more = {"heldout_loss_nats": 3 + 1 / step} if step % 1000 == 0 else {}
            record = {"step": step, "loss_nats": 2 + 5 / step, "learning_rate": 1e-3, "tokens_per_second": 2e4, **more}
            file.write(json.dumps(record) + "\n")


def first_visits(browser: Any, address: str, repeats: int) -> list[list[str]]:
    rows = []
    for path, ready in READY.items():
        times, sizes = [], {}
        for _ in range(repeats):
            context = browser.new_context(base_url=address)
            page = context.new_page()
            client = context.new_cdp_session(page)
            client.send("Network.enable")
            urls: dict[str, str] = {}
            client.on("Network.responseReceived", lambda e, u=urls: u.update({e["requestId"]: e["response"]["url"]}))
            size: dict[str, int] = {}
            client.on("Network.loadingFinished", lambda e, s=size: s.update({e["requestId"]: e["encodedDataLength"]}))
            page.goto(path)
            times.append(wait_for(page, ready))
            sizes = {urls[key]: value for key, value in size.items() if "/api/" not in urls.get(key, "/api/")}
            context.close()
        rows.append(["wire", path, f"{sum(sizes.values()) / 1e3:.1f} kB, {len(sizes)} requests"])
        rows.append(["usable", path, f"{statistics.median(times):.0f} ms"])
    return rows


def wall(browser: Any, address: str, repeats: int) -> list[str]:
    page = browser.new_page(base_url=address)
    page.goto("/inside")
    wait_for(page, READY["/inside"])
    times = []
    for number in range(repeats):
        text = " ".join(["one two three the cat sat on a mat"] * 40)
        spent = page.evaluate(
            """(text) => new Promise((resolve) => {
              const old = document.querySelector('.thumb');
              const began = performance.now();
              document.querySelector('.asked textarea').value = text;
              document.querySelector('form.ask').requestSubmit();
              const look = () => {
                if (document.querySelector('.thumb') === old) { setTimeout(look, 2); return; }
                requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - began)));
              };
              look();
            })""",
            f"{number} {text}"[:LENGTH_OF_128],
        )
        times.append(spent)
        wait_for(page, "document.querySelector('.inside').getAttribute('aria-busy') === null")
    tokens = page.evaluate("document.querySelectorAll('.chip').length")
    maps = page.evaluate("document.querySelectorAll('.thumb').length")
    page.close()
    return ["wall", f"{maps} maps of {tokens} tokens", f"{statistics.median(times):.0f} ms"]


LENGTH_OF_128 = 420


def opened(browser: Any, address: str, path: str, ready: str, repeats: int) -> str:
    times = []
    for _ in range(repeats):
        page = browser.new_page(base_url=address)
        page.goto(path)
        times.append(wait_for(page, ready))
        page.close()
    return f"{statistics.median(times):.0f} ms"


def stream_cost(address: str, pid: int, repeats: int) -> list[str]:
    """The main thread's id is the process's: it runs the event loop, and the engine has a thread of its own."""
    port, costs = int(address.rpartition(":")[2]), []
    body = {"prompt": "Once upon a time", "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True}
    for repeat in range(repeats + 1):
        before = _cpu_seconds(pid)

        async def all_at_once(first: int) -> list[Any]:
            return await asyncio.gather(*(ask(port, {**body, "seed": first + n}) for n in range(NUM_CLIENTS)))

        with ThreadPoolExecutor(1) as thread:  # playwright's own loop runs in this one
            heard = thread.submit(asyncio.run, all_at_once(100 * repeat)).result()
        assert all(one.is_whole for one in heard), [one.error for one in heard]
        if repeat:  # the first one warms up
            costs.append((_cpu_seconds(pid) - before) / (NUM_CLIENTS * NUM_TOKENS))
        time.sleep(0.2)
    return [
        "stream",
        f"{NUM_CLIENTS} clients, {NUM_TOKENS} tokens each",
        f"{1e3 * statistics.median(costs):.3f} ms a token",
    ]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def told(rows: list[list[str]]) -> None:
    """What is known already, for whoever waits."""
    for row in rows:
        print("  ".join(row), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        run = copy_run(options.run, Path(folder))
        prepare(run)
        with served(str(run), ("--max-rows", str(NUM_CLIENTS))) as (address, pid):
            rows = first_visits(browser, address, options.repeats)
            told(rows)
            rows.append(wall(browser, address, options.repeats))
            told(rows[-1:])
            last = f"document.querySelector('[data-id=\"{NUM_MESSAGES - 1:08x}\"]')"
            spent = opened(browser, address, f"/#{LONG}", last, options.repeats)
            rows.append(["history", f"{NUM_MESSAGES} messages", spent])
            told(rows[-1:])
            shown = "document.body.textContent.includes('even sample') && " + READY["/training"]
            spent = opened(browser, address, "/training", shown, options.repeats)
            rows.append(["metrics", f"{NUM_LINES} lines, in the stage that is shown", spent])
            told(rows[-1:])
            rows.append(stream_cost(address, pid, options.repeats))
    print(markdown_table(("what", "of", "median"), rows))
    print(f"\n{options.run}: {machine(environment(detect()))}, {options.repeats} repeats")


if __name__ == "__main__":
    main()
