"""The verb `serve`: a model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

EXAMPLES = (
    "Examples:  jielong serve runs/quickstart  ·  jielong serve runs/quickstart --port 9000 --max-rows 32  ·  "
    "jielong serve runs/quickstart --beside runs/quickstart/04-sft  ·  "
    "jielong serve runs/quickstart --system recipes/personas/terminal.toml  ·  "
    "jielong serve my-model --host 0.0.0.0 --api-key-file keys.txt"
)


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="A model folder, or a run folder: its last model.")],
    beside: Annotated[
        str | None,
        typer.Option(metavar="MODEL|RUN", help="A second model: Compare lets people choose between the two, blindly."),
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; 127.0.0.1 is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="The model's name for clients; its folder's when left out.")] = None,
    beside_name: Annotated[str | None, typer.Option(help="The same for the second one.")] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Who sends it may ask. Repeatable; others can see it in ps.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keys, one a line; # begins a comment.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="A public address without a key: serve everybody.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further name of this server (Host header). Repeatable.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="A web page that may ask, https://host. Repeatable.")
    ] = None,
    system: Annotated[
        Path | None, typer.Option(metavar="PERSONA.toml", help="Serve a role: its system message and output guard.")
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, max=1024, help="Sequences that run at the same time.")] = 16,
    max_queue: Annotated[int, typer.Option(min=0, max=100_000, help="Sequences that may wait; more get 429.")] = 256,
    cache_mb: Annotated[int, typer.Option(min=0, help="Prefix cache, in MB; 0 for none.")] = 256,
    prefill_tokens: Annotated[int, typer.Option(min=1, help="Most prompt tokens read in one step.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    weights: Annotated[
        str,
        typer.Option(
            help="On a CPU: auto (the fastest), float32 (exact), float16, bfloat16, int8, int4.", metavar="KIND"
        ),
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the engine.")] = None,
    drain_seconds: Annotated[float, typer.Option(min=0, help="How long a stopping server finishes answers.")] = 30.0,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the page keeps conversations and votes; the run's folder.")
    ] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts and answers into the log.")] = False,
) -> None:
    """Serve a model, or two: a web page and the API of OpenAI, on this machine only unless told otherwise.

    With --beside both answer by their names, each with an engine, --max-rows, --max-queue and --cache-mb of its own.

    The first Ctrl-C or SIGTERM finishes what runs and stops; a second Ctrl-C stops at once. docs/serving.md has the
    endpoints, what is promised, and the limits.
    """
    from jielong.cli.models import find_model
    from jielong.errors import UsageError
    from jielong.serve.launch import EngineOptions, name_models, serve_folders
    from jielong.serve.personas import load_persona
    from jielong.serve.settings import Limits, ServeSettings, read_keys

    say = Console(stderr=True, highlight=False)
    settings = ServeSettings(
        host=host,
        port=port,
        api_keys=(*(api_key or ()), *(read_keys(api_key_file) if api_key_file else ())),
        insecure=insecure,
        allowed_hosts=tuple(allow_host or ()),
        allowed_origins=tuple(allow_origin or ()),
        persona=load_persona(system) if system else None,
        log_prompts=log_prompts,
        drain_seconds=drain_seconds,
        limits=Limits(queue=max_queue),
    )
    if beside is None and beside_name is not None:
        raise UsageError("--beside-name is the name of the model that --beside serves, and there is no --beside")
    found = [find_model(one) for one in (model, beside) if one is not None]
    for one in found:
        if one.note:
            say.print(one.note, style="dim", markup=False, soft_wrap=True)
    models = name_models([one.folder for one in found], [name, beside_name][: len(found)])
    options = EngineOptions(max_rows, cache_mb << 20, prefill_tokens, weights, device, threads)

    def tell(url: str) -> None:
        say.print(f"serving {' and '.join(models)} at {url} (Ctrl-C stops)", markup=False, soft_wrap=True)
        if not settings.is_loopback and not settings.api_keys:
            say.print("anybody who reaches this address can use the model", style="yellow", markup=False)

    serve_folders(models, settings, options, tell, keep)
