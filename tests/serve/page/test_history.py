"""Conversations are kept as trees, in one file, and nothing that was said is ever overwritten."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx2
import pytest

from jielong.errors import StorageError
from jielong.serve.page.history import History, Message


def message(name: str, parent: str = "", role: str = "user", content: str = "hello") -> Message:
    return Message(name * 8, parent * 8, role, content, {"tokens": 3}, [["hello", [["hello", -0.5, [], 7]]]])


@pytest.fixture
def history(tmp_path: Path) -> History:
    history = History(tmp_path / "deep" / "chat.sqlite")
    history.create("c" * 8, "a title", "be kind")
    return history


def test_a_tree_comes_back_after_a_restart(history: History) -> None:
    for each in (message("a"), message("b", "a", "assistant"), message("d", "a", "assistant", "another answer")):
        assert history.add("c" * 8, each) == "added"
    again = History(history.path)
    found = again.conversation("c" * 8)
    assert found is not None and (found["title"], found["system"], found["leaf"]) == ("a title", "be kind", "d" * 8)
    assert [(m["id"][0], m["parent"][:1], m["role"]) for m in found["messages"]] == [
        ("a", "", "user"), ("b", "a", "assistant"), ("d", "a", "assistant"),
    ]  # fmt: skip
    assert "tokens" not in found["messages"][0] and found["messages"][0]["note"] == {"tokens": 3}
    assert again.tokens("c" * 8, "b" * 8) == [["hello", [["hello", -0.5, [], 7]]]]
    assert again.tokens("c" * 8, "e" * 8) is None


def test_what_is_sent_twice_is_kept_once_and_unchanged(history: History) -> None:
    assert history.add("c" * 8, message("a")) == "added"
    assert history.add("c" * 8, message("a", content="something else")) == "known"
    found = history.conversation("c" * 8)
    assert found is not None and [m["content"] for m in found["messages"]] == ["hello"]


def test_messages_without_a_place_are_refused(history: History) -> None:
    assert history.add("x" * 8, message("a")) == "no conversation"
    assert history.add("c" * 8, message("b", "a")) == "no parent"


def test_two_windows_add_to_one_conversation(history: History) -> None:
    history.add("c" * 8, message("a"))
    threads = [threading.Thread(target=history.add, args=("c" * 8, message(f"{i}", "a"))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = history.conversation("c" * 8)
    assert found is not None and len(found["messages"]) == 9


def test_removed_is_gone(history: History) -> None:
    history.add("c" * 8, message("a"))
    assert history.remove("c" * 8) and not history.remove("c" * 8)
    assert history.conversation("c" * 8) is None and history.tokens("c" * 8, "a" * 8) is None


def test_a_long_conversation_opens_fast(history: History) -> None:
    with history._open() as file:
        rows = ((f"{i:08x}", f"{i - 1:08x}" if i else "", "a turn of usual length " * 4) for i in range(10_000))
        file.executemany(
            "INSERT INTO messages (id, conversation, parent, role, content, note, tokens, created) "
            "VALUES (?, 'cccccccc', ?, 'user', ?, '{}', NULL, 0)",
            rows,
        )
    began = time.process_time()  # of this process alone: the machine may be busy
    found = history.conversation("c" * 8)
    assert found is not None and len(found["messages"]) == 10_000
    assert time.process_time() - began < 1.0


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="cannot be opened"):
        History(tmp_path / "file" / "chat.sqlite")
    (tmp_path / "broken").write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match="cannot be opened"):
        History(tmp_path / "broken")


# Over HTTP.


def test_the_routes(client: httpx2.Client) -> None:
    name, first = "ab" * 16, "cd" * 16
    assert client.post("/api/conversations", json={"id": name, "title": "one"}).status_code == 201
    body = {"id": first, "role": "user", "content": "你好 😀", "note": {"model": "x"}, "tokens": [["你", []]]}
    url = f"/api/conversations/{name}"
    assert client.post(url + "/messages", json=body).status_code == 201
    assert client.post(url + "/messages", json=body).status_code == 200
    assert client.get(url).json()["messages"][0]["content"] == "你好 😀"
    assert client.get(f"{url}/messages/{first}/tokens").json() == {"tokens": [["你", []]]}
    assert client.patch(url, json={"title": "two", "leaf": first}).status_code == 200
    listed = client.get("/api/conversations").json()["conversations"]
    assert [(one["title"], one["leaf"]) for one in listed if one["id"] == name] == [("two", first)]
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404 and client.delete(url).status_code == 404
    assert client.post(url + "/messages", json=body).status_code == 404


@pytest.mark.parametrize(
    "body",
    [{"id": "../../etc"}, {"id": "ab" * 16, "title": "x" * 201}, {"id": "ab" * 16, "colour": 1}, {}, {"id": 7}, []],
)
def test_wrong_bodies_are_refused(client: httpx2.Client, body: object) -> None:
    reply = client.post("/api/conversations", json=body)
    assert reply.status_code == 400 and reply.json()["error"]["message"]


def test_what_is_no_json_or_too_much_is_refused(client: httpx2.Client) -> None:
    assert client.post("/api/conversations", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    head = {"content-type": "application/json"}
    assert client.post("/api/conversations", content=b'{"id": "\\ud800"}', headers=head).status_code == 400
    assert client.post("/api/conversations", content=b"[" * 100_000, headers=head).status_code == 400
    name = "ef" * 16
    client.post("/api/conversations", json={"id": name})
    huge = {"id": name, "role": "user", "content": "x" * (9 << 20)}
    assert client.post(f"/api/conversations/{name}/messages", json=huge).status_code == 413
