"""What a stage was made from: its settings, the very bytes that it read, and the stages before it.

A finished stage is only good for the run that would make it again just so. Settings come from the recipe. Inputs are
the files of the sources that a stage names, by path, size and sha256; they are looked at each time a run starts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jielong.config import config_hash, data_root
from jielong.data.download import file_sha256
from jielong.data.sources import Source, files, find
from jielong.errors import DataError, UsageError
from jielong.evaluate.tasks import TASKS
from jielong.recipe import Recipe, Stage
from jielong.recipe.recipe import stage_sources
from jielong.runtime import Runtime
from jielong.stages.context import read_json, write_json

# (kind or None for any, setting, its default): settings that recipes could not always name. At their defaults they
# leave no trace in a stage's hash, so what was made before they were there is as good as ever.
NEWER: tuple[tuple[str | None, str, object], ...] = (
    (None, "votes", None),
    ("pretrain", "mixture", None),
    (None, "z_loss", 0.0),
    ("pretrain", "router_balance", 0.01),
    ("pretrain", "router_z", 0.001),
    ("curate", "keep_out", []),
    ("mlm", "start", "random"),
    ("mlm", "vectors", "random"),
    ("finetune", "pooling", "cls"),
    ("translate", "switches", []),
)
Inputs = dict[str, list[dict[str, Any]]]  # what -> its files: {"path", "bytes", "sha256"}


class FileHashes:
    """sha256 of files, kept in RUN/inputs.json under size and time of change: gigabytes are not read at each start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] = read_json(path) if path.exists() else {}

    def describe(self, file: Path, root: Path) -> dict[str, Any]:
        """{"path", "bytes", "sha256"}; the path is relative to the data root, so that the data may be moved."""
        status, key = file.stat(), str(file.resolve())
        seen = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        known = self._known.get(key, {})
        if {name: known.get(name) for name in seen} != seen:
            known = self._known[key] = {**seen, "sha256": file_sha256(file)}
            write_json(self._path, self._known)
        path = file.relative_to(root) if file.is_relative_to(root) else file
        return {"path": path.as_posix(), "bytes": status.st_size, "sha256": known["sha256"]}


def _read_by(recipe: Recipe, stage: Stage) -> tuple[str, ...]:
    """The sources that a stage reads, each once: its own, and of a curation those of the tasks that it keeps out."""
    stages = (stage, *recipe.kept_out(stage))
    return tuple(dict.fromkeys(name for one in stages for name in stage_sources(one)))


def present_inputs(recipe: Recipe, stage: Stage, hashes: FileHashes) -> Inputs:
    """The inputs that are on this machine; what must still be downloaded, or is gone, is left out."""
    root = data_root(recipe.data.root)
    inputs: Inputs = {}
    for name in _read_by(recipe, stage):
        if name != "world" and find(recipe.source(name), root) is not None:
            try:
                found = files(recipe.source(name), root)
            except DataError:  # a folder without a file: whoever reads it will say so
                continue
            inputs[f"source {name}"] = [hashes.describe(file, root) for file in found]
    for task in stage.settings.tasks if stage.kind == "evaluate" else ():
        sources = [Source(task, path) for path in (TASKS[task].path, TASKS[task].shots) if path]
        present = [find(source, root) for source in sources]
        inputs[f"task {task}"] = [hashes.describe(file, root) for file in present if file is not None]
    folder = stage.settings.model if stage.kind in ("sft", "finetune") else None
    if folder is not None:
        weights = sorted(path for path in Path(folder).glob("*") if path.suffix in (".json", ".safetensors"))
        inputs |= {"model": [hashes.describe(file, root) for file in weights]} if weights else {}
    return inputs


def fetched_inputs(recipe: Recipe, stage: Stage, hashes: FileHashes, say: Callable[[str], None]) -> Inputs:
    """All inputs, those that are not here downloaded first. Raises DataError for a source that cannot be had."""
    root = data_root(recipe.data.root)
    for name in _read_by(recipe, stage):
        if name != "world":
            source = recipe.source(name)
            if source.url is not None and find(source, root) is None:
                say(f"{stage.name}: downloading {source.url}")
            files(source, root)
    return present_inputs(recipe, stage, hashes)


def changed_file(recorded: Inputs, now: Inputs) -> str | None:
    """The first file that is not what it was. An input that is gone altogether contradicts nothing."""
    for what, before in recorded.items():
        hashes = {file["path"]: file["sha256"] for file in before}
        found = {file["path"]: file["sha256"] for file in now.get(what, before)}
        for path in sorted(hashes.keys() | found.keys()):
            if hashes.get(path) != found.get(path):
                return path
    return None


def run_hash(recipe: Recipe, runtime: Runtime) -> str:
    """What holds for all stages: the run's seed and precision, and the data tables with urls and their sha256."""
    return config_hash(
        {
            "seed": recipe.run.seed,
            "dtype": str(runtime.dtype),
            "device": runtime.device.type,
            "data": recipe.data_settings(),
            **({"compile": True} if recipe.run.compile else {}),  # what is compiled rounds otherwise
            **({"fp8": True} if recipe.run.fp8 else {}),
        }
    )


def stage_hash(recipe: Recipe, stage: Stage, inputs: Inputs, before: str) -> str:
    """A hash over a stage's settings and inputs, and over all stages before it (before: the last one's hash)."""
    settings = stage.settings.model_dump(mode="json")
    for kind, name, default in NEWER:
        if kind in (None, stage.kind) and settings.get(name) == default:
            settings.pop(name, None)
    content = {"name": stage.name, "kind": stage.kind, "settings": settings, "before": before}
    if inputs:
        content["inputs"] = inputs
    if stage.kind == "curate" and recipe.evaluation_prompts:
        content["evaluation_prompts"] = recipe.evaluation_prompts  # they are kept out of the text
    if recipe.kept_out(stage):
        content["kept_out"] = [_which_heldout(task) for task in recipe.kept_out(stage)]
    return config_hash(content)


def _which_heldout(task: Stage) -> dict[str, Any]:
    """The settings of a finetune stage that decide which examples it is examined on."""
    settings = task.settings.model_dump(mode="json")
    return {name: settings[name] for name in ("task", "sources", "heldout_sources", "heldout_fraction", "split_seed")}


def made_hash(folder: Path) -> str:
    """The hash of a stage that has begun, as its stage.json has it."""
    return str(read_json(folder / "stage.json")["hash"])


def refuse_foreign(folder: Path, recipe: Recipe, runtime: Runtime, folders: dict[str, Path]) -> None:
    """Raise UsageError if a stage folder there was made from something else: nothing is ever overwritten.

    A stage that is not finished may have other inputs than it began with: it is then made anew, see the pipeline.
    """
    hashes = FileHashes(folder / "inputs.json")
    before = run_hash(recipe, runtime)
    for stage in recipe.stages:
        path = folders[stage.name]
        now = present_inputs(recipe, stage, hashes)
        if not (path / "stage.json").exists():
            before = stage_hash(recipe, stage, now, before)
            continue
        made = read_json(path / "stage.json")
        recorded: Inputs = made.get("inputs", {})
        if made["hash"] != stage_hash(recipe, stage, recorded, before):
            raise UsageError(
                f"{path} was made with other settings, seed, precision or inputs than this recipe asks for. "
                f"Choose another folder with --out, or remove {path} and the stages after it to make them anew "
                f"(its settings are in {path / 'config.toml'})."
            )
        changed = changed_file(recorded, now) if (path / "DONE").exists() else None
        if changed is not None:
            raise UsageError(
                f"{path} was made from a file that has changed since: {changed} (under {data_root(recipe.data.root)}). "
                f"Put the old file back, choose another folder with --out, or remove {path} and the stages after it to "
                "make them anew."
            )
        before = made["hash"]
    known = {path.name for path in folders.values()}
    for path in sorted(folder.glob("[0-9][0-9]-*")):
        if path.name not in known and (path / "stage.json").exists():
            raise UsageError(
                f"{folder} holds {path.name}, which this recipe does not have: it is the run of another recipe. "
                f"Choose another folder with --out, or remove {folder}."
            )
