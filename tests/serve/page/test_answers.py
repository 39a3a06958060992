"""An answer's tokens on the page: the same spans however the server puts them together."""

from __future__ import annotations

import codecs
import random
from typing import Any

TEXTS = ["你好，接龙！😀 the cat", "naïve café — 한국어", "\ufeffbegins with a mark", "emoji 👩‍👩‍👧 family\nnext line"]
BROKEN = [b"\xe4", b"\xbd", b"\xff", b"\xf0\x9f", b"\xc3("]
RUN = """async (cases) => {
  const { Cutter } = await import('/web/chat/answers.js');
  return cases.map((events) => {
    const cutter = new Cutter();
    return events.flatMap(({ text, entries }) => cutter.take(text, entries));
  });
}"""


def pieces_of(text: str, draw: random.Random) -> list[bytes]:
    """Tokens as a byte-level vocabulary may have them: cuts in characters and across them, and broken bytes between."""
    content, tokens = text.encode(), []
    while content:
        size = draw.choice((1, 1, 2, 3, 4, 7))
        tokens.append(content[:size])
        content = content[size:]
        if draw.random() < 0.15:
            tokens.append(draw.choice(BROKEN))
    return tokens + [draw.choice(BROKEN)] * draw.randint(0, 2)


def events_of(tokens: list[bytes], sizes: list[int]) -> list[dict[str, Any]]:
    """What the server sends: `sizes` tokens together, each event with the text that has become certain."""
    decoder, events, place = codecs.getincrementaldecoder("utf-8")(errors="replace"), [], 0
    for size in sizes:
        group = range(place, place + size)
        text = "".join(decoder.decode(tokens[number]) for number in group)
        events.append({"text": text, "entries": [["", -0.5, [], number, list(tokens[number])] for number in group]})
        place += size
    events[-1]["text"] += decoder.decode(b"", final=True)
    return events


def random_sizes(num: int, draw: random.Random) -> list[int]:
    sizes = []
    while num:
        sizes.append(min(num, draw.choice((1, 1, 2, 3, 5, 20))))
        num -= sizes[-1]
    return sizes


def test_any_cuts_give_the_spans_of_one_token_at_a_time(modules: Any) -> None:
    draw, cases, expected = random.Random(0), [], []
    for number in range(160):
        tokens = pieces_of(TEXTS[number % len(TEXTS)], draw)
        cases.append(events_of(tokens, random_sizes(len(tokens), draw)))
        expected.append(events_of(tokens, [1] * len(tokens)))
    together, one_by_one = modules.evaluate(RUN, cases), modules.evaluate(RUN, expected)
    assert together == one_by_one
    for events, spans in zip(expected, one_by_one, strict=True):
        assert "".join(text for text, _ in spans) == "".join(event["text"] for event in events)
        told = [entry[3] for _, entries in spans for entry in entries]
        assert told == list(range(len(events))), "every token stands in one span, in order"
    assert any(len(entries) > 1 for spans in one_by_one for _, entries in spans)


def test_text_that_the_tokens_do_not_spell_is_one_span(modules: Any) -> None:
    """A stop word that begins in the middle of a token; and no tokens at all."""
    entries = [[word, -0.5, [], number] for number, word in enumerate(("one", " two", " three"))]
    [cut, bare, again] = modules.evaluate(
        RUN,
        [
            [{"text": "one t", "entries": entries[:2]}, {"text": "wo", "entries": []}],
            [{"text": "one", "entries": []}, {"text": " two", "entries": []}],
            [{"text": "on", "entries": entries[:1]}, {"text": " two", "entries": entries[1:2]}],
        ],
    )
    assert cut == [["one", entries[:1]], [" t", entries[1:2]], ["wo", []]]
    assert bare == [["one", []], [" two", []]]
    assert again == [["on", entries[:1]], [" two", entries[1:2]]]
