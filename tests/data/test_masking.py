"""What is hidden: decoded, counted, and never a control token."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from jielong.data.masking import Masking, choose, corrupt, masked_batch
from jielong.data.sentence_pairs import Pairing, encode_sentences, make_rows
from jielong.errors import ModelError, UsageError
from jielong.tokenizer.tokenizer import Tokenizer

TEXT = "the cat's catalogue lies on the table and the dog looks at the cat in the garden"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 290).with_controls(Tokenizer.ENCODER)


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def framed(tokenizer: Tokenizer, text: str) -> torch.Tensor:
    ids = [*tokenizer.prefix_ids, *tokenizer.encode(text), *tokenizer.suffix_ids]
    return torch.tensor([ids])


def test_words_by_hand(tokenizer: Tokenizer) -> None:
    tokens = framed(tokenizer, "the cat's dog, 你好 né")
    masking = Masking.of(tokenizer, 0.15, whole_words=True)
    numbers = masking.word_numbers(tokens, masking.is_text[tokens])[0].tolist()
    words: dict[int, bytes] = {}
    for number, token in zip(numbers, tokens[0].tolist(), strict=True):
        words[number] = words.get(number, b"") + tokenizer.token_bytes(token)
    assert words.pop(0) == b""  # [CLS] and [SEP]
    text = [words[number].decode() for number in sorted(words)]
    assert "".join(text) == "the cat's dog, 你好 né"
    # A blank is a part of the word where the tokenizer has learned so, and else a token by itself.
    assert [word.strip() for word in text if word.strip()] == ["the", "cat", "'s", "dog", ",", "你", "好", "né"]


@pytest.mark.parametrize("whole_words", [False, True])
def test_what_is_hidden_is_text_and_about_the_share_asked_for(tokenizer: Tokenizer, whole_words: bool) -> None:
    masking = Masking.of(tokenizer, 0.25, whole_words)
    tokens = framed(tokenizer, TEXT).expand(400, -1)
    mask = choose(tokens, torch.ones_like(tokens), masking, generator())
    num_text = tokens.shape[1] - 2
    counts = mask.sum(dim=1)
    if not whole_words:
        assert set(counts.tolist()) == {round(0.25 * num_text)}
    else:
        # A word may be left out for want of room, never cut: decode what is hidden and find it between blanks.
        assert counts.max() <= round(0.25 * num_text) and counts.float().mean() > 0.18 * num_text
        numbers = masking.word_numbers(tokens[:1], masking.is_text[tokens[:1]])[0]
        for row in mask[:50]:
            hidden = set(numbers[row].tolist())
            assert 0 not in hidden and row.equal(torch.isin(numbers, torch.tensor(sorted(hidden))))
    assert not mask[:, 0].any() and not mask[:, -1].any()
    share = mask[:, 1:-1].float().mean(dim=0)
    assert 0.12 < float(share.min()) and float(share.max()) < 0.38  # every place gets its turn


def test_a_row_of_one_token_hides_it(tokenizer: Tokenizer) -> None:
    for whole_words in (False, True):
        padded = torch.cat((framed(tokenizer, "x"), torch.zeros(1, 9, dtype=torch.int64)), dim=1)
        segments = torch.tensor([[1] * 3 + [0] * 9])
        mask = choose(padded, segments, Masking.of(tokenizer, 0.15, whole_words), generator())
        assert mask.tolist() == [[False, True, *[False] * 10]]


def test_eighty_ten_ten(tokenizer: Tokenizer) -> None:
    masking = Masking.of(tokenizer, 0.15)
    tokens = framed(tokenizer, TEXT).expand(2000, -1)
    mask = choose(tokens, torch.ones_like(tokens), masking, generator(2))
    seen = corrupt(tokens, mask, masking, generator(3))
    assert seen[~mask].equal(tokens[~mask])
    hidden, truth = seen[mask], tokens[mask]
    as_mask = hidden == tokenizer.mask_id
    assert float(as_mask.float().mean()) == pytest.approx(0.8, abs=0.01)
    same = hidden == truth
    assert float(same.float().mean()) == pytest.approx(0.1 + 0.1 / len(masking.ordinary), abs=0.01)
    others = hidden[~as_mask & ~same].unique().tolist()
    assert len(others) > 100 and not set(others) & set(tokenizer.special_ids.values())


def test_batches_are_cut_to_the_longest_row_and_drawn_anew(tokenizer: Tokenizer) -> None:
    sentences = encode_sentences([TEXT + ". " + TEXT, TEXT], tokenizer.encode, longest=20)
    cls_id, sep_id = tokenizer.prefix_ids[0], tokenizer.suffix_ids[0]
    rows = make_rows(sentences, Pairing(cls_id, sep_id, 200), seed=0)
    masking = Masking.of(tokenizer, 0.15)
    first, again, other = (masked_batch(rows, torch.arange(2), masking, generator(seed)) for seed in (1, 1, 2))
    assert first.tokens.shape[1] == int((rows.segments[:2] > 0).sum(dim=1).max()) < 200
    assert first.mask.equal(again.mask) and first.inputs.equal(again.inputs)
    assert not first.mask.equal(other.mask) and first.tokens.equal(other.tokens)
    assert first.num_units == int(first.mask.sum()) and not first.mask[first.segments == 0].any()
    one, two = first.split(1)  # the same rows and masks, each as wide as it is long
    assert (one.num_units + two.num_units, len(one.random), len(two.random)) == (first.num_units, 1, 1)
    for row, part in enumerate((one, two)):
        width = part.tokens.shape[1]
        assert int((part.segments > 0).sum()) == width
        for field in dataclasses.fields(first):
            whole, cut = getattr(first, field.name), getattr(part, field.name)
            if field.name not in ("num_units", "random"):
                assert cut.equal(whole[row : row + 1, :width]), field.name


def test_refusals(tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelError, match="no mask token"):
        Masking.of(Tokenizer.from_merges([]), 0.15)
    with pytest.raises(UsageError, match="mask_fraction is 1.0"):
        Masking.of(tokenizer, 1.0)
