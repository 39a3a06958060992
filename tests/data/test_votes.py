"""votes.jsonl: strict reading that names what is wrong, and appends that are whole or not there."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jielong.data.votes import Answer, Vote, append_vote, read_votes
from jielong.errors import DataError, StorageError

Record = dict[str, Any]


def vote(number: int = 0, choice: str = "a", edited: str | None = None, texts: tuple[str, ...] = ("yes", "no")) -> Vote:
    answers = tuple(Answer(text, "sft", "0011223344556677", {"temperature": 1.0}) for text in texts)
    prompt = [{"role": "user", "content": f"question {number}?"}]
    return Vote(f"v{number}", "2026-11-25T21:48:00+00:00", "ann", prompt, answers, choice, edited)


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_a_vote_survives_its_line(tmp_path: Path) -> None:
    cast = [vote(0), vote(1, "tie", edited="好的\nline two"), vote(2, "both_bad"), vote(3, "c", texts=("x", "", "z"))]
    for one in cast:
        append_vote(tmp_path / "new" / "votes.jsonl", one)
    reading = read_votes(tmp_path / "new" / "votes.jsonl", max_bad_fraction=0.0)
    assert reading.votes == cast and reading.num_lines == 4 and reading.bad == [] and not reading.half_line
    assert [one.winner for one in cast] == [0, None, None, 2]


CHANGES: list[tuple[Callable[[Record], object], str]] = [
    (lambda r: [1], "a vote must be an object, not list"),
    (lambda r: r.pop("user"), "a vote lacks user"),
    (lambda r: r.update(chioce="a"), "a vote has a key 'chioce'; did you mean 'choice'?"),
    (lambda r: r.update(choice="c"), "choice is 'c'; it must be one of a, b, tie, both_bad"),
    (lambda r: r.update(choice=0), "choice is 0"),
    (lambda r: r.update(choice=None), "choice is None"),
    (lambda r: r.update(choice=["a"]), "choice is ['a']"),
    (lambda r: r.update(choice=""), "choice is ''"),
    (lambda r: r.update(choice="ab"), "choice is 'ab'"),
    (lambda r: r.update(user=" "), "a vote: user is blank"),
    (lambda r: r.update(id=7), "a vote: id must be text, not int"),
    (lambda r: r.update(time="yesterday"), "time is 'yesterday'; it must be ISO 8601 with its zone"),
    (lambda r: r.update(time="2026-11-25T21:48:00"), "ISO 8601 with its zone"),
    (lambda r: r.update(time=1764107280), "time is 1764107280"),
    (lambda r: r.update(edited=""), "edited is blank"),
    (lambda r: r.update(edited=3), "edited must be text, not int"),
    (lambda r: r.update(prompt=[]), "prompt: messages is empty"),
    (lambda r: r.update(prompt="hello"), "prompt and answers must be lists"),
    (lambda r: r["prompt"].append({"role": "assistant", "content": "x"}), "must end with the user's"),
    (lambda r: r["prompt"].append({"role": "user", "content": "x"}), "prompt: messages[1] has role 'user'"),
    (lambda r: r["prompt"][0].update(name="x"), "prompt 0 has a key 'name'"),
    (lambda r: r["prompt"][0].update(content="\ud800"), "half of a surrogate pair"),
    (lambda r: r["answers"].pop(), "answers are 1; 2 to 26 can be compared"),
    (lambda r: r["answers"].extend(r["answers"] * 13), "answers are 28"),
    (lambda r: r["answers"][1].pop("model_hash"), "answer b lacks model_hash"),
    (lambda r: r["answers"][0].update(text=None), "answer a: text must be text, not NoneType"),
    (lambda r: r["answers"][0].update(sampling=[]), "answer a: sampling must be an object, not list"),
    (lambda r: r["answers"].__setitem__(0, "yes"), "answer a must be an object, not str"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[message for _, message in CHANGES])
def test_a_line_that_is_no_vote_is_named(change: Callable[[Record], object], message: str, tmp_path: Path) -> None:
    record = json.loads(json.dumps(vote().to_record()))
    changed = change(record)
    wrong = changed if isinstance(changed, list) and changed == [1] else record
    path = tmp_path / "votes.jsonl"
    path.write_text(lines(vote(1).to_record(), wrong, vote(2).to_record()), encoding="utf-8")
    reading = read_votes(path, max_bad_fraction=0.5)
    assert len(reading.votes) == 2 and reading.num_lines == 3
    assert len(reading.bad) == 1 and reading.bad[0].startswith(f"{path}:2: ") and message in reading.bad[0]
    with pytest.raises(DataError, match="1 of 3 lines are no votes, 5 % may be") as refused:
        read_votes(path)
    assert reading.bad[0] in str(refused.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"garbage", "not valid JSON at column 1"),
        (b'{"id": "v1", ', "not valid JSON"),
        (b"\xff\xfe{}", "not UTF-8 at byte 0 of the line"),
        (b"[" * 100_000, "not valid JSON"),
        (b"null", "a vote must be an object"),
    ],
    ids=["garbage", "cut", "not UTF-8", "deep", "null"],
)
def test_garbage_is_counted_up_to_the_limit(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    good = lines(*(vote(number).to_record() for number in range(9))).encode()
    path.write_bytes(line + b"\n\n" + good)
    reading = read_votes(path, max_bad_fraction=0.1)
    assert len(reading.votes) == 9 and message in reading.bad[0] and not reading.half_line
    with pytest.raises(DataError, match="1 of 10 lines are no votes, 9 % may be"):
        read_votes(path, max_bad_fraction=0.09)


def test_many_bad_lines_are_not_all_spelled_out(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text("x\n" * 40, encoding="utf-8")
    with pytest.raises(DataError) as refused:
        read_votes(path)
    assert "40 of 40 lines" in str(refused.value) and "... and 35 more" in str(refused.value)


def test_a_line_that_was_cut_short_is_no_error_and_the_next_append_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    append_vote(path, vote(0))
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps(vote(1).to_record(), ensure_ascii=False).encode()[:-30])
    reading = read_votes(path, max_bad_fraction=0.0)
    assert reading.half_line and reading.votes == [vote(0)] and reading.num_lines == 1
    append_vote(path, vote(2))
    reading = read_votes(path, max_bad_fraction=0.5)
    assert reading.votes == [vote(0), vote(2)] and not reading.half_line
    assert len(reading.bad) == 1 and f"{path}:2: not valid JSON" in reading.bad[0]


def test_half_a_character_at_the_end_is_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    append_vote(path, vote(0))
    path.write_bytes(path.read_bytes() + '{"id": "好'.encode()[:-1])
    assert read_votes(path, max_bad_fraction=0.0).half_line


def test_what_windows_editors_do_to_a_file_is_borne(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(vote(0).to_record(), vote(1).to_record()).replace("\n", "\r\n").encode())
    assert read_votes(path, max_bad_fraction=0.0).votes == [vote(0), vote(1)]


def test_a_whole_last_line_needs_no_newline(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text(lines(vote(0).to_record(), vote(1).to_record()).rstrip("\n"), encoding="utf-8")
    assert read_votes(path, max_bad_fraction=0.0).votes == [vote(0), vote(1)]


@pytest.mark.parametrize("content", [b"", b"\n \n", b'{"id"'], ids=["empty", "blank lines", "half a line"])
def test_a_file_without_a_vote_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="holds no vote"):
        read_votes(tmp_path / "votes.jsonl")


def test_a_missing_file_is_told_with_its_neighbour(tmp_path: Path) -> None:
    append_vote(tmp_path / "votes.jsonl", vote())
    with pytest.raises(DataError, match=r"no such file of votes; did you mean .*votes\.jsonl"):
        read_votes(tmp_path / "vote.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        read_votes(tmp_path)


def test_appends_from_many_threads_are_all_whole(tmp_path: Path) -> None:
    path, num_threads, each = tmp_path / "votes.jsonl", 8, 12
    long = "word " * 3000  # longer than a pipe's or a buffer's atomic write

    def cast(thread: int) -> None:
        for number in range(each):
            append_vote(path, vote(thread * each + number, texts=(long, f"{thread}")))

    threads = [threading.Thread(target=cast, args=(thread,)) for thread in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_votes(path, max_bad_fraction=0.0).votes
    assert sorted(one.id for one in found) == sorted(f"v{number}" for number in range(num_threads * each))


def test_what_reading_would_refuse_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="choice is 'z'"):
        append_vote(tmp_path / "votes.jsonl", vote(choice="z"))
    assert not (tmp_path / "votes.jsonl").exists()


def test_no_room_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "votes.jsonl"
    append_vote(path, vote(0))
    before = path.read_bytes()
    from jielong.data import votes

    write = votes.os.write
    monkeypatch.setattr(votes.os, "write", lambda handle, line: write(handle, line[:20]))
    with pytest.raises(StorageError, match="no room for a vote"):
        append_vote(path, vote(1))
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="a vote cannot be written"):
        append_vote(tmp_path / "file" / "votes.jsonl", vote())
