"""From model folders to a running server."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jielong.errors import UsageError
from jielong.folder import load
from jielong.generate.batching import Batcher
from jielong.generate.translating import TranslationBatcher
from jielong.model.hf import read_config
from jielong.runtime import detect
from jielong.serve.api import build_app
from jielong.serve.engine_thread import EngineThread, Loaded
from jielong.serve.journal import log_to_stderr
from jielong.serve.metrics import Metrics
from jielong.serve.page.routes import open_history, page_routes, places_of
from jielong.serve.page.runs import stage_of
from jielong.serve.server import listen, serve_until_stopped
from jielong.serve.service import LOG, Service
from jielong.serve.settings import ServeSettings

LONGEST_NAME = 200


@dataclass(frozen=True)
class EngineOptions:
    """Of each model's engine. max_rows, cache_bytes, prefill_tokens, weights: see `Batcher`. device, threads: see
    `runtime.detect`.
    """

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
    """`load_folder` for a process that is a server. Raises UsageError for a role that the model cannot play."""
    loaded = load_folder(folder, options)
    if settings.persona is not None and loaded.translates:
        raise UsageError("--system: a translator plays no role; it reads one sentence and writes its translation")
    # What is here now, some 200,000 objects of torch and the rest, stays. To look through all of it for cycles, as
    # Python now and then does, would stop every stream for a tenth of a second; frozen, it is left out of that.
    gc.collect()
    gc.freeze()
    return loaded


def make_service(models: Mapping[str, Callable[[], Loaded]], settings: ServeSettings, max_rows: int) -> Service:
    """A service whose models are not loaded yet. models: name -> what loads it, in the order of the table.

    max_rows: how many sequences of each run beside those that may wait. Models are loaded one after the other, as
    loading measures which weights are fastest here.
    """
    metrics, turn = Metrics(list(models)), threading.Lock()

    def in_turn(load_model: Callable[[], Loaded]) -> Loaded:
        with turn:
            return load_model()

    most_open = max_rows + settings.limits.queue
    engines = [EngineThread(partial(in_turn, models[name]), most_open, metrics.of[name]) for name in models]
    return Service(settings, tuple(engines), metrics)


def serve_folders(
    models: Mapping[str, Path],
    settings: ServeSettings,
    options: EngineOptions,
    tell: Callable[[str], None],
    keep: Path | None = None,
) -> None:
    """Serve the models of one or two folders until a signal.

    models: name -> folder, first the one that answers where nobody names one. tell(url): called once the address is
    ours. keep: the folder for the page's conversations and votes, see `places_of`.

    Raises UsageError for an address that cannot be had and for two models that do not go together, ModelError for a
    model that cannot be loaded.
    """
    folders = list(models.values())
    check_kinds(folders)
    taken = listen(settings)
    log_to_stderr()
    loads = {name: partial(load_for, settings, folder, options) for name, folder in models.items()}
    service = make_service(loads, settings, options.max_rows)
    host, port, *_ = taken.getsockname()
    tell(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    places = places_of(folders, keep)
    history = open_history(places, LOG.warning)
    try:
        serve_until_stopped(build_app(service, page_routes(service, places, history)), service, taken)
    finally:
        history.close()


def check_kinds(folders: Sequence[Path]) -> None:
    """Raises UsageError for a translator beside a decoder."""
    if len(folders) < 2:
        return  # what a single one is, loading it says
    configs = [read_config(folder) for folder in folders]
    translates = [config.encoder_layers > 0 and config.decoder_layers > 0 for config in configs]
    if len(set(translates)) > 1:
        translator, decoder = folders[translates.index(True)], folders[translates.index(False)]
        raise UsageError(
            f"--beside: {translator} is a translator and {decoder} is none; what the one reads as a sentence, the "
            "other reads as a conversation, so that their answers cannot be compared. Serve each on a --port of its own"
        )


def name_models(folders: Sequence[Path], given: Sequence[str | None]) -> dict[str, Path]:
    """What the models are called -> their folders. given: the names that somebody chose, None for the usual one.

    Two whose usual names would be the same, as those of two models of one run, have their stages' names.
    Raises UsageError for a name that is no name, or the other one's, and for the same folder twice.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError(
            f"--beside: {folders[1]} is the model that is served already; Compare draws two answers of one model "
            "without --beside"
        )
    names = [model_name(folder) if name is None else name for folder, name in zip(folders, given, strict=True)]
    if len(set(names)) < len(names):
        names = [_closer_name(folder) if name is None else name for folder, name in zip(folders, given, strict=True)]
    for name in names:
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise UsageError(f"the model's name is {name!r:.60}; legal are 1 to {LONGEST_NAME} visible characters")
    if len(set(names)) < len(names):
        raise UsageError(f"both models are called {names[0]!r}; give one of them another --name or --beside-name")
    return dict(zip(names, folders, strict=True))


def model_name(folder: Path) -> str:
    """What a model is called when nobody says: RUN for RUN/06-ppo/model, else the folder's own name."""
    stage = stage_of(folder)
    return folder.resolve().name if stage is None else stage.parent.name


def _closer_name(folder: Path) -> str:
    """06-ppo for RUN/06-ppo/model, else the folder's name behind that of the one it lies in."""
    stage, path = stage_of(folder), folder.resolve()
    return f"{path.parent.name}-{path.name}" if stage is None else stage.name
