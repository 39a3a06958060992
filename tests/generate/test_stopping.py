from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.generate.stopping import StoppedText
from jielong.tokenizer.tokenizer import Tokenizer

BYTES = Tokenizer.from_merges([])  # an id for each byte


def feed(text: str, stop: tuple[str, ...]) -> tuple[list[str], bool]:
    stopped = StoppedText(BYTES, stop)
    pieces = []
    for token in text.encode():
        pieces.append(stopped.feed(token))
        if stopped.stopped:
            break
    return [piece for piece in [*pieces, stopped.flush()] if piece], stopped.stopped


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("abé", max_size=14),
    stop=st.lists(st.text("abé", min_size=1, max_size=4), min_size=0, max_size=3).map(tuple),
)
def test_the_text_ends_before_the_stop_that_is_complete_first(text: str, stop: tuple[str, ...]) -> None:
    """Character by character, the oracle: the shortest beginning that holds a stop string, cut before that."""
    pieces, stopped = feed(text, stop)
    ends = [end for end in range(len(text) + 1) if any(word in text[:end] for word in stop)]
    if not ends:
        assert ("".join(pieces), stopped) == (text, False)
        return
    beginning = text[: ends[0]]
    assert stopped
    assert "".join(pieces) == beginning[: min(place for place in map(beginning.find, stop) if place >= 0)]


@settings(max_examples=200, deadline=None)
@given(text=st.text("abc", max_size=12), stop=st.text("abc", min_size=1, max_size=4))
def test_no_text_is_held_longer_than_needed(text: str, stop: str) -> None:
    """After each token, what is held back is the longest end that a stop string could begin with."""
    stopped, told = StoppedText(BYTES, (stop,)), ""
    for place, token in enumerate(text.encode(), 1):
        told += stopped.feed(token)
        if stopped.stopped:
            return
        held = text[len(told) : place]
        longest = max(size for size in range(len(stop)) if text[:place].endswith(stop[:size]))
        assert held == text[place - longest : place]


def test_nothing_comes_after_a_stop() -> None:
    assert feed("one\nétwo", ("\né",)) == (["o", "n", "e"], True)
    assert feed("aab", ("ab",)) == (["a"], True)
    half = StoppedText(BYTES, ("x",))
    assert half.feed("é".encode()[0]) == "" and half.flush() == "\N{REPLACEMENT CHARACTER}"
