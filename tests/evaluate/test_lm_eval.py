"""The same items, model and tokenizer through lm-eval, in a process of its own: every log-probability agrees."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

import jielong
from jielong.evaluate.harness import evaluate_task
from jielong.generate.engine import Engine
from jielong.runtime import detect

from .conftest import ROWS, TEXT

NAMES = ["lambada", "arc_easy", "winograd", "blimp"]


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: jielong[peers]")
def test_every_item_agrees(benchmark_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    script = importlib.import_module("lm_eval_agreement")
    model, tasks = tmp_path / "model", tmp_path / "tasks"
    tasks.mkdir()
    script.build_model(model, [TEXT])
    script.write_peer_tasks(tasks, benchmark_root, NAMES, limit=10)
    said = script.ask_peer(model, tasks, NAMES, None)
    engine = Engine(*jielong.load(model), detect("cpu", "float32"))
    for name in NAMES:
        found = script.compare(evaluate_task(engine, name, benchmark_root), said[name]["samples"])
        assert found["agreement"] == 1.0 and found["largest_gap_nats"] < 1e-3, (name, found)
        assert found["items"] == len(next(rows for path, rows in ROWS.items() if name.split("_")[0] in path))
