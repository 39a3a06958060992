"""MODEL on the command line: a model folder, a stage's folder, or a run folder, whose last model is meant."""

from __future__ import annotations

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
    models = [stage / "model" for stage in stages if (stage / "DONE").exists() and _writes_text(stage / "model")]
    if models:
        others = f" (earlier ones: {', '.join(str(model) for model in models[:-1])})" if models[:-1] else ""
        return Found(models[-1], f"{path} is a run folder; its last model is {models[-1]}{others}")
    if stages:
        raise ModelError(f"{name}: a run folder in which no model is finished yet; `jielong run` goes on with it")
    there = ", ".join(sorted(other.name for other in path.iterdir())[:6]) or "nothing"
    raise ModelError(f"{name}: is no model folder (no config.json) and no run folder; it holds {there}")


def _writes_text(folder: Path) -> bool:
    """True for a language model; a reward model and a tokenizer alone lie in such folders too."""
    from jielong.model.hf import writes_text  # brings torch, which --help does without

    if not (folder / "config.json").is_file():
        return False
    try:
        return writes_text(folder)
    except ModelError:
        return True  # broken: loading it will say so
