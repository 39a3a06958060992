"""Rows of the benchmarks' files as items: every word and blank, as lm-eval's prompts have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jielong.errors import DataError, UsageError
from jielong.evaluate import items
from jielong.evaluate.shots import Pool, preamble
from jielong.evaluate.tasks import TASKS, check_present, find_task, read_items, spaced

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def test_a_question_is_answered_on_its_own_line(benchmark_root: Path) -> None:
    item = read_items("arc_easy", benchmark_root)[1]
    assert item.options[1] == ("Question: Which is an animal?\nAnswer:", " a cat")
    assert (item.gold, item.num_options) == (1, 4)
    assert item.text == "Question: Which is an animal?\nAnswer: a cat"


def test_hellaswag_loses_wikihows_marks(benchmark_root: Path) -> None:
    item = read_items("hellaswag", benchmark_root)[1]
    assert item.contexts == ("Cats: the cat. sat on",)


def test_lambada_is_cut_before_its_last_word(benchmark_root: Path) -> None:
    found = read_items("lambada", benchmark_root)
    assert found[0].options == [("The cat sat on the mat because it was", " warm")]
    assert found[2].continuations == (' "perhaps',)


def test_winograd_has_one_ending_after_each_reading(benchmark_root: Path) -> None:
    item = read_items("winograd", benchmark_root)[0]
    assert [last for _, last in item.options] == [" was loud."] * 2
    assert item.text == "The cat feared the man because the man was loud."


def test_blimp_has_no_context(benchmark_root: Path) -> None:
    item = read_items("blimp", benchmark_root)[0]
    assert item.options == [("", "The cat sat on the mat."), ("", "The cat sat the mat on.")]
    assert (item.gold, item.group) == (0, "syntax")


def test_mmlu_lists_its_options(benchmark_root: Path) -> None:
    item = read_items("mmlu", benchmark_root)[0]
    assert item.contexts == ("2 + 3\nA. 4\nB. 5\nC. 6\nD. 7\nAnswer:",)
    assert item.continuations == (" A", " B", " C", " D") and item.gold == 1
    assert item.group == "high school sums"


def test_gsm8k_loses_its_calculator(benchmark_root: Path) -> None:
    first, second = read_items("gsm8k", benchmark_root)
    assert first.contexts == ("Question: Tom has 2 cats and buys 3. How many?\nAnswer:",)
    assert first.continuations == (" He has 2+3=5 cats.\n#### 5",)
    assert (first.answer, second.answer, second.continuations) == ("5", "1250", (" #### 1250",))
    assert items.without_reasoning(first).continuations == (" #### 5",)


def test_human_eval_calls_its_own_check(benchmark_root: Path) -> None:
    item = read_items("human_eval", benchmark_root)[0]
    assert item.test.endswith("assert candidate() == 1\n\ncheck(one)\n")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"query": "Q", "choices": ["a", "b"], "gold": 2}', "row 2.*the right answer is 2; .* 0 to 1"),
        ('{"query": "Q", "choices": ["a", "b"]}', "row 2.*no key 'gold'"),
        ('{"query": null, "choices": ["a", "b"], "gold": 0}', "row 2: not an item of 'copa'"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "zero_shot" / "copa.jsonl"
    path.parent.mkdir()
    path.write_text('{"query": "Q", "choices": ["a", "b"], "gold": 1}\n' + row + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_items("copa", tmp_path)


def test_what_is_not_there_is_told_before_anything_is_asked(benchmark_root: Path) -> None:
    check_present(["arc_easy", "mmlu"], benchmark_root)
    with pytest.raises(DataError, match="task 'piqa' reads .*piqa_valid.jsonl"):
        check_present(["arc_easy", "piqa"], benchmark_root)
    with pytest.raises(UsageError, match="did you mean hellaswag?"):
        find_task("hellaswog")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_real_files_are_read(name: str) -> None:
    found = read_items(name, SHARED, limit=82)
    assert len(found) == 82
    assert all(0 <= item.gold < item.num_options and item.continuations[0].strip() for item in found)


def test_a_limit_takes_items_evenly_spaced(benchmark_root: Path) -> None:
    assert spaced(10, None) == spaced(10, 12) == list(range(10))
    assert spaced(10, 4) == [0, 2, 5, 7] and spaced(3, 1) == [0]
    assert [item.number for item in read_items("arc_easy", benchmark_root, limit=2)] == [0, 2]


# Worked examples


def test_examples_of_another_file_are_the_same_for_all(benchmark_root: Path) -> None:
    pool = Pool(read_items("gsm8k", benchmark_root, path=TASKS["gsm8k"].shots), is_own=False)
    asked = read_items("gsm8k", benchmark_root)
    texts = {preamble(pool, item, 2, 0, "gsm8k") for item in asked}
    ((text, group),) = texts
    assert text == group and text.count("Question:") == 2 and text.endswith("\n\n")
    assert len({preamble(pool, asked[0], 2, seed, "gsm8k") for seed in range(5)}) > 1


def test_no_question_is_its_own_example(benchmark_root: Path) -> None:
    found = read_items("arc_easy", benchmark_root)
    pool = Pool(found, is_own=True)
    for item in found:
        text, group = preamble(pool, item, 4, 0, "arc_easy")
        assert item.contexts[0] not in text and text.count("Answer:") == 4 and group == ""
        assert preamble(pool, item, 4, 0, "arc_easy")[0] == text


def test_examples_of_the_same_subject_under_its_header(benchmark_root: Path) -> None:
    task = TASKS["mmlu"]
    pool = Pool(read_items("mmlu", benchmark_root, path=task.shots), is_own=False, by_group=True, header=task.header)
    asked = read_items("mmlu", benchmark_root)
    text, group = preamble(pool, asked[0], 2, 0, "mmlu")
    assert text.startswith("The following are multiple choice questions (with answers) about high school sums.\n\n1")
    assert "Cats" not in text and text.endswith("Answer: D\n\n") and group == text
    with pytest.raises(UsageError, match="2 worked examples of 'high school sums', not 3"):
        preamble(pool, asked[0], 3, 0, "mmlu")
    with pytest.raises(UsageError, match="has 2 worked examples, not 9"):
        preamble(Pool(asked, is_own=True), asked[0], 9, 0, "mmlu")
