"""Texts of a given form, byte by byte: a small automaton that says which bytes, and which tokens, may come next.

Forms are put together from `Builder` (a nondeterministic automaton: states, arrows for bytes, arrows for nothing) and
made into an `Automaton`, a table with one row a state. Nothing in it can count without end: a form has as many states
as it has places, so it must be small.
Source: the construction of Thompson, 1968; the subset construction of Rabin and Scott, 1959.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from jielong.errors import UsageError
from jielong.tokenizer.tokenizer import Tokenizer

MOST_PLACES = 4000  # of a form; a schema that needs more is refused
MOST_STATES = 2000
DEAD = 0


class Builder:
    """A form under construction. A state is a number; a piece is drawn between two states."""

    def __init__(self) -> None:
        self.arrows: list[list[tuple[frozenset[int], int]]] = []  # state -> (bytes, next state)
        self.free: list[list[int]] = []  # state -> next states for nothing

    def state(self) -> int:
        """A new state. Raises UsageError when there are too many."""
        if len(self.arrows) == MOST_PLACES:
            raise UsageError(f"the form needs more than {MOST_PLACES} places; make it smaller")
        self.arrows.append([])
        self.free.append([])
        return len(self.arrows) - 1

    def skip(self, start: int, end: int) -> None:
        """From start to end with nothing."""
        self.free[start].append(end)

    def byte(self, start: int, end: int, legal: Iterable[int]) -> None:
        """From start to end with one of these bytes."""
        self.arrows[start].append((frozenset(legal), end))

    def text(self, start: int, text: str) -> int:
        """Exactly this text from start on; the state behind it."""
        for byte in text.encode("utf-8"):
            end = self.state()
            self.byte(start, end, (byte,))
            start = end
        return start

    def closure(self, states: Iterable[int]) -> frozenset[int]:
        """These states and all that nothing leads to."""
        seen, waiting = set(states), list(states)
        while waiting:
            for target in self.free[waiting.pop()]:
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
        return frozenset(seen)


class Automaton:
    """table (S, 256) int64: state and byte -> state; row 0 is where no text of the form begins so. accepts (S,) bool.

    The first state is 1.
    """

    def __init__(self, builder: Builder, start: int, end: int) -> None:
        """A text of the form leads from start to end. Raises UsageError when there is none, or they need too much."""
        rows, members = _determined(builder, start)
        self.accepts = torch.tensor([end in group for group in members])
        alive = _alive(rows, self.accepts.tolist())
        if 1 not in alive:
            raise UsageError("no text is of this form: it asks for more than it allows")
        self.table = torch.tensor([[target if target in alive else DEAD for target in row] for row in rows])

    def reads(self, text: bytes) -> bool:
        """Whether the text is of the form."""
        state = 1
        for byte in text:
            state = int(self.table[state, byte])
        return bool(self.accepts[state])


def _determined(builder: Builder, start: int) -> tuple[list[list[int]], list[frozenset[int]]]:
    """(the table, the builder's states that each row stands for)."""
    rows = [[DEAD] * 256]
    first = builder.closure([start])
    numbers, waiting, members = {first: 1}, deque([first]), [frozenset[int]()]
    while waiting:
        members.append(waiting.popleft())
        targets: dict[int, set[int]] = {}
        for state in members[-1]:
            for legal, target in builder.arrows[state]:
                for byte in legal:
                    targets.setdefault(byte, set()).add(target)
        row, known = [DEAD] * 256, dict[frozenset[int], int]()
        for byte, found in targets.items():
            key = frozenset(found)
            if key not in known:
                closed = builder.closure(key)
                if closed not in numbers:
                    if len(numbers) == MOST_STATES:
                        raise UsageError(f"the form needs more than {MOST_STATES} states; make it smaller")
                    numbers[closed] = len(numbers) + 1
                    waiting.append(closed)
                known[key] = numbers[closed]
            row[byte] = known[key]
        rows.append(row)
    return rows, members


def _alive(rows: Sequence[Sequence[int]], accepts: Sequence[bool]) -> set[int]:
    """The states from which a text of the form can still be finished."""
    before: dict[int, list[int]] = {}
    for state, row in enumerate(rows):
        for target in set(row) - {DEAD}:
            before.setdefault(target, []).append(state)
    waiting = [state for state, accepted in enumerate(accepts) if accepted]
    alive = set(waiting)
    while waiting:
        for state in before.get(waiting.pop(), ()):
            if state not in alive:
                alive.add(state)
                waiting.append(state)
    return alive


class TokenBytes:
    """A vocabulary as a table (V, longest) int64 of bytes; -1 behind the end of a token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        longest = max(map(len, pieces))
        self.table = torch.tensor([[*piece, *[-1] * (longest - len(piece))] for piece in pieces])
        self.is_empty = self.table[:, 0] < 0


class Constraint:
    """One reply that must be of a form: knows where it stands, and which tokens may come.

    stop_ids: may come where the form is complete, and nowhere else; then only they where it cannot go on.
    """

    def __init__(
        self, automaton: Automaton, tokens: TokenBytes, stop_ids: Sequence[int], kept: dict[int, Tensor]
    ) -> None:
        """kept: masks by state, shared by the replies of one form and vocabulary."""
        self._automaton, self._tokens, self._kept = automaton, tokens, kept
        self._stops = torch.zeros(len(tokens.table), dtype=torch.bool)
        self._stops[list(stop_ids)] = True
        self._state = 1

    def barred(self) -> Tensor:
        """(V,) bool: True at tokens that may not come now."""
        if self._state not in self._kept:
            self._kept[self._state] = self._landing(self._state) == DEAD
        barred = torch.where(self._stops, ~self._automaton.accepts[self._state], self._kept[self._state])
        # A vocabulary without the byte that must come cannot go on: the reply ends, though its form is not complete.
        return ~self._stops if bool(barred.all()) else barred

    def take(self, token: int) -> None:
        """The reply goes on with this token."""
        for byte in self._tokens.table[token].tolist():
            if byte < 0:
                break
            self._state = int(self._automaton.table[self._state, byte])

    def _landing(self, state: int) -> Tensor:
        """(V,) the state that each token leads to; tokens without bytes lead nowhere."""
        states = torch.full((len(self._tokens.table),), state)
        for column in self._tokens.table.unbind(1):
            states = torch.where(column < 0, states, self._automaton.table[states, column.clamp(min=0)])
        return torch.where(self._tokens.is_empty, DEAD, states)
