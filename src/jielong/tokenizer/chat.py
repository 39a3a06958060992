"""Conversations as token ids: the one function that SFT, reward, PPO, chat and the server share.

    <|bos|> <|system|> content <|end|> <|user|> content <|end|> <|assistant|> content <|end|> ...

That is the form of this package's own tokenizers. Control tokens are appended by id and content is encoded with
specials off, so that a message which spells "<|end|>" stays a message. (A string template that is tokenised as a whole
cannot promise that; `CHAT_TEMPLATE` is for others' programs and gives the same ids for content that spells no special.)
A model folder of others has a form of its own, which `template` fills in with the same promise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from jielong.errors import UsageError, nearest
from jielong.tokenizer.codec import Codec

if TYPE_CHECKING:
    from jielong.tokenizer.tokenizer import Tokenizer

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""

ROLES = ("system", "user", "assistant")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role must be system, user or assistant') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class ChatForm(Protocol):
    """How one tokenizer writes conversations: `OwnForm`, or a foreign folder's template (`template.TemplateForm`).

    end_id: the id that ends an assistant's turn, None where there is none. source: the form as a Jinja template, for
    others' programs.
    """

    @property
    def end_id(self) -> int | None: ...

    @property
    def source(self) -> str: ...

    def render(self, messages: Sequence[Mapping[str, str]], reply: bool) -> tuple[list[int], list[bool]]: ...


class OwnForm:
    """The form above, id by id. special_ids: of this package's control tokens, by name."""

    source = CHAT_TEMPLATE

    def __init__(self, codec: Codec, special_ids: Mapping[str, int]) -> None:
        self._codec = codec
        self.bos_id, self.end_id = special_ids["<|bos|>"], special_ids["<|end|>"]
        self.role_ids = {role: special_ids[f"<|{role}|>"] for role in ROLES}

    def render(self, messages: Sequence[Mapping[str, str]], reply: bool) -> tuple[list[int], list[bool]]:
        ids = [self.bos_id]
        scored = [False]
        for message in messages:
            content = self._codec.encode(message["content"])
            ids.append(self.role_ids[message["role"]])
            ids.extend(content)
            ids.append(self.end_id)
            scored.append(False)
            scored.extend([message["role"] == "assistant"] * (len(content) + 1))
        if reply:
            ids.append(self.role_ids["assistant"])
            scored.append(False)
        return ids, scored


def render(
    messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer, *, reply: bool = False
) -> tuple[list[int], list[bool]]:
    """Ids of a conversation, and for each id whether the assistant is responsible for it.

    reply=True ends where the assistant begins to speak (<|assistant|>), ready for the model to go on; the conversation
    that goes on from there has these ids as its beginning.
    Returns (ids, scored), equally long; scored is True on each assistant's content and on the token that ends its turn.
    Raises UsageError, naming the message's index, as `check_messages` does, when a reply is asked for after an
    assistant's message, and when the tokenizer's model has no chat template or one that refuses the conversation.
    """
    check_messages(messages)
    if reply and messages[-1]["role"] != "user":
        raise UsageError(f"messages[{len(messages) - 1}] is from the assistant or system: a reply answers a user")
    return check_answers(tokenizer).render(messages, reply)


def check_answers(tokenizer: Tokenizer) -> ChatForm:
    """How the tokenizer's model is spoken to. Raises UsageError for a base model, which has no chat template."""
    if tokenizer.form is None:
        raise UsageError(
            "this is a base model: its folder has no chat template (chat_template in tokenizer_config.json, or "
            "chat_template.jinja), so it continues text and does not answer; use `jielong complete`. To teach it to "
            "chat, put a chat_template.jinja into the folder and fine-tune it"
        )
    return tokenizer.form


def check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    """Raises UsageError unless there is a message, each has a legal role and text, and turns alternate.

    Legal: at most one system message, first; then user, assistant, user, assistant, ...
    """
    if not messages:
        raise UsageError("messages is empty: a conversation needs at least one message")
    expected = "user"
    for index, message in enumerate(messages):
        role, content = _parts(message, index)
        if role == "system":
            if index > 0:
                raise UsageError(f"messages[{index}] has role system: a system message can only be the first")
            continue
        if role != expected:
            raise UsageError(
                f"messages[{index}] has role {role!r}, must be {expected!r}: after an optional system message, "
                "user and assistant take turns, user first"
            )
        expected = "assistant" if role == "user" else "user"


def _parts(message: Mapping[str, str], index: int) -> tuple[str, str]:
    """Role and content of a message. Raises UsageError when either is missing or not legal."""
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise UsageError(f'messages[{index}] must be an object with "role" and "content", not {message!r:.80}')
    role, content = message["role"], message["content"]
    if role not in ROLES:
        guess = nearest(str(role), ROLES)
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise UsageError(f"messages[{index}] has role {role!r}, must be one of {', '.join(ROLES)}{hint}")
    if not isinstance(content, str):
        raise UsageError(f"messages[{index}] has content of type {type(content).__name__}, must be text")
    return role, content
