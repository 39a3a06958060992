"""A model folder of others: which files make its tokenizer, and what they say about control tokens.

The first of these that says something decides (a null in the first two says "none"):

    bos, eos, pad, ...   tokenizer_config.json, special_tokens_map.json ("bos_token": text or {"content": text}),
                         generation_config.json, config.json ("bos_token_id": id or list of ids)
    around a text        the post-processor of tokenizer.json; like `transformers` 5 it does not ask "add_bos_token"
    stop                 all of: eos, every "eos_token_id" of generation_config.json (or else of config.json), and what
                         ends the assistant's turn in the chat template
    chat template        chat_template.jinja, "chat_template" in tokenizer_config.json (text, or a list's "default")

Ids and texts that are no token of the vocabulary count as not said. Control tokens are the added tokens that are marked
special, or named by any of these: text never becomes one. Added tokens that are neither are vocabulary, as Qwen3's
`<think>`: text that spells one becomes one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jielong.errors import ModelError
from jielong.tokenizer.hf import read_document
from jielong.tokenizer.legacy import legacy_document

SETTINGS, SPECIALS_MAP, TEMPLATE = "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"
# Everything that a tokenizer is made of; a model that is saved again takes them along byte by byte.
KEPT = (
    "tokenizer.json", SETTINGS, SPECIALS_MAP, TEMPLATE, "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
    "tokenizer.model", "spiece.model",
)  # fmt: skip
NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class Found:
    """A folder's tokenizer files, read.

    document: as a tokenizer.json. where: the file it is from. files: name -> content, of all KEPT files. named: "bos",
    "eos", ... -> token, for those that the folder names. stops: tokens that end a text. control: see above. template:
    the Jinja source, or None. hash: sha256 (hex) of the files that decide the ids.
    """

    document: dict[str, Any]
    where: str
    files: dict[str, bytes]
    named: dict[str, str]
    stops: tuple[str, ...]
    control: tuple[str, ...]
    template: str | None
    hash: str


def read_folder(folder: Path) -> Found:
    """The tokenizer of a folder. Raises ModelError naming the file that is missing or damaged."""
    files = {name: _bytes(folder / name) for name in KEPT if (folder / name).is_file()}
    files |= {f"chat_templates/{path.name}": _bytes(path) for path in sorted(folder.glob("chat_templates/*.jinja"))}
    settings, specials = _object(folder / SETTINGS), _object(folder / SPECIALS_MAP)
    generation, config = _object(folder / "generation_config.json"), _object(folder / "config.json")
    if "tokenizer.json" in files:
        deciding: tuple[str, ...] = ("tokenizer.json",)
        document = read_document(folder / "tokenizer.json")
    else:
        deciding, document = legacy_document(folder, config, settings)
    names = _names(document)
    tables, id_tables = (settings, specials), (generation, config)
    said = {kind: _named(kind, tables, id_tables, names) for kind in NAMED}
    named = {kind: token for kind, token in said.items() if token is not None}
    ends = _ids(generation, "eos") or _ids(config, "eos")
    stops = dict.fromkeys([*([named["eos"]] if "eos" in named else []), *(names[i] for i in ends if i in names)])
    more = settings.get("additional_special_tokens") or settings.get("extra_special_tokens")
    listed = {*named.values(), *stops, *(str(_content(token)) for token in (more if isinstance(more, list) else ()))}
    control = [t["content"] for t in _added(document) if t.get("special") is True or t["content"] in listed]
    digest = hashlib.sha256(b"".join(name.encode() + b"\0" + files[name] for name in deciding))
    return Found(
        document=document,
        where=str(folder / deciding[0]),
        files=files,
        named=named,
        stops=tuple(stops),
        control=tuple(dict.fromkeys(control)),
        template=_template(folder, files, settings),
        hash=digest.hexdigest(),
    )


def with_added(found: Found, names: Iterable[str]) -> Found:
    """The same tokenizer with more control tokens, numbered after all others; names that it has already change nothing.

    It is saved as a tokenizer.json, whatever it was read from.
    """
    known = _names(found.document)
    new = [name for name in names if name not in known.values()]
    first = max(known) + 1
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": first + number, "content": name, **flags} for number, name in enumerate(new)]
    document = {**found.document, "added_tokens": [*found.document["added_tokens"], *added]}
    content = (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()
    return replace(
        found,
        document=document,
        files={**found.files, "tokenizer.json": content},
        control=tuple(dict.fromkeys([*found.control, *new])),
        hash=hashlib.sha256(b"tokenizer.json\0" + content).hexdigest(),
    )


def _named(
    kind: str, tables: Iterable[Mapping[str, Any]], id_tables: Iterable[Mapping[str, Any]], names: Mapping[int, str]
) -> str | None:
    """The token that a folder calls its bos, eos, ...; the first table that says something decides."""
    for table in tables:
        if f"{kind}_token" in table:
            said = _content(table[f"{kind}_token"])
            if said is None or (isinstance(said, str) and said in names.values()):
                return said
    return next((names[number] for table in id_tables for number in _ids(table, kind) if number in names), None)


def _template(folder: Path, files: Mapping[str, bytes], settings: Mapping[str, Any]) -> str | None:
    """The Jinja source of the folder's chat template. Raises ModelError when it is no text."""
    if TEMPLATE in files:
        try:
            return files[TEMPLATE].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(f"{folder / TEMPLATE}: not UTF-8 ({error}); copy the file again") from None
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default", found)
    if found is None or isinstance(found, str):
        return found
    raise ModelError(
        f'{folder / SETTINGS}: "chat_template" must be text or a list with a "template" whose "name" is '
        f"default, not {found!r:.80}"
    )


def _added(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    added = document.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and isinstance(token.get("content"), str) and isinstance(token.get("id"), int):
            yield token


def _names(document: Mapping[str, Any]) -> dict[int, str]:
    """id -> token, as far as the document makes sense; `codec` says what is wrong with it."""
    vocab = document["model"].get("vocab")
    if isinstance(vocab, dict):
        names = {number: token for token, number in vocab.items() if isinstance(number, int)}
    elif isinstance(vocab, list):
        names = {number: str(entry[0]) for number, entry in enumerate(vocab) if isinstance(entry, list) and entry}
    else:
        names = {}
    names.update((token["id"], token["content"]) for token in _added(document))
    return names


def _content(token: object) -> object:
    """The text of a token that may be written as text or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def _ids(table: Mapping[str, Any], kind: str) -> list[int]:
    found = table.get(f"{kind}_token_id")
    found = found if isinstance(found, list) else [found]
    return [number for number in found if isinstance(number, int) and not isinstance(number, bool)]


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ModelError(f"{path} has {path.stat().st_size} bytes; a tokenizer's file has at most {_MOST_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; {} when there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(_bytes(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON, it may be cut off: {error}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}; an object is needed")
    return found
