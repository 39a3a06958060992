"""Folders without tokenizer.json: GPT-2's vocab.json with merges.txt, BERT's vocab.txt, as a tokenizer.json.

The layouts are those that the models' authors published code for; which one is meant is said by "model_type" in
config.json. SentencePiece files (tokenizer.model, spiece.model, *.spm) are not read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jielong.errors import ModelError
from jielong.tokenizer.fast import QWEN2_SPLIT

_CONVERT = (
    "have it written as tokenizer.json with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
)
_BERT_CONTROL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_NO_PREFIX = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def legacy_document(
    folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """(names of the files read, content of a tokenizer.json that does the same).

    Raises ModelError saying what to do when the folder holds no files that can be read here.
    """
    kind = str(config.get("model_type", ""))
    reader = _READERS.get(kind)
    needed = reader[0] if reader else ("tokenizer.json",)
    missing = [name for name in needed if not (folder / name).is_file()]
    if reader is None or missing:
        others = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "source.spm")
        there = [name for name in others if (folder / name).is_file()]
        instead = f"; the folder has {', '.join(there)}: {_CONVERT}" if there else ""
        raise ModelError(f"{folder / 'tokenizer.json'} is missing: a model folder holds its tokenizer in it{instead}")
    return needed, reader[1](folder, settings)


def _gpt2(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**_bpe(folder, settings, ["<|endoftext|>"]), "pre_tokenizer": {**_NO_PREFIX, "use_regex": True}}


def _qwen2(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        **_bpe(folder, settings, ["<|endoftext|>"]),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {**_NO_PREFIX, "use_regex": False}]},
    }


def _openai_gpt(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    document = _bpe(folder, settings, ["<unk>"])
    document["model"].update(unk_token="<unk>", end_of_word_suffix="</w>")
    return {
        **document,
        "normalizer": _bert_normalizer(lowercase=True, chinese=True, accents=None),
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
    }


def _bert(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    lines = _text(folder / "vocab.txt").removesuffix("\n").split("\n")
    vocab = {line: number for number, line in enumerate(lines)}
    control = [name for name in _BERT_CONTROL if name in vocab]
    if not {"[CLS]", "[SEP]", "[UNK]"} <= set(control):
        raise ModelError(f"{folder / 'vocab.txt'}: a BERT vocabulary has the lines [UNK], [CLS] and [SEP]")
    return {
        **_empty(vocab, control, settings),
        "normalizer": _bert_normalizer(
            lowercase=settings.get("do_lower_case", True),
            chinese=settings.get("tokenize_chinese_chars", True),
            accents=settings.get("strip_accents"),
        ),
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing", "sep": ["[SEP]", vocab["[SEP]"]], "cls": ["[CLS]", vocab["[CLS]"]]
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    }  # fmt: skip


# model_type -> files, and what makes a tokenizer.json of them
_READERS: dict[str, tuple[tuple[str, ...], Callable[[Path, Mapping[str, Any]], dict[str, Any]]]] = {
    "gpt2": (("vocab.json", "merges.txt"), _gpt2),
    "openai-gpt": (("vocab.json", "merges.txt"), _openai_gpt),
    "qwen2": (("vocab.json", "merges.txt"), _qwen2),
    "qwen3": (("vocab.json", "merges.txt"), _qwen2),
    "qwen3_moe": (("vocab.json", "merges.txt"), _qwen2),
    "bert": (("vocab.txt",), _bert),
}


def _bert_normalizer(*, lowercase: object, chinese: object, accents: object) -> dict[str, Any]:
    return {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": chinese,
        "strip_accents": accents,
        "lowercase": lowercase,
    }


def _bpe(folder: Path, settings: Mapping[str, Any], control: list[str]) -> dict[str, Any]:
    path = folder / "vocab.json"
    try:
        vocab = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON, it may be cut off: {error}") from None
    if not isinstance(vocab, dict) or not all(isinstance(number, int) for number in vocab.values()):
        raise ModelError(f"{path} must be an object of tokens and their ids")
    lines = [line for line in _text(folder / "merges.txt").split("\n") if line and not line.startswith("#version")]
    merges = [line.split(" ") for line in lines]
    wrong = next((line for line, pair in zip(lines, merges, strict=True) if len(pair) != 2), None)
    if wrong is not None:
        raise ModelError(f"{folder / 'merges.txt'}: a line must hold two tokens and a blank between, not {wrong!r:.80}")
    return {
        **_empty(vocab, [name for name in control if name in vocab], settings),
        "decoder": _NO_PREFIX,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip


def _empty(vocab: Mapping[str, int], control: list[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer.json without parts; its added tokens are `control` and those of tokenizer_config.json."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = {vocab[name]: {"id": vocab[name], "content": name, **plain} for name in control}
    said = settings.get("added_tokens_decoder")
    for number, token in said.items() if isinstance(said, dict) else ():
        if isinstance(token, dict) and str(number).isdecimal():
            added[int(number)] = {**plain, **token, "id": int(number)}
    parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    return {"version": "1.0", **dict.fromkeys(parts), "added_tokens": [added[number] for number in sorted(added)]}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read as UTF-8 text: {error}") from None
