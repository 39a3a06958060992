"""Conversations as ids by a model folder's own chat template, which is a Jinja program. Jinja enters here only.

The template is filled in as text and encoded as a whole, as `transformers` does it, but for two points:

- What a message spells stays text. A message that holds "<|im_end|>" is marked before it is filled in, and the mark
  keeps it from becoming the control token (`codec`). Messages that spell no control token give the ids of
  `apply_chat_template`.
- The ids of a prompt are the beginning of the ids of the conversation that goes on from it. The text is therefore cut
  where the assistant begins to speak, and no token stretches over the cut. It would only where a reply begins with
  blanks or line ends that join those that the template ends with; there, and only there, ids differ from
  `apply_chat_template`, which would show a model in training what it never sees when it speaks.

What the assistant says is all that follows the generation prompt, up to the token that ends its turn, that included.

A template is a program of others. It runs in Jinja's sandbox, without attributes that begin with "_", with a bound on
its own length, on what it writes and on products; but its running time has no bound, so that a model folder should come
from someone you trust that far.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from jielong.errors import UsageError
from jielong.tokenizer.codec import Codec

MOST_TEMPLATE_CHARACTERS = 1 << 18
# What a template may write: this much, and each message a few times.
MOST_OWN_CHARACTERS, MOST_REPEATS = 1 << 20, 8
MOST_PRODUCT = 1 << 20
_LONG_FIELD = re.compile(r"\*|\d{4}")


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}, by which `transformers` knows replies; here it is just its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """As Jinja does it, unless what comes out could fill the memory: "x" * 10**9, 9**9**9, "%999999999d" % 1."""
        if operator == "%" and isinstance(left, str):
            legal = not _LONG_FIELD.search(left)
        elif operator == "*" and not (_is_number(left) and _is_number(right)):
            counts = [value for value in (left, right) if isinstance(value, int)]
            parts = [value for value in (left, right) if isinstance(value, str | list | tuple)]
            legal = len(counts) == len(parts) == 1 and counts[0] * len(parts[0]) <= MOST_PRODUCT
        else:
            legal = all(_is_number(value) and abs(value) <= MOST_PRODUCT for value in (left, right))
            legal = legal and (operator != "**" or right <= 16)
        if not legal:
            raise SecurityError(f"{left!r:.40} {operator} {right!r:.40} is more than a template may compute")
        return super().call_binop(context, operator, left, right)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter, this one does not escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class TemplateForm:
    """A chat template and its tokenizer. See the module for what is promised.

    end_id: the control token that ends an assistant's turn; None where the template writes none after a reply.
    """

    def __init__(self, codec: Codec, source: str, named: Mapping[str, str], where: str) -> None:
        """source: Jinja. named: "bos" -> token, ...: what the template sees as bos_token, .... where: for messages.

        A template that cannot be used raises no error here, but whenever it is used: the model can still complete text.
        """
        self._codec, self.source, self._where = codec, source, where
        self._variables = {f"{kind}_token": token for kind, token in named.items()}
        try:
            self.end_id = self._find_end()
        except UsageError:
            self.end_id = None

    def render(self, messages: Sequence[Mapping[str, str]], reply: bool) -> tuple[list[int], list[bool]]:
        """See `chat.render`, which has checked the messages.

        Raises UsageError when the template refuses them, or when what the assistant says cannot be told apart.
        """
        shielded = [{"role": m["role"], "content": self._codec.shield(m["content"])} for m in messages]
        text = self._fill_in(shielded, reply)
        starts = self._reply_starts(shielded, text, reply)
        ids = self._codec.encode_secret(text[: starts[0]] if starts else text)
        scored = [False] * len(ids)
        for number, start in enumerate(starts):
            stop = starts[number + 1] if number + 1 < len(starts) else len(text)
            piece = self._codec.encode_secret(text[start:stop], before=text[:start])
            num_said = piece.index(self.end_id) + 1 if self.end_id in piece else 0
            if not num_said and not reply:
                raise self._cannot_tell(f"no control token ends the assistant's message {number + 1}")
            ids += piece
            scored += [index < num_said for index in range(len(piece))]
        return ids, scored

    def _reply_starts(self, messages: Sequence[Mapping[str, str]], text: str, reply: bool) -> list[int]:
        """Where in the text each assistant's message begins: behind what the template writes to ask for it."""
        starts = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = self._fill_in(messages[:index], True)
                if text.startswith(prompt):
                    starts.append(len(prompt))
                elif not reply:
                    raise self._cannot_tell(f"it writes what stands before messages[{index}] in two ways")
        return starts

    def _find_end(self) -> int | None:
        """The first control token after a reply, asked of a small conversation."""
        word = secrets.token_hex(8)
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": word}]
        _, found, after = self._fill_in(messages, False).rpartition(word)
        ids = self._codec.encode_secret(after) if found else []
        return next((number for number in ids if number in self._codec.control_ids.values()), None)

    def _fill_in(self, messages: Sequence[Mapping[str, str]], reply: bool) -> str:
        """The template's text, its own control tokens renamed as `codec` wants them."""
        room = MOST_OWN_CHARACTERS + MOST_REPEATS * sum(len(message["content"]) for message in messages)
        pieces: list[str] = []
        given = {**self._variables, "messages": [dict(message) for message in messages], "add_generation_prompt": reply}
        try:
            for piece in self._program.generate(given, tools=None, documents=None):
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    raise SecurityError("it writes far more than it was given")
        except Exception as error:  # a template can fail in as many ways as a program
            why = " ".join(str(error).split())[:300]
            raise UsageError(f"the chat template of {self._where} refuses this conversation: {why}") from None
        return self._codec.secret("".join(pieces))

    @cached_property
    def _program(self) -> jinja2.Template:
        if len(self.source) > MOST_TEMPLATE_CHARACTERS:
            raise SecurityError(f"it has {len(self.source)} characters; legal are up to {MOST_TEMPLATE_CHARACTERS}")
        sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        sandbox.filters["tojson"] = _to_json
        del sandbox.globals["lipsum"]
        sandbox.globals.update(raise_exception=_refuse, strftime_now=_now)
        return sandbox.from_string(self.source)

    def _cannot_tell(self, why: str) -> UsageError:
        return UsageError(
            f"the chat template of {self._where} does not show what the assistant says, so that nothing can be learned "
            f"from it: {why}"
        )
