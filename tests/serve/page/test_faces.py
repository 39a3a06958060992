"""The four faces by their main paths, in a real browser, with a real (tiny) model behind them."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jielong.data.votes import read_votes
from jielong.generate.engine import Engine
from jielong.runtime import derive_seed
from jielong.tokenizer.chat import render

from ..conftest import Lab
from .conftest import Site, Watch, serving, until, write_run

FACES = ("/", "/inside", "/training", "/playground")


def open_chat(tab: Any) -> None:
    tab.goto("/")
    tab.get_by_role("textbox", name="Write a message").wait_for()


def ask(tab: Any, text: str) -> None:
    number = tab.locator(".message[data-id]").count()
    tab.get_by_role("textbox", name="Write a message").fill(text)
    tab.keyboard.press("Enter")
    tab.locator(".message[data-id]").nth(number + 1).locator(".acts").wait_for()  # kept: the next may be asked


def settings(tab: Any, **values: float) -> None:
    """Sets sliders of the drawer."""
    tab.evaluate("(values) => localStorage.setItem('sampling', JSON.stringify(values))", values)
    tab.reload()
    tab.get_by_role("textbox", name="Write a message").wait_for()


def test_a_conversation_is_kept_branched_and_shown_again(tab: Any) -> None:
    open_chat(tab)
    settings(tab, temperature=1, max_tokens=12)
    ask(tab, "who sat <b>there</b>?")
    assert tab.locator(".message.user .body").inner_text() == "who sat <b>there</b>?"
    tab.get_by_label("Answer again").click()
    tab.get_by_text("2/2").wait_for()
    tab.get_by_label("The one before").click()
    tab.get_by_text("1/2").wait_for()
    first = tab.locator(".message.assistant .body").inner_text()
    tab.locator(".message.user").hover()
    tab.get_by_label("Edit").click()
    tab.locator(".editing textarea").fill("who else?")
    tab.get_by_role("button", name="Send", exact=True).first.click()
    tab.locator(".message.user .turns").wait_for()
    tab.locator(".message.assistant .acts").wait_for()
    tab.locator(".message.user").get_by_label("The one before").click()
    tab.get_by_text("who sat <b>there</b>?").first.wait_for()
    assert tab.locator(".message.assistant .turns").inner_text().strip() in ("1/2", "2/2")
    tab.reload()
    tab.locator(".message.assistant .body").wait_for()
    assert "who sat" in tab.locator(".message.user .body").inner_text()
    texts = {tab.locator(".message.assistant .body").inner_text()}
    tab.locator(".message.assistant .turns button:not(:disabled)").click()
    tab.wait_for_timeout(100)
    texts.add(tab.locator(".message.assistant .body").inner_text())
    assert first in texts, "nothing is destroyed"


def test_rename_delete_and_save(tab: Any) -> None:
    open_chat(tab)
    ask(tab, "a title of its own")
    item = tab.locator(".item").filter(has_text="a title of its own")
    item.hover()
    item.locator("summary").click()
    with tab.expect_download() as saved:
        item.get_by_role("button", name="Save as JSON").click()
    assert "a title of its own" in Path(saved.value.path()).read_text(encoding="utf-8")
    item.locator("summary").click()
    item.get_by_role("button", name="Rename").click()
    tab.get_by_label("Rename").fill("another name")
    tab.keyboard.press("Enter")
    item = tab.locator(".item").filter(has_text="another name")
    item.hover()
    item.locator("summary").click()
    item.get_by_role("button", name="Delete").click()
    tab.locator("dialog").get_by_role("button", name="Delete").click()
    item.wait_for(state="detached")
    tab.locator(".welcome").wait_for()


def test_chances_and_a_branch_from_a_token(tab: Any) -> None:
    open_chat(tab)
    settings(tab, temperature=0, max_tokens=10)
    ask(tab, "the cat")
    tab.get_by_role("button", name="Chances").click()
    tokens = tab.locator(".message.assistant .token")
    until(tab, "document.querySelectorAll('.message.assistant .token').length > 1")
    tab.keyboard.press("Tab")
    tokens.first.focus()
    tab.keyboard.press("ArrowRight")
    card = tab.get_by_role("dialog", name="What else it might have said")
    card.wait_for()
    shown = [float(each.rstrip(" %").lstrip("< ")) for each in card.locator(".number").all_inner_texts()]
    # Five or six candidates for each token of what is shown at once: several where a character has several.
    assert len(shown) >= 5 and sum(shown[:5]) <= 102 and all(0 <= each <= 100 for each in shown)
    tab.keyboard.press("ArrowLeft")
    assert tab.evaluate("document.activeElement.dataset.i") == "0"
    before = tab.locator(".message.assistant .body").inner_text()
    alternative = card.locator("button:not(:disabled)").first
    alternative.click()
    tab.get_by_text("2/2").wait_for()
    assert tab.locator(".message.assistant .body").inner_text() != before
    tab.get_by_label("The one before").click()
    until(tab, f"document.querySelector('.message.assistant .body').innerText === {before!r}")


def test_stop_frees_the_engine(tab: Any, site: Site) -> None:
    ids, _ = render([{"role": "user", "content": "go on and on"}], site.lab.tokenizer, reply=True)
    engine = Engine(site.lab.model, site.lab.tokenizer)
    seeds = range(100)  # the first that goes on long enough to be stopped
    replies = engine.generate(
        [ids] * len(seeds), max_new_tokens=130, temperature=1, seed=[derive_seed(s, 0) for s in seeds]
    )
    seed = next(seed for seed, reply in zip(seeds, replies, strict=True) if len(reply.tokens) == 130)
    open_chat(tab)
    settings(tab, temperature=1, max_tokens=130, seed=seed)
    engine_thread = site.service.engine
    batcher = engine_thread.ready().batcher
    step, told, num_steps = batcher.step, threading.Event(), 0

    def held() -> Any:
        """Some tokens, and then none before the server knows that the reader has left."""
        nonlocal num_steps
        num_steps += 1
        if num_steps > 12:
            told.wait(20)
        return step()

    def wait_for(truth: Callable[[], bool]) -> None:
        for _ in range(400):
            if truth():
                return
            tab.wait_for_timeout(20)
        raise AssertionError("never true")

    batcher.step = held
    try:
        tab.get_by_role("textbox", name="Write a message").fill("go on and on")
        tab.keyboard.press("Enter")
        tab.get_by_role("button", name=re.compile("^Stop")).wait_for()
        tab.locator(".writing .token").first.wait_for()
        tab.keyboard.press("Escape")
        tab.get_by_role("button", name="Send").wait_for()
        wait_for(lambda: engine_thread.num_open == 0 or not engine_thread._inbox.empty())
        told.set()
        wait_for(lambda: engine_thread.num_open == 0)
        assert num_steps <= 15, "it ends with the step that it was in"
    finally:
        told.set()
        batcher.step = step
    assert "■" in tab.locator(".message.assistant .note").inner_text()


def test_compare_and_vote_once(tab: Any, site: Site) -> None:
    open_chat(tab)
    settings(tab, temperature=1, max_tokens=12)
    tab.get_by_role("button", name="Compare").click()
    tab.get_by_role("textbox", name="Write a message").fill("which is better?")
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="B is better").wait_for()
    assert tab.locator(".side .who").all_inner_texts() == ["", ""], "names come after the vote"
    assert tab.locator("#announce").inner_text() == "Both answers are here. Which one is better?"
    second = tab.locator(".side .body").nth(1).inner_text()
    tab.get_by_text("Write a better answer").click()
    tab.get_by_role("textbox", name="Write a better answer").fill("this one")
    tab.get_by_role("button", name="B is better").click()
    tab.get_by_text("Thank you").wait_for()
    assert tab.locator(".side .who").all_inner_texts() == ["tiny · T 1", "tiny · T 1"]
    assert all(button.is_disabled() for button in tab.locator(".ballot .row button").all())
    vote = read_votes(site.places.votes).votes[-1]
    assert vote.choice == "b" and vote.edited == "this one" and vote.prompt[-1]["content"] == "which is better?"
    tab.get_by_role("button", name="Go on").click()
    tab.get_by_text("2/2").wait_for()
    assert tab.locator(".message.assistant .body").inner_text() == second
    tab.get_by_role("textbox", name="Write a message").fill("and again?")
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="A is better").click()
    tab.get_by_text("Thank you").wait_for()
    tab.get_by_role("button", name="Compare").click()
    ask(tab, "without pressing it")
    tab.locator(".message.assistant[data-id]").nth(2).wait_for()
    kinds = tab.locator(".message[data-id]").evaluate_all("(all) => all.map((one) => one.classList[1])")
    assert kinds == ["user", "assistant"] * 3, "the answer that won is the one that it goes on from"


def vote(tab: Any, text: str) -> None:
    """Two answers to a question and a vote on them, "Go on" not pressed."""
    tab.get_by_role("button", name="Compare").click()
    tab.get_by_role("textbox", name="Write a message").fill(text)
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="A is better").click()
    tab.get_by_text("Thank you").wait_for()
    tab.get_by_role("button", name="Compare").click()


def test_what_is_asked_stays_in_the_branch_that_is_shown(tab: Any) -> None:
    """There was a vote in another one, which is not gone on with."""
    open_chat(tab)
    settings(tab, temperature=1, max_tokens=8)
    ask(tab, "one")
    tab.get_by_label("Answer again").click()
    tab.get_by_text("2/2").wait_for()
    vote(tab, "two")
    tab.get_by_label("The one before").click()
    tab.get_by_text("1/2").wait_for()
    ask(tab, "three")
    assert tab.locator(".message.user .body").all_inner_texts() == ["one", "three"]


def test_answers_that_cannot_be_kept_are_kept_later(tab: Any, watch: Watch) -> None:
    """The first of two that were voted on is, the second is not; what was written meanwhile is not lost either."""
    watch.expected = ("507",)
    open_chat(tab)
    settings(tab, temperature=1, max_tokens=8)
    vote(tab, "two")
    num_kept = 0

    def once(route: Any) -> None:
        nonlocal num_kept
        num_kept += 1
        if num_kept == 1:
            route.continue_()
        else:
            route.fulfill(status=507, json={"error": {"message": "there is no room"}})

    tab.route("**/messages", once)
    field = tab.get_by_role("textbox", name="Write a message")
    field.fill("three")
    tab.keyboard.press("Enter")
    tab.get_by_text("there is no room").wait_for()
    assert field.input_value() == "three"
    tab.unroute("**/messages")
    tab.keyboard.press("Enter")
    tab.locator(".message[data-id]").nth(3).locator(".acts").wait_for()
    kinds = tab.locator(".message[data-id]").evaluate_all("(all) => all.map((one) => one.classList[1])")
    assert kinds == ["user", "assistant"] * 2
    assert tab.locator(".message.assistant .turns").inner_text().strip() == "2/2"


def test_a_role_and_a_full_context(tab: Any) -> None:
    open_chat(tab)
    settings(tab, temperature=1, max_tokens=30)
    tab.get_by_role("button", name="Settings").click()
    tab.get_by_role("button", name="Translator").click()
    assert "Translate" in tab.get_by_label("System prompt").input_value()
    tab.get_by_label("System prompt").fill("be short")
    tab.get_by_label("System prompt").blur()
    for _ in range(4):
        ask(tab, "a question that takes some room in the context, and then some more of it, for it is long")
    tab.get_by_text("no longer sees what is above").wait_for()
    tab.wait_for_timeout(200)
    assert tab.get_by_text("no longer sees what is above").is_visible(), "it stays when the answer is there"
    assert "your own" in tab.locator(".as summary").inner_text()


def test_another_window_adds_to_the_same_conversation(tab: Any) -> None:
    open_chat(tab)
    settings(tab, temperature=1, max_tokens=8)
    ask(tab, "from the first window")
    other = tab.context.new_page()
    other.goto(tab.url)
    other.locator(".message.assistant").wait_for()
    ask(other, "from the second window")
    until(other, "document.querySelectorAll('.message[data-id]').length === 4")
    tab.bring_to_front()
    tab.evaluate("dispatchEvent(new Event('focus'))")
    tab.get_by_text("from the second window").wait_for()
    assert tab.locator(".message").count() == 4


def test_six_tabs_at_once(tab: Any) -> None:
    pages = [tab, *(tab.context.new_page() for _ in range(5))]
    for page in pages:
        page.set_default_timeout(15000)
        page.goto("/training" if page is not tab else "/")
    for page in pages:
        page.goto("/")
        page.get_by_role("textbox", name="Write a message").fill("all at once")
    for page in pages:
        page.keyboard.press("Enter")
    for page in pages:
        page.locator(".message.assistant .acts").wait_for()


def test_look_inside(tab: Any) -> None:
    tab.goto("/inside")
    tab.locator(".thumb canvas").first.wait_for()
    assert tab.locator(".thumb").count() == 8
    tab.get_by_role("textbox", name="A text to look at").fill("the cat sat there")
    tab.get_by_role("button", name="Look", exact=True).click()
    until(tab, "document.querySelectorAll('.lens thead th').length < 22")
    tab.get_by_role("button", name="Layer 1, head 2").click()
    assert tab.locator(".one h3").inner_text() == "Layer 1, head 2"
    tab.locator("canvas.large").focus()
    tab.keyboard.press("ArrowDown")
    until(tab, "/ → .* 0\\.\\d{3}$/.test(document.querySelector('.read').textContent)")
    rows = tab.locator(".lens tbody tr")
    assert rows.count() == 3 and rows.first.locator("th").inner_text() == "layer 1"
    tab.locator(".lens tbody td").last.hover()
    assert tab.locator(".lenscard .odds").count() == 5
    chances = tab.locator(".steps li").nth(3).locator(".number")
    before = chances.first.inner_text()
    tab.locator(".steps input[type=range]").fill("0.1")
    assert float(chances.first.inner_text().rstrip(" %")) >= float(before.rstrip(" %"))
    tab.locator(".chip").first.click()
    until(tab, "document.querySelector('.of code').textContent.includes('bos')")
    assert "GPT-3 175B" in tab.locator(".parttable").inner_text()


def test_look_inside_the_chat(tab: Any) -> None:
    open_chat(tab)
    settings(tab, temperature=1, max_tokens=8)
    ask(tab, "who sat there?")
    tab.get_by_label("Look inside", exact=True).last.click()
    tab.get_by_text("Looking at the chat").wait_for()
    tab.locator(".lens").wait_for()
    assert "<|assistant|>" in tab.locator(".lens thead").inner_text()


def test_training_follows_a_run(tab: Any, site: Site) -> None:
    tab.goto("/training")
    tab.locator(".chart svg path.line").first.wait_for()
    states = tab.locator(".strip li").evaluate_all("(nodes) => nodes.map((node) => node.className)")
    assert states == ["done", "done", "running", "waiting"]
    metrics = site.places.run / "03-ppo" / "metrics.jsonl"  # type: ignore[operator]
    with metrics.open("a") as file:
        file.write('{"step": 31, "kl_nats_per_reply": 0.5}\n{"step": 32, "kl_nats_per_reply": 0.75}\n')
    tab.get_by_text("Distance from the start").wait_for()
    tab.get_by_role("button", name="pretrain").click()
    tab.get_by_text("predicts better than a 5-gram").wait_for()
    tab.get_by_label("Log scale").check()
    tab.locator(".chart svg").first.focus()
    tab.keyboard.press("ArrowLeft")
    tab.locator(".charttip").first.wait_for()
    assert "loss nats" in tab.locator(".charttip").first.inner_text()
    tab.get_by_label("Which model").fill("0")
    assert tab.locator(".answers .said").last.inner_text() == "base says"
    tab.get_by_text("step 30").wait_for()
    tab.get_by_label("Which step").fill("1")
    tab.get_by_text("step 20").wait_for()
    assert tab.locator(".answers .said").first.inner_text() == "babble"
    with tab.context.expect_page() as opened:
        tab.get_by_role("link", name="Report").click()
    opened.value.get_by_text("the report").wait_for()


def test_two_looks_at_once_take_nothing_twice(tab: Any) -> None:
    """A stage is chosen while the list of runs is being asked for, as it is now and then."""
    tab.goto("/training")
    tab.locator(".chart svg path.line").first.wait_for()
    held: list[Any] = []

    def wait_for(number: int) -> None:
        for _ in range(400):
            if len(held) >= number:
                return
            tab.wait_for_timeout(20)
        raise AssertionError("never asked for")

    tab.route("**/api/runs", lambda route: held.append(route))  # playwright writes attributes into it
    wait_for(1)
    tab.get_by_role("button", name="pretrain").click()
    wait_for(2)
    for route in held:
        route.continue_()
    tab.unroute("**/api/runs")
    tab.get_by_text("predicts better than a 5-gram").wait_for()
    tab.wait_for_timeout(300)
    line = tab.locator(".chart svg path.line").first.get_attribute("d")
    assert len(re.findall("[ML]", line)) == 30, "as many points as there are steps"


def test_what_could_not_be_told_is_asked_for_again(tab: Any, watch: Watch) -> None:
    """What a stage that is done has said: nothing there changes any more, so nothing else would bring it."""
    watch.expected = ("500",)
    tab.goto("/training")
    tab.locator(".chart svg path.line").first.wait_for()
    with tab.expect_response("**/spoken"):
        tab.get_by_role("button", name="sft").click()
    broken = {"error": {"message": "out of order"}}
    tab.route("**/spoken", lambda route: route.fulfill(status=500, json=broken))
    tab.get_by_role("button", name="pretrain").click()
    tab.get_by_text("out of order").wait_for()
    tab.unroute("**/spoken")
    tab.get_by_label("Which step").wait_for()
    tab.get_by_text("out of order").wait_for(state="detached")


def test_what_a_stage_wrote_last_is_shown_when_it_is_done(browser: Any, lab: Lab, tmp_path: Path) -> None:
    """Nobody looks while a stage ends; who comes back sees its last lines, and what its model says."""
    run = tmp_path / "quick"
    write_run(run)
    watch, context = Watch(), browser.new_context(locale="en-GB")
    with serving(lab, run) as own:
        page = context.new_page()
        page.set_default_timeout(8000)
        watch.over(page, own.url)
        page.goto(f"{own.url}/training")
        page.locator(".chart svg path.line").first.wait_for()
        page.get_by_role("link", name="Chat").click()
        page.get_by_role("textbox", name="Write a message").wait_for()
        with (run / "03-ppo" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 31, "kl_nats_per_reply": 0.5}\n{"step": 32, "kl_nats_per_reply": 0.75}\n')
        samples = [{"prompt": "a question", "base": "base says", "sft": "sft says", "ppo": "ppo says"}]
        (run / "03-ppo" / "samples.json").write_text(json.dumps(samples))
        (run / "03-ppo" / "DONE").write_text("{}")
        page.get_by_role("link", name="Training").click()
        page.get_by_text("Distance from the start").wait_for()
        page.get_by_label("Which model").fill("2")
        assert page.locator(".answers .said").first.inner_text() == "ppo says"
        context.close()
    assert not watch.wrong, watch.wrong


@pytest.mark.parametrize("path", FACES)
def test_names_labels_and_languages(tab: Any, path: str) -> None:
    """What a screen reader needs: a name for every control, one main heading, landmarks; and all of it in Chinese."""
    tab.goto(path)
    tab.locator("main .face > *").first.wait_for()
    tab.wait_for_timeout(400)
    check = """() => {
      const named = (node) => (node.getAttribute('aria-label') || node.labels?.[0]?.textContent || node.textContent
        || node.getAttribute('title') || node.getAttribute('placeholder') || '').trim();
      const seen = (node) => node.checkVisibility({ visibilityProperty: true });
      const kinds = 'button, a, input, select, textarea, [tabindex="0"]';
      const controls = [...document.querySelectorAll(kinds)].filter(seen);
      const ids = [...document.querySelectorAll('[id]')].map((node) => node.id);
      return {
        unnamed: controls.filter((node) => !named(node)).map((node) => node.outerHTML.slice(0, 90)),
        double: ids.filter((id, place) => ids.indexOf(id) !== place),
        headings: document.querySelectorAll('h1').length,
        landmarks: ['header', 'nav', 'main'].every((name) => document.querySelector(name)),
        images: [...document.querySelectorAll('svg[role=img], canvas[role=img]')].filter((node) => !named(node)).length,
        lang: document.documentElement.lang, wide: document.documentElement.scrollWidth - innerWidth,
        text: document.body.innerText,
      };
    }"""
    found = tab.evaluate(check)
    assert found["unnamed"] == [] and found["double"] == [] and found["images"] == 0
    assert found["headings"] == 1 and found["landmarks"] and found["lang"] == "en" and found["wide"] <= 0
    tab.get_by_label("切换到中文").click()
    chinese = tab.evaluate(check)
    assert chinese["lang"] == "zh-CN" and chinese["unnamed"] == [] and "聊天" in chinese["text"]
    tab.reload()
    tab.locator("main .face > *").first.wait_for()
    assert tab.evaluate("document.documentElement.lang") == "zh-CN"
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.wait_for_timeout(150)
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, "a phone scrolls one way only"


def test_dark_mode_is_chosen_and_remembered(tab: Any) -> None:
    tab.goto("/playground")
    background = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(background)
    tab.get_by_label("Dark mode").click()
    dark = tab.evaluate(background)
    assert light != dark
    tab.reload()
    assert tab.evaluate(background) == dark


def test_the_server_goes_and_comes_back(browser: Any, lab: Lab, tmp_path: Path) -> None:
    write_run(tmp_path / "quick")
    watch = Watch(
        expected=("ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "ERR_INCOMPLETE", "Failed to load resource")
    )
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(8000)
    with serving(lab, tmp_path / "quick") as first:
        watch.over(page, first.url)
        page.goto(first.url)
        page.get_by_role("textbox", name="Write a message").wait_for()
        port = int(first.url.rpartition(":")[2])
    page.get_by_role("textbox", name="Write a message").fill("is anybody there?")
    page.keyboard.press("Enter")
    page.locator("#banner").wait_for()
    assert page.get_by_role("textbox", name="Write a message").input_value() == "is anybody there?", "nothing is lost"
    with serving(lab, tmp_path / "quick", port):
        page.locator("#banner").wait_for(state="hidden")
        page.locator(".trouble button").click()
        page.locator(".message.assistant .acts").wait_for()
    context.close()
    assert not watch.wrong, watch.wrong


def test_the_server_falls_in_the_middle_of_an_answer(browser: Any, lab: Lab, tmp_path: Path) -> None:
    """What was asked stays, what was half said is not taken for an answer, and it can be asked again afterwards."""
    write_run(tmp_path / "quick")
    watch = Watch(expected=("ERR_CONNECTION_RE", "ERR_EMPTY_RESPONSE", "ERR_INCOMPLETE", "Failed to load resource"))
    context = browser.new_context(locale="en-GB")
    page = context.new_page()
    page.set_default_timeout(8000)
    with serving(lab, tmp_path / "quick") as first:
        watch.over(page, first.url)
        page.goto(first.url)
        settings(page, temperature=0, max_tokens=60)
        port, fallen = int(first.url.rpartition(":")[2]), threading.Event()
        batcher = first.service.engine.ready().batcher
        step, num_steps = batcher.step, 0

        def held() -> Any:
            nonlocal num_steps
            num_steps += 1
            assert num_steps < 12 or fallen.wait(20)
            return step()

        batcher.step = held
        page.get_by_role("textbox", name="Write a message").fill("go on and on")
        page.keyboard.press("Enter")
        page.locator(".writing .token").first.wait_for()

        def fall() -> None:
            first.server.should_exit = first.server.force_exit = True
            for server in first.server.servers:
                server.close()
            for connection in list(first.server.server_state.connections):
                connection.transport.abort()  # type: ignore[union-attr]

        assert first.server.loop is not None
        first.server.loop.call_soon_threadsafe(fall)
        page.get_by_text("broke off before the answer was whole").wait_for()
        page.locator("#banner").wait_for()
        fallen.set()
    assert page.locator(".message.user .body").inner_text() == "go on and on"
    assert page.locator(".message.assistant").count() == 0
    with serving(lab, tmp_path / "quick", port) as second:
        page.locator("#banner").wait_for(state="hidden")
        page.locator(".trouble button").click()
        page.locator(".message.assistant .acts").wait_for()
        [kept] = second.history.conversations()
        found = second.history.conversation(kept["id"])
        assert found is not None and [one["role"] for one in found["messages"]] == ["user", "assistant"]
    context.close()
    assert not watch.wrong, watch.wrong


def test_a_face_that_could_not_begin_is_no_trap(tab: Any, watch: Watch) -> None:
    """The others can be gone to, and it begins when it is asked to."""
    watch.expected = ("500",)
    broken = {"error": {"message": "out of order"}}
    tab.route("**/api/page", lambda route: route.fulfill(status=500, json=broken))
    tab.goto("/")
    tab.get_by_text("out of order").wait_for()
    tab.get_by_role("link", name="Training").click()
    tab.locator(".chart svg path.line").first.wait_for()
    tab.get_by_role("link", name="Look inside").click()
    tab.locator(".inside .trouble").wait_for()
    tab.unroute("**/api/page")
    tab.get_by_role("link", name="Chat").click()
    tab.locator(".chat .trouble button").click()
    ask(tab, "who sat there?")
    tab.get_by_label("Look inside", exact=True).last.click()
    tab.locator(".inside .trouble button").click()
    tab.get_by_text("Looking at the chat").wait_for()


def test_a_prompt_of_a_megabyte_is_refused_kindly(tab: Any, watch: Watch) -> None:
    """What the server cannot take at once, and what the model cannot read: nothing that was written is lost."""
    watch.expected = ("413 (Request Entity Too Large)", "400 (Bad Request)")
    open_chat(tab)
    field = tab.get_by_role("textbox", name="Write a message")
    for size, said in (((1 << 20) + 1, "more text than the server takes"), (1_000_000, "more than the model can read")):
        field.fill("x" * size)
        tab.keyboard.press("Enter")
        tab.get_by_text(said).wait_for()
        if size > 1 << 20:
            assert len(field.input_value()) == size
    field.fill("short")
    tab.keyboard.press("Enter")
    tab.locator(".message.assistant .acts").wait_for()
    assert tab.locator(".message.user .turns").inner_text().strip() == "2/2", "beside the question without an answer"


def test_a_run_that_is_removed_while_it_is_shown(browser: Any, lab: Lab, tmp_path: Path) -> None:
    """The model is in memory and goes on; what cannot be kept or read any more is said."""
    run = tmp_path / "runs" / "quick"
    write_run(run)
    watch, context = Watch(expected=("Failed to load resource",)), browser.new_context(locale="en-GB")
    with serving(lab, run) as own, own.client as client:
        page = context.new_page()
        page.set_default_timeout(8000)
        watch.over(page, own.url)
        page.goto(f"{own.url}/training")
        page.locator(".chart svg path.line").first.wait_for()
        shutil.rmtree(run)
        page.get_by_text("No runs here yet").wait_for()
        chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=chat).status_code == 200
        compared = client.post("/api/comparisons", json=chat)
        assert compared.status_code == 503 and compared.json()["error"]["code"] == "weights_changed"
        assert client.post("/api/inside/steps", json={"text": "a"}).status_code == 400
        kept = client.post("/api/conversations", json={"id": "ab" * 16})
        assert kept.status_code in (201, 507) and not run.exists()
        context.close()
    assert not watch.wrong, watch.wrong


def test_the_first_paint_is_usable_at_once(tab: Any) -> None:
    tab.goto("/")
    tab.get_by_role("textbox", name="Write a message").wait_for()
    milliseconds = tab.evaluate("performance.now()")
    shift = tab.evaluate("""() => new Promise((resolve) => {
      let sum = 0;
      new PerformanceObserver((list) => { for (const entry of list.getEntries()) sum += entry.value; })
        .observe({ type: 'layout-shift', buffered: true });
      setTimeout(() => resolve(sum), 300);
    })""")
    assert milliseconds < 4000, "a figure for a quiet machine is in docs/page.md"
    assert shift < 0.1, "nothing jumps"
