"""The verb `bench`: how fast this machine and this package are, with the environment beside the figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jielong.errors import UsageError, nearest
from jielong.launch import relaunch_with_allocator

NAMES = ("products", "training", "decoding", "attention", "memory", "nanogpt", "nanochat")
USUAL = NAMES[:3]  # what runs when none is named; a minute or two
EXAMPLES = (
    "Examples:  jielong bench  ·  jielong bench training --presets jie-s jie-m --threads 2  ·  "
    "jielong bench nanogpt --nanogpt ../nanoGPT --threads 2 --json"
)


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help=f"Of {', '.join(NAMES)}; the first three if none.")
    ] = None,
    nanogpt: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your copy of nanoGPT's repository: compares with it, too.")
    ] = None,
    nanochat: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your copy of nanochat's repository: compares with it, too.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="nanogpt: with torch.compile as well, which takes minutes first.")
    ] = False,
    presets: Annotated[
        str, typer.Option(metavar="A,B", help="Models that training and decoding measure.")
    ] = "jie-s,jie-m",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch decides when left out.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16.")] = "auto",
    blocks: Annotated[int, typer.Option(min=1, help="Turns of each contender; medians over them are told.")] = 3,
    block_seconds: Annotated[float, typer.Option(min=0.0, help="Least length of a turn.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON on stdout.")] = False,
) -> None:
    """Measure this machine: matrix products, training, decoding; beside transformers, nanoGPT, nanochat if there.

    A Markdown table for each NAME. Run it on a machine that does nothing else. More is in benchmarks/ of the
    repository; docs/speed.md says what came out and what follows. Exit code 1 when contenders that must agree did not.
    """
    folders = {"nanogpt": nanogpt, "nanochat": nanochat}
    chosen = _chosen(names, folders)
    relaunch_with_allocator()  # before torch is imported, which the lines below do
    from jielong.bench.measure import Choice, measure
    from jielong.bench.table import machine
    from jielong.runtime import detect, environment

    runtime = detect(dtype=dtype, threads=threads)
    choice = Choice(presets.split(","), folders, blocks, block_seconds, compiled)
    told, holds, say = {}, True, Console(stderr=True, highlight=False)
    for name in chosen:
        say.print(f"{name} …", style="dim")
        section = measure(name, runtime, choice)
        told[name], holds = section.figures, holds and section.holds
        if not as_json:
            print(section.markdown() + "\n", flush=True)
    found = environment(runtime)
    record = {"environment": found, "figures": told}
    print(json.dumps(record, ensure_ascii=False, indent=1) if as_json else machine(found))
    if not holds:
        sys.exit(1)


def _chosen(names: list[str] | None, folders: dict[str, Path | None]) -> list[str]:
    """What to measure, in the usual order. UsageError: a name that there is not, a peer without its DIR."""
    for name in names or ():
        if name not in NAMES:
            hint = nearest(name, NAMES)
            meant = f"; did you mean {hint}?" if hint else ""
            raise UsageError(f"bench {name}: no such measurement; legal are {', '.join(NAMES)}{meant}")
    wanted = set(names or USUAL) | {name for name, folder in folders.items() if folder is not None}
    for name, folder in folders.items():
        if name in wanted and folder is None:
            raise UsageError(f"bench {name}: --{name} must name your copy of its repository")
    return [name for name in NAMES if name in wanted]
