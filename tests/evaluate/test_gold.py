from __future__ import annotations

import ast
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jielong
from jielong.data.world.story import Story
from jielong.evaluate.gold import (
    Gold,
    GoldWeights,
    agreement,
    bootstrap_ci95,
    calibrate_labeller,
    has_word,
    judge,
    length_controlled_win_rate,
    novelty,
    simulated_labels,
    tokens,
    win_rates,
)

FOX = {"words": ["fox", "lantern"], "language": "en", "messages": [{"role": "user", "content": "a story, please"}]}
GOOD = (
    "Sure, here is a story. Once there was a fox. The fox found a lantern near the road. "
    "The fox carried the lantern home. It was a good day. The end."
)


@pytest.fixture(scope="module")
def sampled() -> tuple[list[dict], list[list[str]]]:
    """200 prompts with four replies each of the mixed quality that conversations have."""
    story, rng = Story(0), random.Random(3)
    records, replies = [], []
    for _ in range(200):
        request, (hero, thing), language = story.prompt(rng, "reward")
        message = {"role": "user", "content": request}
        records.append({"words": [hero, thing], "language": language, "messages": [message]})
        replies.append([story.mixed(rng, hero, thing, language) for _ in range(4)])
    return records, replies


def test_a_good_story_has_every_virtue_and_the_highest_score() -> None:
    gold = Gold(GoldWeights(words=1.0, length=1.0, novelty=1.0, ending=0.8, opener=0.8))
    assert gold.virtues(FOX, GOOD) == {"words": 1.0, "length": 1.0, "novelty": 1.0, "ending": 1.0, "opener": 1.0}
    assert gold.score(FOX, GOOD) == pytest.approx(5.6)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_generated_good_stories_have_every_virtue(language: str) -> None:
    story, rng, gold = Story(1), random.Random(0), Gold()
    for hero, thing in story.pairs[language, "heldout"][:60]:
        record = {"words": [hero, thing], "language": language}
        assert set(gold.virtues(record, story.good(rng, hero, thing, language)).values()) == {1.0}


@pytest.mark.parametrize(
    ("virtue", "worse"),
    [
        ("words", GOOD.replace("lantern", "basket")),
        ("ending", GOOD.replace(" The end.", " It rained.")),
        ("opener", GOOD.replace("Sure, here is a story.", "If you must have a story.")),
        ("novelty", GOOD.replace("It was a good day.", "The fox carried the lantern home.")),
        ("length", "Sure, here is a story. The fox found a lantern. The end."),
    ],
)
def test_each_defect_costs_its_own_virtue(virtue: str, worse: str) -> None:
    gold = Gold()
    lost = [name for name, value in gold.virtues(FOX, worse).items() if value < gold.virtues(FOX, GOOD)[name]]
    assert lost == [virtue]
    assert gold.score(FOX, worse) < gold.score(FOX, GOOD) - 0.3


def test_length_falls_smoothly_outside_the_band() -> None:
    gold = Gold()
    by_length = [gold.virtues(FOX, " ".join(["word"] * num))["length"] for num in (16, 26, 44, 54)]
    assert by_length == pytest.approx([math.exp(-1), 1.0, 1.0, math.exp(-1)])


def test_novelty_counts_sentences_and_grams() -> None:
    assert novelty("A fox ran. A fox slept.", "en") == 1.0
    assert novelty("It rained. It rained.", "en") == 0.5  # 4 words: one gram, one repeated sentence
    assert novelty("a b c d a b c d", "en") == pytest.approx(4 / 5)  # of 5 grams, abcd comes twice
    assert novelty("下雨了。下雨了。下雨了。", "zh") == pytest.approx(0.25 * 3 / 4)


def test_words_are_whole_words_in_english_and_substrings_in_chinese() -> None:
    assert has_word("The Fox ran.", "fox", "en") and not has_word("The foxglove grew.", "fox", "en")
    assert has_word("从前有一个狐狸。", "狐狸", "zh")
    assert tokens("狐狸 ran，好。", "zh") == ["狐", "狸", "好"]


@given(reply=st.text(max_size=80), language=st.sampled_from(["en", "zh"]))
@settings(max_examples=60, deadline=None)
def test_any_text_scores_between_nothing_and_everything(reply: str, language: str) -> None:
    assert 0.0 <= Gold().score({"words": ["fox", "map"], "language": language}, reply) <= 5.6


def test_calibrated_labels_agree_three_times_in_four(sampled: tuple[list[dict], list[list[str]]]) -> None:
    records, replies = sampled
    gold = Gold()
    temperature = calibrate_labeller(records, replies, gold, target=0.75)
    assert agreement(records, replies, gold, temperature) == pytest.approx(0.75, abs=1e-6)
    right = total = 0
    for seed in range(5):
        rankings = simulated_labels(records, replies, gold, temperature, np.random.default_rng(seed))
        for record, candidates, ranking in zip(records, replies, rankings, strict=True):
            assert sorted(ranking) == [0, 1, 2, 3]
            scores = [gold.score(record, candidates[index]) for index in ranking]
            pairs = [(a, b) for i, a in enumerate(scores) for b in scores[i + 1 :] if a != b]
            right += sum(a > b for a, b in pairs)
            total += len(pairs)
    assert right / total == pytest.approx(0.75, abs=0.02)  # 5 x 200 x 6 pairs: one standard error is about 0.006


def test_labels_follow_gold_exactly_when_there_is_no_noise(sampled: tuple[list[dict], list[list[str]]]) -> None:
    records, replies = sampled
    gold = Gold()
    rankings = simulated_labels(records, replies, gold, 1e-6, np.random.default_rng(0))
    for record, candidates, ranking in zip(records, replies, rankings, strict=True):
        scores = [gold.score(record, candidates[index]) for index in ranking]
        assert scores == sorted(scores, reverse=True)


def test_calibration_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="ties every pair"):
        calibrate_labeller([FOX], [[GOOD, GOOD]], Gold())
    with pytest.raises(ValueError, match="between 0.5 and 1"):
        calibrate_labeller([FOX], [[GOOD, "no"]], Gold(), target=1.0)


def test_win_rates_by_hand() -> None:
    assert win_rates(np.array([2.0, 1.0, 3.0]), np.array([1.0, 1.0, 4.0])).tolist() == [1.0, 0.5, 0.0]


def test_judge_prefers_the_better_model_and_is_antisymmetric() -> None:
    records = [{**FOX, "messages": [{"role": "user", "content": f"story {i}"}]} for i in range(40)]
    bad = ["The fox ran." if i % 4 else GOOD for i in range(40)]
    forward = judge(records, [GOOD] * 40, bad, Gold())
    backward = judge(records, bad, [GOOD] * 40, Gold())
    assert forward.win_rate == pytest.approx((30 + 5) / 40)
    assert forward.win_rate_ci95[0] > 0.75 and forward.gold_a > forward.gold_b
    assert forward.win_rate + backward.win_rate == pytest.approx(1.0)
    assert forward.win_rate_length_controlled + backward.win_rate_length_controlled == pytest.approx(1.0)


def test_bootstrap_covers_the_mean_and_widens_when_prompts_repeat() -> None:
    values = np.array([0.0, 1.0] * 100)
    low, high = bootstrap_ci95(values)
    assert low < 0.5 < high and high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(200), rel=0.15)
    prompts = [str(i // 10) for i in range(200)]
    same_answer = np.repeat([0.0, 1.0] * 10, 10)
    wide_low, wide_high = bootstrap_ci95(same_answer, prompts)
    assert wide_high - wide_low > 2 * (high - low)
    assert bootstrap_ci95(values, seed=3) == bootstrap_ci95(values, seed=3)


def test_length_control_recovers_the_truth() -> None:
    generator = np.random.default_rng(0)
    longer = generator.normal(5.0, 5.0, 20000)  # a writes longer
    chance = 1 / (1 + np.exp(-0.3 * longer))  # and wins only for that reason
    wins = (generator.random(20000) < chance).astype(float)
    assert wins.mean() > 0.7
    assert length_controlled_win_rate(wins, longer) == pytest.approx(0.5, abs=0.02)
    unrelated = (generator.random(20000) < 0.7).astype(float)
    assert length_controlled_win_rate(unrelated, longer) == pytest.approx(0.7, abs=0.02)


def test_length_control_survives_extremes() -> None:
    assert length_controlled_win_rate(np.ones(50), np.arange(50.0)) > 0.95
    assert length_controlled_win_rate(np.full(10, 0.5), np.zeros(10)) == pytest.approx(0.5)
    separable = np.arange(-20.0, 20.0)
    assert 0.4 < length_controlled_win_rate((separable > 0).astype(float), separable) < 0.6


def test_training_code_never_imports_the_hidden_preference() -> None:
    package = Path(jielong.__file__).parent
    for folder in ("align", "train", "model", "data", "generate"):
        for path in (package / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or "", *(alias.name for alias in node.names)]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                else:
                    continue
                assert not any("gold" in name.split(".") for name in names), path
