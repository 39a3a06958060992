"""Instruction and preference data in the formats people publish, as our two records.

Conversation: {"messages": [{"role", "content"}, ...], "skill"?: name, ...}. Read from
    messages      {"messages": [{"role", "content"}]}                     other keys are kept
    ShareGPT      {"conversations": [{"from", "value"}], "system"?, "tools"?}
    Alpaca        {"instruction", "input"?, "output" | "response", "system"?, "history"?: [[user, assistant]]}
    completion    {"prompt", "completion" | "response"}                   an Alpaca template around it is removed
    transcript    {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ..."}          the preferred one (hh-rlhf)
Comparison: {"messages": up to the user's last turn, "replies": [text, ...], "ranking": [best index, ...]}. Read from
    itself, or any of the above with "chosen" and "rejected": texts, messages, or whole transcripts and message lists.

A row of another shape is an error that names file and line. A row of the right shape from which nothing can be learned
(a blank reply, turns that do not alternate, equal replies, two prompts in one comparison; published sets have some) is
left out and its reason recorded. Tool calls are read as the assistant's text, their results as the user's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from jielong.data.sources import Source, _rows, files
from jielong.errors import DataError, UsageError, nearest
from jielong.tokenizer.chat import Message, check_messages

Record = dict[str, Any]

_ROLE_OF = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "observation": "user",
    "tool": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
}
_REPLY_KEYS = ("output", "response", "completion", "chosen")
_ALPACA_TEMPLATE = re.compile(
    r"Below is an instruction.*?### Instruction:\n(.*?)(?:\n\n### Input:\n(.*?))?\n\n### Response:\s*\Z", re.DOTALL
)
_TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")


class _NothingToLearn(DataError):
    """A row of the right shape that no example can be made of; the readers leave it out."""


def read_conversations(source: Source, root: Path, left_out: list[str] | None = None) -> Iterator[Record]:
    """The conversations of a source, in order.

    left_out: gets one line, "file:line: reason", per row that was left out.
    Raises DataError naming file and line for a row of another shape, and when every row was left out.
    """
    return _read(source, root, conversation, left_out)


def read_comparisons(source: Source, root: Path, left_out: list[str] | None = None) -> Iterator[Record]:
    """The comparisons of a source, in order; `left_out` and errors as in `read_conversations`."""
    return _read(source, root, comparison, left_out)


def _read(
    source: Source, root: Path, convert: Callable[[Mapping[str, Any], str], Record], left_out: list[str] | None
) -> Iterator[Record]:
    reasons: list[str] = []
    num_kept = 0
    for where, row in _located(source, root):
        try:
            record = convert(row, where)
        except _NothingToLearn as reason:
            reasons.append(str(reason))
            if left_out is not None:
                left_out.append(str(reason))
            continue
        num_kept += 1
        yield record
    if not num_kept:
        first = f"; the first reason: {reasons[0]}" if reasons else ""
        raise DataError(f"source {source.name!r} has no usable row{first}")


def _located(source: Source, root: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each record with the file and line it stands at."""
    rows = (pair for path in files(source, root) for pair in _rows(source, path))
    return islice(rows, source.limit_documents)


def conversation(row: Mapping[str, Any], where: str) -> Record:
    """One row as a conversation with an assistant's turn. Raises DataError whose message begins with `where`."""
    if _is_transcripts(row):
        messages = _transcript(_text(row, "chosen", where), where)
    else:
        messages = _messages(row, where)
        if messages and messages[-1]["role"] == "user":
            messages = [*messages, *_answer(row, where)]
    _check(messages, where)
    if all(message["role"] != "assistant" for message in messages):
        raise _NothingToLearn(f"{where}: the assistant says nothing")
    kept = dict(row) if "messages" in row else {key: row[key] for key in ("skill",) if key in row}
    return {**kept, "messages": messages}


def comparison(row: Mapping[str, Any], where: str) -> Record:
    """One row as a comparison of replies. Raises DataError whose message begins with `where`."""
    if "replies" in row:
        return _own_comparison(row, where)
    if "answers" in row and "choice" in row:
        raise DataError(f"{where}: this is a vote; name its file in the stage's votes table: votes.files = [...]")
    for key in ("chosen", "rejected"):
        if key not in row:
            raise DataError(f'{where}: a comparison needs "chosen" and "rejected", or "replies"; found {_keys(row)}')
    chosen, rejected = row["chosen"], row["rejected"]
    if _is_transcripts(row):
        prompts, replies = _common_prompt(_transcript(chosen, where), _transcript(rejected, where), where)
    elif isinstance(chosen, list) and isinstance(rejected, list) and len(chosen) > 1:
        prompts, replies = _common_prompt(_turns(chosen, where), _turns(rejected, where), where)
    else:
        prompts = _messages(row, where)
        replies = [_reply(chosen, "chosen", where), _reply(rejected, "rejected", where)]
    _check([*prompts, {"role": "assistant", "content": replies[0]}], where)
    _check([*prompts, {"role": "assistant", "content": replies[1]}], where)
    if replies[0] == replies[1]:
        raise _NothingToLearn(f"{where}: both replies are the same")
    return {"messages": prompts, "replies": replies, "ranking": [0, 1]}


def _own_comparison(row: Mapping[str, Any], where: str) -> Record:
    replies = row["replies"]
    if not isinstance(replies, list) or len(replies) < 2 or not all(isinstance(reply, str) for reply in replies):
        raise DataError(f'{where}: "replies" must be a list of at least two texts')
    order = row.get("ranking", row.get("pairs"))
    if not isinstance(order, list):
        raise DataError(f'{where}: needs "ranking" (best index first) or "pairs" ([better, worse] indices)')
    prompt = _turns(row.get("messages"), where)
    _check([*prompt, {"role": "assistant", "content": "any"}], where)
    return {**row, "messages": prompt}


def _messages(row: Mapping[str, Any], where: str) -> list[Message]:
    """The turns a row spells out: whole conversations, or only the prompt where the reply has a key of its own."""
    if isinstance(row.get("messages"), list):
        return _turns(row["messages"], where)
    if isinstance(row.get("conversations"), list):
        turns = _turns(row["conversations"], where)
        given = [text for text in (row.get("system"), row.get("tools")) if isinstance(text, str) and text.strip()]
        if given and turns and turns[0]["role"] == "system":
            given.insert(0, turns.pop(0)["content"])
        return [*_system("\n".join(given)), *turns]
    if "instruction" in row:
        asked = _text(row, "instruction", where)
        if row.get("input"):
            asked = f"{asked}\n{_text(row, 'input', where)}"
        system = _system(_text(row, "system", where) if row.get("system") else "")
        return [*system, *_history(row.get("history") or [], where), {"role": "user", "content": asked}]
    if isinstance(row.get("prompt"), list):
        return _turns(row["prompt"], where)
    if "prompt" in row:
        return [{"role": "user", "content": _without_template(_text(row, "prompt", where))}]
    raise DataError(
        f'{where}: none of the known formats; a row needs "messages", "conversations", "instruction" or '
        f'"prompt", or transcripts in "chosen" and "rejected"; found {_keys(row)}'
    )


def _answer(row: Mapping[str, Any], where: str) -> list[Message]:
    """The assistant's turn under a key of its own; none where the conversation is spelled out without one."""
    spelled_out = "messages" in row or "conversations" in row
    if spelled_out and not any(key in row for key in _REPLY_KEYS):
        return []
    key = _first_key(row, _REPLY_KEYS, where)
    return [{"role": "assistant", "content": _reply(row[key], key, where)}]


def _turns(turns: object, where: str) -> list[Message]:
    """Messages from a list of {"role", "content"} or {"from", "value"}. A blank system message is left out."""
    if not isinstance(turns, list):
        raise DataError(f"{where}: the messages must be a list, not {type(turns).__name__}")
    messages = []
    for index, turn in enumerate(turns):
        place = f"{where}: message {index}"
        if not isinstance(turn, Mapping):
            raise DataError(f"{place} must be an object, not {type(turn).__name__}")
        speaker = turn[_first_key(turn, ("role", "from"), place)]
        role = _ROLE_OF.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            guess = nearest(str(speaker), _ROLE_OF)
            hint = f"; did you mean {guess!r}?" if guess else ""
            raise DataError(f"{place} is from {speaker!r}, must be one of {', '.join(_ROLE_OF)}{hint}")
        content = _text(turn, _first_key(turn, ("content", "value"), place), place)
        messages += _system(content) if role == "system" else [{"role": role, "content": content}]
    return messages


def _system(content: str) -> list[Message]:
    return [{"role": "system", "content": content}] if content.strip() else []


def _history(history: object, where: str) -> list[Message]:
    """Earlier turns of the Alpaca format: pairs of the user's text and the assistant's."""
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise DataError(f'{where}: "history" must be a list of [user, assistant] pairs')
    texts = [text for pair in history for text in pair]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f'{where}: "history" must hold texts only')
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


def _transcript(text: str, where: str) -> list[Message]:
    """Messages from "\\n\\nHuman: ...\\n\\nAssistant: ..."; blanks around each turn are not part of it."""
    opening, *parts = _TRANSCRIPT_TURN.split(text)
    if opening.strip() or not parts:
        raise DataError(f'{where}: a transcript must begin with an empty line and "Human:", not {text[:40]!r}')
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _is_transcripts(row: Mapping[str, Any]) -> bool:
    """True for a row whose prompt stands only inside its replies, as in hh-rlhf."""
    texts = [row[key] for key in ("chosen", "rejected") if key in row]
    named = any(key in row for key in ("messages", "conversations", "instruction", "prompt"))
    return bool(texts) and not named and all(isinstance(text, str) for text in texts)


def _common_prompt(
    chosen: Sequence[Message], rejected: Sequence[Message], where: str
) -> tuple[list[Message], list[str]]:
    """The turns before the last, which both must share, and the two last turns' texts."""
    if list(chosen[:-1]) != list(rejected[:-1]):
        raise _NothingToLearn(f"{where}: the chosen and the rejected conversation part before their last turn")
    if not chosen or not rejected or {chosen[-1]["role"], rejected[-1]["role"]} != {"assistant"}:
        raise _NothingToLearn(f"{where}: a compared conversation must end with the assistant's reply")
    return list(chosen[:-1]), [chosen[-1]["content"], rejected[-1]["content"]]


def _reply(reply: object, key: str, where: str) -> str:
    """The text of a compared reply: itself, a message, or a list of one message."""
    if isinstance(reply, list) and len(reply) == 1:
        reply = reply[0]
    if isinstance(reply, Mapping):
        return _text(reply, _first_key(reply, ("content", "value"), where), f"{where}: {key}")
    if not isinstance(reply, str):
        raise DataError(f"{where}: {key!r} must be a text or a message, not {type(reply).__name__}")
    return reply


def _without_template(prompt: str) -> str:
    """The instruction alone when the prompt is wrapped in Alpaca's template: our own template does that job."""
    found = _ALPACA_TEMPLATE.match(prompt)
    if not found:
        return prompt
    instruction, given = found.groups()
    return f"{instruction}\n{given}" if given else instruction


def _check(messages: Sequence[Message], where: str) -> None:
    """Raises _NothingToLearn for turns that do not alternate, or a blank one."""
    try:
        check_messages(messages)
    except UsageError as error:
        raise _NothingToLearn(f"{where}: {error}") from error
    for index, message in enumerate(messages):
        if not message["content"].strip():
            raise _NothingToLearn(f"{where}: message {index}, from the {message['role']}, is blank")


def _first_key(row: Mapping[str, Any], keys: Sequence[str], where: str) -> str:
    for key in keys:
        if key in row:
            return key
    wanted = " or ".join(f'"{key}"' for key in keys)
    raise DataError(f"{where}: needs {wanted}; found {_keys(row)}")


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise DataError(f'{where}: "{key}" must be text, not {type(value).__name__}')
    return value


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(f'"{key}"' for key in row) or "no keys"
