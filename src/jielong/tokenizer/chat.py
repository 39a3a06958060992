"""Conversations as token ids: the one function that SFT, reward, PPO, chat and the server share.

    <|bos|> <|system|> content <|end|> <|user|> content <|end|> <|assistant|> content <|end|> ...

Control tokens are appended by id and content is encoded with specials off, so that a message which spells "<|end|>"
stays a message. (A string template that is tokenised as a whole cannot promise that; `CHAT_TEMPLATE` is for others'
programs and gives the same ids for content that spells no special.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jielong.errors import UsageError, nearest

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


def render(
    messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer, *, reply: bool = False
) -> tuple[list[int], list[bool]]:
    """Ids of a conversation, and for each id whether the assistant is responsible for it.

    reply=True ends with the <|assistant|> id, ready for the model to go on.
    Returns (ids, scored), equally long; scored is True on each assistant's content and on the <|end|> after it.
    Raises UsageError, naming the message's index, as `check_messages` does, and when a reply is asked for after an
    assistant's message.
    """
    check_messages(messages)
    if reply and messages[-1]["role"] != "user":
        raise UsageError(f"messages[{len(messages) - 1}] is from the assistant or system: a reply answers a user")
    ids = [tokenizer.bos_id]
    scored = [False]
    for message in messages:
        content = tokenizer.encode(message["content"])
        ids.append(tokenizer.role_ids[message["role"]])
        ids.extend(content)
        ids.append(tokenizer.end_id)
        scored.append(False)
        scored.extend([message["role"] == "assistant"] * (len(content) + 1))
    if reply:
        ids.append(tokenizer.role_ids["assistant"])
        scored.append(False)
    return ids, scored


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
