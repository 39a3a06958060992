"""A model folder whose files are cut, flipped or swapped: it is served, or refused with a message; nothing else."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from jielong.errors import JielongError
from jielong.folder import save
from jielong.serve.launch import EngineOptions, load_folder

from .conftest import Lab

OPTIONS = EngineOptions(2, 0, 64, "float32", "cpu")
FILES = (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
    "jielong.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("broken")
    save(lab.model, lab.tokenizer, path)
    assert set(FILES) <= {file.name for file in path.iterdir()}
    return path


def broken(content: bytes, draw: random.Random) -> Iterator[bytes]:
    """Ways in which a file is no longer what was written."""
    yield b""
    yield b"\0" * 64
    for part in (0.02, 0.3, 0.6, 0.97):
        yield content[: int(len(content) * part)]
    yield content[:-1]
    yield content + content[:7]
    for _ in range(10):
        place, mask = draw.randrange(min(len(content), 3000)), 1 << draw.randrange(8)
        yield content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :]
    for _ in range(2):  # a piece that was written twice, or not at all
        place, size = draw.randrange(len(content)), draw.randrange(1, 60)
        yield content[:place] + content[place + size :]
        yield content[:place] + content[place : place + size] + content[place:]


def refused(folder: Path, name: str, content: bytes) -> str:
    """The message that the folder is refused with when one file holds `content`; "" when it is served."""
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        load_folder(folder, OPTIONS)
    except JielongError as error:
        return str(error)
    finally:
        path.write_bytes(whole)
    return ""


@pytest.mark.parametrize("name", FILES)
@pytest.mark.timeout(120)
def test_no_broken_file_is_a_traceback_or_a_hang(folder: Path, name: str) -> None:
    draw = random.Random(name)
    said = [refused(folder, name, content) for content in broken((folder / name).read_bytes(), draw)]
    assert len(said) > 20 and all(len(text) > 20 for text in said if text)
    assert any(said), "some of this is no model"
    assert load_folder(folder, OPTIONS).context


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
def test_json_of_another_shape(folder: Path, name: str) -> None:
    spoil(folder, name)


def test_a_translators_config_of_another_shape(translating: Lab, tmp_path: Path) -> None:
    save(translating.model, translating.tokenizer, tmp_path)
    spoil(tmp_path, "config.json")


def spoil(folder: Path, name: str) -> None:
    """Every way to be other JSON: as a whole, and key by key. None of it raises what is no JielongError."""
    whole = json.loads((folder / name).read_bytes())
    nested = '{"a":' * 100_000 + "1" + "}" * 100_000
    for content in ("null", "[]", '"x"', "7", "[" * 100_000, nested, "{}", "NaN", '{"a": 1e999}', "\ufeff{}", "é"):
        refused(folder, name, content.encode())
    for key in whole:  # each value of another kind, or not there
        for value in (None, "x", -1, [], {}, 1e308):
            refused(folder, name, json.dumps({**whole, key: value}).encode())
        refused(folder, name, json.dumps({k: v for k, v in whole.items() if k != key}).encode())


def test_tensors_that_are_not_where_the_header_says(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    first = next(name for name in header if name != "__metadata__")

    def written(**changes: object) -> bytes:
        text = json.dumps({**header, first: {**header[first], **changes}}).encode()
        return struct.pack("<Q", len(text)) + text + data

    assert refused(folder, "model.safetensors", written()) == ""
    for changes in (
        {"data_offsets": [0, 1 << 60]}, {"data_offsets": [-8, 8]}, {"data_offsets": [8, 0]},
        {"shape": [1 << 40, 1 << 40]},
        {"shape": [-1, 4]}, {"shape": []}, {"dtype": "F128"}, {"dtype": 7}, {"shape": "x"}, {"data_offsets": None},
    ):  # fmt: skip
        assert refused(folder, "model.safetensors", written(**changes)), changes
    for length in (0, 1, 7, size - 1, size + 1, 1 << 30, (1 << 64) - 1):
        assert refused(folder, "model.safetensors", struct.pack("<Q", length) + content[8:]), length


def test_a_file_that_is_a_folder_or_not_there(folder: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        path, aside = folder / name, folder / "aside"
        path.rename(aside)
        try:
            with pytest.raises(JielongError):
                load_folder(folder, OPTIONS)
            path.mkdir()
            with pytest.raises(JielongError):
                load_folder(folder, OPTIONS)
        finally:
            path.rmdir()
            aside.rename(path)
