"""Benchmarks as part of a run: every model asked, the training text searched, missing files told before training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jielong.errors import DataError, RecipeError
from jielong.recipe import parse_recipe
from jielong.stages.pipeline import run_recipe

ROWS = [
    {"query": f"Passage: Cats sit {where}.\nQuestion: do cats sit?", "choices": ["no", "yes"], "gold": 1}
    for where in ("here", "there", "and sleep")
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "zero_shot" / "boolq_val.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return tmp_path / "data"


def test_every_model_of_the_run_is_asked(copied: Callable[[str | None], Path], recipe: Path, root: Path) -> None:
    folder = copied("evaluate")
    stolen = {"text": "Once. " + ROWS[1]["query"] + "\nAnswer: yes", "language": "en", "source": "leak"}
    with open(folder / "01-curate" / "documents.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(stolen) + "\n")
    settings = ['evaluate.tasks=["boolq"]', "evaluate.shots=1", f'data.root="{root}"']
    figures = run_recipe(recipe, folder, settings, quiet=True)["stages"]["evaluate"]["figures"]
    assert set(figures["tasks"]) == {"base", "sft", "ppo"}
    assert all(0 <= row["boolq"] <= 1 for row in figures["tasks"].values())
    assert figures["tasks_chance"] == {"boolq": 0.5} and figures["tasks_headline"] == {"boolq": "acc"}
    assert figures["tasks_items_in_training_text"] == {"boolq": 1}
    lines = (folder / "07-evaluate" / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 9 and json.loads(lines[0])["model"] == "base"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<h2>Benchmarks</h2>" in page and "boolq" in page
    inputs = json.loads((folder / "07-evaluate" / "stage.json").read_text(encoding="utf-8"))["inputs"]
    assert inputs["task boolq"][0]["path"] == "zero_shot/boolq_val.jsonl"


def test_missing_items_are_told_before_anything_runs(recipe: Path, root: Path, tmp_path: Path) -> None:
    settings = ['evaluate.tasks=["piqa"]', f'data.root="{root}"']
    with pytest.raises(DataError, match="task 'piqa' reads .*piqa_valid.jsonl"):
        run_recipe(recipe, tmp_path / "run", settings, quiet=True)
    assert not (tmp_path / "run" / "01-curate").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [('evaluate.tasks=["hellaswog"]', "did you mean hellaswag"), ("evaluate.shots=2", "no effect without tasks")],
)
def test_settings_without_sense_are_refused(recipe: Path, setting: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_recipe(recipe, [setting])
