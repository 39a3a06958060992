"""Run folders as the page watches them: while they grow, when they are resumed, when they are gone."""

from __future__ import annotations

import json
import os
import shutil
import time
from datetime import datetime, timezone
from pathlib import Path

import httpx2
import pytest

from jielong.serve.page.history import History
from jielong.serve.page.runs import MOST_LINES, MOST_SPOKEN, Runs, metrics_since, samples, spoken, votes_taken
from jielong.serve.page.votes import Ballots

from .conftest import write_run


def lines(path: Path, first: int, last: int) -> None:
    with path.open("a") as file:
        for step in range(first, last + 1):
            record: dict[str, object] = {"step": step, "loss_nats": 10 / step, "kind": "text", "bad": None, "on": True}
            if step % 100 == 0:
                record["heldout_loss_nats"] = 11 / step
            file.write(json.dumps(record) + "\n")


def test_stages_and_their_states(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    write_run(tmp_path / "two")
    (tmp_path / "no run").mkdir()
    found = Runs(tmp_path, "two").listed()
    assert [run["name"] for run in found] == ["two", "one"] and [run["current"] for run in found] == [True, False]
    states = {stage["name"]: stage["state"] for stage in found[0]["stages"]}
    assert states == {"pretrain": "done", "sft": "done", "ppo": "running", "evaluate": "waiting"}
    assert found[0]["stages"][0]["seconds"] == 75.0 and found[0]["stages"][0]["rules"][0]["passed"] is True
    assert Runs(None).listed() == [] and Runs(tmp_path / "gone").listed() == []


def test_a_stage_that_has_long_been_quiet_is_stopped(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    old = time.time() - 3600
    for path in (tmp_path / "one" / "03-ppo").iterdir():
        os.utime(path, (old, old))
    stages = Runs(tmp_path).listed()[0]["stages"]
    assert [stage["state"] for stage in stages] == ["done", "done", "stopped", "waiting"]


def test_names_lead_nowhere_else(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "one")
    write_run(tmp_path / "secret")
    runs = Runs(tmp_path / "runs", "one")
    assert runs.folder("one") == tmp_path / "runs" / "one"
    assert [runs.folder(name) for name in ("../secret", "..", "", ".", "/etc", "one/..")] == [None] * 6


def test_a_growing_file_is_told_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines(path, 1, 150)
    first = metrics_since(path, 0)
    assert first["columns"]["loss_nats"] == [list(range(1, 151)), [round(10 / s, 6) for s in range(1, 151)]]
    assert first["columns"]["heldout_loss_nats"] == [[100], [0.11]] and set(first["columns"]) == {
        "loss_nats", "heldout_loss_nats",
    }  # fmt: skip
    with path.open("a") as file:
        file.write('{"step": 151, "loss_na')  # half a line
    assert metrics_since(path, first["cursor"]) == {**first, "columns": {}}
    with path.open("a") as file:
        file.write('ts": 0.5}\nrubbish\n{"step": 152, "loss_nats": NaN}\n')
    then = metrics_since(path, first["cursor"])
    assert then["columns"] == {"loss_nats": [[151], [0.5]]} and not then["anew"]
    assert metrics_since(path, then["cursor"])["columns"] == {}


def test_a_resumed_run_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines(path, 1, 50)
    cursor = metrics_since(path, 0)["cursor"]
    path.unlink()
    lines(path, 1, 20)
    found = metrics_since(path, cursor)
    assert found["anew"] and found["columns"]["loss_nats"][0] == list(range(1, 21))


def test_a_long_file_is_sampled_evenly_with_what_is_rare(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines(path, 1, 60_000)
    found = metrics_since(path, 0)
    steps = found["columns"]["loss_nats"][0]
    assert found["sampled"] and MOST_LINES * 0.9 < len(steps) < MOST_LINES + 700
    assert steps[0] == 1 and steps[-1] == 60_000 and max(b - a for a, b in zip(steps, steps[1:], strict=False)) < 40
    assert found["columns"]["heldout_loss_nats"][0] == list(range(100, 60_001, 100))
    assert metrics_since(path, found["cursor"])["columns"] == {}


def test_the_routes(client: httpx2.Client) -> None:
    assert [run["name"] for run in client.get("/api/runs").json()["runs"]] == ["quick"]
    first = client.get("/api/runs/quick/metrics/pretrain?since=0").json()
    assert len(first["columns"]["loss_nats"][0]) == 30
    assert client.get(f"/api/runs/quick/metrics/pretrain?since={first['cursor']}").json()["columns"] == {}
    assert client.get("/api/runs/quick/metrics/evaluate").json()["columns"] == {}
    assert [stage["stage"] for stage in client.get("/api/runs/quick/samples").json()["stages"]] == ["sft"]
    [spoken] = client.get("/api/runs/quick/spoken").json()["stages"]
    told = [(one["step"], one["samples"][0]["text"]) for one in spoken["steps"]]
    assert spoken["stage"] == "pretrain" and told == [(10, "a ba"), (20, "babble"), (30, "a word")]
    report = client.get("/api/runs/quick/report")
    assert "the report" in report.text and "script" not in report.headers["content-security-policy"]
    for wrong in ("-1", "x", "1e3", "9" * 30):
        assert client.get(f"/api/runs/quick/metrics/pretrain?since={wrong}").status_code == 400
    for path in ("nothing/samples", "nothing/spoken", "..%2f..%2fetc/report", "%2e%2e/metrics/pretrain"):
        assert client.get(f"/api/runs/{path}").status_code == 404


def test_a_run_that_is_removed_while_it_is_shown(client: httpx2.Client, site: object, tmp_path: Path) -> None:
    root = site.places.run.parent  # type: ignore[attr-defined]
    write_run(root / "short-lived")
    assert client.get("/api/runs/short-lived/metrics/sft").status_code == 200
    shutil.rmtree(root / "short-lived")
    assert client.get("/api/runs/short-lived/metrics/sft").status_code == 404
    assert [run["name"] for run in client.get("/api/runs").json()["runs"]] == ["quick"]


def test_a_run_that_goes_while_the_list_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "one")
    write_run(tmp_path / "two")
    is_file = Path.is_file

    def seen(path: Path) -> bool:
        found = is_file(path)
        if path == tmp_path / "one" / "recipe.toml":
            shutil.rmtree(tmp_path / "one")
        return found

    monkeypatch.setattr(Path, "is_file", seen)
    assert [run["name"] for run in Runs(tmp_path).listed()] == ["two"]


def test_of_many_times_that_it_spoke_the_last_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    path = tmp_path / "one" / "01-pretrain" / "spoken.jsonl"
    for num in (1, MOST_SPOKEN, MOST_SPOKEN + 1, 3 * MOST_SPOKEN - 1):
        said = [{"step": step, "samples": [{"prompt": "once", "text": "a"}]} for step in range(num)]
        path.write_text("".join(json.dumps(one) + "\n" for one in said))
        [told] = spoken(tmp_path / "one")
        steps = [one["step"] for one in told["steps"]]
        assert steps[-1] == num - 1 and min(num, MOST_SPOKEN // 2) <= len(steps) <= MOST_SPOKEN
        assert len({b - a for a, b in zip(steps, steps[1:], strict=False)}) <= 1


def test_what_is_no_sample_is_no_trouble(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    stage = tmp_path / "one" / "01-pretrain"
    (stage / "samples.json").write_text('[{"prompt": "once", "base": NaN, "sft": "a"}, 3, null]')
    lines = '{"step": "one", "samples": []}\n{"step": 5, "samples": 7}\n{"step": 6, "samples": [1, {"text": NaN}]}\n'
    (stage / "spoken.jsonl").write_text(lines)
    assert samples(tmp_path / "one")[0] == {"stage": "pretrain", "samples": [{"prompt": "once", "sft": "a"}]}
    assert spoken(tmp_path / "one") == [{"stage": "pretrain", "steps": [{"step": 6, "samples": [{}]}]}]


def test_votes_wait_until_a_reward_model_takes_them(tmp_path: Path) -> None:
    run, votes = tmp_path / "one", tmp_path / "votes.jsonl"
    write_run(run)
    ballots = Ballots(History(":memory:"), votes, {}, lambda: votes_taken(run))
    assert ballots.counts() == {"votes": 0, "waiting": 0}
    votes.write_text('{"time": "2026-01-01T10:00:00+00:00"}\n{"time": "2026-01-01T11:00:30+02:00"}\nno vote\n')
    assert ballots.counts() == {"votes": 3, "waiting": 3}
    half_past_nine = datetime(2026, 1, 1, 9, 0, 30, tzinfo=timezone.utc).timestamp()
    for number, kind, took, waiting in ((4, "sft", 1, 3), (5, "reward", 0, 2), (6, "reward", 1, 1)):
        stage = run / f"0{number}-{kind}"
        stage.mkdir()
        (stage / "stage.json").write_text(json.dumps({"name": kind, "kind": kind}))
        (stage / "votes.json").write_text("{}")
        os.utime(stage / "votes.json", (half_past_nine + took, half_past_nine + took))
        assert ballots.counts() == {"votes": 3, "waiting": waiting}


@pytest.mark.parametrize("content", ["", "\n", "[]", '{"step": "one"}\n', "\x00\xff" * 50])
def test_what_is_no_metrics_is_no_trouble(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    assert metrics_since(tmp_path / "metrics.jsonl", 0)["columns"] == {}
