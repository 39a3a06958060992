"""The verb on folders of encoders and translators, and the page it writes: whole, silent, safe with any text."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from jielong.cli import main
from jielong.folder import save
from jielong.model.config import ModelConfig
from jielong.model.hf import save_model
from jielong.model.transformer import Transformer
from jielong.tokenizer.tokenizer import Tokenizer

from ..model.conftest import BERT, FAMILIES, SIZES, randomise
from ..tokenizer.conftest import bert as bert_tokenizer


def look(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "argv", ["jielong", "lens", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0


def make(folder: Path, family: str) -> None:
    tokenizer = Tokenizer.train(["to be or not to be"], 263)
    fields = {**SIZES, **FAMILIES[family], "vocab_size": 263}
    save(randomise(Transformer(ModelConfig(**fields))), tokenizer, folder)


class Reader(HTMLParser):
    """Counts open elements and keeps what would load or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "b2") and not any(
            name.startswith("on") for name, _ in attributes
        )
        if tag != "meta":
            self.open.append(tag)
        self._note(attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._note(attributes)

    def _note(self, attributes: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attributes if name == "id"]
        self.references += [value or "" for name, value in attributes if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(path: Path) -> Reader:
    reader = Reader()
    content = path.read_text("utf-8")
    reader.feed(content)
    assert not reader.open and "http" not in content and "@import" not in content
    assert len(set(reader.ids)) == len(reader.ids)
    for reference in reader.references:
        assert reference.startswith("data:image/png;base64,") or reference.removeprefix("#") in reader.ids
    return reader


def test_hostile_text_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "model", "jie")
    written = '</p><script>alert(1)</script>"><b2 onload=x>&amp;\n'
    look(monkeypatch, str(tmp_path / "model"), written, "--out", str(tmp_path))
    reader = check_page(tmp_path / "lens.html")
    assert {"decoder", "logits", "next", "decoder-0-0", "decoder-1-3"} <= set(reader.ids)
    assert json.loads((tmp_path / "attention.json").read_text("utf-8"))["text"] == written


def test_an_encoder_has_maps_and_no_logit_lens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bert_tokenizer(tmp_path / "bert")
    size = Tokenizer.load(folder).vocab_size
    save_model(randomise(Transformer(ModelConfig(**{**SIZES, **BERT, "vocab_size": size}))), folder)
    look(monkeypatch, str(folder), "the cat", "--out", str(tmp_path / "look"))
    caught = capsys.readouterr()
    assert "no logit lens" in caught.err
    assert re.search(r"encoder: \d+ tokens: \[CLS\] .*\[SEP\]", caught.out)
    assert {path.name for path in (tmp_path / "look").iterdir()} == {"attention.json", "lens.html"}
    check_page(tmp_path / "look" / "lens.html")


def test_a_translator_has_three_kinds_of_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "model", "marian")
    model, out = str(tmp_path / "model"), ("--out", str(tmp_path))
    look(monkeypatch, model, "to be or", *out)
    assert "only the encoder is shown" in capsys.readouterr().err
    assert "cross" not in json.loads((tmp_path / "attention.json").read_text("utf-8"))
    look(monkeypatch, model, "to be or", *out, "--target", "not to", "--json")
    record = json.loads(capsys.readouterr().out)
    assert list(record["heads"]) == ["decoder", "cross", "encoder"]
    assert list(record["next"]) == ["embedding", "layer 0", "layer 1"]
    logits = json.loads((tmp_path / "logits.json").read_text("utf-8"))
    assert len(logits["top"]) == 3 and len(logits["top"][0]) == len(record["tokens"])
    shapes = {kind: maps["shape"] for kind, maps in json.loads((tmp_path / "attention.json").read_text("utf-8")).items()
              if kind not in ("model", "text")}  # fmt: skip
    num_target, num_source = len(record["tokens"]), len(record["source"])
    assert shapes["cross"] == [2, 4, num_target, num_source] and shapes["encoder"] == [2, 4, num_source, num_source]
    check_page(tmp_path / "lens.html")


def test_the_picture_is_the_map() -> None:
    """The PNG by hand: its pixels are palette indices, opacity the square root of the weight."""
    import base64
    import zlib

    from jielong.report.heatmap import picture

    data = base64.b64decode(picture(torch.tensor([[0.0, 0.25, 1.0]])).removeprefix("data:image/png;base64,"))
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    assert list(zlib.decompress(data[start : start + length])) == [0, 0, 128, 255]
