"""The structure lab's script in miniature: its data, its budgets, and that it goes on where it was."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("structure")


def test_the_pairs_are_what_they_say(script: ModuleType) -> None:
    for source, target in script.sorting("train", 5, 0):
        assert target == sorted(source) and len(source) == 10
    assert script.sorting("train", 5, 0) != script.sorting("heldout", 5, 0)
    seen = {tuple(source) for source, _ in script.phrases("train", 300, 0)}
    assert not seen & {tuple(source) for source, _ in script.phrases("heldout", 100, 0)}
    batch = script.lay_out([(["a", "b"], ["b"]), (["a"], ["a", "b"])], {"a": 3, "b": 4})
    assert batch.source.tolist() == [[3, 4], [3, 0]] and batch.segments.tolist() == [[1, 1], [1, 0]]
    assert batch.tokens.tolist() == [[1, 4, 2, 0], [1, 3, 4, 2]]
    assert batch.mask.tolist() == [[False, True, True, False], [False, True, True, True]] and batch.num_units == 5


def test_equal_parameters_are_equal(script: ModuleType) -> None:
    base = script.base_config(40, 32, 2)
    wanted = script.count(base, script.ENCODER_DECODER)
    assert len(list(script.models(base, "depth"))) == 5
    equal = dict(script.models(base, "parameters"))
    assert len(equal) == 4
    for name, config in equal.items():
        found = script.count(config, script.CHAIN[name])
        assert abs(found - wanted) < 0.01 * wanted, (name, found, wanted)


def test_the_lab_goes_on_where_it_was(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "--out",
        str(tmp_path),
        "--tasks",
        "sort",
        "--seeds",
        "1",
        "--steps",
        "2",
        "--batch-rows",
        "4",
        "--pairs",
        "20",
    ]
    small += [
        "--heldout",
        "4",
        "--width",
        "16",
        "--layers",
        "1",
        "--turns",
        "2",
        "--turn-tokens",
        "4",
        "--repeats",
        "1",
    ]
    assert script.main(small) == 0
    told = capsys.readouterr().out
    assert "decoder-only" in told and "tokens so far" in told
    lines = (tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 9 and all(json.loads(line)["loss_nats"] > 0 for line in lines)
    (tmp_path / "records.jsonl").write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    assert script.main(small) == 0
    again = (tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert again[:-1] == lines[:-1] and json.loads(again[-1])["exact"] == json.loads(lines[-1])["exact"]
    assert (tmp_path / "structure.png").stat().st_size > 1000
