"""Gathers what the stages of a run left, and writes report.json and report.html."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jielong import __version__
from jielong.config import load_toml, write_atomic
from jielong.log import read_metrics
from jielong.report.curves import Drawn
from jielong.report.page import page
from jielong.report.verdicts import verdicts
from jielong.runtime import peak_memory_bytes

SHARED_TABLES = ("run", "data")


@dataclass
class StageFiles:
    """What one stage left beside its figures, for the page: the .jsonl and .json files of these names."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    best_liked: list[dict[str, Any]] = field(default_factory=list)
    ledger: dict[str, Any] = field(default_factory=dict)


def write_report(run_folder: str | Path, drawn: Drawn | None = None) -> dict[str, Any]:
    """Writes report.json and report.html into the run folder from the stages that are finished; returns the former.

    Reads recipe.toml, environment.json, plan.json and, in each NN-NAME folder, figures.json, metrics.jsonl,
    samples.json, best_liked.json and ledger.json; all but figures.json may be missing.
    drawn: curves that earlier calls for this run drew; given again and again, it spares those that have not changed.
    """
    folder = Path(run_folder)
    report = gather(folder)
    write_atomic(folder / "report.json", json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    files = {path.name[3:]: _stage_files(path) for path in _stage_folders(folder)}
    recipe_file = folder / "recipe.toml"
    recipe_text = recipe_file.read_text(encoding="utf-8") if recipe_file.exists() else ""
    write_atomic(folder / "report.html", page(report, files, recipe_text, {} if drawn is None else drawn))
    return report


def gather(folder: Path) -> dict[str, Any]:
    """The content of report.json: {"name", "version", "seed", "stages", "totals", "plan", "sources", "environment"}.

    stages: name -> {"kind", "seconds", "figures", "rules"}, in the recipe's order. What is not finite becomes null.
    """
    recipe = load_toml(folder / "recipe.toml") if (folder / "recipe.toml").exists() else {}
    planned = [name for name in recipe if name not in SHARED_TABLES]
    stages = {path.name[3:]: _stage(_read_json(path / "figures.json")) for path in _stage_folders(folder)}
    rules = [rule for stage in stages.values() for rule in stage["rules"]]
    totals = {
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "peak_memory_bytes": _peak_memory(folder),
        "stages_done": len(stages),
        "stages": max(len(planned), len(stages)),
        "rules_passed": sum(rule["passed"] is True for rule in rules),
        "rules_failed": sum(rule["passed"] is False for rule in rules),
        "rules_not_measured": sum(rule["passed"] is None for rule in rules),
    }
    report = {
        "name": recipe.get("run", {}).get("name", folder.name),
        "version": __version__,
        "seed": recipe.get("run", {}).get("seed", 0),
        "stages": stages,
        "totals": totals,
        "plan": _read_json(folder / "plan.json"),
        "sources": _sources(recipe),
        "environment": _read_json(folder / "environment.json"),
    }
    finite: dict[str, Any] = _finite(report)
    return finite


def _stage(left: dict[str, Any]) -> dict[str, Any]:
    figures = left["figures"]
    judged = [
        {"rule": rule, "passed": passed, "shown": shown} for rule, passed, shown in verdicts(left["kind"], figures)
    ]
    return {"kind": left["kind"], "seconds": left["seconds"], "figures": figures, "rules": judged}


def _stage_folders(folder: Path) -> list[Path]:
    """Folders of the finished stages, in order."""
    return [path for path in sorted(folder.glob("[0-9][0-9]-*")) if (path / "figures.json").exists()]


def _stage_files(path: Path) -> StageFiles:
    return StageFiles(
        metrics=read_metrics(path / "metrics.jsonl"),
        samples=_read_json(path / "samples.json", []),
        best_liked=_read_json(path / "best_liked.json", []),
        ledger=_read_json(path / "ledger.json"),
    )


def _peak_memory(folder: Path) -> int:
    """The most memory a process of this run has held: a resumed run has had several."""
    before = _read_json(folder / "report.json").get("totals", {}).get("peak_memory_bytes", 0)
    return max(int(before or 0), peak_memory_bytes())


def _sources(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Where the text came from and under which licence."""
    data = recipe.get("data", {})
    found = [
        {"name": name, **{key: source.get(key) for key in ("path", "url", "licence", "sha256")}}
        for name, source in data.get("sources", {}).items()
    ]
    if "world" in data:
        text = "generated on this machine by jielong, from the run's seed"
        found.insert(0, {"name": "world", "path": text, "url": None, "licence": "Apache-2.0", "sha256": None})
    return found


def _read_json(path: Path, default: Any = None) -> Any:
    """A JSON file, or `default` ({} unless told) when there is none or it is broken off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {} if default is None else default


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
