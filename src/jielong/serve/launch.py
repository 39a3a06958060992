"""From a model folder to a running server."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jielong.errors import UsageError
from jielong.folder import load
from jielong.generate.batching import Batcher
from jielong.generate.translating import TranslationBatcher
from jielong.runtime import detect
from jielong.serve.api import build_app
from jielong.serve.engine_thread import EngineThread, Loaded
from jielong.serve.journal import log_to_stderr
from jielong.serve.metrics import Metrics
from jielong.serve.page.routes import open_history, page_routes, places_of
from jielong.serve.server import listen, serve_until_stopped
from jielong.serve.service import LOG, Service
from jielong.serve.settings import ServeSettings


@dataclass(frozen=True)
class EngineOptions:
    """max_rows, cache_bytes, prefill_tokens, weights: see `Batcher`. device, threads: see `runtime.detect`."""

    max_rows: int
    cache_bytes: int
    prefill_tokens: int
    weights: str = "auto"
    device: str = "auto"
    threads: int | None = None


def load_folder(folder: Path, options: EngineOptions) -> Loaded:
    """The model of a folder, ready to be asked.

    Raises ModelError when it is neither a decoder of tokens nor a translator, or is broken; UsageError for weights that
    a translator does not have.
    """
    runtime = detect(options.device, threads=options.threads)
    model, tokenizer = load(folder)
    created = int(os.stat(folder / "config.json").st_mtime)
    model = model.to(runtime.device)
    if model.config.encoder_layers and model.config.decoder_layers:
        if options.weights not in ("auto", "float32"):
            raise UsageError(f"--weights {options.weights}: a translator is served as it is; leave it out")
        rows, prefill = options.max_rows, options.prefill_tokens
        return Loaded(TranslationBatcher(model, tokenizer, runtime, max_rows=rows, prefill_tokens=prefill), created)
    batcher = Batcher(
        model,
        tokenizer,
        runtime,
        max_rows=options.max_rows,
        cache_bytes=options.cache_bytes,
        prefill_tokens=options.prefill_tokens,
        weights=None if options.weights == "auto" and runtime.device.type != "cpu" else options.weights,
    )
    return Loaded(batcher, created)


def load_for(settings: ServeSettings, folder: Path, options: EngineOptions) -> Loaded:
    """`load_folder` for a server. Raises UsageError for a role that the model cannot play."""
    loaded = load_folder(folder, options)
    if settings.persona is not None and loaded.translates:
        raise UsageError("--system: a translator plays no role; it reads one sentence and writes its translation")
    return loaded


def make_service(load_model: Callable[[], Loaded], name: str, settings: ServeSettings, max_rows: int) -> Service:
    """A service whose model is not loaded yet. max_rows: how many sequences run beside those that may wait."""
    metrics = Metrics()
    engine = EngineThread(load_model, max_rows + settings.limits.queue, metrics)
    return Service(settings, engine, name, metrics)


def serve_folder(
    folder: Path,
    name: str | None,
    settings: ServeSettings,
    options: EngineOptions,
    tell: Callable[[str, str], None],
    keep: Path | None = None,
) -> None:
    """Serve the model of a folder until a signal. tell(url, model's name): called once the address is ours.

    keep: the folder for the page's conversations and votes, see `places_of`.

    Raises UsageError for an address that cannot be had, ModelError for a model that cannot be loaded.
    """
    name = name if name is not None else model_name(folder)
    if not 0 < len(name) <= 200 or not name.isprintable():
        raise UsageError(f"the model's name is {name!r:.60}; legal are 1 to 200 visible characters")
    taken = listen(settings)
    log_to_stderr()
    service = make_service(partial(load_for, settings, folder, options), name, settings, options.max_rows)
    host, port, *_ = taken.getsockname()
    tell(f"http://{f'[{host}]' if ':' in host else host}:{port}", name)
    places = places_of(folder, keep)
    history = open_history(places, LOG.warning)
    try:
        serve_until_stopped(build_app(service, page_routes(service, places, history)), service, taken)
    finally:
        history.close()


def model_name(folder: Path) -> str:
    """What a model is called when nobody says: RUN for RUN/06-ppo/model, else the folder's own name."""
    path = folder.resolve()
    run = path.parent.parent
    return run.name if path.name == "model" and (run / "recipe.toml").is_file() else path.name
