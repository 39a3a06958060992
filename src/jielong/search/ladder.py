"""The ladder of runs behind a scaling law, one for every combination of a grid, and points read from runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jielong.errors import DataError, RecipeError, UsageError
from jielong.search.search import Say
from jielong.search.study import Study, override, pick
from jielong.search.trial import Trial, run_trial, shared_until

MAX_EPOCHS = 4.0  # beyond, reading again is worth less than new text (Muennighoff et al. 2023, arXiv:2305.16264)


def run_ladder(study: Study, recipe: Path, stages: list[str], out: Path, say: Say) -> list[Path]:
    """Run every rung that is not finished; the run folders, in the grid's order. A stopped ladder goes on."""
    common = study.common
    if common.stage not in stages:
        raise RecipeError(f"[scaling] stage = {common.stage!r}: the recipe's stages are {', '.join(stages)}")
    points = study.points()
    until = shared_until(stages, [*study.names])
    shared = None
    if until is not None:
        say(f"the stages up to {until} are the same for all {len(points)} runs")
        shared = out / "shared"
        run_trial(Trial(recipe, shared, common.overrides, until))
    folders = []
    for number, point in enumerate(points):
        changed = [override(name, value) for name, value in point.items()]
        folder = out / f"run-{number:03d}"
        say(f"run {number + 1} of {len(points)}: {' '.join(changed)}")
        run_trial(Trial(recipe, folder, [*common.overrides, *changed], common.stage), shared)
        folders.append(folder)
    return folders


def read_point(folder: Path, figure: str) -> dict[str, Any]:
    """{"name", "parameters", "tokens", "loss", "epochs", "seconds"} of one run's pre-training.

    figure: which of its figures is the loss. epochs: how often the text was read.
    Raises UsageError when the folder is no run or its pre-training is not finished.
    """
    path = folder / "report.json"
    if not path.is_file():
        raise UsageError(f"{folder}: no report.json there; give run folders, or a study file that ends in .toml")
    try:
        stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
    except (ValueError, KeyError) as error:
        raise DataError(f"{path}: damaged ({error}); any `jielong run` of that folder writes it anew") from None
    found = [name for name, one in stages.items() if one["kind"] == "pretrain"]
    if len(found) != 1:
        raise UsageError(f"{folder}: has {len(found)} finished stages of kind pretrain; a point of the law wants one")
    figures = stages[found[0]]["figures"]
    tokens = pick(figures, "tokens_seen", found[0])
    corpus = pick(figures, "training_tokens", found[0])
    return {
        "name": folder.name,
        "parameters": pick(figures, "parameters", found[0]),
        "tokens": tokens,
        "loss": pick(figures, figure, found[0]),
        "epochs": tokens / corpus if corpus else math.inf,
        "seconds": stages[found[0]]["seconds"],
    }
