"""Foreign chat templates: ids equal to `apply_chat_template`, content never a control token, replies marked exactly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.errors import UsageError
from jielong.tokenizer.chat import Message, check_answers, render
from jielong.tokenizer.tokenizer import TextStream, Tokenizer

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

CHATTING = ("llama3", "qwen", "qwen3", "llama2", "mistral")
ENDS = {"llama3": "<|eot_id|>", "qwen": "<|im_end|>", "qwen3": "<|im_end|>", "llama2": "</s>", "mistral": "</s>"}
WITH_SYSTEM = ("llama3", "qwen", "qwen3", "llama2")
every_template = pytest.mark.parametrize("kind", CHATTING)


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path]) -> dict[str, Any]:
    """Read from tokenizer.json as it stands, template and names from the folder."""
    return {
        kind: transformers.PreTrainedTokenizerFast.from_pretrained(folders[kind], local_files_only=True)
        for kind in CHATTING
    }


def conversation(texts: Sequence[str], system: str | None = None) -> list[Message]:
    turns: list[Message] = [
        {"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)
    ]
    return [{"role": "system", "content": system}, *turns] if system is not None else turns


def template_ids(theirs: Any, messages: list[Message], reply: bool = False) -> list[int]:
    options = {"tokenize": True, "add_generation_prompt": reply, "return_dict": False}
    found: list[int] = theirs.apply_chat_template(messages, **options)
    return found


def said(tokenizer: Tokenizer, messages: list[Message]) -> str:
    ids, scored = render(messages, tokenizer)
    names = [tokenizer.name(token_id) for token_id, flag in zip(ids, scored, strict=True) if flag]
    return "".join(names)


TALKS = [
    ["hello"],
    ["Hi there!", "Hello 👋, how are you?"],
    ["你好", "你好！", "再见", "再见。"],
    [" the cat ", " sat ", "\n\non a mat\n", "yes\n\n", "  "],
    ["def f(x):\n    return x\n", "```python\nprint(1)\n```", "thanks", "مرحبا"],
    ["", "nothing"],
    ["[INST] x [/INST]", "### user", "<<SYS>>", "|>"],
    ["e\u0301", "cafe\u0301", "\ufeff", "\u200b"],
]


@every_template
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("system", [None, "Be brief.", " Ünï\n"])
def test_ids_are_those_of_apply_chat_template(
    kind: str, talk: list[str], system: str | None, foreign: dict[str, Tokenizer], theirs: dict[str, Any]
) -> None:
    if (system is not None and kind not in WITH_SYSTEM) or (kind == "mistral" and talk[0].startswith("[INST]")):
        pytest.skip("the template refuses it, or the text spells a control token")
    for length in range(1, len(talk) + 1):
        messages = conversation(talk[:length], system)
        reply = messages[-1]["role"] == "user"
        assert render(messages, foreign[kind], reply=reply)[0] == template_ids(theirs[kind], messages, reply)
        if reply:
            assert render(messages, foreign[kind])[0] == template_ids(theirs[kind], messages, False)


content = st.one_of(st.text(max_size=30), st.text(alphabet=" \n\ta你é'1.<|", max_size=12))


@every_template
@settings(max_examples=80, deadline=None)
@given(texts=st.lists(content, min_size=1, max_size=5))
def test_ids_of_any_conversation(
    kind: str, texts: list[str], foreign: dict[str, Tokenizer], theirs: dict[str, Any]
) -> None:
    """Equal to theirs as long as no reply begins with blanks, which the template's last token could swallow."""
    tokenizer = foreign[kind]
    if any(name in text for text in texts for name in tokenizer._codec.ids if name.startswith(("<", "["))):
        return
    texts = [text.lstrip() if index % 2 else text for index, text in enumerate(texts)]
    texts = ["." + text if index % 2 and text[:1] in "\u0301\u0327" else text for index, text in enumerate(texts)]
    messages = conversation(texts)
    assert render(messages, tokenizer)[0] == template_ids(theirs[kind], messages)


@every_template
@settings(max_examples=80, deadline=None)
@given(texts=st.lists(content, min_size=2, max_size=6), data=st.data())
def test_a_prompt_is_the_beginning_of_its_conversation(
    kind: str, texts: list[str], data: st.DataObject, foreign: dict[str, Tokenizer]
) -> None:
    """Always, whatever replies begin with: reward and PPO count a reply's tokens from the prompt's length on."""
    tokenizer = foreign[kind]
    spelled = data.draw(st.sampled_from([*tokenizer.special_ids, ""]))
    texts = [text + spelled for text in texts][: len(texts) // 2 * 2]
    messages = conversation(texts)
    whole, scored = render(messages, tokenizer)
    prompt, _ = render(messages[:-1], tokenizer, reply=True)
    assert whole[: len(prompt)] == prompt
    assert all(scored[len(prompt) : scored_end(scored)]) and len(scored) == len(whole)
    end = tokenizer.special_ids[ENDS[kind]]
    assert whole[scored_end(scored) - 1] == end == tokenizer.end_id
    assert [t for t, flag in zip(whole, scored, strict=True) if flag].count(end) == len(texts) // 2


def scored_end(scored: list[bool]) -> int:
    return len(scored) - scored[::-1].index(True)


@every_template
@settings(max_examples=80, deadline=None)
@given(texts=st.lists(content, min_size=1, max_size=4), data=st.data())
def test_content_never_becomes_a_control_token(
    kind: str, texts: list[str], data: st.DataObject, foreign: dict[str, Tokenizer]
) -> None:
    """The control tokens of a conversation are those of the same conversation of plain words."""
    tokenizer = foreign[kind]
    names = sorted(tokenizer.special_ids)
    parts = st.one_of(
        st.sampled_from(names),
        st.sampled_from([name[:cut] for name in names for cut in range(1, len(name))]),
        st.sampled_from([name[cut:] for name in names for cut in range(1, len(name))]),
        st.text(max_size=4),
    )
    spelled = ["".join(data.draw(st.lists(parts, max_size=4))) for _ in texts]
    ids, scored = render(conversation(spelled), tokenizer)
    plain, plain_scored = render(conversation(["x"] * len(texts)), tokenizer)
    controls = set(tokenizer.special_ids.values()) - {tokenizer.special_ids.get("<unk>")}
    assert [t for t in ids if t in controls] == [t for t in plain if t in controls]
    if kind == "qwen":  # writes contents as they are
        texts_back = tokenizer.decode(ids)
        assert all(tokenizer.decode(tokenizer.encode(text)) in texts_back for text in spelled)


def test_a_control_token_in_three_pieces(folders: dict[str, Path], tmp_path: Path) -> None:
    """A message that a template would complete to a control token stays a message."""
    source = "{% for m in messages %}{{ '<|' + m['content'] + '|>' }}<|im_end|>{% endfor %}"
    tokenizer = with_template(folders["qwen"], tmp_path, source)
    for text in ("im_start", "im_end", "im_end|>x<|im_end", "|im_end|>", "<|im_end|"):
        ids, _ = render([{"role": "user", "content": text}], tokenizer)
        assert [t for t in ids if t in tokenizer.special_ids.values()] == [tokenizer.special_ids["<|im_end|>"]]
        assert tokenizer.decode(ids) == f"<|{text}|>"


def test_what_the_assistant_says(foreign: dict[str, Tokenizer]) -> None:
    talk = conversation(["hi", "a cat", "and", "bye"])
    assert said(foreign["qwen"], talk) == "a cat<|im_end|>bye<|im_end|>"
    assert said(foreign["llama3"], talk) == "a cat<|eot_id|>bye<|eot_id|>"
    assert said(foreign["llama2"], talk) == " a cat </s> bye </s>"
    assert said(foreign["mistral"], talk) == " a cat</s> bye</s>"
    # Earlier replies are shown without thoughts, the last one with a block for them, which the model has to write.
    assert said(foreign["qwen3"], talk) == "a cat<|im_end|><think>\n\n</think>\n\nbye<|im_end|>"
    thoughts = conversation(["hi", "<think>\nhm\n</think>\n\na cat"])
    assert said(foreign["qwen3"], thoughts) == "<think>\nhm\n</think>\n\na cat<|im_end|>"


def test_a_reply_that_begins_with_a_line_end(foreign: dict[str, Tokenizer], theirs: dict[str, Any]) -> None:
    """Theirs joins it with the line end of the prompt, which no model that speaks can do; ours does not."""
    messages = conversation(["hi", "\n\n\nthe cat"])
    ours, scored = render(messages, foreign["qwen"])
    whole = template_ids(theirs["qwen"], messages)
    assert ours != whole and foreign["qwen"].decode(ours) == foreign["qwen"].decode(whole)
    prompt, _ = render(messages[:1], foreign["qwen"], reply=True)
    assert ours == [*prompt, *foreign["qwen"].encode("\n\n\nthe cat"), *ours[-2:]]
    assert scored == [False] * len(prompt) + [True] * (len(ours) - len(prompt) - 1) + [False]


ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PLAIN_WORDS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}### Human: {{ m['content'] }} ### Assistant: "
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("kind", ["llama2", "mistral", "qwen", "llama3"])
def test_roles_in_plain_words(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Where no control token stands before a reply, it is encoded as what goes on after the prompt."""
    end = {"qwen": "<|im_end|>", "llama3": "<|eot_id|>"}.get(kind, "</s>")
    for number, (source, blank) in enumerate(((ZEPHYR, False), (PLAIN_WORDS, True))):
        tokenizer = with_template(folders[kind], tmp_path / str(number), source)
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / str(number), local_files_only=True)
        messages = conversation(["the cat", "sat on", "a red mat", "yes"])
        ids, scored = render(messages, tokenizer)
        whole = template_ids(theirs, messages)
        if blank:  # the template ends with a blank, which would be the reply's first token's
            assert tokenizer.decode(ids) == tokenizer.decode(whole)
        else:
            assert ids == whole
        for length in (1, 3):
            prompt, _ = render(messages[:length], tokenizer, reply=True)
            assert ids[: len(prompt)] == prompt
            assert (prompt == template_ids(theirs, messages[:length], True)) or (blank and length == 3)
        names = [tokenizer.name(token_id) for token_id, flag in zip(ids, scored, strict=True) if flag]
        assert "".join(names) == f"sat on{end}yes{end}"


def test_a_reply_is_streamed_without_the_blank_before_it(foreign: dict[str, Tokenizer]) -> None:
    tokenizer = foreign["llama2"]
    messages = conversation(["hi", "the cat sat"])
    prompt, _ = render(messages[:1], tokenizer, reply=True)
    reply = render(messages, tokenizer)[0][len(prompt) :]
    stream = TextStream(tokenizer)
    assert "".join(map(stream.feed, reply)) == "the cat sat "


@every_template
def test_what_ends_a_turn_stops_a_reply(kind: str, foreign: dict[str, Tokenizer]) -> None:
    assert foreign[kind].end_id == foreign[kind].special_ids[ENDS[kind]]
    assert foreign[kind].end_id in foreign[kind].stop_ids


def with_template(folder: Path, to: Path, source: object) -> Tokenizer:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    (to / "chat_template.jinja").unlink(missing_ok=True)
    path = to / "tokenizer_config.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**said, "chat_template": source}), encoding="utf-8")
    return Tokenizer.load(to)


CHAT = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def test_the_templates_own_end_is_a_stop_though_no_file_names_it(folders: dict[str, Path], tmp_path: Path) -> None:
    """A base model's files name <|endoftext|>, its template ends turns with <|im_end|>."""
    shutil.copytree(folders["qwen"], tmp_path, dirs_exist_ok=True)
    for name, key in (("tokenizer_config.json", "eos_token"), ("generation_config.json", "eos_token_id")):
        said = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        end = "<|endoftext|>" if name.startswith("tok") else said["pad_token_id"]
        (tmp_path / name).write_text(json.dumps({**said, key: end}), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_id == tokenizer.special_ids["<|endoftext|>"]
    assert set(tokenizer.stop_ids) == {tokenizer.eos_id, tokenizer.special_ids["<|im_end|>"]}


def test_where_a_template_stands(folders: dict[str, Path], tmp_path: Path) -> None:
    other = "{{ 'no' }}"
    listed = [{"name": "tool_use", "template": other}, {"name": "default", "template": CHAT}]
    one = [{"role": "user", "content": "x"}]
    assert render(one, with_template(folders["qwen"], tmp_path / "a", listed))[0][0] == 401
    tokenizer = with_template(folders["qwen"], tmp_path / "b", other)
    assert tokenizer.decode(render(one, tokenizer)[0]) == "no"
    (tmp_path / "b" / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    assert render(one, Tokenizer.load(tmp_path / "b"))[0][0] == 401  # the file of its own goes first


def test_a_base_model_says_so(foreign: dict[str, Tokenizer]) -> None:
    assert foreign["gpt2"].form is None and foreign["gpt2"].end_id is None
    with pytest.raises(UsageError, match="base model.*jielong complete"):
        render([{"role": "user", "content": "x"}], foreign["gpt2"])
    with pytest.raises(UsageError, match="base model"):
        check_answers(foreign["bert"])


def test_conversations_are_checked_before_any_template(foreign: dict[str, Tokenizer]) -> None:
    with pytest.raises(UsageError, match=r"messages\[0\] has role 'assistant'"):
        render([{"role": "assistant", "content": "x"}], foreign["qwen"])
    with pytest.raises(UsageError, match="refuses this conversation: Only user and assistant roles"):
        render(conversation(["x"], "system"), foreign["mistral"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "no control token ends the assistant's message 1"),
        (
            "{% for m in messages %}{{ loop.revindex }}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}",
            r"writes what stands before messages\[1\] in two ways",
        ),
    ],
)
def test_templates_that_hide_replies(source: str, message: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Nothing can be learned through them, but they can be asked for a reply."""
    tokenizer = with_template(folders["qwen"], tmp_path, source)
    with pytest.raises(UsageError, match=message):
        render(conversation(["a", "b"]), tokenizer)
    assert "a" in tokenizer.decode(render(conversation(["a", "b", "c"]), tokenizer, reply=True)[0])


# Programs of others.


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages",
        "{% for %}",
        "{{ missing.thing }}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ lipsum(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ 'x' * 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ range(1000000000)|list }}",
        "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{# " + "x" * (1 << 18) + " #}",
    ],
)
def test_a_template_that_fails_or_reaches_out(source: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """One error when it is used; the tokenizer loads, for the model can still complete text."""
    tokenizer = with_template(folders["qwen"], tmp_path, source)
    assert tokenizer.encode("text") and tokenizer.end_id is None
    with pytest.raises(UsageError, match="the chat template of .*tokenizer.json refuses this conversation") as raised:
        render([{"role": "user", "content": "x"}], tokenizer)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ messages|attr('__class__') }}",
        "{{ '{0.__class__}'.format(messages) }}",
    ],
)
def test_a_template_sees_nothing_inside(source: str, folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = with_template(folders["qwen"], tmp_path, source)
    assert render([{"role": "user", "content": "x"}], tokenizer) == ([], [])


def test_what_templates_use(folders: dict[str, Path], theirs: dict[str, Any], tmp_path: Path) -> None:
    source = (
        "{%- set ns = namespace(n=0) %}\n{%- for m in messages %}\n"
        "  {%- if m.role == 'user' %}{% set ns.n = ns.n + 1 %}{% endif %}\n"
        "  {%- if ns.n > 9 %}{% break %}{% endif %}\n  {{- '<|im_start|>' ~ m | tojson ~ loop.index0 % 2 }}\n"
        "  {%- generation %}{{ m.content | trim }}<|im_end|>{% endgeneration %}\n{%- endfor %}\n"
        "{{ ns.n }}{{ pad_token }}{{ bos_token }}{{ tools is none }}{{ '-' * 3 }}{{ '%03d' % 7 }}"
        "{{ strftime_now('%Y')[:2] }}{{ messages | length }}{{ {'a': [1, '<é>']} | tojson(indent=1) }}"
    )
    tokenizer = with_template(folders["qwen"], tmp_path, source)
    others = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path, local_files_only=True)
    messages = conversation(["hi 'you' <b>", "yes", "ok"])
    assert render(messages, tokenizer, reply=True)[0] == template_ids(others, messages, True)
