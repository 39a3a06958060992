"""The server under load: what it costs beside the bare engine, how soon it answers, and whether it holds out.

    python benchmarks/serve_load.py runs/quickstart jie-124m [--parts overhead first many soak] [--soak-requests 10000]

A model is a folder, or a preset, of which one with random weights is made. The server is a process of its own
(`jielong serve`); the client is this one. Both share the machine, as they do when somebody tries it out at home.

overhead  tokens/s of --streams streams through HTTP against the bare `Batcher` in this process, in turns; and processor
          time a token, which says more on a machine that is not idle
first     time to the first text and to the whole of a short answer, one request at a time, nothing else going on
many      64 streams at once: errors, time to the first text, time between pieces, medians and 99th percentiles
soak      thousands of requests, a third of which leave at a random moment; every answer that comes whole is compared
          with that of the same request alone; memory, descriptors and threads, early and at the end
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from apart import cpu_seconds
from http_client import Heard, ask, get
from table import machine, markdown_table
from timing import interleaved, median_ratio

import jielong
from jielong import Tokenizer, Transformer, World, detect
from jielong.cli.models import find_model
from jielong.generate.requests import Request
from jielong.generate.sampling import Sampling
from jielong.model.presets import PRESETS, preset_config
from jielong.runtime import environment
from jielong.serve.launch import EngineOptions, load_folder

PARTS = ("overhead", "first", "many", "soak")
PROMPT = "Once upon a time there was a cat that sat on a mat and thought about the sea."
Row = list[str]


@dataclass
class Server:
    """A server's process, ready."""

    pid: int
    port: int

    def held(self) -> dict[str, float]:
        """What the process holds now: memory in MB, open descriptors, threads. {} where the system does not tell."""
        folder = Path("/proc") / str(self.pid)
        if not folder.exists():
            return {}
        status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
        memory, threads = float(status["VmRSS"].split()[0]) / 1024, float(status["Threads"])
        return {"memory_mb": memory, "descriptors": float(len(os.listdir(folder / "fd"))), "threads": threads}

    def cpu_seconds(self) -> float:
        """Processor time that the process has used."""
        return cpu_seconds(self.pid)


@contextmanager
def served(folder: Path, options: argparse.Namespace) -> Iterator[Server]:
    command = [sys.executable, "-m", "jielong", "serve", str(folder), "--port", "0", "--weights", options.weights]
    command += ["--max-rows", str(options.rows), "--max-queue", "1000", "--threads", str(options.threads)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, text=True)
        try:
            yield Server(process.pid, asyncio.run(_port_when_ready(process, log)))
        finally:
            process.terminate()
            process.wait(timeout=60)


async def _port_when_ready(process: subprocess.Popen[str], log: Any) -> int:
    while process.poll() is None:
        await asyncio.sleep(0.1)
        log.seek(0)
        found = [line for line in log.read().splitlines() if '"event": "listening"' in line]
        if found:
            port = int(found[0].partition('"port": ')[2].partition(",")[0])
            if (await get(port, "/health"))[0] == 200:
                return port
    raise SystemExit("the server ended before it was ready")


def body_of(number: int, num_tokens: int, stream: bool = True) -> dict[str, Any]:
    """A request that makes exactly so many tokens; equal numbers, equal answers."""
    body = {"prompt": f"{number} {PROMPT}", "max_tokens": num_tokens, "seed": number, "ignore_eos": True}
    return {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body


def overhead(folder: Path, server: Server, options: argparse.Namespace) -> list[Row]:
    """Tokens/s of the bare engine and through HTTP."""
    loaded = load_folder(folder, EngineOptions(options.rows, 256 << 20, 256, options.weights, "auto", options.threads))
    ids = [[*loaded.tokenizer.prefix_ids, *loaded.tokenizer.encode(f"{n} {PROMPT}")] for n in range(options.streams)]

    def bare() -> int:
        for seed, row in enumerate(ids):
            stops: frozenset[int] = frozenset()
            loaded.batcher.submit(Request(tuple(row), options.tokens, Sampling(), seed=seed, stop_ids=stops))
        num_tokens = 0
        while not loaded.batcher.is_idle:
            num_tokens += sum(len(delta.tokens) for delta in loaded.batcher.step())
        return num_tokens

    async def streams() -> int:
        asked = (ask(server.port, body_of(number, options.tokens)) for number in range(options.streams))
        return sum(heard.num_tokens for heard in await asyncio.gather(*asked))

    spent = {"bare engine": [0.0, 0], "over HTTP": [0.0, 0]}  # processor time, tokens

    def counted(name: str, work: Callable[[], int], clock: Callable[[], float]) -> int:
        began = clock()
        num_tokens = work()
        spent[name][0] += clock() - began
        spent[name][1] += num_tokens
        return num_tokens

    contenders = {
        "bare engine": lambda: counted("bare engine", bare, time.process_time),
        "over HTTP": lambda: counted("over HTTP", lambda: asyncio.run(streams()), server.cpu_seconds),
    }
    rates = interleaved(contenders, options.blocks, options.block_seconds)
    share = median_ratio(rates, "over HTTP", "bare engine")
    rows = [
        [f"{options.streams} streams, {name}", f"{statistics.median(found):,.0f} tokens/s",
         f"{min(found):,.0f} – {max(found):,.0f}"] for name, found in rates.items()
    ]  # fmt: skip
    rows.append(["cost of the server", f"{100 * (1 - share):.1f} %", "median of the blocks"])
    each = {name: 1000 * seconds / num_tokens for name, (seconds, num_tokens) in spent.items()}
    told = f"bare engine {each['bare engine']:.3f}, server's process {each['over HTTP']:.3f}"
    return [*rows, ["processor time", f"{each['over HTTP'] - each['bare engine']:.3f} ms a token more", f"ms: {told}"]]


def first(server: Server, options: argparse.Namespace) -> list[Row]:
    """One short request after the other."""

    async def all_of_them() -> list[Heard]:
        return [await ask(server.port, body_of(number, 8)) for number in range(options.requests)]

    heard = asyncio.run(all_of_them())
    return [
        ["first text, idle server", *_milliseconds([one.first for one in heard])],
        ["8 tokens, idle server", *_milliseconds([one.last for one in heard])],
    ]


def many(server: Server, options: argparse.Namespace) -> list[Row]:
    """All at once."""

    async def all_of_them() -> list[Heard]:
        asked = (ask(server.port, body_of(number, options.tokens)) for number in range(options.many))
        return list(await asyncio.gather(*asked))

    began = time.perf_counter()
    heard = asyncio.run(all_of_them())
    spent = time.perf_counter() - began
    whole = [one for one in heard if one.is_whole and not one.error and one.num_tokens == options.tokens]
    gaps = [gap for one in heard for gap in one.gaps[1:]]
    name = f"{options.many} streams"
    return [
        [f"{name}: answered whole", f"{len(whole)}", f"{sum(one.num_tokens for one in heard) / spent:,.0f} tokens/s"],
        [f"{name}: first text", *_milliseconds([one.first for one in heard])],
        [f"{name}: between pieces", *_milliseconds(gaps)],
    ]


def soak(server: Server, options: argparse.Namespace) -> list[Row]:
    """Requests that come and leave at random, compared with what each gets alone."""
    draw = random.Random(options.seed)
    kinds = [body_of(number, 4 + number % 29, stream=number % 2 == 0) for number in range(options.kinds)]
    counts = dict.fromkeys(("whole", "left", "lost", "mixed up"), 0)
    held: list[dict[str, float]] = []

    async def worker(expected: Sequence[str], queue: Iterator[int]) -> None:
        for number in queue:
            kind = draw.randrange(len(kinds))
            leave = draw.random() * options.patience if draw.random() < 1 / 3 else None
            heard = await ask(server.port, kinds[kind], leave)
            if heard.is_whole:
                counts["whole" if heard.text == expected[kind] else "mixed up"] += 1
            else:
                counts["left" if leave is not None else "lost"] += 1
            if number % max(1, options.soak_requests // 20) == 0:
                held.append(server.held())

    async def run() -> tuple[int, bytes]:
        expected = [(await ask(server.port, kind)).text for kind in kinds]
        queue = iter(range(options.soak_requests))
        await asyncio.gather(*(worker(expected, queue) for _ in range(options.workers)))
        for _ in range(100):  # what was left behind ends within a step
            metrics = await get(server.port, "/metrics")
            if all_free(metrics[1]):
                break
            await asyncio.sleep(0.05)
        return metrics

    status, text = asyncio.run(run())
    is_empty = status == 200 and all_free(text)
    held.append(server.held())
    told = ", ".join(f"{name} {number:,}" for name, number in counts.items())
    rows = [[f"soak of {options.soak_requests:,}", told, "rows free at the end" if is_empty else "ROWS STILL TAKEN"]]
    early = held[len(held) // 5]  # by then everything has been used once
    return [*rows, *([f"soak: {name}", f"{held[-1][name]:,.0f}", f"{early[name]:,.0f} early"] for name in early)]


def all_free(metrics: bytes) -> bool:
    """Whether no sequence of any model runs or waits."""
    held = re.findall(rb"^jielong_sequences_open\{.*\} (\d+)$", metrics, flags=re.MULTILINE)
    return bool(held) and set(held) == {b"0"}


def _milliseconds(seconds: Sequence[float]) -> Row:
    ordered = sorted(seconds)
    return [
        f"{1000 * statistics.median(ordered):.1f} ms",
        f"p99 {1000 * ordered[int(0.99 * (len(ordered) - 1))]:.1f} ms",
    ]


@contextmanager
def folder_of(name: str) -> Iterator[Path]:
    """The folder of a model, or of one with the random weights of a preset."""
    if name not in PRESETS:
        yield find_model(name).folder
        return
    texts = [document.text for document in World(1).documents(400_000, junk=False)]
    tokenizer = Tokenizer.train(texts, 2048)
    model = Transformer(preset_config(name, tokenizer.vocab_size, 512))
    model.init_weights(torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as made:
        jielong.save(model, tokenizer, made)
        yield Path(made)


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a folder, a run, or a preset with random weights")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=100, help="new tokens a stream")
    parser.add_argument("--many", type=int, default=64, help="streams of the third part")
    parser.add_argument("--requests", type=int, default=100, help="requests of the second part")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--block-seconds", type=float, default=4.0)
    parser.add_argument("--soak-requests", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=16, help="requests of the soak at a time")
    parser.add_argument("--kinds", type=int, default=48, help="different requests of the soak")
    parser.add_argument("--patience", type=float, default=0.1, help="who leaves does so within so many seconds")
    parser.add_argument("--rows", type=int, default=16, help="--max-rows of the server")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="threads of the engine")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = options_of(arguments)
    rows: list[Row] = []
    for name in options.models:
        with folder_of(name) as folder, served(folder, options) as server:
            parts = {"first": first, "many": many, "soak": soak}
            for part in options.parts:
                found = overhead(folder, server, options) if part == "overhead" else parts[part](server, options)
                rows += [[name, *row] for row in found]
    print(markdown_table(["model", "what", "median", "beside it"], rows))
    print(f"\n{options.tokens} new tokens a stream, weights {options.weights}, {options.rows} rows.")
    print(machine(environment(detect(threads=options.threads))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
