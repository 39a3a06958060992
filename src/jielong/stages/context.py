"""What a stage is given, and the files that every stage leaves."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from jielong.config import data_root, replacing, write_atomic
from jielong.data.sources import Source
from jielong.data.world import World
from jielong.errors import RecipeError
from jielong.folder import load
from jielong.log import MetricsLog, Progress
from jielong.model.hf import read_provenance
from jielong.model.transformer import Transformer
from jielong.recipe import Recipe
from jielong.runtime import Runtime, derive_seed
from jielong.tokenizer import Tokenizer
from jielong.train.parallel import wait_for_all

PROMOTED = "promoted.json"  # of a promote stage: the model that it chose, relative to the stage's folder
CHECKPOINTS = "checkpoints"  # a stage's folder of them


@dataclass
class Context:
    """One stage's view of its run: its settings, its folder, and the folders of the stages before it.

    earlier: finished stages of this run, name -> folder, in recipe order; kinds: name -> kind of all stages.
    home: the stage's folder in the run. It is `folder` for the process that leads; the others of a run with several
    processes do the same work in a folder of their own, which nobody reads, so that no stage asks who writes.
    """

    name: str
    kind: str
    settings: Any
    recipe: Recipe
    folder: Path
    runtime: Runtime
    progress: Progress
    earlier: dict[str, Path] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    home: Path = Path()

    @cached_property
    def world(self) -> World:
        """The embedded corpus generator; its seed follows the run's, so that run.seed changes every seed."""
        return World(self.recipe.world_seed)

    @property
    def root(self) -> Path:
        """The data root that sources' paths are relative to."""
        return data_root(self.recipe.data.root)

    @property
    def seed(self) -> int:
        return derive_seed(self.recipe.run.seed, self.name)

    @property
    def metrics(self) -> MetricsLog:
        return MetricsLog(self.folder / "metrics.jsonl")

    @property
    def checkpoints(self) -> Path:
        """Of the run: all processes go on from the same one; the leading one writes it."""
        return self.home / CHECKPOINTS

    @property
    def leads(self) -> bool:
        """Whether this is the only process, or the one whose files are kept."""
        return self.runtime.process == 0

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The block runs in the leading process first, and what files it makes are there for the others' turn.

        For what is costly to make, or must be the same to the last bit although it is drawn or computed anew.
        """
        if not self.leads:
            wait_for_all(self.runtime)
            for path in self.home.iterdir():
                if path.is_file() and not (self.folder / path.name).exists():
                    shutil.copyfile(path, self.folder / path.name)
        yield
        if self.leads:
            wait_for_all(self.runtime)

    def source(self, name: str) -> Source:
        """The named table [data.sources.NAME] as a Source."""
        return self.recipe.source(name)

    @property
    def has_world(self) -> bool:
        """Whether any stage of the recipe reads the embedded corpus, so that its questions can be asked."""
        return "world" in self.recipe.all_sources()

    def sibling(self, kind: str) -> Context:
        """The context of the last stage of a kind, for its settings; RecipeError when there is none."""
        return self.named(self.folder_of(kind).name[3:])

    def named(self, name: str) -> Context:
        """The context of an earlier stage by its name, for its settings and what it left."""
        stage = next(stage for stage in self.recipe.stages if stage.name == name)
        return replace(
            self,
            name=name,
            kind=stage.kind,
            settings=stage.settings,
            folder=self.earlier[name],
            home=self.earlier[name],
        )

    def folder_of(self, kind: str) -> Path:
        """Folder of the last finished stage of a kind. Raises RecipeError when none ran before this one."""
        for name in reversed(list(self.earlier)):
            if self.kinds[name] == kind:
                return self.earlier[name]
        raise RecipeError(f"stage [{self.name}] needs a stage of kind {kind!r} before it; add one to the recipe")

    def folders_of(self, kind: str) -> list[Path]:
        """Folders of all finished stages of a kind, in the recipe's order."""
        return [folder for name, folder in self.earlier.items() if self.kinds[name] == kind]

    def has(self, kind: str) -> bool:
        return any(self.kinds[name] == kind for name in self.earlier)

    def last_model(self, *kinds: str) -> Path:
        """Model folder of the last finished stage whose kind is among kinds."""
        for name in reversed(list(self.earlier)):
            if self.kinds[name] in kinds:
                return self.earlier[name] / "model"
        raise RecipeError(f"stage [{self.name}] needs a stage of kind {' or '.join(kinds)} before it")

    def start_model(self) -> Path:
        """Model folder of the present policy: what the newest promote stage chose, else of the newest sft stage."""
        for name in reversed(list(self.earlier)):
            if self.kinds[name] == "promote":
                return promoted_model(self.earlier[name])
            if self.kinds[name] == "sft":
                return self.earlier[name] / "model"
        raise RecipeError(f"stage [{self.name}] needs a stage of kind sft before it")

    def load_model(self, folder: Path, device: torch.device | None = None) -> tuple[Transformer, Tokenizer]:
        """The model of a folder, on the device that the run computes on or another, and its tokenizer."""
        model, tokenizer = load(folder)
        return model.to(device or self.runtime.device), tokenizer

    def provenance(self, steps: int, parent: Path | None = None) -> dict[str, Any]:
        """What jielong.json says of this stage's model, beside the tokenizer's hash that `save` adds.

        steps: of training, in this stage. parent: the model folder it started from, told relative to the new one, so
        that a run may be moved. data_hash: of the curated corpus; without one, what the parent says of its own.
        """
        if self.has("curate"):
            data_hash = read_json(self.folder_of("curate") / "stage.json")["hash"]
        else:
            data_hash = read_provenance(parent).get("data_hash") if parent is not None else None
        return {
            "stage": self.name,
            "kind": self.kind,
            "recipe_hash": self.recipe.hash,
            "data_hash": data_hash,
            "parent": None if parent is None else Path(os.path.relpath(parent, self.folder / "model")).as_posix(),
            "steps": steps,
        }


def clear_checkpoints(folder: Path) -> None:
    """Remove the training state of a finished stage; its model folder is what stays. folder: the stage's."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def promoted_model(folder: Path) -> Path:
    """The model folder that a finished promote stage chose. folder: the stage's."""
    return Path(os.path.normpath(folder / read_json(folder / PROMOTED)["model"]))


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically, UTF-8, readable by people."""
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=1, sort_keys=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def writing_jsonl(path: Path) -> Iterator[Callable[[object], None]]:
    """Within the block: a function that adds one JSON object as a line. After it, the file is on the disk in its place.

    An error in the block leaves an older file as it was, and nothing beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yield lambda record: print(json.dumps(record, ensure_ascii=False), file=file)


def write_jsonl(path: Path, records: Iterable[object]) -> None:
    """Write one JSON object a line, all of them or none."""
    with writing_jsonl(path) as write:
        for record in records:
            write(record)


def each_jsonl(path: Path) -> Iterator[Any]:
    """The records of a file one after another, whatever its size."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def read_jsonl(path: Path) -> list[Any]:
    return list(each_jsonl(path))
