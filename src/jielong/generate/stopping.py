"""Text as it becomes certain: whole characters, and nothing that belongs to a stop string or may yet begin one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jielong.tokenizer.tokenizer import TextStream, Tokenizer


class StoppedText:
    """Ids in, text out, up to the first stop string.

    after: ids that stand before them, as for `TextStream`. All pieces joined are the text of the ids, cut before the
    first place where a stop string stands. A stop that is completed by a token ends the text, also where a longer one
    that begins earlier might have been completed by a later token.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], after: Iterable[int] = ()) -> None:
        self._stream = TextStream(tokenizer, after)
        self._stop = tuple(stop)
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False

    def feed(self, token_id: int, may_stop: bool = True) -> str:
        """The text that this token makes certain. may_stop: False lets stop strings pass."""
        piece = self._stream.feed(token_id)
        return self._release(piece, may_stop) if self._stop else piece

    def flush(self) -> str:
        """What is left at the end, a character that was never completed as U+FFFD; "" after a stop string."""
        if self.stopped:
            return ""
        text = self._release(self._stream.flush(), True) if self._stop else self._stream.flush()
        rest, self._held = self._held, ""
        return text if self.stopped else text + rest

    def _release(self, piece: str, may_stop: bool) -> str:
        text, self._held = self._held + piece, ""
        if not may_stop:
            return text
        places = [place for place in map(text.find, self._stop) if place >= 0]
        if places:
            self.stopped = True
            return text[: min(places)]
        num_held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, shorter than it."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
