"""benchmarks/two_rounds.py in miniature: the loop closes, twice, and a stopped one goes on."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jielong.data.votes import read_votes
from jielong.stages.context import promoted_model

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr("jielong.stages.comparisons.NUM_REFERENCE_REPLIES", 48)  # quick, and as good for this
    monkeypatch.setattr("jielong.report.curves.draw", lambda panel, name: "")  # the same curves after each stage
    return importlib.import_module("two_rounds")


def test_two_rounds_in_miniature(
    script: Any, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "loop"
    command = [str(reference), "--out", str(out), "--votes", "24", "--duels", "8", "--judged", "4", "--iterations", "2"]
    code = script.main(command)
    table = capsys.readouterr().out
    found = json.loads((out / "table.json").read_text(encoding="utf-8"))
    assert set(found) == {"round 1 against sft", "round 2 against round 1", "round 2 against sft"}
    last = found["round 2 against round 1"]
    assert last["judged"] == 12 and last["ci95"][0] <= last["win_rate"] <= last["ci95"][1]
    assert code == (0 if last["ci95"][0] > 0.5 else 1)
    assert "| promoted " in table and (out / "table.md").read_text(encoding="utf-8") in table

    run = out / "run"
    stages = json.loads((run / "report.json").read_text(encoding="utf-8"))["stages"]
    assert list(stages)[4:] == [f"{kind}-{number}" for number in (1, 2) for kind in ("reward", "ppo", "promote")]
    votes = read_votes(out / "votes.jsonl", max_bad_fraction=0.0).votes
    names = [vote.id.partition(":")[0] for vote in votes]
    assert list(dict.fromkeys(names)) == ["1", "1-duel", "2", "2-duel"]
    assert len({vote.id.rpartition(":")[0] for vote in votes}) == 2 * (24 + 8)  # a prompt's votes, of one user or two
    counted = [stages[f"reward-{number}"]["figures"]["votes"]["counted"] for number in (1, 2)]
    assert counted == [names.count("1"), len(names) - names.count("2-duel")]
    for number in (1, 2):
        gate = stages[f"promote-{number}"]["figures"]
        assert 0 < gate["judged"] <= names.count(f"{number}-duel") and gate["new"] == f"ppo-{number}"
    duel = next(vote for vote in votes if vote.id.startswith("2-duel"))
    present = promoted_model(run / "07-promote-1").parent.name
    assert {answer.model for answer in duel.answers} == {present, "09-ppo-2"}
    assert all(gold not in (out / "votes.jsonl").read_text(encoding="utf-8") for gold in ("gold", "score"))

    before = (out / "votes.jsonl").read_bytes(), (out / "table.json").read_bytes()
    shutil.rmtree(run / "10-promote-2")
    (out / "collected-2-duel.json").unlink()  # stopped while votes were being written
    lines = before[0].splitlines(keepends=True)
    (out / "votes.jsonl").write_bytes(b"".join(lines[:-3]))
    assert script.main(command) == code
    assert ((out / "votes.jsonl").read_bytes(), (out / "table.json").read_bytes()) == before
