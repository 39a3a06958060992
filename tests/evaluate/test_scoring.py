"""Fast scoring equals one forward pass a pair, whatever is shared, batched, or cut."""

from __future__ import annotations

import pytest
import torch

from jielong.errors import DataError, ModelError, UsageError
from jielong.evaluate import scoring
from jielong.evaluate.scoring import Pair, beginning, encode_pair, fits, score_pairs
from jielong.generate.engine import Engine
from jielong.model.logprobs import token_logprobs, token_ranks
from jielong.tokenizer.tokenizer import Tokenizer


def plainly(engine: Engine, pair: Pair) -> tuple[float, bool, int]:
    """The twin: the whole row, cut from the left to what the model reads, in one forward pass."""
    limit = engine.model.config.max_length
    row = [*pair.context, *pair.continuation]
    kept = row[-(limit + 1) :]
    with torch.no_grad():
        tokens = torch.tensor([kept])
        logits = engine.model(tokens[:, :-1])
        logits = torch.cat((logits, logits[:, -1:]), dim=1)  # the last one tells of nothing
        last = slice(len(kept) - len(pair.continuation), None)
        told = token_logprobs(logits, tokens)[0, last]
        ranks = token_ranks(logits, tokens)[0, last]
    return float(told.double().sum()), bool((ranks == 1).all()), len(row) - len(kept)


def random_pairs(vocab_size: int, shared: int, seed: int) -> list[Pair]:
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        num = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(vocab_size, (num,), generator=generator).tolist())

    head = ids(shared, shared + 1) if shared else ()
    pairs = []
    for _ in range(7):
        context = head + ids(1, 30)
        pairs += [Pair(context, ids(1, 6), "head" if shared else "") for _ in range(3)]
    return pairs


@pytest.mark.parametrize("shared", [0, 40])
@pytest.mark.parametrize("batch_tokens", [1, 300, 8192])
def test_batched_equals_single(opinionated: Engine, shared: int, batch_tokens: int) -> None:
    pairs = random_pairs(opinionated.model.config.vocab_size, shared, seed=shared)
    found = score_pairs(opinionated.model, pairs, opinionated.runtime, batch_tokens=batch_tokens)
    for pair, one in zip(pairs, found, strict=True):
        logprob, greedy, num_cut = plainly(opinionated, pair)
        assert one.logprob == pytest.approx(logprob, abs=2e-4)
        assert (one.greedy, one.num_cut, one.num_tokens) == (greedy, num_cut, len(pair.continuation))


def test_a_greedy_continuation_is_told_as_such(opinionated: Engine) -> None:
    made = opinionated.generate([[5, 6, 7]], max_new_tokens=4, temperature=0.0, stop_ids=())[0]
    pairs = [Pair((5, 6, 7), tuple(made.tokens)), Pair((5, 6, 7), (*made.tokens[:-1], (made.tokens[-1] + 1) % 200))]
    assert [one.greedy for one in score_pairs(opinionated.model, pairs, opinionated.runtime)] == [True, False]


def test_a_shared_beginning_is_read_once(opinionated: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = random_pairs(opinionated.model.config.vocab_size, 60, seed=1)
    num_tokens: list[int] = []
    hidden = opinionated.model.hidden

    def counted(tokens: torch.Tensor, *rest: object, **named: object) -> torch.Tensor:
        num_tokens.append(tokens.numel())
        return hidden(tokens, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(opinionated.model, "hidden", counted)
    score_pairs(opinionated.model, pairs, opinionated.runtime)
    assert num_tokens[0] == 60
    assert sum(num_tokens) < 60 + 21 * 36 < sum(len(pair.context) for pair in pairs)


def test_what_does_not_fit_loses_its_beginning(opinionated: Engine) -> None:
    limit = opinionated.model.config.max_length
    long = Pair(tuple(i % 200 for i in range(limit + 50)), (3, 4, 5))
    whole = Pair(long.context[:50], (3, 4, 5))
    found = score_pairs(opinionated.model, [long, whole], opinionated.runtime)
    assert [one.num_cut for one in found] == [52, 0]  # context and all but the last token of the continuation: 256
    assert found[0].logprob == pytest.approx(plainly(opinionated, long)[0], abs=2e-4)
    assert fits(Pair((1,), (2,) * limit), limit) and not fits(Pair((1,), (2,) * (limit + 1)), limit)
    full = Pair((1, 7), (2,) * limit)
    one = score_pairs(opinionated.model, [full], opinionated.runtime)[0]
    assert one.num_cut == 1 and one.logprob == pytest.approx(plainly(opinionated, full)[0], rel=1e-5)


def test_blanks_belong_to_the_word_after_them(opinionated: Engine) -> None:
    tokenizer = opinionated.tokenizer
    first = encode_pair(tokenizer, "The cat ", "sat")
    assert first == encode_pair(tokenizer, "The cat", " sat")
    assert first.context == (*tokenizer.prefix_ids, *tokenizer.encode("The cat"))
    assert tokenizer.decode(first.continuation) == " sat"
    alone = encode_pair(tokenizer, "", "The cat")
    assert alone.context == tokenizer.prefix_ids and tokenizer.decode(alone.continuation) == "The cat"


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_continuation_is_refused(opinionated: Engine, empty: str) -> None:
    with pytest.raises(DataError, match="a continuation is empty"):
        encode_pair(opinionated.tokenizer, "The cat", empty)


def test_without_a_first_token_whole_sentences_have_no_score() -> None:
    tokenizer = Tokenizer.from_merges([])
    tokenizer.prefix_ids, tokenizer.bos_id = (), None
    assert beginning(tokenizer) == (tokenizer.eos_id,)
    tokenizer.eos_id = None
    with pytest.raises(UsageError, match="no token to begin"):
        beginning(tokenizer)


def test_scores_that_are_no_numbers_stop(opinionated: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opinionated.model, "unembed", lambda hidden: torch.full((len(hidden), 300), float("nan")))
    with pytest.raises(ModelError, match="not finite"):
        score_pairs(opinionated.model, [Pair((1,), (2,))], opinionated.runtime)


def test_the_mode_of_the_model_is_restored(opinionated: Engine) -> None:
    opinionated.model.train()
    score_pairs(opinionated.model, [Pair((1,), (2,))], opinionated.runtime)
    assert opinionated.model.training
    opinionated.model.eval()


def test_logits_are_made_in_pieces(opinionated: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = random_pairs(opinionated.model.config.vocab_size, 0, seed=9)
    whole = score_pairs(opinionated.model, pairs, opinionated.runtime)
    monkeypatch.setattr(scoring, "_CHUNK_BYTES", 4 * 300 * 3)
    pieces = score_pairs(opinionated.model, pairs, opinionated.runtime)
    assert [one.greedy for one in pieces] == [one.greedy for one in whole]
    assert [one.logprob for one in pieces] == pytest.approx([one.logprob for one in whole], abs=1e-4)
