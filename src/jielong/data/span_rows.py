"""Questions on a text whose answer is a piece of it, as rows for an encoder: [CLS] question [SEP] context [SEP].

A context that is longer than a row is read through several windows, half of each overlapping the one before; nothing is
cut. To learn from, an example has one row, a window that holds the answer; to be examined it has all.
Source: Devlin et al. 2018, arXiv:1810.04805, section 4.2; google-research/bert, run_squad.py. Different here: windows
without the answer do not teach (theirs point to [CLS]).
"""

from __future__ import annotations

from collections.abc import Sequence

from jielong.data.labelled import Example
from jielong.data.task_rows import Frame, TaskRows
from jielong.tokenizer.tokenizer import Tokenizer

MAX_QUESTION_SHARE = 0.5  # of a row; a longer question is cut


def span_rows(examples: Sequence[Example], tokenizer: Tokenizer, frame: Frame, teach: bool) -> list[TaskRows | None]:
    """The rows of every example; with teach=True None for one whose answer fits into no window."""
    return [_rows(example, tokenizer, frame, teach) for example in examples]


def _rows(example: Example, tokenizer: Tokenizer, frame: Frame, teach: bool) -> TaskRows | None:
    context, question_text = example.texts
    whole = tokenizer.encode(question_text)
    question = whole[: int(frame.row_tokens * MAX_QUESTION_SHARE)]
    ids = tokenizer.encode(context)
    starts = token_starts(ids, context, tokenizer)
    first, last = answer_tokens(starts, int(example.label), len(example.answers[0]))
    room = frame.row_tokens - 3 - len(question)
    begins = list(range(0, max(1, len(ids) - room // 2), max(1, room // 2)))
    if teach:
        # The window in which the answer stands nearest to the middle.
        holding = [begin for begin in begins if begin <= first and last < begin + room]
        if not holding:
            return None
        begins = [min(holding, key=lambda begin: abs(2 * begin + room - first - last))]
    offset = len(question) + 2
    rows, types, places, characters = [], [], [], []
    for begin in begins:
        row, kinds, cut = frame.row(question, ids[begin : begin + room])
        assert not cut
        rows.append(row)
        types.append(kinds)
        places.append((offset, len(row) - 1))
        characters.append(tuple(starts[begin : begin + room + 1]))
    label = (offset + first - begins[0], offset + last - begins[0]) if teach else (0, 0)
    truncated = len(whole) > len(question)
    return TaskRows(tuple(rows), tuple(types), label, truncated, tuple(places), tuple(characters))


def token_starts(ids: Sequence[int], text: str, tokenizer: Tokenizer) -> list[int]:
    """The character of the text at which each token begins, and behind the last one the length of the text.

    Where tokens spell the text's bytes this is exact; where the tokenizer changes the text (lower case, blanks taken
    out), characters are looked for in order and what cannot be found takes no room.
    """
    pieces = [tokenizer.token_bytes(token) for token in ids]
    if b"".join(pieces) == text.encode("utf-8", "replace"):
        return _by_bytes(pieces, text)
    starts: list[int] = []
    place, lowered = 0, text.lower() if len(text.lower()) == len(text) else text
    for piece in pieces:
        word = piece.decode("utf-8", errors="ignore").strip().lower()
        found = lowered.find(word, place) if word else -1
        place = found if found >= 0 else place
        starts.append(place)
        place += len(word) if found >= 0 else 0
    return [*starts, len(text)]


def _by_bytes(pieces: Sequence[bytes], text: str) -> list[int]:
    numbers: dict[int, int] = {}  # of the byte at which a character begins -> the character's
    place = 0
    for number, character in enumerate(text):
        numbers[place] = number
        place += len(character.encode("utf-8", "replace"))
    numbers[place] = len(text)
    starts, place = [], 0
    for piece in pieces:
        begin = place
        while begin not in numbers:  # half a character: it begins where that character does
            begin -= 1
        starts.append(numbers[begin])
        place += len(piece)
    return [*starts, len(text)]


def answer_tokens(starts: Sequence[int], begin: int, length: int) -> tuple[int, int]:
    """(first, last) token of the characters begin .. begin + length - 1, given where each token begins."""
    num_tokens = len(starts) - 1
    first = max((number for number in range(num_tokens) if starts[number] <= begin), default=0)
    last = max((number for number in range(num_tokens) if starts[number] < begin + length), default=first)
    return first, max(first, last)
