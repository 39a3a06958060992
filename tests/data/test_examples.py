from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from jielong.data.examples import comparison, conversation, read_comparisons, read_conversations
from jielong.data.sources import Source
from jielong.errors import DataError
from jielong.tokenizer.chat import check_messages

TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
TEMPLATE_INPUT = (
    "Below is an instruction that describes a task, paired with an input.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def says(*turns: str) -> list[dict[str, str]]:
    """Messages from "role: content"."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


CONVERSATIONS: list[tuple[str, dict[str, Any], list[dict[str, str]]]] = [
    ("messages", {"messages": says("user: a", "assistant: b")}, says("user: a", "assistant: b")),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
        says("system: s", "user: a", "assistant: b"),
    ),
    (
        "tool call",
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": "call"},
                {"from": "observation", "value": "seen"},
                {"from": "gpt", "value": "b"},
            ],
            "tools": "[tool]",
        },
        says("system: [tool]", "user: a", "assistant: call", "user: seen", "assistant: b"),
    ),
    (
        "sharegpt with two system texts",
        {"conversations": [{"from": "system", "value": "s"}, *says("user: a", "assistant: b")], "tools": "t"},
        says("system: s\nt", "user: a", "assistant: b"),
    ),
    ("alpaca", {"instruction": "a", "input": "", "output": "b"}, says("user: a", "assistant: b")),
    ("alpaca input", {"instruction": "a", "input": "i", "output": "b"}, says("user: a\ni", "assistant: b")),
    ("gpteacher", {"instruction": "a", "input": "", "response": "b"}, says("user: a", "assistant: b")),
    (
        "alpaca history",
        {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "s"},
        says("system: s", "user: a", "assistant: b", "user: c", "assistant: d"),
    ),
    ("completion", {"prompt": "a", "completion": "b"}, says("user: a", "assistant: b")),
    ("dolly", {"prompt": TEMPLATE.format(instruction="a\n\nb"), "response": "c"}, says("user: a\n\nb", "assistant: c")),
    (
        "dolly input",
        {"prompt": TEMPLATE_INPUT.format(instruction="a", input="i"), "response": "c"},
        says("user: a\ni", "assistant: c"),
    ),
    (
        "hh",
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nmore\n\nAssistant: d ", "rejected": "x"},
        says("user: a", "assistant: b", "user: c\n\nmore", "assistant: d"),
    ),
    (
        "preference read as a conversation",
        {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}, "rejected": "c"},
        says("user: a", "assistant: b"),
    ),
    (
        "output before chosen",
        {"instruction": "a", "input": "", "output": "b", "chosen": "x", "rejected": "y"},
        says("user: a", "assistant: b"),
    ),
    ("blank system", {"messages": says("system:  ", "user: a", "assistant: b")}, says("user: a", "assistant: b")),
]


@pytest.mark.parametrize(("name", "row", "expected"), CONVERSATIONS, ids=[name for name, _, _ in CONVERSATIONS])
def test_conversations(name: str, row: dict[str, Any], expected: list[dict[str, str]]) -> None:
    assert conversation(row, "file:1")["messages"] == expected


def test_other_keys_of_our_own_records_are_kept() -> None:
    row = {"messages": says("user: a", "assistant: b"), "skill": "chain", "answers": ["b"]}
    assert conversation(row, "file:1") == row
    row = {"prompt": "a", "completion": "b", "skill": "chain", "other": 1}
    assert conversation(row, "file:1") == {"messages": says("user: a", "assistant: b"), "skill": "chain"}


BASE = {"chosen": "good", "rejected": "bad"}
COMPARISONS: list[tuple[str, dict[str, Any], list[dict[str, str]]]] = [
    ("alpaca_eval", {"prompt": "a", **BASE, "source": "x"}, says("user: a")),
    ("rasbt", {"instruction": "a", "input": "i", "output": "good", **BASE}, says("user: a\ni")),
    ("sharegpt, texts", {"conversations": [{"from": "human", "value": "a"}], **BASE}, says("user: a")),
    (
        "sharegpt, messages",
        {
            "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"role": "assistant", "content": "bad"},
        },
        says("system: s", "user: a"),
    ),
    (
        "hh",
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: good",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: bad",
        },
        says("user: a", "assistant: b", "user: c"),
    ),
    (
        "message lists",
        {"chosen": says("user: a", "assistant: good"), "rejected": says("user: a", "assistant: bad")},
        says("user: a"),
    ),
    (
        "prompt as messages",
        {"prompt": says("user: a"), "chosen": says("assistant: good"), "rejected": says("assistant: bad")},
        says("user: a"),
    ),
]


@pytest.mark.parametrize(("name", "row", "prompt"), COMPARISONS, ids=[name for name, _, _ in COMPARISONS])
def test_comparisons(name: str, row: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    assert comparison(row, "file:1") == {"messages": prompt, "replies": ["good", "bad"], "ranking": [0, 1]}


@pytest.mark.parametrize("order", [{"ranking": [2, 0, 1]}, {"pairs": [[2, 0]]}])
def test_our_own_comparisons_come_back_as_they_are(order: dict[str, Any]) -> None:
    row = {"messages": says("user: a"), "replies": ["x", "y", "z"], **order, "prompt_hash": "abc"}
    assert comparison(row, "file:1") == row


def write(path: Path, rows: list[object]) -> Source:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return Source(name="mine", path=path.name)


GOOD = {"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, 'none of the known formats.*found "text"'),
        ({}, "none of the known formats.*found no keys"),
        ({"prompt": "a"}, 'needs "output" or "response" or "completion"'),
        ({"instruction": 3, "output": "b"}, '"instruction" must be text, not int'),
        ({"instruction": "a", "output": None}, "'output' must be a text or a message, not NoneType"),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, '"history" must be a list'),
        ({"instruction": "a", "output": "b", "history": [["x", 1]]}, '"history" must hold texts'),
        ({"messages": [{"role": "usr", "content": "a"}]}, "message 0 is from 'usr'.*did you mean 'user'"),
        ({"messages": ["a"]}, "message 0 must be an object, not str"),
        ({"messages": [{"role": "user"}]}, 'message 0: needs "content" or "value"'),
        ({"messages": [{"role": "user", "content": ["a"]}]}, '"content" must be text, not list'),
        ({"chosen": "Human: a", "rejected": "b"}, "a transcript must begin with"),
    ],
)
def test_a_row_of_another_shape_names_file_and_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    source = write(tmp_path / "rows.jsonl", [GOOD, GOOD, row])
    with pytest.raises(DataError, match=message) as raised:
        list(read_conversations(source, tmp_path))
    assert str(raised.value).startswith(f"{tmp_path / 'rows.jsonl'}:3: ")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, 'a comparison needs "chosen" and "rejected"'),
        ({"chosen": 1, "rejected": 2}, "none of the known formats"),
        ({"prompt": "a", "chosen": 1, "rejected": "b"}, "'chosen' must be a text or a message, not int"),
        ({"messages": says("user: a"), "replies": ["b"], "ranking": [0]}, '"replies" must be a list of at least two'),
        ({"messages": says("user: a"), "replies": ["b", "c"]}, 'needs "ranking"'),
        ({"replies": ["b", "c"], "ranking": [0, 1]}, "the messages must be a list, not NoneType"),
    ],
)
def test_a_wrong_comparison_names_file_and_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    source = write(tmp_path / "rows.jsonl", [GOOD, row])
    with pytest.raises(DataError, match=message) as raised:
        list(read_comparisons(source, tmp_path))
    assert str(raised.value).startswith(f"{tmp_path / 'rows.jsonl'}:2: ")


def test_broken_json_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD) + "\n\n{broken\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:3: not valid JSON"):
        list(read_conversations(Source(name="mine", path="rows.jsonl"), tmp_path))


def test_rows_without_a_lesson_are_left_out_and_told(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": " \n"},
        {"messages": says("user: a", "user: b", "assistant: c")},
        {"messages": says("user: a")},
        GOOD,
        {"prompt": "", "completion": "b"},
    ]
    left_out: list[str] = []
    found = list(read_conversations(write(tmp_path / "rows.jsonl", list(rows)), tmp_path, left_out))
    assert [record["messages"] for record in found] == [says("user: a", "assistant: b")]
    assert [reason.split(": ", 1)[0].rsplit(":", 1)[1] for reason in left_out] == ["1", "2", "3", "5"]
    assert "message 1, from the assistant, is blank" in left_out[0]
    assert "messages[1] has role 'user', must be 'assistant'" in left_out[1]
    assert "the assistant says nothing" in left_out[2]


def test_comparisons_without_a_lesson_are_left_out(tmp_path: Path) -> None:
    turns = "\n\nHuman: {}\n\nAssistant: {}"
    rows = [
        {"prompt": "a", "chosen": "same", "rejected": "same"},
        {"chosen": turns.format("a", "b"), "rejected": turns.format("other", "c")},
        {"chosen": turns.format("a", "b"), "rejected": turns.format("a", "")},
        {"chosen": "\n\nHuman: a\n\nHuman: b", "rejected": "\n\nHuman: a\n\nHuman: c"},
        GOOD,
    ]
    left_out: list[str] = []
    found = list(read_comparisons(write(tmp_path / "rows.jsonl", list(rows)), tmp_path, left_out))
    assert len(found) == 1
    for reason, part in zip(left_out, ["same", "part before their last turn", "blank", "must end with"], strict=True):
        assert part in reason


def test_a_source_of_nothing_but_unusable_rows_is_an_error(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": ""}] * 3)
    with pytest.raises(DataError, match=r"source 'mine' has no usable row; the first reason: .*rows\.jsonl:1: "):
        list(read_conversations(source, tmp_path))


def test_packed_files_and_limits(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps({"prompt": str(number), "completion": "b"}) + "\n" for number in range(5)))
    source = Source(name="mine", path="rows.jsonl", limit_documents=2)
    assert [record["messages"][0]["content"] for record in read_conversations(source, tmp_path)] == ["0", "1"]


SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not beside this checkout")
@pytest.mark.parametrize(
    ("path", "num_kept", "num_left_out"),
    [
        ("dolly_hhrlhf_sample/dolly_hhrlhf_1k.jsonl", 1000, 0),
        ("gpteacher/roleplay.jsonl", 1923, 0),
        ("gpteacher/toolformer.jsonl", 7673, 0),
        ("alpaca/alpaca_zh.jsonl", 14069, 6),
        ("rasbt_instructions/instruction_data.jsonl", 1100, 0),
        ("llamafactory_demos/alpaca_zh_demo.jsonl", 1000, 0),
        ("llamafactory_demos/glaive_toolcall_zh_demo.jsonl", 300, 0),
        ("llamafactory_demos/identity.jsonl", 91, 0),
    ],
)
def test_published_instruction_sets(path: str, num_kept: int, num_left_out: int) -> None:
    left_out: list[str] = []
    found = list(read_conversations(Source(name="set", path=path), SHARED, left_out))
    assert (len(found), len(left_out)) == (num_kept, num_left_out)
    for record in found:
        check_messages(record["messages"])
        assert record["messages"][-1]["role"] == "assistant"
        assert "### Instruction" not in record["messages"][0]["content"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not beside this checkout")
@pytest.mark.parametrize(
    ("path", "num_kept", "num_left_out"),
    [
        ("hh_rlhf/harmless_base.part1.jsonl", 1850, 9),
        ("hh_rlhf/helpful.part1.jsonl", 1818, 18),
        ("alpaca_eval_prefs/alpaca_eval_prefs.train.jsonl", 8489, 0),
        ("dpo_zh_500/dpo_zh_500.jsonl", 500, 0),
        ("llamafactory_demos/dpo_en_demo.jsonl", 300, 0),
        ("rasbt_instructions/instruction_preferences.jsonl", 1094, 6),
    ],
)
def test_published_preference_sets(path: str, num_kept: int, num_left_out: int) -> None:
    left_out: list[str] = []
    found = list(read_comparisons(Source(name="set", path=path), SHARED, left_out))
    assert (len(found), len(left_out)) == (num_kept, num_left_out)
    for record in found:
        check_messages(record["messages"])
        assert record["messages"][-1]["role"] == "user"
        assert len(record["replies"]) == 2
