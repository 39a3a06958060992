"""Forms of JSON: what they read is what the schema says, and what is said under them is always that."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.errors import UsageError
from jielong.generate.automaton import DEAD, MOST_PLACES, Automaton, Builder, Constraint, TokenBytes
from jielong.generate.batching import Batcher
from jielong.generate.json_form import json_automaton
from jielong.generate.requests import Request
from jielong.generate.sampling import Sampling
from jielong.tokenizer.tokenizer import Tokenizer

from .conftest import build_model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 4},
        "age": {"type": "integer"},
        "kind": {"enum": ["a", "b", 3, None, {"x": [1]}]},
        "tags": {"type": "array", "items": {"type": ["boolean", "null"]}, "minItems": 1, "maxItems": 2},
        "size": {"anyOf": [{"type": "number"}, {"const": "large"}]},
    },
    "required": ["kind"],
    "additionalProperties": False,
}


def reads(schema: Any, *texts: str) -> list[bool]:
    form = json_automaton(schema)
    return [form.reads(text.encode()) for text in texts]


def test_objects_by_hand() -> None:
    assert (
        reads(PERSON, '{"kind":"a"}', '{"name": "x", "kind": 3, "tags": [true, null]}', '{"age":-7,"kind":{"x": [1]}}')
        == [True] * 3
    )
    wrong = ['{}', '{"name":"x"}', '{"kind":"c"}', '{"kind":"a","name":"x"}', '{"kind":"a",}', '{"kind":"a"',
             '{"kind":"a"} ',
             '{"name":"","kind":"a"}', '{"name":"01234","kind":"a"}', '{"kind":"a","tags":[]}', '{"kind":"a","x":1}',
             '{"kind":"a","tags":[true,true,true]}', '{ "kind":"a"}', '{"kind":  "a"}']  # fmt: skip
    assert reads(PERSON, *wrong) == [False] * len(wrong)
    optional = {"type": "object", "properties": {"a": {}, "b": {}}}
    assert reads(optional, "{}", '{"a":1}', '{"b":[]}', '{"a":{"x":1},"b":2}') == [True] * 4
    assert reads(optional, '{"b":1,"a":2}', '{,"b":1}', '{"a":1,}', '{"a":1 "b":2}') == [False] * 4
    assert reads({"type": "object", "additionalProperties": False}, "{}", '{"a":1}') == [True, False]


def test_numbers_and_strings_by_hand() -> None:
    numbers = ["0", "-0", "12", "-3.50", "1e5", "0.1E-07", "123456789012345"]
    assert reads({"type": "number"}, *numbers) == [True] * len(numbers)
    none = ["01", "+1", ".5", "5.", "1e", "--1", "", "1.5.2", "1234567890123456", "NaN", "0x1"]
    assert reads({"type": "number"}, *none) == [False] * len(none)
    assert reads({"type": "integer"}, "-12", "1.0", "1e3") == [True, False, False]
    assert reads({"type": "string"}, '""', '"你好 😀"', '"a\\n\\"b"', '"\\u0041"', '"a\nb"', '"a"b"', "'a'") == [
        True, True, True, False, False, False, False,
    ]  # fmt: skip
    form = json_automaton({"type": "string"})
    for broken in (
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b'"\xe4\xbd"',
        b'"\xf4\x90\x80\x80"',
        b'"\xf0\x80\x80\x80"',
    ):
        assert not form.reads(broken)
    assert json_automaton({"type": "string", "maxLength": 1}).reads('"😀"'.encode())  # characters, not bytes


def test_without_a_schema() -> None:
    assert reads(None, "{}", '{"a": [1, {"b": "c"}]}', "[]", "1", '{"a":{"b":{"c":1}}}') == [
        True,
        True,
        False,
        False,
        True,
    ]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=12))
def test_every_text_that_json_writes_is_read(text: str) -> None:
    """But for control characters, which need the one escape that forms leave out."""
    written = json.dumps(text.encode("utf-8", "ignore").decode(), ensure_ascii=False)
    assert json_automaton_of_string.reads(written.encode()) == ("\\u" not in written and "\x7f" not in written)


json_automaton_of_string = json_automaton({"type": "string"})


def walk(form: Automaton, draw: random.Random) -> bytes:
    """A text of the form by chance."""
    state, text = 1, bytearray()
    while True:
        legal = (form.table[state] != DEAD).nonzero()[:, 0].tolist()
        if form.accepts[state] and (not legal or draw.random() < 0.3):
            return bytes(text)
        assert legal, "a dead end"
        closing = [byte for byte in legal if byte in b'"]}' and len(text) > 40]
        text.append(draw.choice(closing or legal))
        state = int(form.table[state, text[-1]])


SCHEMAS: list[Any] = [
    PERSON,
    {"type": "array", "items": PERSON, "maxItems": 2},
    {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "boolean"}}}}},
    {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "number"}, "minItems": 2}]},
    {"const": "a\"\\b"},
    {"type": ["string", "integer"], "maxLength": 3},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_what_is_written_follows_the_schema(schema: Any) -> None:
    """Held to a validator of others."""
    validator = pytest.importorskip("jsonschema_rs").validator_for(schema)
    form, draw = json_automaton(schema), random.Random(0)
    for _ in range(60):
        text = walk(form, draw)
        assert form.reads(text)
        validator.validate(json.loads(text))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string", "pattern": "a"}, "'pattern', which is not supported"),
        ({"type": "string", "format": "date"}, "'format'"),
        ({"$ref": "#/x"}, "schema.type"),
        ({"type": "integer", "minimum": 3}, "'minimum'"),
        ({"type": "thing"}, "legal are object"),
        ({"type": []}, "schema.type"),
        ({"enum": []}, "schema.enum"),
        ({"type": "object", "properties": {"a": {"type": "x"}}}, "schema.properties.a.type is 'x'"),
        ({"type": "object", "properties": {"a": 5}}, "schema.properties.a is 5"),
        ({"type": "object", "properties": [], "required": ["a"]}, "properties"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "none of its properties"),
        ({"type": "string", "maxLength": 10**9}, "schema.maxLength"),
        ({"type": "string", "minLength": -1}, "schema.minLength"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "no text is of this form"),
        ({"type": "array", "items": {"type": "null"}, "maxItems": True}, "schema.maxItems"),
        ({"type": "array", "items": {"type": "string", "maxLength": 400}, "maxItems": 64}, f"{MOST_PLACES} places"),
        ({"anyOf": [{"type": "string", "enum": [str(n) for n in range(300)]}]}, "300 values"),
    ],
)  # fmt: skip
def test_schemas_that_are_refused(schema: Any, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        json_automaton(schema)


def test_nesting_is_bounded() -> None:
    deep: dict[str, Any] = {"type": "null"}
    for _ in range(200):
        deep = {"type": "array", "items": deep, "maxItems": 1}
    with pytest.raises(UsageError, match="nested deeper than 8"):
        json_automaton(deep)
    many: dict[str, Any] = {"type": "null"}
    for _ in range(200):
        many = {"anyOf": [many]}
    with pytest.raises(UsageError, match="nested deeper than 8"):
        json_automaton(many)


def test_masks_are_those_of_each_token_alone(tokenizer: Tokenizer) -> None:
    """A token may come just where the form has a way on over all its bytes; control tokens never; stops at the end."""
    form, stops = json_automaton(PERSON), tokenizer.stop_ids
    constraint = Constraint(form, TokenBytes(tokenizer), stops, {})
    state = 1
    for token in tokenizer.encode('{"name": "你", "kind": "a"}'):
        barred = constraint.barred().tolist()
        for other in range(tokenizer.vocab_size):
            place, piece = state, tokenizer.token_bytes(other)
            for byte in piece:
                place = int(form.table[place, byte])
            legal = bool(form.accepts[state]) if other in stops else bool(piece) and place != DEAD
            assert barred[other] == (not legal), (other, piece)
        assert not barred[token]
        constraint.take(token)
        for byte in tokenizer.token_bytes(token):
            state = int(form.table[state, byte])
    assert {token for token, is_barred in enumerate(constraint.barred().tolist()) if not is_barred} == set(stops)


def test_a_vocabulary_that_cannot_go_on_ends_the_reply(tokenizer: Tokenizer) -> None:
    builder = Builder()
    start = builder.state()
    end = builder.state()
    builder.byte(start, end, b"x")
    tokens = TokenBytes(tokenizer)
    tokens.table[ord("x")] = -1
    tokens.is_empty[ord("x")] = True
    constraint = Constraint(Automaton(builder, start, end), tokens, tokenizer.stop_ids, {})
    free = [token for token in range(tokenizer.vocab_size) if not constraint.barred()[token]]
    assert set(free) <= {
        *tokenizer.stop_ids,
        *(t for t in range(tokenizer.vocab_size) if tokenizer.token_bytes(t) == b"x"),
    }


def test_replies_under_a_form(tokenizer: Tokenizer) -> None:
    """Two replies that must be of a form, beside one that need not, at every temperature: of the form, and the third
    what it is alone."""
    schema = {"type": "object", "properties": {"k": {"enum": ["a", "bc"]}, "n": {"type": "boolean"}}, "required": ["n"]}
    form, tokens, masks = json_automaton(schema), TokenBytes(tokenizer), dict[int, torch.Tensor]()
    batcher = Batcher(build_model(tokenizer), tokenizer, max_rows=3)
    for temperature in (0.0, 1.0, 2.0):
        free = Request((5, 6), 20, Sampling(temperature), seed=3)
        formed = [
            Request(
                (5, seed),
                30,
                Sampling(temperature),
                seed,
                constraint=Constraint(form, tokens, tokenizer.stop_ids, masks),
            )
            for seed in (1, 2)
        ]
        alone = collect(batcher, [free])
        found = collect(batcher, [formed[0], free, formed[1]])
        assert found[1] == alone[0]
        for text, reason in (found[0], found[2]):
            assert reason == "stop" and form.reads(text.encode()) and isinstance(json.loads(text)["n"], bool)


def collect(batcher: Batcher, requests: list[Request]) -> list[tuple[str, str | None]]:
    numbers = [batcher.submit(request) for request in requests]
    texts, reasons = dict.fromkeys(numbers, ""), dict[int, str | None]()
    while not batcher.is_idle:
        for delta in batcher.step():
            texts[delta.request] += delta.text
            reasons[delta.request] = delta.finish_reason
    return [(texts[number], reasons[number]) for number in numbers]
