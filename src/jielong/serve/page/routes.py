"""All that the page asks for, put together for the models served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jielong import __version__
from jielong.errors import StorageError
from jielong.plan.count import count_parameters
from jielong.serve.engine_thread import EngineThread
from jielong.serve.page.comparisons import comparison_routes
from jielong.serve.page.conversations import conversation_routes
from jielong.serve.page.history import History
from jielong.serve.page.inside_routes import inside_routes
from jielong.serve.page.lens import Lens
from jielong.serve.page.run_routes import run_routes
from jielong.serve.page.runs import Runs, stage_of, votes_taken
from jielong.serve.page.talk import talk_routes
from jielong.serve.page.votes import Ballots, Weights
from jielong.serve.personas import Persona
from jielong.serve.service import Service
from jielong.serve.stream import answer


@dataclass(frozen=True)
class Places:
    """Where things are. folders: of the models, in the order of the service's table. run: the run folder that the first
    of them belongs to, None for none. history, votes: the files that conversations and votes are kept in.
    """

    folders: tuple[Path, ...]
    run: Path | None
    history: Path
    votes: Path


def places_of(folders: Sequence[Path], keep: Path | None = None) -> Places:
    """The run is RUN for RUN/06-ppo/model, the first model's. Kept are things in `keep`, else in that run, else beside
    the first model's folder.
    """
    path, served, stage = folders[0].resolve(), tuple(folders), stage_of(folders[0])
    run = None if stage is None else stage.parent
    home = run if keep is None else keep
    if home is not None:
        return Places(served, run, home / "chat.sqlite", home / "votes.jsonl")
    return Places(served, None, path.parent / f"{path.name}.chat.sqlite", path.parent / f"{path.name}.votes.jsonl")


def open_history(places: Places, notice: Callable[[str], None]) -> History:
    """The history; one that is forgotten with the server where its file cannot be written, which `notice` is told."""
    try:
        return History(places.history)
    except StorageError as error:
        notice(f"{error}; conversations are kept until the server stops (--keep DIR keeps them elsewhere)")
        return History(":memory:")


def page_routes(service: Service, places: Places, history: History) -> list[Route]:
    """Everything under /api/."""
    folders = dict(zip((engine.name for engine in service.engines), places.folders, strict=True))
    lenses = {name: Lens(name, folder) for name, folder in folders.items()}
    weights = {name: Weights(folder) for name, folder in folders.items()}
    ballots = Ballots(history, places.votes, weights, lambda: 0.0 if places.run is None else votes_taken(places.run))
    runs = Runs(places.run.parent, places.run.name) if places.run is not None else Runs(None)

    async def about(request: Request) -> Response:
        facts = [_facts(engine, folders[engine.name], service.settings.persona) for engine in service.living()]
        return answer({"models": facts, "run": runs.current, "version": __version__})

    return [
        Route("/api/page", about, methods=["GET"]),
        *conversation_routes(history),
        *talk_routes(service),
        *comparison_routes(service, ballots),
        *inside_routes(lambda name: lenses[service.engine_of(name).name]),
        *run_routes(runs),
    ]


def _facts(engine: EngineThread, folder: Path, persona: Persona | None) -> dict[str, Any]:
    """What the page says and offers of a model: kind, which tells a translator; chats, False for a base model; role,
    True where a persona is served; odds, whether chances of tokens are given.
    """
    loaded = engine.ready()
    config = loaded.config
    both = config.encoder_layers > 0 and config.decoder_layers > 0
    return {
        "id": engine.name,
        "name": engine.name,
        "folder": str(folder),
        "parameters": sum(count_parameters(config).values()),
        "context": config.max_length,
        "kind": "encoder-decoder" if both else "decoder" if config.decoder_layers else "encoder",
        "chats": loaded.tokenizer.form is not None or loaded.translates,
        "role": persona is not None,
        "odds": persona is None or not persona.guard,
    }
