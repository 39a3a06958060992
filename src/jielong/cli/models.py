"""MODEL on the command line: a model folder, a stage's folder, or a run folder, whose last model is meant."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from jielong.errors import ModelError, nearest


@dataclass(frozen=True)
class Found:
    """folder: the model folder. note: says how it was found when it is not the one named, else ""."""

    folder: Path
    note: str = ""

    @property
    def recipe(self) -> Path | None:
        """The recipe of the run that the model belongs to: RUN/recipe.toml for RUN/04-sft/model."""
        path = self.folder.resolve().parent.parent / "recipe.toml"
        return path if path.is_file() else None


def find_model(name: str) -> Found:
    """Raises ModelError saying what is there instead when `name` leads to no model that can write."""
    path = Path(name)
    if (path / "config.json").is_file():
        return Found(path)
    if path.is_file():
        raise ModelError(f"{name}: is a file. MODEL is a model folder or a run folder; did you mean {path.parent}?")
    if not path.is_dir():
        siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        guess = nearest(path.name, siblings)
        hint = f"; did you mean {path.parent / guess}?" if guess else ""
        raise ModelError(f"{name}: no such folder{hint}. MODEL is a model folder or a run folder, as runs/quickstart")
    if (path / "model" / "config.json").is_file():
        return Found(path / "model", f"{path} is a stage's folder; its model is {path / 'model'}")
    stages = sorted(path.glob("[0-9][0-9]-*"))
    models, note = _models_of_run(path, stages)
    if models:
        others = f" (earlier ones: {', '.join(str(model) for model in models[:-1])})" if models[:-1] else ""
        return Found(models[-1], f"{path} is a run folder; its {note} is {models[-1]}{others}")
    if stages:
        raise ModelError(f"{name}: a run folder in which no model is finished yet; `jielong run` goes on with it")
    there = ", ".join(sorted(other.name for other in path.iterdir())[:6]) or "nothing"
    raise ModelError(f"{name}: is no model folder (no config.json) and no run folder; it holds {there}")


def _models_of_run(run: Path, stages: list[Path]) -> tuple[list[Path], str]:
    """(model folders that write text, the one to use last; what that one is called).

    A policy that a promote stage of the recipe is still to judge is not used yet; once it is judged, the model that
    was chosen is: the old one or the new.
    """
    from jielong.stages.context import PROMOTED, promoted_model  # bring torch, which --help does without

    judges = _promote_stages(run)
    unjudged = max((number for number, name in judges.items() if not (run / name / "DONE").exists()), default=0)
    models: list[Path] = []
    note = "last model"
    for stage in stages:
        number = int(stage.name[:2])
        if (stage / PROMOTED).exists() and (stage / "DONE").exists():
            chosen = promoted_model(stage)
            models = [*(model for model in models if model != chosen), chosen]
            note = f"promoted model, which {stage.name} chose,"
        elif (stage / "DONE").exists() and _writes_text(stage / "model"):
            kind = _kind(stage)
            if number < unjudged and kind not in ("pretrain", "sft"):
                continue  # nobody has judged it yet
            models.append(stage / "model")
            note = "last model"
    return models, note


def _promote_stages(run: Path) -> dict[int, str]:
    """Number of a stage of kind promote in the run's recipe -> the name of its folder; {} where there is no recipe."""
    from jielong.config import load_toml

    if not (run / "recipe.toml").is_file():
        return {}
    tables = [(name, table) for name, table in load_toml(run / "recipe.toml").items() if name not in ("run", "data")]
    return {
        number: f"{number:02d}-{name}"
        for number, (name, table) in enumerate(tables, start=1)
        if table.get("kind", name) == "promote"
    }


def _kind(stage: Path) -> str:
    """The kind of a finished stage; "" where the folder does not say."""
    try:
        return str(json.loads((stage / "stage.json").read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError):
        return ""


def _writes_text(folder: Path) -> bool:
    """True for a language model; a reward model and a tokenizer alone lie in such folders too."""
    from jielong.model.hf import writes_text  # brings torch, which --help does without

    if not (folder / "config.json").is_file():
        return False
    try:
        return writes_text(folder)
    except ModelError:
        return True  # broken: loading it will say so
