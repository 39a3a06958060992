"""The page of two models: Compare draws an answer of each, blindly, and writes down rightly who wrote which."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from jielong.data.votes import read_votes
from jielong.folder import model_hash
from jielong.generate.beam import BeamConfig
from jielong.generate.engine import Engine
from jielong.generate.translator import Translator
from jielong.serve.page.votes import Weights
from jielong.tokenizer.chat import render

from ..conftest import NAME, OTHER, OTHER_CONTEXT, Lab, wait_until
from .conftest import Site, Watch, events, serving, until, write_run
from .test_faces import ask, open_chat, settings

LONG = "I think, all day. The cat sat on the mat. " * 3  # few tokens of the one, many of the other
USER = {"role": "user", "content": "who sat there?"}
ASKED: dict[str, Any] = {"messages": [USER], "max_tokens": 12, "temperature": 1.0}


@pytest.fixture(scope="module")
def site(lab: Lab, other: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("runs") / "pair"
    write_run(folder)
    with serving(lab, folder, beside=other) as found:
        yield found


def compare(client: httpx2.Client, **more: Any) -> tuple[str, dict[str, str], str]:
    """(signed number, text by side, all that was sent) of a comparison."""
    reply = client.post("/api/comparisons", json={**ASKED, **more})
    assert reply.status_code == 200, reply.text
    told = events(reply.text)
    texts = {side: "".join(e["text"] for e in told if e.get("side") == side and "text" in e) for side in ("a", "b")}
    assert [sum(e.get("side") == side and "finish" in e for e in told) for side in ("a", "b")] == [1, 1]
    return told[-1]["id"], texts, reply.text


def test_the_page_is_told_of_both(client: httpx2.Client) -> None:
    told = client.get("/api/page").json()["models"]
    assert [(one["id"], one["context"], one["chats"]) for one in told] == [(NAME, 160, True), (OTHER, 64, True)]


def test_a_vote_says_who_wrote_which(client: httpx2.Client, site: Site, lab: Lab, other: Lab) -> None:
    """Each answer is what the model of that name says to that seed; each model stands on either side by lot."""
    labs = {NAME: lab, OTHER: other}
    hashes = dict(zip(labs, map(model_hash, site.places.folders), strict=True))
    firsts = set()
    for seed in range(12):
        number, texts, sent = compare(client, seed=seed)
        assert not any(word in sent for word in (NAME, OTHER, *hashes.values())), "nothing says who, before the vote"
        reply = client.post("/api/votes", json={"id": number, "choice": "a"})
        vote = read_votes(site.places.votes).votes[-1]
        assert [one["model"] for one in reply.json()["answers"]] == [one.model for one in vote.answers]
        assert {one.model: one.model_hash for one in vote.answers} == hashes and vote.prompt == [USER]
        for one, text in zip(vote.answers, (texts["a"], texts["b"]), strict=True):
            who = labs[one.model]
            ids, _ = render([USER], who.tokenizer, reply=True)
            [said] = Engine(who.model, who.tokenizer).generate(
                [ids], max_new_tokens=12, temperature=1.0, seed=[int(one.sampling["seed"])]
            )
            assert one.text == text == said.text
        firsts.add(vote.answers[0].model)
    assert firsts == {NAME, OTHER}, "12 throws of a coin that all fall alike: once in 2048"


def test_one_model_can_still_be_compared_with_itself(client: httpx2.Client, site: Site) -> None:
    number, texts, _ = compare(client, model=OTHER, seed=3)
    assert texts["a"] != texts["b"]
    assert client.post("/api/votes", json={"id": number, "choice": "tie"}).status_code == 201
    vote = read_votes(site.places.votes).votes[-1]
    assert [one.model for one in vote.answers] == [OTHER, OTHER]
    assert {one.model_hash for one in vote.answers} == {model_hash(site.places.folders[1])}
    assert client.post("/api/comparisons", json={**ASKED, "model": "third"}).status_code == 404


def refused(client: httpx2.Client, code: str | None, **more: Any) -> str:
    reply = client.post("/api/comparisons", json={**ASKED, **more})
    assert reply.status_code == 400 and reply.json()["error"]["code"] == code, reply.text
    return str(reply.json()["error"]["message"])


def test_what_fits_one_and_not_the_other(client: httpx2.Client, site: Site) -> None:
    long = [{"role": "user", "content": LONG}]
    ids, _ = render(long, site.service.engines[1].ready().tokenizer, reply=True)
    message = refused(client, "too_long_for_one", messages=long)
    assert "'tiny' can read this, but 'other' cannot" in message and f"{len(ids)} tokens" in message
    assert f"context is {OTHER_CONTEXT}" in message and "ask 'tiny' alone" in message
    refused(client, "context_length_exceeded", messages=[{"role": "user", "content": "x" * 4000}])
    assert site.service.num_open == 0


def test_a_conversation_is_cut_to_what_both_can_read(client: httpx2.Client) -> None:
    talk = [USER, {"role": "assistant", "content": "the cat, I think."}] * 4 + [USER]

    def fit(*models: str) -> dict[str, int]:
        asked: dict[str, Any] = {"messages": talk, "max_tokens": 8, **({"models": list(models)} if models else {})}
        return dict(client.post("/api/fit", json=asked).json())

    assert fit() == fit(NAME) and fit(NAME)["context"] == 160 and fit(OTHER)["context"] == OTHER_CONTEXT
    assert fit(NAME, OTHER) == fit(OTHER, NAME) == fit(OTHER) and fit(OTHER)["dropped"] > fit(NAME)["dropped"]
    compare(client, messages=talk[fit(NAME, OTHER)["dropped"] :])
    assert client.post("/api/fit", json={"messages": [USER], "models": ["third"]}).status_code == 404


def test_branches_and_insides_are_of_the_model_that_is_named(
    client: httpx2.Client, lab: Lab, other: Lab, site: Site
) -> None:
    for name, who in ((NAME, lab), (OTHER, other)):
        chat = {"messages": [USER], "model": name, "temperature": 0, "max_tokens": 8, "return_token_ids": True}
        ids = client.post("/v1/chat/completions", json=chat).json()["choices"][0]["token_ids"]
        for prefix in ([{"id": ids[0]}], [{"bytes": list(who.tokenizer.token_bytes(ids[0]) or b"")}]):
            told = events(client.post("/api/branches", json={**chat, "prefix": prefix}).text)
            rest = [token for one in told for choice in one["choices"] for token in choice.get("token_ids", [])]
            assert rest == ids[1:]
        [shape, _] = client.get("/api/inside/shape", params={"model": name}).json()["models"]
        width, size = who.model.config.width, who.tokenizer.vocab_size
        assert shape["name"] == name and shape["parts"]["embedding"] == width * size
        steps = client.post("/api/inside/steps", json={"text": "the dog", "model": name}).json()
        assert steps["ids"] == [*who.tokenizer.prefix_ids, *who.tokenizer.encode("the dog"), *who.tokenizer.suffix_ids]
        near = client.get("/api/inside/neighbours", params={"token": steps["ids"][-1], "model": name}).json()
        assert near["token"] == who.tokenizer.name(steps["ids"][-1])
    for asked in ("shape?model=third", "positions?model=third", "neighbours?token=1&model=third"):
        assert client.get(f"/api/inside/{asked}").status_code == 404
    assert client.post("/api/inside/steps", json={"text": "a", "model": "third"}).status_code == 404


def test_a_base_model_is_named(lab: Lab, other: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "pair")
    with serving(lab, tmp_path / "pair", beside=other) as site, site.client as client:
        monkeypatch.setattr(site.service.engines[1].ready().tokenizer, "form", None)
        told = client.get("/api/page").json()["models"]
        assert [one["chats"] for one in told] == [True, False]
        assert refused(client, None).startswith("'other': ")


def test_a_full_queue_of_one_lets_the_other_go(client: httpx2.Client, site: Site) -> None:
    first, second = site.service.engines
    most, second.most_open = second.most_open, 0
    try:
        reply = client.post("/api/comparisons", json=ASKED)
        assert reply.status_code == 400 and "holds 0" in reply.json()["error"]["message"]
        until_free(client)
        assert first.num_open == 0 and first.metrics.finished.values[("cancelled",)] == 1
    finally:
        second.most_open = most


def until_free(client: httpx2.Client) -> None:
    def is_free() -> bool:
        lines = client.get("/metrics").text.splitlines()
        return all(line.endswith(" 0") for line in lines if line.startswith("jielong_sequences_open"))

    wait_until(is_free)


def test_votes_are_on_the_weights_that_answered(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    early, late = Weights(tmp_path), Weights(tmp_path)
    name = early.name()
    assert name == model_hash(tmp_path)
    os.utime(weights, ns=(1, 1))
    weights.write_bytes(b"two, written by another round")
    assert early.name() == name, "they were read while they were there"
    with pytest.raises(Exception, match="not those that are served any more"):
        late.name()
    weights.unlink()
    with pytest.raises(Exception, match="not those that are served any more"):
        Weights(tmp_path).name()


def test_the_death_of_one_ends_a_comparison(lab: Lab, other: Lab, tmp_path: Path) -> None:
    """In its middle: the reader is told, and the other model stops writing. Afterwards the living one can be asked."""
    write_run(tmp_path / "pair")
    with serving(lab, tmp_path / "pair", beside=other) as site, site.client as client:
        batcher = site.service.engines[1].ready().batcher

        def fail() -> Any:
            raise RuntimeError("out of memory")

        batcher.step = fail
        reply = client.post("/api/comparisons", json={**ASKED, "max_tokens": 120})
        assert '"code":"engine_dead"' in reply.text and "[DONE]" not in reply.text
        until_free(client)
        assert client.post("/api/comparisons", json=ASKED).status_code == 503
        assert [one["id"] for one in client.get("/api/page").json()["models"]] == [NAME]
        assert client.post("/v1/chat/completions", json=ASKED).status_code == 200
        compare(client, model=NAME)


def test_two_translators_each_give_their_best(translating: Lab, tmp_path: Path) -> None:
    write_run(tmp_path / "pair")
    best = Translator(translating.model, translating.tokenizer).translate(["the cat sat"], BeamConfig())[0][0].text
    with serving(translating, tmp_path / "pair", beside=translating) as site, site.client as client:
        asked = {"messages": [{"role": "user", "content": "the cat sat"}], "max_tokens": 60, "temperature": None}
        assert compare(client, **asked)[1] == {"a": best, "b": best}
        assert len(set(compare(client, **asked, model=NAME)[1].values())) == 2, "of one: its two best"


def test_leaving_frees_both(client: httpx2.Client, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for engine in site.service.engines:
        batcher = engine.ready().batcher
        step = batcher.step
        monkeypatch.setattr(batcher, "step", lambda step=step: (time.sleep(0.02), step())[1])
    before = [engine.metrics.finished.values.get(("cancelled",), 0) for engine in site.service.engines]
    asked = {**ASKED, "max_tokens": 40, "ignore_eos": True}
    with client.stream("POST", "/api/comparisons", json=asked) as reply:
        assert next(reply.iter_lines()).startswith("data: ")
        assert site.service.num_open == 2
    until_free(client)
    after = [engine.metrics.finished.values[("cancelled",)] for engine in site.service.engines]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1]


# In a browser.


def test_two_models_are_compared_blindly(tab: Any, site: Site) -> None:
    open_chat(tab)
    settings(tab, temperature=1, max_tokens=12)
    tab.get_by_role("button", name="Compare").click()
    assert tab.get_by_text("two models").is_visible() and tab.get_by_label("Who answers").is_hidden()
    tab.get_by_role("textbox", name="Write a message").fill("which is better?")
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="A is better").wait_for()
    tab.get_by_text("Two models answer").wait_for()
    said = tab.locator(".comparison").inner_text().split("\n")
    assert not {NAME, OTHER} & set(said) and tab.locator(".side .who").all_inner_texts() == ["", ""]
    texts = tab.locator(".side .body").all_inner_texts()
    tab.get_by_role("button", name="A is better").click()
    tab.get_by_text("Thank you").wait_for()
    vote = read_votes(site.places.votes).votes[-1]
    assert vote.choice == "a" and sorted(one.model for one in vote.answers) == [OTHER, NAME]
    assert tab.locator(".side .who").all_inner_texts() == [f"{one.model} · T 1" for one in vote.answers]
    tab.get_by_role("button", name="Go on").click()
    tab.get_by_text("2/2").wait_for()
    assert tab.locator(".message.assistant .body").inner_text() == texts[0]
    assert tab.locator(".message.assistant .note").inner_text() == vote.answers[0].model
    tab.get_by_role("button", name="Compare").click()
    assert tab.get_by_label("Who answers").is_visible() and tab.get_by_text("two models").is_hidden()


def test_a_model_is_chosen_and_looked_into(tab: Any, other: Lab) -> None:
    open_chat(tab)
    settings(tab, temperature=0, max_tokens=6)
    tab.get_by_label("Who answers").select_option(OTHER)
    tab.get_by_text("other goes on where you stop").wait_for()
    ask(tab, "the dog")
    assert tab.locator(".message.assistant .note").inner_text().startswith("other ·")
    tab.get_by_label("Who answers").select_option(NAME)
    tab.get_by_label("Answer again").click()
    tab.get_by_text("2/2").wait_for()
    assert tab.locator(".message.assistant .note").inner_text().startswith("tiny ·")
    tab.get_by_label("The one before").click()
    tab.get_by_text("1/2").wait_for()
    tab.get_by_label("Look inside", exact=True).last.click()
    tab.get_by_text("Looking at the chat").wait_for()
    tab.locator(".lens").wait_for()
    which = tab.get_by_label("The model to look into")
    assert which.input_value() == OTHER
    until(tab, "document.querySelector('.parttable')?.innerText.includes('other')")
    which.select_option(NAME)
    until(tab, "document.querySelector('.parttable')?.innerText.includes('tiny')")
    tab.reload()
    tab.get_by_role("textbox", name="A text to look at").wait_for()
    tab.goto("/")
    tab.get_by_label("Who answers").wait_for()
    assert tab.get_by_label("Who answers").input_value() == NAME, "the choice is kept in this browser"


def test_a_branch_is_the_writers(tab: Any) -> None:
    """Another model is chosen by then: what was written goes on as its own writer would."""
    open_chat(tab)
    settings(tab, temperature=0, max_tokens=8)
    tab.get_by_label("Who answers").select_option(OTHER)
    ask(tab, "the cat")
    tab.get_by_label("Who answers").select_option(NAME)
    tab.get_by_role("button", name="Chances").click()
    until(tab, "document.querySelectorAll('.message.assistant .token').length > 1")
    tab.keyboard.press("Tab")
    tab.locator(".message.assistant .token").first.focus()
    tab.keyboard.press("ArrowRight")
    card = tab.get_by_role("dialog", name="What else it might have said")
    card.wait_for()
    card.locator("button:not(:disabled)").first.click()
    tab.get_by_text("2/2").wait_for()
    assert tab.locator(".message.assistant .note").inner_text().startswith("other ·")


def test_what_is_too_long_for_one_is_said_kindly(tab: Any, watch: Watch) -> None:
    watch.expected = ("400 (Bad Request)",)
    open_chat(tab)
    tab.get_by_label("切换到中文").click()
    tab.get_by_role("button", name="比较").click()
    tab.get_by_text("两个模型", exact=True).wait_for()
    tab.get_by_role("textbox", name="写点什么").fill(LONG)
    tab.keyboard.press("Enter")
    tab.get_by_text("其中一个模型一次读不了这么多").wait_for()
    tab.get_by_label("Switch to English").click()
    tab.get_by_role("button", name="Compare").click()
    tab.locator(".trouble button").click()
    tab.locator(".message.assistant .acts").wait_for()
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.wait_for_timeout(150)
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert tab.get_by_label("Who answers").is_visible() and tab.get_by_role("button", name="Send").is_visible()
