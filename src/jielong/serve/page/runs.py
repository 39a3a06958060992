"""Run folders as the page watches them: which stages there are, how far they are, what they measured.

Files are only read, and whole lines alone; so a run may be going, may have been stopped, and may be resumed, which
drops lines: a reader whose cursor is beyond the end of the file begins anew.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jielong.config import load_toml
from jielong.errors import JielongError
from jielong.log import read_metrics

MOST_LINES = 4000  # of a file that are told at once; of a longer one so many, evenly spread
MOST_RUNS = 200
MOST_RARE = 3000
MOST_SPOKEN = 100  # times that a stage has let its model speak
_RARE = re.compile(rb'"(?:heldout|gold)_')  # what is measured only now and then must not fall between the samples
_SHARED_TABLES = ("run", "data")
_QUIET_SECONDS = 120.0  # a stage that has written nothing for so long is taken to be stopped


@dataclass(frozen=True)
class Runs:
    """The run folders that lie in `root`. current: the name of the one that is served, "" for none."""

    root: Path | None
    current: str = ""

    def folder(self, name: str) -> Path | None:
        """The folder of a run; None when there is none of this name. The name is looked up, never made into a path."""
        return next((path for path in self._folders() if path.name == name), None)

    def listed(self) -> list[dict[str, Any]]:
        """{"name", "current", "updated", "report", "stages"} of each, the one served first, then the newest."""
        found = []
        for path in self._folders():
            try:
                found.append(self._told(path))
            except OSError:  # removed while it was looked at
                continue
        return sorted(found, key=lambda run: (not run["current"], -run["updated"]))

    def _folders(self) -> list[Path]:
        if self.root is None or not self.root.is_dir():
            return []
        paths = [path for path in self.root.iterdir() if (path / "recipe.toml").is_file()]
        newest = sorted(paths, key=lambda path: -_touched(path))[:MOST_RUNS]
        served = [path for path in paths if path.name == self.current and path not in newest]
        return [*served, *newest]

    def _told(self, path: Path) -> dict[str, Any]:
        stages = _stages(path)
        updated = max([stage["updated"] for stage in stages], default=path.stat().st_mtime)
        told = {"name": path.name, "current": path.name == self.current, "updated": updated}
        return {**told, "report": (path / "report.html").is_file(), "stages": stages}


def _touched(path: Path) -> float:
    """When a folder was last written to; 0 where it has been removed meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def stage_of(model: Path) -> Path | None:
    """The folder of the stage that made a model: RUN/06-ppo for RUN/06-ppo/model; None for one that is of no run."""
    path = model.resolve()
    return path.parent if path.name == "model" and (path.parent.parent / "recipe.toml").is_file() else None


def stage_folder(run: Path, stage: str) -> Path | None:
    """The folder of a stage, by the stage's name; None when it has not begun."""
    return next((path for path in _begun(run) if path.name[3:] == stage), None)


def _begun(run: Path) -> list[Path]:
    return [path for path in sorted(run.glob("[0-9][0-9]-*")) if path.is_dir()]


def _stages(run: Path) -> list[dict[str, Any]]:
    """{"name", "kind", "state", "seconds", "metrics", "rules", "updated"} of each, those that have not begun last.

    state: "done", "running", "stopped" or "waiting".
    """
    report = read_json(run / "report.json").get("stages", {})
    found = []
    for path in _begun(run):
        name, metrics = path.name[3:], path / "metrics.jsonl"
        touched = [file.stat().st_mtime for file in (metrics, path / "stage.json", path / "DONE") if file.exists()]
        updated = max(touched, default=path.stat().st_mtime)
        done = (path / "DONE").exists()
        state = "done" if done else "running" if time.time() - updated < _QUIET_SECONDS else "stopped"
        kind = read_json(path / "stage.json").get("kind", name)
        told = {"name": name, "kind": kind, "state": state, "updated": updated, "metrics": metrics.is_file()}
        seconds = read_json(path / "seconds.json").get("seconds")
        found.append({**told, "seconds": seconds, "rules": report.get(name, {}).get("rules", [])})
    known = {stage["name"] for stage in found}
    later = [name for name in _planned(run) if name not in known]
    waiting = {"state": "waiting", "updated": 0.0, "metrics": False, "seconds": None, "rules": []}
    return [*found, *({"name": name, "kind": name, **waiting} for name in later)]


def votes_taken(run: Path) -> float:
    """When the newest reward stage took the votes that it learns from, in seconds since 1970; 0 where none has."""
    took = [path / "votes.json" for path in _begun(run) if read_json(path / "stage.json").get("kind") == "reward"]
    return max((path.stat().st_mtime for path in took if path.exists()), default=0.0)


def _planned(run: Path) -> list[str]:
    try:
        recipe = load_toml(run / "recipe.toml")
    except (JielongError, OSError):
        return []
    return [name for name, table in recipe.items() if name not in _SHARED_TABLES and isinstance(table, Mapping)]


def read_json(path: Path) -> Any:
    """A JSON file; {} when there is none, or it is being written."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}


def metrics_since(path: Path, cursor: int) -> dict[str, Any]:
    """What has been added to a metrics file since a cursor, column by column.

    {"cursor": where to go on, "anew": whether what came before is void, "sampled": whether lines were left out,
    "columns": {name: [[step, ...], [value, ...]]}}. Raises OSError when the file cannot be read.
    """
    size = path.stat().st_size
    anew = cursor > size
    start = 0 if anew else cursor
    told: dict[str, Any] = {"cursor": start, "anew": anew, "sampled": False, "columns": {}}
    if size == start:
        return told
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = content.rfind(b"\n") + 1
        if end <= start:
            return told
        lines, told["sampled"] = _lines(content, start, end)
    return {**told, "cursor": end, "columns": _columns(lines)}


def _lines(content: mmap.mmap, start: int, end: int) -> tuple[list[bytes], bool]:
    """Lines of [start, end): all, or an even sample with the last one and the rare ones."""
    first = content.find(b"\n", start) + 1
    estimate = (end - start) / max(first - start, 1)
    if estimate <= 2 * MOST_LINES:
        lines = content[start:end].splitlines()
        if len(lines) <= 2 * MOST_LINES:
            return lines, False
    stride = (end - start) / MOST_LINES
    places = {_line_start(content, start, int(start + number * stride)) for number in range(MOST_LINES)}
    places.add(_line_start(content, start, end - 2))
    rare = [_line_start(content, start, found.start()) for found in _RARE.finditer(content, start, end)]
    places.update(rare[:: max(1, len(rare) // MOST_RARE)])
    return [content[place : content.find(b"\n", place)] for place in sorted(places)], True


def _line_start(content: mmap.mmap, start: int, place: int) -> int:
    return max(start, content.rfind(b"\n", start, place) + 1)


def _columns(lines: list[bytes]) -> dict[str, list[list[float]]]:
    columns: dict[str, list[list[float]]] = {}
    for step, name, value in _values(lines):
        steps, values = columns.setdefault(name, [[], []])
        steps.append(step)
        values.append(value)
    return columns


def _values(lines: list[bytes]) -> Iterator[tuple[float, str, float]]:
    """(step, name, value) of every number; what is no whole record is left out."""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            continue
        for name, value in record.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if math.isfinite(value):
                yield record["step"], name, round(value, 6) if abs(value) > 1e-3 else value


def spoken(run: Path) -> list[dict[str, Any]]:
    """{"stage", "steps": [{"step", "samples": [{"prompt", "text"}]}]} of every stage that has let its model speak on
    the way, by rising step, the last one always. What a stopped run that goes on says again counts as it was said last.
    """
    found = []
    for path in _begun(run):
        steps: dict[int, list[dict[str, str]]] = {}
        for record in read_metrics(path / "spoken.jsonl"):
            if isinstance(record["step"], int) and isinstance(record.get("samples"), list):
                steps[record["step"]] = _texts(record["samples"])
        told = [{"step": step, "samples": steps[step]} for step in sorted(steps)]
        if told:
            found.append({"stage": path.name[3:], "steps": told[:: -math.ceil(len(told) / MOST_SPOKEN)][::-1]})
    return found


def samples(run: Path) -> list[dict[str, Any]]:
    """{"stage", "samples": [{"prompt", MODEL: text, ...}]} of every stage that left some."""
    found = []
    for path in _begun(run):
        left = read_json(path / "samples.json")
        if isinstance(left, list) and left:
            found.append({"stage": path.name[3:], "samples": _texts(left[:60])})
    return found


def _texts(told: list[Any]) -> list[dict[str, str]]:
    """Of each sample what is text."""
    kept = [one for one in told if isinstance(one, dict)]
    return [{key: value for key, value in one.items() if isinstance(value, str)} for one in kept]
