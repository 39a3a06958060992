"""A JSON schema as a form of texts: a bounded part of JSON Schema, in which nothing is said without end.

What is written is JSON in one line, a blank allowed behind ":" and ",". An object has its properties in the order of
the schema, and no others. Without a schema, nesting is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jielong.errors import UsageError
from jielong.generate.automaton import Automaton, Builder

MOST_DEPTH = 8
FREE_DEPTH, INNER_FREE_DEPTH = 3, 1  # nesting of a value of which nothing is said: as the whole, and inside
MOST_CHARACTERS = 400  # of a string with maxLength
MOST_ITEMS = 64  # of an array with maxItems
MOST_CHOICES = 200
DIGITS = 15

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_SAID = {"$schema", "title", "description", "default", "examples", "strict", "$id", "$comment"}  # about it, not of it
_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
}
_DIGITS = range(ord("0"), ord("9") + 1)
_TAIL = range(0x80, 0xC0)
# First bytes of characters, and what the second may be: no overlong form, no surrogate, nothing beyond U+10FFFF.
_LONGER = (
    (range(0xC2, 0xE0), _TAIL, 0),
    ((0xE0,), range(0xA0, 0xC0), 1),
    ((*range(0xE1, 0xED), 0xEE, 0xEF), _TAIL, 1),
    ((0xED,), range(0x80, 0xA0), 1),
    ((0xF0,), range(0x90, 0xC0), 2),
    (range(0xF1, 0xF4), _TAIL, 2),
    ((0xF4,), range(0x80, 0x90), 2),
)


def json_automaton(schema: Mapping[str, Any] | None) -> Automaton:
    """The automaton of all texts that follow the schema; None: any object.

    Raises UsageError naming the keyword, and where it stands, that is not supported or out of bounds.
    """
    form = _Form()
    start = form.build.state()
    whole = {"type": "object"} if schema is None else schema
    end = form.value(start, whole, "schema", MOST_DEPTH)
    return Automaton(form.build, start, end)


class _Form:
    """Each method draws from the state `start` and gives the state behind."""

    def __init__(self) -> None:
        self.build = Builder()

    def value(self, start: int, schema: object, where: str, depth: int) -> int:
        if schema is True or schema == {}:
            return self.any_value(start, _free(depth))
        if not isinstance(schema, Mapping):
            raise UsageError(f"{where} is {schema!r:.60}; it must be an object")
        if depth == 0:
            raise UsageError(f"{where} is nested deeper than {MOST_DEPTH}")
        if "enum" in schema or "const" in schema:
            _only(schema, {"enum", "const", "type"}, where)
            return self.choice(start, schema, where)
        if "anyOf" in schema:
            _only(schema, {"anyOf"}, where)
            options = _list(schema["anyOf"], f"{where}.anyOf")
            return self.either(
                start, [self._drawing(one, f"{where}.anyOf[{n}]", depth) for n, one in enumerate(options)]
            )
        kinds = schema.get("type")
        kinds = [kinds] if isinstance(kinds, str) else _list(kinds, f"{where}.type")
        wrong = next((kind for kind in kinds if kind not in _TYPES), None)
        if wrong is not None:
            raise UsageError(f"{where}.type is {wrong!r:.60}; legal are {', '.join(_TYPES)}")
        _only(schema, {"type"}.union(*(_KEYWORDS.get(kind, set()) for kind in kinds)), where)
        return self.either(start, [self._kind(kind, schema, where, depth) for kind in kinds])

    def _drawing(self, schema: object, where: str, depth: int) -> Callable[[int], int]:
        return lambda start: self.value(start, schema, where, depth - 1)

    def _kind(self, kind: str, schema: Mapping[str, Any], where: str, depth: int) -> Callable[[int], int]:
        if kind == "object":
            return lambda start: self.object(start, schema, where, depth)
        if kind == "array":
            return lambda start: self.array(start, schema, where, depth)
        if kind == "string":
            least = _bound(schema, "minLength", 0, MOST_CHARACTERS, where)
            most = _bound(schema, "maxLength", None, MOST_CHARACTERS, where)
            return lambda start: self.string(start, least or 0, most)
        if kind == "boolean":
            return lambda start: self.either(start, [self._word("true"), self._word("false")])
        if kind == "null":
            return self._word("null")
        return lambda start: self.number(start, kind == "integer")

    def _word(self, word: str) -> Callable[[int], int]:
        return lambda start: self.build.text(start, word)

    def either(self, start: int, options: Sequence[Callable[[int], int]]) -> int:
        end = self.build.state()
        for draw in options:
            begin = self.build.state()
            self.build.skip(start, begin)
            self.build.skip(draw(begin), end)
        return end

    def choice(self, start: int, schema: Mapping[str, Any], where: str) -> int:
        values = [schema["const"]] if "const" in schema else _list(schema["enum"], f"{where}.enum")
        if len(values) > MOST_CHOICES:
            raise UsageError(f"{where}.enum has {len(values)} values; {MOST_CHOICES} are legal")
        return self.either(start, [self._word(json.dumps(value, ensure_ascii=False)) for value in values])

    def object(self, start: int, schema: Mapping[str, Any], where: str, depth: int) -> int:
        properties = schema.get("properties")
        if properties is None and schema.get("additionalProperties", True) is not False:
            return self.any_object(start, _free(depth))
        if not isinstance(properties or {}, Mapping):
            raise UsageError(f"{where}.properties must be an object")
        required = _list(schema.get("required", []) or [None], f"{where}.required")
        missing = [name for name in required if name is not None and name not in (properties or {})]
        if missing:
            raise UsageError(f"{where}.required names {missing[0]!r:.60}, which is none of its properties")
        end, closing = self.build.state(), self.build.state()
        none_yet: int | None = self.build.text(start, "{")
        some: int | None = None
        for name, inner in (properties or {}).items():
            begin, behind = self.build.state(), self.build.state()
            if none_yet is not None:
                self.build.skip(none_yet, begin)
            if some is not None:
                self.build.skip(self.separator(some, ","), begin)
            key = self.separator(self.build.text(begin, json.dumps(name, ensure_ascii=False)), ":")
            self.build.skip(self.value(key, inner, f"{where}.properties.{name}", depth - 1), behind)
            if name in required:
                none_yet = None
            elif some is not None:
                self.build.skip(some, behind)
            some = behind
        for last in (none_yet, some):
            if last is not None:
                self.build.skip(last, closing)
        self.build.skip(self.build.text(closing, "}"), end)
        return end

    def array(self, start: int, schema: Mapping[str, Any], where: str, depth: int) -> int:
        least = _bound(schema, "minItems", 0, MOST_ITEMS, where) or 0
        most = _bound(schema, "maxItems", None, MOST_ITEMS, where)
        inner = schema.get("items", True)

        def item(begin: int) -> int:
            return self.value(begin, inner, f"{where}.items", depth - 1)

        return self.listed(start, "[]", item, least, most)

    def listed(self, start: int, brackets: str, item: Callable[[int], int], least: int, most: int | None) -> int:
        """Items with commas between, in brackets; without `most` the last one may come again and again."""
        place, end = self.build.text(start, brackets[0]), self.build.state()
        closing = self.build.state()
        if least == 0:
            self.build.skip(place, closing)
        for number in range(1, (max(least, 1) if most is None else most) + 1):
            begin = self.build.state()
            self.build.skip(place if number == 1 else self.separator(place, ","), begin)
            place = item(begin)
            if number >= least:
                self.build.skip(place, closing)
        if most is None:
            self.build.skip(self.separator(place, ","), begin)
        self.build.skip(self.build.text(closing, brackets[1]), end)
        return end

    def separator(self, start: int, mark: str) -> int:
        """A comma or colon, and perhaps a blank."""
        place, end = self.build.text(start, mark), self.build.state()
        self.build.skip(place, end)
        self.build.byte(place, end, b" ")
        return end

    def string(self, start: int, least: int = 0, most: int | None = None) -> int:
        place, closing = self.build.text(start, '"'), self.build.state()
        for _ in range(least if most is None else 0):
            place = self.character(place, self.build.state())
        if most is None:
            self.build.skip(place, closing)
            self.character(place, place)
        else:
            for number in range(most + 1):
                if number >= least:
                    self.build.skip(place, closing)
                if number < most:
                    place = self.character(place, self.build.state())
        return self.build.text(closing, '"')

    def character(self, start: int, end: int) -> int:
        """One character of a string, as it is or escaped."""
        self.build.byte(start, end, set(range(0x20, 0x7F)) - set(b'"\\'))
        escape = self.build.text(start, "\\")
        self.build.byte(escape, end, b'"\\/bfnrt')
        for first, second, num_more in _LONGER:
            place = self.build.state()
            self.build.byte(start, place, first)
            *inner, last = [second, *[_TAIL] * num_more]
            for legal in inner:
                following = self.build.state()
                self.build.byte(place, following, legal)
                place = following
            self.build.byte(place, end, last)
        return end

    def digits(self, start: int, most: int) -> int:
        """One to `most` digits."""
        end = self.build.state()
        for _ in range(most):
            following = self.build.state()
            self.build.byte(start, following, _DIGITS)
            self.build.skip(following, end)
            start = following
        return end

    def number(self, start: int, whole: bool) -> int:
        sign, end = self.build.state(), self.build.state()
        self.build.skip(start, sign)
        self.build.byte(start, sign, b"-")
        units = self.build.state()
        self.build.byte(sign, units, b"0")
        more = self.build.state()
        self.build.byte(sign, more, b"123456789")
        self.build.skip(more, units)
        self.build.skip(self.digits(more, DIGITS - 1), units)
        self.build.skip(units, end)
        if not whole:
            fraction = self.digits(self.build.text(units, "."), DIGITS)
            self.build.skip(fraction, end)
            for place in (units, fraction):
                exponent = self.build.state()
                self.build.byte(place, exponent, b"eE")
                signed = self.build.state()
                self.build.skip(exponent, signed)
                self.build.byte(exponent, signed, b"+-")
                self.build.skip(self.digits(signed, 2), end)
        return end

    def any_value(self, start: int, depth: int) -> int:
        scalars = [self._kind(kind, {}, "", 1) for kind in ("string", "number", "boolean", "null")]
        if depth > 0:
            scalars += [lambda begin: self.any_object(begin, depth), lambda begin: self.any_array(begin, depth)]
        return self.either(start, scalars)

    def any_object(self, start: int, depth: int) -> int:
        def item(begin: int) -> int:
            return self.any_value(self.separator(self.string(begin), ":"), depth - 1)

        return self.listed(start, "{}", item, 0, None)

    def any_array(self, start: int, depth: int) -> int:
        return self.listed(start, "[]", lambda begin: self.any_value(begin, depth - 1), 0, None)


def _free(depth: int) -> int:
    return FREE_DEPTH if depth == MOST_DEPTH else min(depth, INNER_FREE_DEPTH)


def _only(schema: Mapping[str, Any], legal: set[str], where: str) -> None:
    wrong = next((key for key in schema if key not in legal | _SAID), None)
    if wrong is not None:
        raise UsageError(
            f"{where} holds {wrong!r:.60}, which is not supported here; legal are {', '.join(sorted(legal))}"
        )


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where} is {value!r:.60}; it must be a list that is not empty")
    return value


def _bound(schema: Mapping[str, Any], key: str, default: int | None, most: int, where: str) -> int | None:
    value = schema.get(key, default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most):
        raise UsageError(f"{where}.{key} is {value!r:.60}; legal are whole numbers from 0 to {most}")
    return value
