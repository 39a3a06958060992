"""The terminal chat: a conversation that is kept, cut to the context, and streamed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console

from jielong.errors import JielongError
from jielong.generate.engine import Engine
from jielong.runtime import derive_seed
from jielong.tokenizer.chat import Message, render

HELP = """/reset         forget the conversation (the system message stays)
/system TEXT   set the system message and start anew; without TEXT: remove it
/help          this
/quit          leave (or Ctrl-D); Ctrl-C stops a reply"""


@dataclass
class Conversation:
    """What has been said, and the model that answers. Each turn draws with its own seed, so a chat can be repeated."""

    engine: Engine
    max_new_tokens: int = 256
    temperature: float = 0.7
    seed: int = 0
    messages: list[Message] = field(default_factory=list)
    num_turns: int = 0

    @property
    def system(self) -> str:
        first = self.messages[0] if self.messages else {"role": ""}
        return first["content"] if first["role"] == "system" else ""

    def reset(self, system: str | None = None) -> None:
        """Forgets all turns. system: the new system message, "" for none, None to keep the old one."""
        text = self.system if system is None else system
        self.messages = [{"role": "system", "content": text}] if text else []

    def ask(self, text: str, notice: Callable[[str], None]) -> Iterator[str]:
        """The reply to `text`, piece by piece; afterwards both are part of the conversation.

        notice is told when the oldest turns had to be forgotten. Raises UsageError when the text alone is too long.
        """
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        try:
            prompt = self._fit(notice)
            pieces = self.engine.stream(
                prompt,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                seed=derive_seed(self.seed, "turn", self.num_turns),
            )
            for piece in pieces:
                said.append(piece)
                yield piece
        except JielongError:
            self.messages.pop()
            raise
        finally:
            if self.messages and self.messages[-1]["role"] == "user":  # also when the reader stopped half-way
                self.messages.append({"role": "assistant", "content": "".join(said)})
        self.num_turns += 1

    def _fit(self, notice: Callable[[str], None]) -> list[int]:
        """The prompt's ids, after forgetting the oldest turns until a reply has room."""
        context = self.engine.model.config.max_length
        room = min(self.max_new_tokens, context // 4)
        start = 1 if self.system else 0
        forgotten = 0
        ids, _ = render(self.messages, self.engine.tokenizer, reply=True)
        while len(ids) + room > context and len(self.messages) > start + 1:
            del self.messages[start : start + 2]  # a question and its answer
            forgotten += 1
            ids, _ = render(self.messages, self.engine.tokenizer, reply=True)
        if forgotten:
            turns = "turn" if forgotten == 1 else "turns"
            notice(f"the context of {context} tokens is full: the oldest {forgotten} {turns} forgotten")
        return ids


def command(conversation: Conversation, line: str) -> str | None:
    """Runs a line that begins with a slash; the answer to show, None to leave."""
    word, _, rest = line.strip().partition(" ")
    if word in ("/quit", "/exit", "/q"):
        return None
    if word == "/reset":
        conversation.reset()
        return "forgotten" + (" (the system message stays)" if conversation.system else "")
    if word == "/system":
        conversation.reset(rest.strip())
        return "system message set; the conversation starts anew" if rest.strip() else "system message removed"
    return HELP if word == "/help" else f"{word}: no such command\n{HELP}"


def talk(conversation: Conversation, console: Console) -> None:
    """Reads turns from the terminal until it is left. Without a terminal: one turn a line, only replies on stdout."""
    interactive = sys.stdin.isatty()
    if interactive:
        console.print("[dim]/help for commands, Ctrl-D to leave[/dim]")
    while True:
        try:
            line = input("\n> " if interactive else "")
        except (EOFError, KeyboardInterrupt):
            return
        if line.startswith("/"):
            shown = command(conversation, line)
            if shown is None:
                return
            console.print(shown, style="dim", markup=False, highlight=False)
        elif line.strip():
            _answer(conversation, line, console)


def _answer(conversation: Conversation, line: str, console: Console) -> None:
    def notice(text: str) -> None:
        console.print(f"({text})", style="dim", markup=False, highlight=False)

    reply = conversation.ask(line, notice)
    try:
        for piece in reply:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        notice(" stopped")
    except JielongError as error:
        notice(str(error))
    sys.stdout.write("\n")
    sys.stdout.flush()
