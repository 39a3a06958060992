"""The page of a translator: each message is a sentence, and what is read of it for each word is shown inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from jielong.generate.beam import BeamConfig
from jielong.generate.translator import Translator

from ..conftest import Lab
from .conftest import Site, Watch, serving, until, write_run

TEXT = "the cat sat there"


@pytest.fixture(scope="module")
def site(translating: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("runs") / "translator"
    write_run(folder)
    with serving(translating, folder) as found:
        yield found


def best(lab: Lab, text: str, beam: int = 4) -> str:
    return Translator(lab.model, lab.tokenizer).translate([text], BeamConfig(beam))[0][0].text


def test_what_the_page_is_told(site: Site) -> None:
    with site.client as client:
        model = client.get("/api/page").json()["models"][0]
        assert model["kind"] == "encoder-decoder" and model["chats"] and model["odds"]
        turns = [{"role": "user", "content": "x " * 100}, {"role": "assistant", "content": "y"}]
        fit = client.post("/api/fit", json={"messages": [*turns, {"role": "user", "content": TEXT}]}).json()
        assert fit["dropped"] == 0 and 4 <= fit["prompt_tokens"] <= 20, "the last message alone is read"
        branch = {"messages": turns[:1], "prefix": [{"id": 10}]}
        assert client.post("/api/branches", json=branch).status_code == 400


def test_a_turn_is_looked_at_with_its_translation(site: Site, translating: Lab) -> None:
    with site.client as client:
        said = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "你好"}]
        whole = client.post("/api/inside/attention", json={"text": TEXT, "target": "你好"}).content
        assert b'"cross"' in whole
        earlier = [{"role": "user", "content": "else"}, {"role": "assistant", "content": "x"}]
        assert client.post("/api/inside/attention", json={"messages": [*earlier, *said]}).content == whole
        asked = client.post("/api/inside/attention", json={"messages": [*earlier, said[0]]}).content
        assert b'"encoder"' in asked and b'"cross"' not in asked, "nothing is written yet"


def test_the_lens_of_a_translator_ends_with_what_it_writes(site: Site, translating: Lab) -> None:
    """Its best next token greedily is the search's with a beam of 1, at the start and behind what is written."""
    with site.client as client:
        greedy = client.post("/v1/completions", json={"prompt": TEXT, "beam": 1, "return_token_ids": True}).json()
        ids = greedy["choices"][0]["token_ids"]
        first = client.post("/api/inside/lens", json={"text": TEXT}).json()
        assert len(first["tokens"]) == 1 and first["top"][-1][0][0][2] == ids[0]
        said = translating.tokenizer.decode(ids[:3])
        behind = client.post("/api/inside/steps", json={"text": TEXT, "target": said}).json()
        assert len(behind["vectors"]) == translating.model.config.decoder_layers + 1
        whole = client.post("/api/inside/lens", json={"text": TEXT, "target": said}).json()
        assert whole["top"][-1][-1][0][0] == behind["top"][0][0] and whole["tokens"] == behind["tokens"]


def test_the_faces_of_a_translator(browser: Any, site: Site, translating: Lab) -> None:
    watch = Watch()
    context = browser.new_context(base_url=site.url, locale="en-GB")
    tab = context.new_page()
    tab.set_default_timeout(8000)
    watch.over(tab, site.url)
    tab.goto("/")
    tab.get_by_role("heading", name="What shall I translate?").wait_for()
    field = tab.get_by_role("textbox", name="Write a sentence")
    field.fill(TEXT)
    tab.keyboard.press("Enter")
    tab.locator(".message.assistant .acts").wait_for()
    shown = tab.locator(".message.assistant .body").inner_text()
    assert "".join(shown.split()) == "".join(best(translating, TEXT).split())
    tab.get_by_role("button", name="Settings").click()
    assert tab.get_by_label("System prompt").is_hidden() and tab.get_by_label("Beam").input_value() == "4"
    tab.get_by_label("Settings").get_by_label("Close").click()
    tab.get_by_role("button", name="Chances").click()
    until(tab, "document.querySelectorAll('.message.assistant .token').length > 0")
    tab.keyboard.press("Tab")
    tab.locator(".message.assistant .token").first.focus()
    card = tab.get_by_role("dialog", name="What else it might have said")
    card.wait_for()
    assert card.locator("button").count() >= 5 and card.locator("button:not(:disabled)").count() == 0
    tab.keyboard.press("Escape")
    tab.get_by_label("Look inside", exact=True).last.click()
    tab.get_by_text("Looking at the chat").wait_for()
    tab.get_by_role("button", name="To the source").wait_for()
    tab.goto("/inside")
    tab.get_by_role("button", name="To the source").wait_for()
    tab.locator(".lens tbody td").first.wait_for()
    assert tab.locator(".lens tbody tr").count() == 3 and tab.locator(".chip").count() > 1
    written = tab.get_by_role("textbox", name="What has been translated so far").input_value()
    assert written == best(translating, tab.get_by_role("textbox", name="A text to look at").input_value()).strip()
    held: list[Any] = []  # somebody goes to the chat while the next translation is made
    tab.route("**/v1/completions", lambda route: held.append(route))  # playwright writes attributes into it
    tab.get_by_role("textbox", name="A text to look at").fill("the dog")
    with tab.expect_request("**/v1/completions"):
        tab.get_by_role("button", name="Look", exact=True).click()
    tab.get_by_role("link", name="Chat").click()
    with tab.expect_response("**/api/inside/steps"):
        held[0].continue_()
    assert tab.evaluate("location.pathname") == "/", "the address is of what is shown"
    context.close()
    assert not watch.wrong, watch.wrong
