"""More control tokens behind the usual ones: text stays as it is, and `transformers` knows what they are for."""

from __future__ import annotations

from pathlib import Path

import pytest

from jielong.data.task_rows import Frame
from jielong.errors import ModelError
from jielong.tokenizer.tokenizer import Tokenizer

from .conftest import corpus


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> Tokenizer:
    return tokenizer.with_controls(Tokenizer.ENCODER)


def test_text_is_encoded_as_before(tokenizer: Tokenizer, encoder: Tokenizer) -> None:
    for text in (*corpus()[:5], "<|mask|> and <|cls|>"):
        assert encoder.encode(text) == tokenizer.encode(text) and encoder.decode(encoder.encode(text)) == text
    assert encoder.vocab_size == tokenizer.vocab_size + 3
    assert [encoder.special_ids[name] for name in Tokenizer.ENCODER] == [tokenizer.vocab_size + n for n in range(3)]
    assert {name: encoder.special_ids[name] for name in Tokenizer.SPECIALS} == tokenizer.special_ids
    assert (tokenizer.mask_id, encoder.mask_id) == (None, encoder.special_ids["<|mask|>"])
    assert encoder.hash != tokenizer.hash


def test_the_same_again_changes_nothing_and_more_come_behind(encoder: Tokenizer) -> None:
    assert encoder.with_controls(Tokenizer.ENCODER) is encoder
    both = encoder.with_controls(Tokenizer.TASK)
    assert list(both.special_ids) == [*Tokenizer.SPECIALS, *Tokenizer.ENCODER, *Tokenizer.TASK]


@pytest.mark.parametrize("controls", [Tokenizer.ENCODER, Tokenizer.TASK, (*Tokenizer.ENCODER, *Tokenizer.TASK)])
def test_saved_and_read_back(tokenizer: Tokenizer, controls: tuple[str, ...], tmp_path: Path) -> None:
    made = tokenizer.with_controls(controls)
    made.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.hash, again.special_ids, again.mask_id) == (made.hash, made.special_ids, made.mask_id)
    assert (again.prefix_ids, again.suffix_ids) == (made.prefix_ids, made.suffix_ids)


def test_an_unknown_control_token_is_refused(encoder: Tokenizer, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace("<|mask|>", "<|masque|>"))
    with pytest.raises(ModelError, match="special tokens .*masque"):
        Tokenizer.load(tmp_path)


def test_transformers_puts_them_around_texts(encoder: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    encoder.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForPreTraining"]}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    (cls_id,), (sep_id,) = encoder.prefix_ids, encoder.suffix_ids
    first, second = encoder.encode("the cat"), encoder.encode("a mat")
    assert theirs("the cat")["input_ids"] == [cls_id, *first, sep_id]
    pair = theirs("the cat", "a mat", return_token_type_ids=True)
    assert pair["input_ids"] == [cls_id, *first, sep_id, *second, sep_id]
    assert pair["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert (theirs.mask_token_id, theirs.cls_token_id, theirs.sep_token_id) == (encoder.mask_id, cls_id, sep_id)


@pytest.mark.parametrize("layout", ["gpt2", "bert", "openai_gpt", "unigram"])
def test_foreign_tokenizers_grow_too(foreign: dict[str, Tokenizer], layout: str, tmp_path: Path) -> None:
    old = foreign[layout]
    new = old.with_controls(Tokenizer.TASK)
    assert new.vocab_size == old.vocab_size + 3 and new.encode("the cat") == old.encode("the cat")
    assert new.encode("<|start|>") == old.encode("<|start|>")  # spelled in a text it stays text
    new.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.special_ids, again.prefix_ids) == (new.special_ids, new.prefix_ids) and not again.is_own
    assert old.with_controls(Tokenizer.TASK[:0]) is old


def test_a_pair_is_framed_as_a_foreign_bert_frames_it(foreign: dict[str, Tokenizer]) -> None:
    tokenizer = foreign["bert"]
    row, types, cut = Frame.encoder(tokenizer, 32).row(tokenizer.encode("the cat"), tokenizer.encode("hello"))
    names = [tokenizer.name(token) for token in row]
    assert names[0] == "[CLS]" and names[-1] == "[SEP]" and names.count("[SEP]") == 2 and not cut
    assert types.count(1) == len(row) - names.index("[SEP]") - 1
    assert tokenizer.mask_id == tokenizer.special_ids["[MASK]"]
