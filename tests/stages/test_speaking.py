"""What a model says on the way: at every evaluation, the same prompts, and the last line is what it says in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jielong.folder import load
from jielong.generate.engine import Engine
from jielong.log import read_metrics


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
