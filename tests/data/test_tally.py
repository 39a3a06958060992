"""Votes counted by hand: once each, as pairs, as agreement, as a table of wins."""

from __future__ import annotations

import pytest

from jielong.data.tally import (
    as_comparisons,
    count_once,
    first_answer_rate,
    item_of,
    matches,
    model_names,
    user_agreement,
)
from jielong.data.votes import Answer, Vote
from jielong.intervals import wilson_ci95


def vote(
    name: str,
    choice: str,
    texts: tuple[str, ...] = ("yes", "no"),
    *,
    user: str = "ann",
    models: tuple[str, ...] = ("old", "new"),
    prompt: str = "?",
    edited: str | None = None,
) -> Vote:
    answers = tuple(Answer(text, f"the {model}", model, {}) for text, model in zip(texts, models, strict=False))
    return Vote(name, "2026-01-01T00:00:00+00:00", user, [{"role": "user", "content": prompt}], answers, choice, edited)


def test_the_last_vote_on_a_comparison_counts_whichever_answer_stood_first() -> None:
    votes = [
        vote("1", "a"),
        vote("2", "a", ("no", "yes")),  # the same two, the other way round: ann has changed her mind
        vote("3", "a", user="bob"),
        vote("4", "a", prompt="another"),
        vote("4", "b", prompt="another one"),  # an id that was given before: a correction
        vote("5", "a", ("yes", "no", "maybe"), models=("x", "y", "z")),
    ]
    counted = count_once(votes)
    assert [(one.id, one.choice) for one in counted.votes] == [("2", "a"), ("3", "a"), ("4", "b"), ("5", "a")]
    assert (counted.num_duplicates, counted.num_capped) == (2, 0)
    assert item_of(votes[0]) == item_of(votes[1]) != item_of(votes[3])


def test_of_each_user_the_last_votes_count() -> None:
    votes = [vote(f"a{number}", "a", prompt=f"{number}") for number in range(5)]
    votes += [vote("b0", "b", user="bob"), vote("a9", "b", prompt="4")]  # ann's last one again
    counted = count_once(votes, per_user=3)
    assert [one.id for one in counted.votes] == ["a2", "a3", "b0", "a9"]
    assert (counted.num_duplicates, counted.num_capped) == (1, 2)


def test_what_votes_say_as_pairs() -> None:
    abc, models = ("p", "q", "r"), ("x", "y", "z")
    taught = as_comparisons(
        [
            vote("1", "b"),
            vote("2", "b", abc, models=models),
            vote("3", "tie"),
            vote("4", "both_bad", abc, models=models),
            vote("5", "both_bad", edited="perhaps"),
            vote("6", "a", edited="surely"),
            vote("7", "a", edited="yes"),  # "edited" into the answer that it is
            vote("8", "a", ("same", "same")),
            vote("9", "tie", ("same", "same"), edited="other"),
        ]
    )
    said = [(record["pairs"], record["ties"]) for record in taught.records]
    assert said == [
        ([(1, 0)], []),
        ([(1, 0), (1, 2)], []),
        ([], [(0, 1)]),
        ([], [(0, 1), (0, 2), (1, 2)]),
        ([(2, 0), (2, 1)], [(0, 1)]),
        ([(0, 1), (2, 0), (2, 1)], []),
        ([(0, 1)], []),
        ([(2, 0), (2, 1)], [(0, 1)]),
    ]
    assert taught.records[5]["replies"] == ["yes", "no", "surely"] and taught.records[6]["replies"] == ["yes", "no"]
    found = (taught.num_ties, taught.num_both_bad, taught.num_edited, taught.num_identical)
    assert found == (2, 2, 3, 1)


def test_agreement_of_users_by_hand() -> None:
    votes = [
        vote("1", "a", user="ann"),
        vote("2", "b", ("no", "yes"), user="bob"),  # the same text, wherever it stood
        vote("3", "b", user="cat"),  # of three users one pair agrees
        vote("4", "a", user="ann", prompt="two"),
        vote("5", "a", user="bob", prompt="two"),
        vote("6", "tie", user="cat", prompt="two"),  # no choice
        vote("7", "a", user="ann", prompt="alone"),
        vote("8", "a", ("same", "same"), user="ann", prompt="same"),
        vote("9", "b", ("same", "same"), user="bob", prompt="same"),
    ]
    found = user_agreement(votes)
    assert found.rate == pytest.approx((1 / 3 + 1) / 2)
    assert (found.num_comparisons, found.num_pairs) == (2, 4)
    assert found.ci95 == pytest.approx(wilson_ci95(4 / 3, 2))
    nobody = user_agreement(votes[:1])
    assert nobody.rate is None and nobody.num_comparisons == 0 and nobody.ci95 == (0.0, 1.0)


def test_wins_by_hand() -> None:
    votes = [
        vote("1", "a"),  # old beats new
        vote("2", "b"),
        vote("3", "a", ("no", "yes"), models=("new", "old")),
        vote("4", "tie"),
        vote("5", "both_bad"),
        vote("6", "a", models=("new", "new")),  # no match
        vote("8", "a", ("same", "same")),  # no choice
        vote("7", "c", ("p", "q", "r"), models=("old", "new", "third")),  # third beats both; old and new undecided
    ]
    found = matches(votes, model_names(votes))
    assert list(found) == [("the new", "the old"), ("the new", "the third"), ("the old", "the third")]
    match = found["the new", "the old"]
    assert match.counts == {"wins": 2, "losses": 1, "ties": 1, "both_bad": 1}
    assert match.win_rate == pytest.approx(3 / 5) and match.win_rate_ci95 == pytest.approx(wilson_ci95(3, 5))
    assert found["the new", "the third"].losses == found["the old", "the third"].losses == 1


def test_models_of_one_name_are_told_apart() -> None:
    answers = (
        Answer("x", "mine", "aaaaaaaaaa", {}),
        Answer("y", "mine", "bbbbbbbbbb", {}),
        Answer("z", "ppo", "c", {}),
    )
    one = Vote("1", "2026-01-01T00:00:00+00:00", "ann", [{"role": "user", "content": "?"}], answers, "a")
    names = model_names([one])
    assert names == {"aaaaaaaaaa": "mine (aaaaaaaa)", "bbbbbbbbbb": "mine (bbbbbbbb)", "c": "ppo"}


def test_leaning_to_the_first_answer() -> None:
    votes = [vote("1", "a"), vote("2", "a"), vote("3", "b"), vote("4", "tie"), vote("5", "a", ("p", "q", "r"))]
    rate, interval, num = first_answer_rate(votes[:4])
    assert (rate, num) == (pytest.approx(2 / 3), 3) and interval == pytest.approx(wilson_ci95(2, 3))
    assert first_answer_rate(votes[3:4]) == (None, (0.0, 1.0), 0)
