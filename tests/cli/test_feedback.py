"""jielong feedback: the table of votes, for people and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jielong.cli import main
from jielong.data.votes import Answer, Vote, append_vote
from jielong.intervals import wilson_ci95

Outcome = tuple[int, str, str]
MODELS = (("sft", "aaaaaaaaaaaaaaaa"), ("ppo", "bbbbbbbbbbbbbbbb"))


def vote(number: int, choice: str, user: str = "ann", edited: str | None = None, day: int = 1) -> Vote:
    answers = tuple(Answer(f"by {name} {number}", name, key, {"temperature": 1.0}) for name, key in MODELS)
    prompt = [{"role": "user", "content": f"question {number}?"}]
    return Vote(f"{number}{user}", f"2026-11-{day:02d}T08:00:00+00:00", user, prompt, answers, choice, edited)


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    path = tmp_path / "votes.jsonl"
    cast = [vote(n, "b", day=2 + n) for n in range(6)] + [
        vote(6, "a"),
        vote(7, "tie"),
        vote(8, "both_bad", edited="?!"),
    ]
    cast += [vote(0, "b", "bob"), vote(1, "a", "bob"), vote(6, "a", day=9)]
    for one in cast:
        append_vote(path, one)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"not": "a vote"}\n{"id": "cut sho')
    return path


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["jielong", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
            raise SystemExit(0)
        caught = capsys.readouterr()
        return int(left.value.code or 0), caught.out, caught.err

    return call


def test_figures_by_hand(votes: Path, invoke: Callable[..., Outcome]) -> None:
    code, out, said = invoke("feedback", votes, "--json", "--max-bad", "0.1")
    assert code == 0, said
    found = json.loads(out)
    counts = ("lines", "bad_lines", "half_lines", "duplicates", "votes", "prompts", "ties", "both_bad", "edited")
    assert [found[name] for name in counts] == [13, 1, 1, 1, 11, 9, 1, 1, 1]
    assert found["users"] == {"ann": 9, "bob": 2} and found["models"] == {"sft": 11, "ppo": 11}
    assert (found["first_vote"], found["last_vote"]) == ("2026-11-01T08:00:00+00:00", "2026-11-09T08:00:00+00:00")
    match = found["matches"][0]
    assert len(found["matches"]) == 1 and (match["model"], match["against"]) == ("ppo", "sft")
    assert (match["wins"], match["losses"], match["ties"], match["both_bad"]) == (7, 2, 1, 1)
    assert match["win_rate"] == pytest.approx(8 / 11) and match["ci95"] == pytest.approx(wilson_ci95(8, 11))
    assert found["user_agreement"] == 0.5 and found["user_agreement_comparisons"] == 2
    assert found["first_answer_rate"] == pytest.approx(2 / 9) and found["first_answer_choices"] == 9
    assert len(found["bad"]) == 1 and "votes.jsonl:13: a vote has a key 'not'" in found["bad"][0]


def test_the_table_says_the_same(votes: Path, invoke: Callable[..., Outcome]) -> None:
    code, out, _ = invoke("feedback", votes, "--max-bad", "0.1")
    assert code == 0
    assert "11 votes by 2 users on 9 prompts, 2026-11-01T08:00:00+00:00 to 2026-11-09T08:00:00+00:00" in out
    row = next(line for line in out.splitlines() if line.startswith("ppo"))
    assert row.split()[:6] == ["ppo", "sft", "7", "2", "1", "1"] and "72.7 %" in row
    assert "50.0 % (95 %: 9.5 – 90.5 %) of 2 comparisons" in out and "votes by user: ann 9, bob 2" in out
    assert "no vote: " in out and "the last line was cut short" in out


def test_several_files_are_one(votes: Path, invoke: Callable[..., Outcome], tmp_path: Path) -> None:
    for one in (vote(0, "a"), vote(20, "a", "cat")):
        append_vote(tmp_path / "more.jsonl", one)
    found = json.loads(invoke("feedback", votes, tmp_path / "more.jsonl", "--json", "--max-bad", "0.1")[1])
    assert found["votes"] == 12 and found["duplicates"] == 2 and found["users"]["cat"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no vote"), (b"x\n" * 9, "9 of 9 lines are no votes"), (None, "there is no such file of votes")],
    ids=["empty", "garbage", "missing"],
)
def test_files_of_no_use_are_told(
    content: bytes | None, message: str, tmp_path: Path, invoke: Callable[..., Outcome]
) -> None:
    if content is not None:
        (tmp_path / "v.jsonl").write_bytes(content)
    code, out, said = invoke("feedback", tmp_path / "v.jsonl", "--json")
    assert code == 1 and out == "" and message in said.replace("\n", " ")


def test_answers_of_one_model_are_no_match(tmp_path: Path, invoke: Callable[..., Outcome]) -> None:
    one = vote(1, "a")
    same = Vote(one.id, one.time, one.user, one.prompt, (one.answers[0], one.answers[0]), "a")
    append_vote(tmp_path / "v.jsonl", same)
    code, out, _ = invoke("feedback", tmp_path / "v.jsonl")
    assert code == 0 and "no vote compares two models" in out
