"""One vote on what was served, by whoever was served it, in the form that the reward stage reads."""

from __future__ import annotations

import threading
from typing import Any

import httpx2
import pytest

from jielong.data.votes import read_votes
from jielong.serve.personas import Persona
from jielong.serve.prompts import most_tokens
from jielong.serve.schema import ChatBody

from .conftest import Site, events

ASKED = {"messages": [{"role": "user", "content": "who sat there?"}], "max_tokens": 12, "temperature": 1.0, "seed": 3}


def compare(client: httpx2.Client, **more: Any) -> tuple[str, dict[str, str]]:
    """(signed number, text by side) of a comparison."""
    reply = client.post("/api/comparisons", json={**ASKED, **more})
    assert reply.status_code == 200
    told = events(reply.text)
    texts = {side: "".join(e["text"] for e in told if e.get("side") == side and "text" in e) for side in ("a", "b")}
    assert [sum(e.get("side") == side and "finish" in e for e in told) for side in ("a", "b")] == [1, 1]
    return told[-1]["id"], texts


def test_a_vote_is_a_line_that_the_reward_stage_reads(client: httpx2.Client, site: Site) -> None:
    number, texts = compare(client)
    assert texts["a"] != texts["b"]
    reply = client.post("/api/votes", json={"id": number, "choice": "b", "edited": "the cat sat there"})
    assert reply.status_code == 201
    assert [one["model"] for one in reply.json()["answers"]] == ["tiny", "tiny"]
    vote = read_votes(site.places.votes).votes[-1]
    assert vote.prompt == ASKED["messages"] and vote.edited == "the cat sat there" and vote.winner == 1
    assert [one.text for one in vote.answers] == [texts["a"], texts["b"]]
    assert {one.sampling["temperature"] for one in vote.answers} == {1.0}
    assert len({one.sampling["seed"] for one in vote.answers}) == 2
    assert client.get("/api/votes").json()["votes"] == len(read_votes(site.places.votes).votes)
    assert client.get("/api/votes.jsonl").text.splitlines()[-1].startswith('{"id": "' + vote.id)


def test_an_answer_is_as_long_as_in_a_chat(client: httpx2.Client, site: Site) -> None:
    """OpenAI's newer word wins, and a role has its own length."""
    number, _ = compare(client, max_tokens=30, max_completion_tokens=5)
    told = client.post("/api/votes", json={"id": number, "choice": "tie"}).json()["answers"]
    assert [one["sampling"]["max_new_tokens"] for one in told] == [5, 5]
    body, loaded = ChatBody.model_validate({"messages": ASKED["messages"]}), site.service.engine.ready()
    role = Persona(name="brief", system="be brief", max_tokens=7)
    assert [most_tokens(body, loaded, one) for one in (role, None)] == [7, loaded.context]


def test_nobody_votes_twice(client: httpx2.Client, site: Site) -> None:
    number, _ = compare(client)
    statuses: list[int] = []

    def vote(choice: str) -> None:
        with site.client as own:
            statuses.append(own.post("/api/votes", json={"id": number, "choice": choice}).status_code)

    voters = [threading.Thread(target=vote, args=(choice,)) for choice in ("a", "b", "tie", "both_bad")]
    for voter in voters:
        voter.start()
    for voter in voters:
        voter.join()
    assert sorted(statuses) == [201, 409, 409, 409]
    assert sum(line.id == number.partition(".")[0] for line in read_votes(site.places.votes).votes) == 1


def test_nobody_votes_on_what_was_not_served(client: httpx2.Client, site: Site) -> None:
    number, _ = compare(client)
    name, _, signature = number.partition(".")
    other = ("0" if name[0] != "0" else "1") + name[1:]
    reply = client.post("/api/votes", json={"id": f"{other}.{signature}", "choice": "a"})
    assert reply.status_code == 403 and reply.json()["error"]["code"] == "foreign_comparison"
    assert client.post("/api/votes", json={"id": f"{name}.{'0' * 64}", "choice": "a"}).status_code == 403
    assert client.post("/api/votes", json={"id": name, "choice": "a"}).status_code == 400
    assert client.post("/api/votes", json={"id": number, "choice": "c"}).status_code == 400
    assert site.history.comparison(name) is not None and site.history.comparison(name)[1] is None  # type: ignore[index]


def test_a_vote_that_cannot_be_written_can_be_cast_again(client: httpx2.Client, site: Site) -> None:
    number, _ = compare(client)
    lone = client.post("/api/votes", json={"id": number, "choice": "a", "edited": "   "})
    assert lone.status_code == 400 and "cannot be written" in lone.json()["error"]["message"]
    assert client.post("/api/votes", json={"id": number, "choice": "a"}).status_code == 201


def test_sides_are_drawn_by_lot(client: httpx2.Client) -> None:
    firsts = {compare(client)[1]["a"] for _ in range(16)}  # the same two answers each time: the seed is given
    assert len(firsts) == 2, "16 throws of a coin that all fall alike: once in 32768"


@pytest.mark.parametrize("body", [{"messages": []}, {**ASKED, "temperature": 9}, {"messages": "hello"}])
def test_wrong_comparisons_are_refused(client: httpx2.Client, body: dict[str, Any]) -> None:
    assert client.post("/api/comparisons", json=body).status_code == 400
