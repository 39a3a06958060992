from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jielong.align.agreement import (
    calibration_error,
    length_baseline,
    longer_wins,
    measure_agreement,
    rate_ci95,
)
from jielong.align.comparisons import Candidates
from jielong.errors import DataError
from jielong.intervals import wilson_ci95
from jielong.model.transformer import Transformer


def test_independent_pairs_count_in_full_and_copies_count_once() -> None:
    hits = torch.tensor([1.0, 1.0, 1.0, 0.0] * 10)
    own_prompts = torch.arange(40)
    assert rate_ci95(hits, own_prompts) == pytest.approx(wilson_ci95(30, 40))
    copied, prompts = hits.repeat_interleave(6), own_prompts.repeat_interleave(6)
    assert rate_ci95(copied, prompts) == pytest.approx(wilson_ci95(30, 40)), "six copies of a pair are one pair"


def test_18_calibration_by_hand() -> None:
    # logits of .9 and .6: two sure pairs, one of them wrong (|.9 - .5|), one unsure and right (|.6 - 1|)
    sure, unsure = torch.tensor(0.9).logit().item(), torch.tensor(0.6).logit().item()
    assert calibration_error(torch.tensor([sure, -sure, unsure])) == pytest.approx((2 * 0.4 + 0.4) / 3, abs=1e-6)
    assert calibration_error(torch.tensor([])) == 0.0


def test_a_calibrated_judge_has_no_error() -> None:
    margin = torch.tensor(0.75).logit().item()
    assert calibration_error(torch.tensor([margin, margin, margin, -margin])) == pytest.approx(0.0, abs=1e-6)


def items(lengths: list[tuple[int, int]]) -> list[Candidates]:
    """First of the two is the better one."""
    return [Candidates([[1] * better, [1] * worse], [better, worse], [(0, 1)]) for better, worse in lengths]


def test_length_baseline_learns_which_way_to_lean() -> None:
    longer, shorter = items([(5, 2), (4, 1), (3, 3)]), items([(1, 2), (2, 5), (3, 1)])
    assert longer_wins(longer) == pytest.approx(2.5 / 3)
    assert length_baseline(longer, shorter) == pytest.approx(1 / 3)
    assert length_baseline(shorter, shorter) == pytest.approx(2 / 3)


def test_a_perfect_and_a_reversed_judge(make_model) -> None:  # type: ignore[no-untyped-def]
    judge = make_model("scalar", scale=8.0)
    pairs = [([1, n], [2, n]) for n in range(9)]
    with torch.no_grad():
        scores = [[float(judge(torch.tensor([row]))[0, -1]) for row in pair] for pair in pairs]
    right = [
        Candidates([list(a), list(b)], [1, 1], [(0, 1) if x > y else (1, 0)])
        for (a, b), (x, y) in zip(pairs, scores, strict=True)
    ]
    wrong = [Candidates(each.rows, each.reply_tokens, [each.pairs[0][::-1]]) for each in right]  # type: ignore[list-item]
    good, bad = (measure_agreement(judge, each, 9, batch_prompts=4) for each in (right, wrong))
    assert good.accuracy == 1.0 and bad.accuracy == 0.0 and good.num_pairs == good.num_prompts == 9
    assert good.ci95[1] == 1.0 and good.ci95[0] == pytest.approx(wilson_ci95(9, 9)[0])
    assert good.loss_nats < 0.6931 < bad.loss_nats


def test_nothing_to_measure(make_model) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match="no comparisons"):
        measure_agreement(make_model("scalar"), [], 9)


def test_a_judge_that_is_trained_is_measured_without_dropout(make_model) -> None:  # type: ignore[no-untyped-def]
    model = make_model("scalar", scale=8.0)
    judge = Transformer(replace(model.config, dropout=0.5)).train()
    judge.load_state_dict(model.state_dict())
    pairs = [Candidates([[1, n], [2, n]], [1, 1], [(0, 1)]) for n in range(9)]
    first = measure_agreement(judge, pairs, 9)
    assert judge.training and first == measure_agreement(judge, pairs, 9) == measure_agreement(judge.eval(), pairs, 9)
    assert not judge.training
