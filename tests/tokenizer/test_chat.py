from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.errors import UsageError
from jielong.tokenizer.chat import Message, render
from jielong.tokenizer.tokenizer import Tokenizer

CONVERSATION: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "Hi 👋"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "再见"},
]


def test_ids_by_hand(byte_tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]
    pad, bos, _eos, _system, user, assistant, end = range(256, 263)
    assert byte_tokenizer.pad_id == pad
    ids, scored = render(messages, byte_tokenizer)
    assert ids == [bos, user, 97, 98, end, assistant, 99, end]
    assert scored == [False] * 6 + [True, True]
    ids, scored = render(messages[:1], byte_tokenizer, reply=True)
    assert ids == [bos, user, 97, 98, end, assistant]
    assert scored == [False] * 6


def test_scored_tokens_are_the_assistant_text_and_its_end(tokenizer: Tokenizer) -> None:
    ids, scored = render(CONVERSATION, tokenizer)
    picked = [token_id for token_id, flag in zip(ids, scored, strict=True) if flag]
    expected = [*tokenizer.encode("Hi 👋"), tokenizer.end_id, *tokenizer.encode("再见"), tokenizer.end_id]
    assert picked == expected
    assert tokenizer.decode(picked) == "Hi 👋再见"
    rest = [token_id for token_id, flag in zip(ids, scored, strict=True) if not flag]
    assert tokenizer.decode(rest) == "Be brief.你好bye"


def test_a_prompt_is_the_beginning_of_its_conversation(tokenizer: Tokenizer) -> None:
    """What PPO and the chat continue is what SFT trained on: the prompt's ids open the whole conversation's ids."""
    whole, _ = render(CONVERSATION, tokenizer)
    prompt, _ = render(CONVERSATION[:-1], tokenizer, reply=True)
    assert whole == [*prompt, *tokenizer.encode("再见"), tokenizer.end_id]


contents = st.one_of(
    st.text(max_size=30),
    st.lists(st.one_of(st.sampled_from(Tokenizer.SPECIALS), st.text(max_size=5)), max_size=5).map("".join),
)


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(contents, min_size=1, max_size=5), system=st.booleans())
def test_specials_stand_at_template_positions_only(tokenizer: Tokenizer, texts: list[str], system: bool) -> None:
    roles = (["system"] if system else []) + ["user", "assistant"] * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    ids, scored = render(messages, tokenizer)
    found = [token_id for token_id in ids if token_id >= tokenizer.pad_id]
    expected = [tokenizer.bos_id]
    for message in messages:
        expected += [tokenizer.role_ids[message["role"]], tokenizer.end_id]
    assert found == expected
    assert tokenizer.decode(ids) == "".join(texts)
    assert len(scored) == len(ids)
    replies = [message["content"] for message in messages if message["role"] == "assistant"]
    assert tokenizer.decode([token_id for token_id, flag in zip(ids, scored, strict=True) if flag]) == "".join(replies)


def _says(*roles: str) -> list[Message]:
    return [{"role": role, "content": "x"} for role in roles]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        (_says("user", "Assistant"), r"messages\[1\] has role 'Assistant'.*system, user, assistant.*'assistant'"),
        (_says("user", "tool"), r"messages\[1\] has role 'tool', must be one of"),
        (_says("user", "system"), r"messages\[1\] has role system: a system message can only be the first"),
        (_says("system", "system"), r"messages\[1\] has role system"),
        (_says("assistant"), r"messages\[0\] has role 'assistant', must be 'user'"),
        (_says("system", "assistant"), r"messages\[1\] has role 'assistant', must be 'user'"),
        (_says("user", "user"), r"messages\[1\] has role 'user', must be 'assistant'"),
        ([{"role": "user"}], r"messages\[0\] must be an object with"),
        (["hi"], r"messages\[0\] must be an object with"),
        ([{"role": "user", "content": None}], r"messages\[0\] has content of type NoneType, must be text"),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\] has role \['user'\]"),
    ],
)
def test_wrong_conversations_are_refused(byte_tokenizer: Tokenizer, messages: list[Message], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        render(messages, byte_tokenizer)


@pytest.mark.parametrize("roles", [("user", "assistant"), ("system",)])
def test_a_reply_answers_a_user(byte_tokenizer: Tokenizer, roles: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="a reply answers a user"):
        render(_says(*roles), byte_tokenizer, reply=True)
