"""This package's own tokenizer as Hugging Face knows it: training, tokenizer.json and tokenizer_config.json.

tokenizer.json writes each byte as a printable character (the "byte level" alphabet of GPT-2), so that a vocabulary of
bytes fits into JSON text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from jielong.errors import ModelError
from jielong.tokenizer.fast import QWEN2_SPLIT, merge_pair
from jielong.tokenizer.spelling import CHARACTERS, NUM_BYTES, spell, unspell

SPLIT_PATTERN = QWEN2_SPLIT
CLS, SEP, MASK = "<|cls|>", "<|sep|>", "<|mask|>"


def _pre_tokenizer() -> dict[str, Any]:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        ],
    }


def tokenizer_document(merges: Sequence[tuple[bytes, bytes]], specials: Sequence[str]) -> dict[str, Any]:
    """The content of tokenizer.json: bytes, then merges, then specials, in id order; no normaliser.

    With an encoder's control tokens among the specials, a text gets [cls] before and [sep] behind it, and so do two.
    """
    vocab = {CHARACTERS[byte]: byte for byte in range(NUM_BYTES)}
    for left, right in merges:
        vocab[spell(left + right)] = len(vocab)
    added = [
        {
            "id": len(vocab) + index,
            "content": special,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, special in enumerate(specials)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(),
        "post_processor": _surroundings(added),
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [[spell(left), spell(right)] for left, right in merges],
        },
    }


def _surroundings(added: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The post-processor that puts an encoder's control tokens around one text or two; None without such tokens."""
    ids = {token["content"]: token["id"] for token in added}
    if CLS not in ids:
        return None

    def control(name: str, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": kind}}

    def sequence(name: str, kind: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": kind}}

    single = [control(CLS, 0), sequence("A", 0), control(SEP, 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, sequence("B", 1), control(SEP, 1)],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (CLS, SEP)},
    }


def tokenizer_settings(specials: Sequence[str], chat_template: str) -> dict[str, Any]:
    """The content of tokenizer_config.json: which class reads the file, the names of the specials, the template."""
    named = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    encoders = {"cls_token": CLS, "sep_token": SEP, "mask_token": MASK}
    named |= {key: name for key, name in encoders.items() if name in specials}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "additional_special_tokens": [name for name in specials if name not in named.values()],
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
    }


def json_text(document: dict[str, Any]) -> str:
    """The document as it is written to a file."""
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def learn_merges(texts: Iterable[str], num_tokens: int) -> list[tuple[bytes, bytes]]:
    """Byte-pair merges learned from `texts`, first learned first, at most num_tokens - 256 of them.

    A pair that occurs once is never merged. Deterministic: ties go to the lower pair of ids.
    """
    document = tokenizer_document([], [])
    # The trainer numbers the alphabet by character, not by byte; only the merges are taken from it.
    learner = tokenizers.Tokenizer.from_str(json.dumps(document))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=num_tokens,
        min_frequency=2,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    pairs = json.loads(learner.to_str())["model"]["merges"]
    return [(unspell(left), unspell(right)) for left, right in pairs]


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a tokenizer.json. Raises ModelError naming the file when it is missing or damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: a model folder holds its tokenizer in this file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON, it may be cut off: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise ModelError(f'{path} is not a tokenizer.json: it has no object "model"')
    return document


def is_own(document: dict[str, Any], specials: Sequence[str]) -> bool:
    """True for a tokenizer.json of this package, whole or damaged: it has more than half of the specials."""
    added = document.get("added_tokens")
    found = [token.get("content") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return 2 * sum(name in found for name in specials) > len(specials) + 1  # others share up to four of the names


def extra_specials(document: dict[str, Any], specials: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Control tokens behind the usual ones in a tokenizer.json of this package; () where one of them is unknown."""
    added = document.get("added_tokens")
    tokens = added if isinstance(added, list) else []
    names = [str(token.get("content")) for token in tokens if isinstance(token, dict)]
    extra = tuple(names[len(specials) :])
    return extra if set(extra) <= set(known) else ()


def read_merges(document: dict[str, Any], path: Path, specials: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """The merges of a tokenizer.json that this package wrote (or `transformers` re-wrote).

    Raises ModelError when the file is damaged, of another kind, numbered otherwise, or its specials differ.
    """
    _check_specials(document, path, specials)
    model = document["model"]
    if model.get("type") != "BPE" or document.get("normalizer") is not None:
        raise ModelError(f"{path} is not a byte-level BPE without normaliser, the only kind read here")
    if _split_pattern(document) != SPLIT_PATTERN:
        raise ModelError(f"{path} splits text by another pattern than this package (Qwen2's): its ids would differ")
    try:
        merges = [(unspell(left), unspell(right)) for left, right in map(merge_pair, model["merges"])]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f'{path}: "merges" must be a list of pairs of byte-level tokens: {error!r}') from error
    expected = tokenizer_document(merges, specials)
    vocab = model.get("vocab")
    if isinstance(vocab, dict):  # some writers repeat the added tokens here; they are checked as such
        vocab = {token: number for token, number in vocab.items() if token not in specials}
    if vocab != expected["model"]["vocab"]:
        raise ModelError(f'{path}: "vocab" must number the 256 bytes, then the merges in order, and nothing else')
    found_ids = [token["id"] for token in document["added_tokens"]]
    expected_ids = [token["id"] for token in expected["added_tokens"]]
    if found_ids != expected_ids:
        raise ModelError(f"{path}: the special tokens have ids {found_ids}, must be {expected_ids}")
    return merges


def _check_specials(document: dict[str, Any], path: Path, specials: Sequence[str]) -> None:
    """Raises ModelError unless the added tokens are exactly `specials`, in order."""
    added = document.get("added_tokens")
    if not isinstance(added, list) or not all(isinstance(t, dict) and "id" in t and "content" in t for t in added):
        raise ModelError(f'{path}: "added_tokens" must be a list of objects with "id" and "content"')
    found = [token["content"] for token in added]
    missing = [special for special in specials if special not in found]
    doubled = [name for name, count in Counter(map(str, found)).items() if count > 1]
    if missing or doubled or found != list(specials):
        raise ModelError(
            f"{path}: special tokens {found} must be {list(specials)}, each once and in this order "
            f"(missing: {missing}, doubled: {doubled}); without them padding, begin, end and roles cannot be told apart"
        )


def _split_pattern(document: dict[str, Any]) -> str | None:
    """The regular expression of the first split, or None when the file has no such thing."""
    try:
        pattern = document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    except (KeyError, IndexError, TypeError):
        return None
    return pattern if isinstance(pattern, str) else None
