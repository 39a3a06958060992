"""What a model says on the way: at every evaluation, the same prompts, and the last line is what it says in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jielong.folder import load
from jielong.generate.engine import Engine
from jielong.log import read_metrics
from jielong.stages.pipeline import run_recipe

from .conftest import NOTES, RUN, notes


def test_every_stage_that_learns_lets_its_model_speak(
    reference: Path, stage_of: Callable[[Path, str], Path], metrics_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    for stage, first in (("pretrain", 24), ("sft", 0), ("ppo", 1)):
        folder = stage_of(reference, stage)
        heard = read_metrics(folder / "spoken.jsonl")
        steps = [one["step"] for one in heard]
        assert steps == sorted(set(steps)) and steps[0] <= first, stage
        assert steps[-1] == metrics_of(folder)[-1]["step"]
        assert len({json.dumps([sample["prompt"] for sample in one["samples"]]) for one in heard}) == 1
        assert all(sample["prompt"] for sample in heard[0]["samples"])


def test_the_last_line_is_what_the_model_says(reference: Path, stage_of: Callable[[Path, str], Path]) -> None:
    folder = stage_of(reference, "pretrain")
    model, tokenizer = load(folder / "model")
    last = read_metrics(folder / "spoken.jsonl")[-1]["samples"]
    told = {sample["prompt"]: sample["base"] for sample in json.loads((folder / "samples.json").read_text())}
    assert last and all(told[sample["prompt"]] == sample["text"] for sample in last)
    ids = [[*tokenizer.prefix_ids, *tokenizer.encode(sample["prompt"])] for sample in last]
    made = Engine(model, tokenizer).generate(ids, max_new_tokens=32, temperature=0.0)
    assert [one.text for one in made] == [sample["text"] for sample in last]


@pytest.mark.parametrize("context_tokens", [8, 34])
def test_a_context_shorter_than_a_continuation_is_halved(context_tokens: int, no_probe: None, tmp_path: Path) -> None:
    """Else the stage would fail when it has trained: it ends with what its model makes of a few texts' beginnings."""
    (tmp_path / "notes.txt").write_text(notes(150))
    path = tmp_path / "small.toml"
    path.write_text(f"{RUN}[data]\nroot = {json.dumps(str(tmp_path))}\n{NOTES}")
    run_recipe(path, tmp_path / "run", [f"pretrain.context_tokens={context_tokens}"], until="pretrain", quiet=True)
    told = json.loads((tmp_path / "run" / "03-pretrain" / "samples.json").read_text())
    assert told and all(sample["prompt"] for sample in told)
    assert not (tmp_path / "run" / "03-pretrain" / "spoken.jsonl").exists()
