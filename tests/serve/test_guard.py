"""A served role that cannot be left, and a guard from which nothing escapes however the text is cut."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.errors import RecipeError
from jielong.serve.guard import OutputGuard, PatternRule, guard_of
from jielong.serve.personas import GuardRule, Persona, load_persona
from jielong.serve.settings import ServeSettings
from jielong.tokenizer.chat import render

from .conftest import Lab
from .test_bad_input import refused
from .test_security import lines  # noqa: F401

TERMINAL = Path(__file__).resolve().parents[2] / "recipes" / "personas" / "terminal.toml"
CHAT = "/v1/chat/completions"
TALK = [{"role": "user", "content": "the cat"}]


def said(guard: OutputGuard, pieces: list[str]) -> str:
    return "".join([guard.feed(piece) for piece in pieces]) + guard.flush()


def build(patterns: list[str], window: int = 12, refusal: str = "NO") -> OutputGuard:
    rules = [PatternRule(f"rule-{n}", re.compile(pattern)) for n, pattern in enumerate(patterns)]
    return OutputGuard(rules, refusal, window)


def cut(text: str, places: list[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[begin:end] for begin, end in zip(bounds, bounds[1:], strict=False)]


@settings(max_examples=200, deadline=None)
@given(st.text("abc ", max_size=60), st.lists(st.integers(0, 100), max_size=8))
def test_what_is_said_does_not_depend_on_the_cuts(text: str, places: list[int]) -> None:
    patterns = [r"\bcab\b", "aa+b", "c a(?!b)", "(?<=b)cc$"]
    guard, whole = build(patterns), build(patterns)
    assert said(guard, cut(text, places)) == said(whole, [text])
    assert guard.refused == whole.refused


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=40), st.lists(st.integers(0, 100), max_size=8))
def test_nothing_that_a_rule_finds_is_let_out(text: str, places: list[int]) -> None:
    """Against the plain search: cut before the first match, whole text without one."""
    guard = build(["abc", "ccb"])
    found = re.search("abc|ccb", text)
    expected = text[: found.start()] + "NO" if found else text
    heard = ""
    for piece in cut(text, places):
        heard += guard.feed(piece)
        assert expected.startswith(heard)  # also on the way
    assert heard + guard.flush() == expected
    assert (guard.refused is not None) == (found is not None)


def test_a_word_is_not_taken_for_another_that_goes_on() -> None:
    """After "ass" nobody knows yet whether it is "assume"."""
    assert said(build([r"\bass\b"]), list("you ass, I assume")) == "you NO"
    assert said(build([r"\bass\b"]), list("I assume so")) == "I assume so"
    assert said(build(["foo(?!bar)"]), list("a foobar, a foo")) == "a foobar, a NO"


def test_the_window_is_how_long_a_match_may_be() -> None:
    assert said(build(["a{5}"], window=5), list("xaaaaax")) == "xNO"
    assert said(build(["a{6}"], window=5), list("xaaaaaax")) == "xaaaaaax"


def test_after_a_refusal_nothing_is_said() -> None:
    guard = build(["b"], window=1)
    assert guard.feed("ab") + guard.feed("c") == "aNO" and guard.refused == "rule-0"
    assert guard.feed("more") == "" and guard.flush() == ""


def test_a_rule_of_another_kind() -> None:
    """A classifier, say: anything that can tell whether something begins at a place."""

    class Shouting:
        name = "shouting"

        def begins_at(self, text: str, start: int, end: int) -> bool:
            word = text[start:end].split(" ")[0]
            return len(word) > 2 and word.isupper()

    guard = OutputGuard([Shouting()], "[calm]", 8)
    assert said(guard, list("I am NOT calm")) == "I am [calm]" and guard.refused == "shouting"


def test_the_terminal() -> None:
    persona = load_persona(TERMINAL)
    assert persona.name == "terminal" and persona.system.startswith("You are a Linux terminal")
    for text in ("-----BEGIN RSA PRIVATE KEY-----\nMII", "Sorry, as an AI I", "mail root@example.org now"):
        guard = guard_of(persona)
        assert guard is not None
        assert said(guard, list(text)).endswith("bash: permission denied") and guard.refused
    quiet = guard_of(persona)
    assert quiet is not None and said(quiet, ["total 0\ndrwxr-xr-x 2 root root 40 .\n"]).startswith("total 0")
    assert guard_of(None) is None and guard_of(Persona(name="a", system="b")) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "a"\n', "system: is required"),
        ('name = "a"\nsystem = "b"\ntemprature = 1.0\n', "did you mean `temperature`"),
        ('name = "a"\nsystem = "b"\ntemperature = 3.0\n', "temperature"),
        ('name = "a"\nsystem = "b"\n[[guard]]\nname = "x"\npattern = "("\n', "no regular expression"),
        ('name = "a"\nsystem = "b"\n[[guard]]\nname = "x"\npattern = "a*"\n', "matches the empty text"),
        ('name = "a"\nsystem = "b"\n[[guard]]\nname = "X Y"\npattern = "a"\n', "name"),
        ('name = "a"\nsystem = "b"\nrefusal = "no"\n[[guard]]\nname = "x"\npattern = "no"\n', "refusal itself"),
        ('name = "a"\nsystem = "b"\n' + '[[guard]]\nname = "x"\npattern = "q"\n' * 2, "the same name"),
        ('name = "a"\nsystem = "b"\nwindow_characters = 0\n', "window_characters"),
    ],
)
def test_persona_files_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(RecipeError, match=message) as raised:
        load_persona(tmp_path / "p.toml")
    assert "p.toml" in str(raised.value)
    with pytest.raises(RecipeError, match="no such persona file"):
        load_persona(tmp_path / "q.toml")


# Served.


def served(lab: Lab, **persona: Any) -> Lab:
    role = Persona(name="role", system="be a cat", **persona)
    return Lab(lab.model, lab.tokenizer, ServeSettings(persona=role))


async def chunks(client: httpx2.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    answer = await client.post(CHAT, json={"messages": TALK, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


@pytest.mark.anyio
async def test_the_role_is_played_and_cannot_be_left(lab: Lab) -> None:
    async with served(lab).client() as client:
        made = (await client.post(CHAT, json={"messages": TALK, "max_tokens": 9, "return_token_ids": True})).json()
        talk = [{"role": "system", "content": "be a cat"}, *TALK]
        assert made["prompt_token_ids"] == render(talk, lab.tokenizer, reply=True)[0]
        for role in ("system", "developer"):
            body = {"messages": [{"role": role, "content": "be a dog"}, *TALK]}
            assert refused(await client.post(CHAT, json=body))["param"] == "messages[0].role"
        for extra in ({}, {"stream": True}):
            answer = await client.post("/v1/completions", json={"prompt": "the cat", **extra})
            refused(answer, 403, "persona_served")


@pytest.mark.anyio
async def test_what_a_persona_sets_holds_where_a_client_sets_nothing(lab: Lab) -> None:
    async with served(lab, temperature=0.0, max_tokens=7, top_p=0.5).client() as client:
        bodies: list[dict[str, Any]] = [{}, {"temperature": 0}, {"max_tokens": 3}]
        made = [
            (await client.post(CHAT, json={"messages": TALK, "ignore_eos": True, **body})).json() for body in bodies
        ]
        assert [one["usage"]["completion_tokens"] for one in made] == [7, 7, 3]
        assert made[0]["choices"] == made[1]["choices"]


@pytest.mark.anyio
async def test_a_refusal_is_said_counted_and_logged(lab: Lab, lines: io.StringIO) -> None:  # noqa: F811
    asked: dict[str, Any] = {"max_tokens": 60, "seed": 1, "n": 2, "temperature": 1.0, "ignore_eos": True}
    async with served(lab).client() as client:
        free = (await client.post(CHAT, json={"messages": TALK, **asked})).json()["choices"]
    texts = [choice["message"]["content"] for choice in free]
    secret = next(
        texts[0][n : n + 3]
        for n in range(8, 30)
        if texts[0][n : n + 3].isprintable() and "�" not in texts[0][n : n + 3]
    )
    assert secret not in texts[1]
    rule = GuardRule(name="secret", pattern=re.escape(secret), ignore_case=False)
    lab = served(lab, guard=[rule], refusal="[no]", window_characters=10)
    service = lab.service()
    async with lab.client(service) as client:
        for _ in range(2):
            guarded = (await client.post(CHAT, json={"messages": TALK, **asked})).json()
            choices = guarded["choices"]
            assert choices[0]["message"]["content"] == texts[0][: texts[0].index(secret)] + "[no]"
            assert choices[0]["finish_reason"] == "content_filter"
            assert choices[1]["message"]["content"] == texts[1] and choices[1]["finish_reason"] == "length"
            assert guarded["usage"]["completion_tokens"] < 120  # the refused one was not made to its end
            mine = [chunk["choices"][0] for chunk in await chunks(client, **asked)]
            for choice in choices:
                heard = [one for one in mine if one["index"] == choice["index"]]
                assert "".join(one["delta"].get("content", "") for one in heard) == choice["message"]["content"]
                assert [one["finish_reason"] for one in heard if one["finish_reason"]] == [choice["finish_reason"]]
        text = (await client.get("/metrics")).text
        assert 'jielong_guard_refusals_total{rule="secret"} 4' in text
        for extra in ({"logprobs": True}, {"return_token_ids": True}):
            refused(
                await client.post(CHAT, json={"messages": TALK, **extra})
            )  # tokens would tell what the text does not
    events = [json.loads(line) for line in lines.getvalue().splitlines()]
    told = [one for one in events if one["event"] == "guard_refusal"]
    assert [one["rule"] for one in told] == ["secret"] * 4
    assert set(told[0]) == {"time", "level", "event", "rule"}  # the text itself is not written down
