"""Our own tokenizers on a small text, and tiny ones in the layouts that open models ship: there is no hub in a test.

Each builder writes a folder's tokenizer files; `FOLDERS` names them. Layouts: what `tokenizer.json` of GPT-2, Llama 2
and 3, Mistral, Qwen 2 and 3, OpenAI-GPT, BERT and a SentencePiece unigram model hold, with a small vocabulary.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from jielong.tokenizer.tokenizer import Tokenizer


def corpus() -> list[str]:
    """A small bilingual text with words, numbers, code, line ends and runs of blanks; the same each time."""
    rng = random.Random(7)
    words = "the cat sat on a red mat while it's raining and we'll say hello world café".split()
    words += "你好 世界 我们 接龙 机器 学习".split()
    marks = [", ", ". ", "\n", "\n\n", "  ", " 42 ", "() {\n    return x;\n}\n", "！", "。", "\t", "'S "]
    return [
        "".join(rng.choice(words) + rng.choice([" ", " ", rng.choice(marks)]) for _ in range(60)) for _ in range(40)
    ]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(corpus(), 420)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    return Tokenizer.from_merges([])


LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_CHAT = (
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
    " + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n"
    "{%- endif %}\n"
)
LLAMA2_CHAT = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
# What Qwen3 does with thoughts: earlier replies are shown without them, the last one always with a block for them.
QWEN3_CHAT = (
    "{%- if messages[0].role == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- set ns = namespace(last=messages|length - 1) %}\n"
    "{%- for message in messages[::-1] %}\n"
    "    {%- set index = (messages|length - 1) - loop.index0 %}\n"
    "    {%- if message.role == 'user' and ns.last == messages|length - 1 and index < ns.last %}\n"
    "        {%- set ns.last = index %}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- for message in messages %}\n"
    "    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}"
    "{%- endif %}\n"
    "    {%- if message.role == 'user' %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\n"
    "    {%- elif message.role == 'assistant' %}\n"
    "        {%- set thoughts = '' %}\n"
    "        {%- if '</think>' in content %}\n"
    "            {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\n"
    "            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"
    "        {%- endif %}\n"
    "        {%- if loop.index0 > ns.last and loop.last %}\n"
    "            {{- '<|im_start|>assistant\\n<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n'"
    " + content.lstrip('\\n') }}\n"
    "        {%- else %}\n"
    "            {{- '<|im_start|>assistant\\n' + content }}\n"
    "        {%- endif %}\n"
    "        {{- '<|im_end|>\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}"
)


def sentences() -> list[str]:
    """A small text in several scripts, with words that repeat; the same each time."""
    rng = random.Random(11)
    words = "the cat sat on a red mat while it's raining and we'll say hello world café system user assistant".split()
    words += "Die Katze saß 你好 世界 我们 接龙 机器 学习 مرحبا بالعالم кошка на столе instruction answer".split()
    marks = [", ", ". ", "\n", "\n\n", "  ", " 42 ", " 2026", "() {\n    return x;\n}\n", "！", "。", "\t", "'S ", "? "]
    return [
        "".join(rng.choice(words) + rng.choice([" ", " ", rng.choice(marks)]) for _ in range(60)) for _ in range(40)
    ]


def special(token_id: int, content: str, *, is_special: bool = True, lstrip: bool = False) -> dict[str, Any]:
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": lstrip,
        "rstrip": False,
        "normalized": False,
        "special": is_special,
    }


def document(model: dict[str, Any], added: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", **empty, "added_tokens": added, **parts, "model": model}


def write(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=1)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def learn(pre_tokenizer: Any, trainer: Any, model: Any, normalizer: Any = None) -> dict[str, Any]:
    """The "model" object that `tokenizers` learns from the sentences."""
    learner = tokenizers.Tokenizer(model)
    learner.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        learner.normalizer = normalizer
    learner.train_from_iterator(sentences(), trainer)
    model_document: dict[str, Any] = json.loads(learner.to_str())["model"]
    return model_document


def bytes_bpe(split: str | None, num_tokens: int = 400) -> dict[str, Any]:
    """Byte-level BPE; split: the pattern, None for GPT-2's own inside ByteLevel."""
    parts: list[Any] = []
    if split is not None:
        parts.append(pre_tokenizers.Split(tokenizers.Regex(split), behavior="isolated"))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None))
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return learn(pre_tokenizers.Sequence(parts), trainer, models.BPE())


def byte_level(**settings: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True, **settings}


def split_then_bytes(split: str) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
            byte_level(trim_offsets=False, use_regex=False),
        ],
    }


def around(before: Sequence[tuple[str, int]], after: Sequence[tuple[str, int]] = ()) -> dict[str, Any]:
    """A post-processor that puts tokens before and after a text."""
    first = [{"SpecialToken": {"id": name, "type_id": 0}} for name, _ in before]
    last = [{"SpecialToken": {"id": name, "type_id": 0}} for name, _ in after]
    return {
        "type": "TemplateProcessing",
        "single": [*first, {"Sequence": {"id": "A", "type_id": 0}}, *last],
        "pair": [
            *first, {"Sequence": {"id": "A", "type_id": 0}}, *last, {"Sequence": {"id": "B", "type_id": 1}}, *last
        ],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in [*before, *after]},
    }  # fmt: skip


def gpt2(folder: Path) -> Path:
    model = bytes_bpe(None)
    end = len(model["vocab"])
    model["vocab"]["<|endoftext|>"] = end
    found = document(
        model,
        [{**special(end, "<|endoftext|>"), "normalized": True}],
        pre_tokenizer=byte_level(),
        post_processor=byte_level(trim_offsets=False),
        decoder=byte_level(),
    )
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    return write(
        folder,
        {
            "tokenizer.json": found,
            "tokenizer_config.json": {"model_max_length": 1024},
            "vocab.json": model["vocab"],
            "merges.txt": "#version: 0.2\n" + merges,
            "config.json": {"model_type": "gpt2", "bos_token_id": end, "eos_token_id": end},
            "generation_config.json": {"bos_token_id": end, "eos_token_id": end},
        },
    )


def llama3(folder: Path) -> Path:
    model = bytes_bpe(LLAMA3_SPLIT)
    model["ignore_merges"] = True
    names = ["begin_of_text", "end_of_text", "reserved_special_token_0", "start_header_id", "end_header_id", "eom_id"]
    names += ["eot_id", "python_tag"]
    first = len(model["vocab"])
    ids = {f"<|{name}|>": first + index for index, name in enumerate(names)}
    bos = "<|begin_of_text|>"
    found = document(
        model,
        [special(i, name) for name, i in ids.items()],
        pre_tokenizer=split_then_bytes(LLAMA3_SPLIT),
        post_processor={"type": "Sequence", "processors": [byte_level(), around([(bos, ids[bos])])]},
        decoder=byte_level(),
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": True,
        "chat_template": LLAMA3_CHAT,
        "added_tokens_decoder": {str(i): {**special(i, name)} for name, i in ids.items()},
    }
    for token in settings["added_tokens_decoder"].values():  # type: ignore[attr-defined]
        del token["id"]
    ends = [ids["<|end_of_text|>"], ids["<|eom_id|>"], ids["<|eot_id|>"]]
    return write(
        folder,
        {
            "tokenizer.json": found,
            "tokenizer_config.json": settings,
            "special_tokens_map.json": {"bos_token": bos, "eos_token": "<|eot_id|>"},
            "config.json": {"model_type": "llama", "bos_token_id": ids[bos], "eos_token_id": ends},
            "generation_config.json": {"bos_token_id": ids[bos], "eos_token_id": ends, "temperature": 0.6},
        },
    )


def qwen(folder: Path, template: str = CHATML) -> Path:
    model = bytes_bpe(QWEN_SPLIT)
    first = len(model["vocab"])
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>"]
    ids = {name: first + index for index, name in enumerate(names)}
    found = document(
        model,
        [special(i, name, is_special=name.startswith("<|")) for name, i in ids.items()],
        normalizer={"type": "NFC"},
        pre_tokenizer=split_then_bytes(QWEN_SPLIT),
        post_processor=byte_level(trim_offsets=False, use_regex=False),
        decoder=byte_level(trim_offsets=False, use_regex=False),
    )
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "chat_template": template,
    }
    return write(
        folder,
        {
            "tokenizer.json": found,
            "tokenizer_config.json": settings,
            "config.json": {
                "model_type": "qwen2", "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]
            },
            "generation_config.json": {
                "bos_token_id": ids["<|endoftext|>"],
                "pad_token_id": ids["<|endoftext|>"],
                "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            },
        },
    )  # fmt: skip


def qwen3(folder: Path) -> Path:
    qwen(folder, QWEN3_CHAT)
    config = json.loads((folder / "config.json").read_text())
    return write(folder, {"config.json": {**config, "model_type": "qwen3"}})


def sentencepiece_bpe(specials: Sequence[str]) -> dict[str, Any]:
    """BPE as SentencePiece numbers it: control pieces, 256 bytes, joins in merge order, then single characters."""
    pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learned = learn(pre_tokenizer, trainers.BpeTrainer(vocab_size=420, show_progress=False), models.BPE())
    merges = learned["merges"]
    joins = ["".join(pair) for pair in merges]
    letters = [piece for piece in learned["vocab"] if piece not in joins]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *joins, *letters]
    return {
        **learned,
        "vocab": {piece: index for index, piece in enumerate(pieces)},
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
    }


SPACES_BACK = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]


def llama2(folder: Path) -> Path:
    names = ["<unk>", "<s>", "</s>"]
    found = document(
        sentencepiece_bpe(names),
        [special(i, name) for i, name in enumerate(names)],
        normalizer={
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        post_processor=around([("<s>", 1)]),
        decoder={"type": "Sequence", "decoders": SPACES_BACK},
    )
    token = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return write(
        folder,
        {
            "tokenizer.json": found,
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "add_bos_token": True,
                "add_eos_token": False,
                "bos_token": {**token, "content": "<s>"},
                "eos_token": {**token, "content": "</s>"},
                "unk_token": {**token, "content": "<unk>"},
                "pad_token": None,
                "chat_template": LLAMA2_CHAT,
            },
            "config.json": {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1},
            "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        },
    )


def mistral(folder: Path) -> Path:
    """Metaspace instead of a normaliser, and instruction marks that are tokens; the template in a file of its own."""
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    found = document(
        sentencepiece_bpe(names),
        [special(i, name) for i, name in enumerate(names)],
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        post_processor=around([("<s>", 1)]),
        decoder={"type": "Sequence", "decoders": SPACES_BACK},
    )
    return write(
        folder,
        {
            "tokenizer.json": found,
            "tokenizer_config.json": {
                "tokenizer_class": "LlamaTokenizer",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "legacy": False,
            },
            "chat_template.jinja": MISTRAL_CHAT,
            "config.json": {"model_type": "mixtral", "bos_token_id": 1, "eos_token_id": 2},
        },
    )


def openai_gpt(folder: Path) -> Path:
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    model = learn(
        pre_tokenizers.BertPreTokenizer(),
        trainer,
        models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"),
        normalizers.BertNormalizer(lowercase=True),
    )
    lower = {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
        "lowercase": True,
    }  # fmt: skip
    found = document(
        model,
        [special(0, "<unk>")],
        normalizer=lower,
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "BPEDecoder", "suffix": "</w>"},
    )
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    return write(
        folder,
        {
            "tokenizer.json": found,
            "tokenizer_config.json": {"model_max_length": 512},
            "vocab.json": model["vocab"],
            "merges.txt": "#version: 0.2\n" + merges,
            "config.json": {"model_type": "openai-gpt"},
        },
    )


def bert(folder: Path, lower: bool = True) -> Path:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=420, special_tokens=names, show_progress=False)
    model = learn(
        pre_tokenizers.BertPreTokenizer(),
        trainer,
        models.WordPiece(unk_token="[UNK]"),
        normalizers.BertNormalizer(lowercase=lower),
    )
    found = document(
        model,
        [special(i, name) for i, name in enumerate(names)],
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": lower,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=around([("[CLS]", 2)], [("[SEP]", 3)]),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )
    ordered = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return write(
        folder,
        {
            "tokenizer.json": found,
            "tokenizer_config.json": {
                "do_lower_case": lower, "model_max_length": 512, "unk_token": "[UNK]", "sep_token": "[SEP]",
                "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
            },
            "vocab.txt": "".join(f"{piece}\n" for piece in ordered),
            "config.json": {"model_type": "bert", "pad_token_id": 0},
        },
    )  # fmt: skip


def bert_cased(folder: Path) -> Path:
    return bert(folder, lower=False)


def unigram(folder: Path) -> Path:
    """A SentencePiece unigram model, as T5 and multilingual models ship it; its vocabulary holds its control pieces."""
    names = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=names, unk_token="<unk>", show_progress=False)
    model = learn(pre_tokenizers.Metaspace(prepend_scheme="always"), trainer, models.Unigram(), normalizers.NFKC())
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    found = document(
        model,
        [special(i, name) for i, name in enumerate(names)],
        normalizer={"type": "NFKC"},
        pre_tokenizer=spaces,
        post_processor=around([], [("</s>", 1)]),
        decoder=spaces,
    )
    return write(
        folder,
        {
            "tokenizer.json": found,
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "pad_token": "<pad>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
            },
            "config.json": {"model_type": "t5", "pad_token_id": 0, "eos_token_id": 1},
        },
    )


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "gpt2": gpt2,
    "llama3": llama3,
    "qwen": qwen,
    "qwen3": qwen3,
    "llama2": llama2,
    "mistral": mistral,
    "openai_gpt": openai_gpt,
    "bert": bert,
    "bert_cased": bert_cased,
    "unigram": unigram,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> a folder with the tokenizer files of such a model, and a config.json. Do not write into it."""
    root = tmp_path_factory.mktemp("foreign")
    return {kind: build(root / kind) for kind, build in FOLDERS.items()}


@pytest.fixture(scope="session")
def foreign(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    """Kind -> that folder's tokenizer."""
    return {kind: Tokenizer.load(folder) for kind, folder in folders.items()}


def mixed_strings(num: int = 1000, seed: int = 5) -> list[str]:
    """Texts of many scripts, blanks, code, marks and random characters; the same each time."""
    rng = random.Random(seed)
    known = sentences()
    pools = [
        "abc XYZ", "你好世界接龙，。！", "مرحبا بالعالم", "кошка", "😀👩\u200d👩\u200d👧🇨🇳", "e\u0301o\u0308a\u030a",
        "  \t\n\r\u00a0\u3000", "def f(x): return {x: 1}\n", "0123456789 ²½", "'s 'LL 'T", "\ufeff\u200b\x00\x7f",
        "İıßẞſ", "한국어 각", "हिन्दी", "<>[]|/",
    ]  # fmt: skip
    planes = [(0x20, 0x250), (0x300, 0x370), (0x370, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000)]

    def make(kind: int) -> str:
        if kind == 0:
            return rng.choice(known)[rng.randrange(50) :][: rng.randrange(1, 120)]
        if kind == 1:
            return "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(60)))
        if kind == 2:
            return "".join(chr(rng.randrange(*rng.choice(planes))) for _ in range(rng.randrange(40)))
        if kind == 3:
            return " ".join(rng.choice(pools) for _ in range(rng.randrange(1, 8)))
        gap = rng.choice(["\n\n\n", "   ", "\t\t", " \n "]) * rng.randrange(1, 4)
        return " " * rng.randrange(9) + rng.choice(known)[:20] + gap + rng.choice(pools)

    return [make(index % 5) for index in range(num)]


@pytest.fixture(scope="session")
def strings() -> list[str]:
    return mixed_strings()
