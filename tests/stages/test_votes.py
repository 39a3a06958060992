"""The loop with people, end to end: stages that learn from votes, a gate that decides by them, and the next round."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import jielong
from jielong.align.comparisons import Comparison
from jielong.cli.models import find_model
from jielong.config import config_hash
from jielong.data.examples import read_comparisons
from jielong.data.sources import Source
from jielong.data.votes import Answer, Vote, append_vote, read_votes
from jielong.errors import DataError
from jielong.folder import model_hash
from jielong.recipe import parse_recipe
from jielong.stages.comparisons import encode_heldout
from jielong.stages.context import promoted_model
from jielong.stages.identity import stage_hash
from jielong.tokenizer import Tokenizer

StageOf = Callable[[Path, str], Path]
Invoke = Callable[..., tuple[int, str, str]]
GOOD, BAD = "Sure, here is a story. The end.", "If you must."
REWARD = """
[reward]
num_steps = 8
batch_rows = 4
learning_rate = 1e-3
max_new_tokens = 16
evaluate_every = 4
checkpoint_every = 2
votes.files = ["VOTES"]
"""
PPO = """
[ppo]
num_iterations = 2
rollout_rows = 8
minibatch_rows = 8
max_new_tokens = 16
kl_coefficient = 0.02
learning_rate = 1e-3
critic_learning_rate = 1e-3
warmup_iterations = 0
judged_prompts = 4
"""


def vote(number: int, choice: str = "a", texts: tuple[str, ...] = (GOOD, BAD), **given: Any) -> Vote:
    """A vote on the number-th prompt. given: user, edited, and models: (name, hash) of each answer."""
    models = given.get("models", [("sft", "0" * 16)] * len(texts))
    answers = tuple(Answer(text, *model, {"temperature": 1.0}) for text, model in zip(texts, models, strict=True))
    prompt = [{"role": "user", "content": f"Tell a story about a fox and bell number {number}."}]
    user = given.get("user", "ann")
    name = given.get("id", f"{number}-{choice}-{user}")
    return Vote(name, "2026-11-25T00:00:00+00:00", user, prompt, answers, choice, given.get("edited"))


def write(path: Path, votes: list[Vote], *more: str) -> Path:
    for one in votes:
        append_vote(path, one)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(more))
    return path


def thirty() -> list[Vote]:
    """Votes on thirty prompts, of which a second user decides some too."""
    found = [vote(n, "b", (BAD, GOOD)) if n % 2 else vote(n) for n in range(30)]
    found += [vote(n, "a" if n else "b", user="bob") for n in range(0, 12, 2)]
    found += [vote(30, "tie"), vote(31, "both_bad"), vote(32, "both_bad", edited="Of course, I am happy to. The end.")]
    return [*found, vote(33, "a", (BAD, BAD)), vote(29, "b", (BAD, GOOD), id="again")]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Scores get their zero on fewer replies, and no curves are drawn anew after each stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jielong.report.curves.draw", lambda panel, name: "")
        patch.setattr("jielong.stages.comparisons.NUM_REFERENCE_REPLIES", 48)
        yield


@pytest.fixture(scope="module")
def write_recipe(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Path]:
    """The recipe of conftest.py up to its sft stage, with other tables after it. VOTES stands for a file of votes."""
    folder, made = tmp_path_factory.mktemp("recipes"), []

    def write_one(votes: Path, tables: str) -> Path:
        path = folder / f"{len(made)}.toml"
        made.append(path)
        before = recipe.read_text(encoding="utf-8").partition("[reward]")[0]
        path.write_text(before + tables.replace("VOTES", str(votes)), encoding="utf-8")
        return path

    return write_one


@pytest.fixture(scope="module")
def sft_only(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A new copy of the reference run, up to its sft stage, at each call."""

    def copy() -> Path:
        folder = tmp_path_factory.mktemp("copy") / "run"
        later = ("05-reward", "06-ppo", "07-evaluate", "report.json", "report.html")
        shutil.copytree(reference, folder, ignore=shutil.ignore_patterns(*later))
        return folder

    return copy


@pytest.fixture(scope="module")
def stopped(
    write_recipe: Callable[[Path, str], Path], sft_only: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """(run folder, recipe, votes) of a run that has come to its reward stage, which has not trained."""
    votes = tmp_path_factory.mktemp("stopped") / "votes.jsonl"
    return sft_only(), write_recipe(votes, REWARD), votes


@pytest.fixture(scope="module")
def voted(
    write_recipe: Callable[[Path, str], Path], sft_only: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """(run folder, recipe, votes) of a reward model and a policy that learned from votes. Not to be changed."""
    votes = write(tmp_path_factory.mktemp("votes") / "votes.jsonl", thirty(), "garbage\n", '{"id": "cut')
    recipe = write_recipe(votes, REWARD + PPO)
    folder = sft_only()
    jielong.run(recipe, folder, quiet=True)
    return folder, recipe, votes


def figures(folder: Path, name: str) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = report["stages"][name]["figures"]
    return found


def test_a_reward_model_learns_from_votes_and_tells_of_them(voted: tuple[Path, Path, Path]) -> None:
    folder, _, _ = voted
    found = figures(folder, "reward")
    assert found["votes"] == {
        "lines": 42, "bad_lines": 1, "half_lines": 1, "duplicates": 1, "capped": 0, "counted": 40, "users": 2,
        "identical": 1, "ties": 1, "both_bad": 2, "edited": 1,
    }  # fmt: skip
    assert found["user_agreement"] == pytest.approx(5 / 6) and found["user_agreement_comparisons"] == 6
    assert found["user_agreement_ci95"][0] < 5 / 6 < found["user_agreement_ci95"][1]
    assert found["comparisons"] == 30 + 6 + 2  # a pair a vote, and the edited answer against two
    assert found["ties"] == 3 and found["dropped_undecided"] == 2
    assert found["heldout_votes"] == found["heldout_comparisons"]
    assert found["heldout_votes_accuracy"] == found["heldout_accuracy"]
    kept = read_votes(folder / "05-reward" / "votes.jsonl", max_bad_fraction=0.0)
    assert len(kept.votes) == 40 and not kept.half_line
    bad = json.loads((folder / "05-reward" / "votes.json").read_text(encoding="utf-8"))["bad"]
    assert len(bad) == 1 and "votes.jsonl:42: not valid JSON" in bad[0]


def test_a_file_that_grows_makes_nothing_out_of_date(
    voted: tuple[Path, Path, Path], invoke: Invoke, tmp_path: Path
) -> None:
    folder, recipe, votes = voted
    copy, more = tmp_path / "run", tmp_path / "votes.jsonl"
    shutil.copytree(folder, copy)
    shutil.copy(votes, more)
    path = tmp_path / "same.toml"
    path.write_text(recipe.read_text(encoding="utf-8"), encoding="utf-8")
    before = votes.read_bytes()
    try:
        write(votes, [vote(99)])
        code, _, said = invoke("run", path, "--out", copy)
        assert code == 0 and "reward  already done" in said and "ppo  already done" in said, said
        votes.unlink()
        code, _, said = invoke("run", path, "--out", copy)
        assert code == 0, said
    finally:
        votes.write_bytes(before)


def test_killed_while_people_vote_then_the_same_command(
    voted: tuple[Path, Path, Path],
    sft_only: Callable[[], Path],
    write_recipe: Callable[[Path, str], Path],
    trouble: Callable[..., tuple[int, str]],
    invoke: Invoke,
    stage_of: StageOf,
    sha256: Callable[[Path], str],
    tmp_path: Path,
) -> None:
    folder, (whole, _, votes) = sft_only(), voted
    mine = tmp_path / "votes.jsonl"
    shutil.copy(votes, mine)
    recipe = write_recipe(votes, REWARD + PPO)
    command = ("run", recipe, "--out", folder, "--until", "reward")
    code, errors = trouble(*command, stage="reward", step=5, moment="after_step")
    assert code == -signal.SIGKILL, errors
    before = votes.read_bytes()
    try:
        write(votes, [vote(number) for number in range(50, 60)])
        code, _, said = invoke(*command)
    finally:
        votes.write_bytes(before)
    assert code == 0 and "reward: going on from step 4" in said, said
    ours, theirs = stage_of(folder, "reward"), stage_of(whole, "reward")
    assert sha256(ours / "model" / "model.safetensors") == sha256(theirs / "model" / "model.safetensors")
    assert (ours / "DONE").read_bytes() == (theirs / "DONE").read_bytes()


def test_other_votes_make_another_stage(
    voted: tuple[Path, Path, Path], invoke: Invoke, tmp_path: Path, stage_of: StageOf
) -> None:
    """With the reward stage removed, a policy that was made from its votes is not silently kept."""
    folder, recipe, _ = voted
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    shutil.rmtree(stage_of(copy, "reward"))
    code, _, said = invoke("run", recipe, "--out", copy)
    assert code == 2 and "06-ppo was made with other settings, seed, precision or inputs" in said.replace("\n", " ")


@pytest.mark.parametrize(
    ("votes", "more", "message"),
    [
        ([], ("",), "holds no vote"),
        ([vote(n) for n in range(9)], ("x\n",), "1 of 10 lines are no votes, 5 % may be"),
        ([vote(n, "tie") for n in range(9)], (), "none of 9 votes says which of two different answers is better"),
        ([vote(n, "a", (BAD, BAD)) for n in range(9)], (), "none of 9 votes says which of two different answers"),
        ([vote(0), vote(0, user="bob")], (), "1 prompt(s) cannot be split"),
        ([vote(n) for n in range(3)], (), "comparisons are fewer than one batch of 4 prompts"),
        ([vote(n, "a", ("long " * 200, BAD)) for n in range(9)], (), "none is decided and fits a context of 128"),
    ],
    ids=["empty", "garbage", "ties", "identical", "one prompt", "few", "too long"],
)
def test_votes_that_teach_nothing_stop_the_run(
    votes: list[Vote], more: tuple[str, ...], message: str, stopped: tuple[Path, Path, Path], invoke: Invoke
) -> None:
    folder, recipe, path = stopped
    path.unlink(missing_ok=True)
    write(path, votes, *more)
    code, _, said = invoke("run", recipe, "--out", folder)
    assert code == 1 and message in said.replace("\n", " "), said
    assert find_model(str(folder)).folder == folder / "04-sft" / "model"


def test_a_stopped_run_goes_on_when_there_are_more_votes(stopped: tuple[Path, Path, Path], invoke: Invoke) -> None:
    folder, recipe, path = stopped
    path.unlink(missing_ok=True)
    write(path, [vote(n) for n in range(2)])
    assert invoke("run", recipe, "--out", folder)[0] == 1
    write(path, [vote(n) for n in range(2, 20)])
    code, _, said = invoke("run", recipe, "--out", folder, "-q")
    assert code == 0, said
    assert figures(folder, "reward")["votes"]["counted"] == 20


def test_replies_that_no_prompt_leaves_room_for_are_told(
    sft_only: Callable[[], Path], write_recipe: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    path, settings = write(tmp_path / "votes.jsonl", thirty()), ["reward.max_new_tokens=120", "reward.num_steps=1"]
    with pytest.raises(jielong.JielongError, match="of 29 prompts leaves room for a reply of 120 tokens"):
        jielong.run(write_recipe(path, REWARD), sft_only(), overrides=settings, quiet=True)


def test_missing_votes_are_told_before_anything_runs(
    write_recipe: Callable[[Path, str], Path], invoke: Invoke, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "votes.jsonl", REWARD)
    code, _, said = invoke("run", recipe, "--out", tmp_path / "run")
    said = said.replace("\n", " ")
    assert code == 1 and "[reward] votes: " in said and "there is no such file of votes" in said, said
    assert "--until sft runs the stages before [reward]" in said
    assert not list((tmp_path / "run").glob("[0-9][0-9]-*"))


def test_answers_beyond_the_context_are_counted_and_ties_may_be_modelled(
    sft_only: Callable[[], Path], write_recipe: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    votes = [vote(n) for n in range(20)] + [vote(40, "tie"), vote(41, "both_bad"), vote(42, "a", ("long " * 200, BAD))]
    path = write(tmp_path / "votes.jsonl", votes)
    settings = ["reward.ties=half", "reward.num_steps=2", "reward.votes.per_user=22", 'reward.sources=["world"]']
    settings += ["reward.num_prompts=8", "reward.replies_per_prompt=2"]  # the labeller's comparisons beside the votes
    recipe, folder = write_recipe(path, REWARD), sft_only()
    jielong.run(recipe, folder, overrides=settings, quiet=True)
    found = figures(folder, "reward")
    assert found["dropped_too_long"] == 1 and found["votes"]["capped"] == 1 and found["votes"]["counted"] == 22
    assert (
        found["prompts"] == 8 and found["comparisons"] > 20 and found["noise_ceiling_accuracy"] == pytest.approx(0.75)
    )
    assert found["ties"] == 2 and found["dropped_undecided"] <= 2  # a held-out tie cannot be agreed with


def test_dpo_and_sft_learn_from_votes(
    sft_only: Callable[[], Path], write_recipe: Callable[[Path, str], Path], reference: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "votes.jsonl", thirty())
    dpo = "[dpo]\nbeta = 0.1\nnum_steps = 2\nbatch_rows = 4\nlearning_rate = 1e-3\n"
    dpo += "max_new_tokens = 16\njudged_prompts = 4\n"
    folder = sft_only()
    jielong.run(write_recipe(path, dpo + 'votes.files = ["VOTES"]\n'), folder, quiet=True)
    found = figures(folder, "dpo")
    assert found["votes"]["counted"] == 40 and found["comparisons"] == 38 and "heldout_accuracy" in found
    again = tmp_path / "again"
    later = ("04-sft", "05-reward", "06-ppo", "07-evaluate", "report.json")
    shutil.copytree(reference, again, ignore=shutil.ignore_patterns(*later))
    settings = [f'sft.votes.files=["{path}"]', "sft.num_steps=2", "sft.warmup_steps=0"]
    jielong.run(write_recipe(path, ""), again, overrides=settings, quiet=True)
    before, after = figures(reference, "sft"), figures(again, "sft")
    assert after["edited_answers"] == 1 and after["conversations"] == before["conversations"] + 1


def test_what_could_not_be_judged_is_told_before_it_is_trained(
    sft_only: Callable[[], Path], write_recipe: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    path, folder = write(tmp_path / "votes.jsonl", thirty()), sft_only()
    dpo = '[dpo]\nbeta = 0.1\nnum_steps = 2\nbatch_rows = 4\nlearning_rate = 1e-3\nvotes.files = ["VOTES"]\n'
    dpo += "max_new_tokens = 120\njudged_prompts = 4\n"
    with pytest.raises(DataError, match="none of 4 held-out prompts leaves room for a reply of 120 tokens"):
        jielong.run(write_recipe(path, dpo), folder, quiet=True)
    assert not (folder / "05-dpo" / "metrics.jsonl").exists()


def test_held_out_comparisons_of_which_none_is_decided_are_told(reference: Path) -> None:
    tokenizer = Tokenizer.load(reference / "02-tokenizer" / "model")
    tie = {"messages": [{"role": "user", "content": "Tell a story."}], "replies": [GOOD, BAD], "pairs": []}
    heldout = [Comparison.from_record({**tie, "ties": [[0, 1]]})] * 3
    with pytest.raises(DataError, match=r"^\[dpo\] nothing to judge with: of 3 .* \(3 undecided, 0 too long\)"):
        encode_heldout(heldout, tokenizer, 128, "[dpo]")


# The gate


@pytest.fixture
def judged(
    voted: tuple[Path, Path, Path], write_recipe: Callable[[Path, str], Path], tmp_path: Path
) -> Callable[[str], tuple[Path, Path]]:
    """promote's table -> (a copy of the voted run, a recipe with that table)."""
    folder, _, votes = voted

    def make(table: str) -> tuple[Path, Path]:
        copy = tmp_path / "run"
        shutil.copytree(folder, copy)
        return copy, write_recipe(votes, REWARD + PPO + f"[promote]\n{table}\n")

    return make


def duels(folder: Path, num_new: int, num_old: int) -> list[Vote]:
    """Votes between the sft model and the policy, on either side."""
    sft, ppo = (folder / name / "model" for name in ("04-sft", "06-ppo"))
    models = [("sft", model_hash(sft)), ("ppo", model_hash(ppo))]
    found = []
    for number in range(num_new + num_old):
        swapped, wins = number % 2 == 1, number < num_new
        said = models[::-1] if swapped else models
        found.append(vote(number, "b" if wins != swapped else "a", models=said, id=f"duel {number}"))
    return found


@pytest.mark.parametrize(("num_new", "num_old", "promoted"), [(18, 4, True), (12, 10, False), (4, 18, False)])
def test_people_decide_which_model_goes_on(
    num_new: int,
    num_old: int,
    promoted: bool,
    judged: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
) -> None:
    folder, recipe = judged(f'judge = "votes"\nvotes.files = ["{tmp_path}/duels.jsonl"]')
    others = [vote(number, id=f"other {number}") for number in range(100, 105)]  # on other models: not asked about
    write(tmp_path / "duels.jsonl", duels(folder, num_new, num_old) + others)
    report = jielong.run(recipe, folder, quiet=True)
    found = report["stages"]["promote"]["figures"]
    assert found["promoted"] is promoted and (found["old"], found["new"]) == ("sft", "ppo")
    assert found["win_rate"] == pytest.approx(num_new / (num_new + num_old)) and found["judged"] == num_new + num_old
    assert (found["win_rate_ci95"][0] > 0.5) is promoted
    chosen = folder / ("06-ppo" if promoted else "04-sft") / "model"
    assert promoted_model(folder / "07-promote") == chosen
    last = find_model(str(folder))
    assert last.folder == chosen and "promoted model, which 07-promote chose" in last.note
    rule = report["stages"]["promote"]["rules"][0]
    assert rule["passed"] is promoted and f"of {num_new + num_old} against sft" in rule["shown"]
    assert "Promotion" in (folder / "report.html").read_text(encoding="utf-8")


def test_nothing_to_judge_with_is_refused_and_the_old_model_stays(
    judged: Callable[[str], tuple[Path, Path]], invoke: Invoke, tmp_path: Path
) -> None:
    folder, recipe = judged(f'judge = "votes"\nvotes.files = ["{tmp_path}/duels.jsonl"]')
    write(tmp_path / "duels.jsonl", [vote(1), vote(2)])
    code, _, said = invoke("run", recipe, "--out", folder)
    said = said.replace("\n", " ")
    assert code == 1 and "none of 2 votes compares the old model" in said and "the votes are on sft (0000" in said, said
    assert find_model(str(folder)).folder == folder / "04-sft" / "model"  # the policy is not judged yet
    write(tmp_path / "duels.jsonl", duels(folder, 9, 0))
    code, out, said = invoke("run", recipe, "--out", folder)
    assert code == 0 and "ppo is promoted over sft: it won 100.0 % of 9" in said.replace("\n", " "), said
    assert find_model(str(folder)).folder == folder / "06-ppo" / "model"


def test_held_out_choices_judge_and_the_next_round_begins_with_what_they_chose(
    judged: Callable[[str], tuple[Path, Path]], voted: tuple[Path, Path, Path], invoke: Invoke
) -> None:
    folder, recipe = judged('judge = "heldout"')
    report = jielong.run(recipe, folder, quiet=True)
    found = report["stages"]["promote"]["figures"]
    assert found["judged_by"] == "reward" and found["judged"] == figures(folder, "reward")["heldout_comparisons"]
    assert found["promoted"] is (found["win_rate_ci95"][0] > 0.5)
    chosen = promoted_model(folder / "07-promote")
    code, _, said = invoke("complete", folder, "Tell", "-n", "2")
    assert code == 0 and "promoted model, which 07-promote chose" in said.replace("\n", " "), said
    again = REWARD.replace("[reward]", '[reward-2]\nkind = "reward"').replace("VOTES", str(voted[2]))
    again += PPO.replace("[ppo]", '[ppo-2]\nkind = "ppo"')
    again += '[evaluate-2]\nkind = "evaluate"\nquestions_per_skill = 1\nmax_new_tokens = 4\n'
    recipe.write_text(recipe.read_text(encoding="utf-8") + again, encoding="utf-8")
    report = jielong.run(recipe, folder, quiet=True)
    for name in ("08-reward-2", "09-ppo-2"):
        parent = json.loads((folder / name / "model" / "jielong.json").read_text(encoding="utf-8"))["parent"]
        assert (folder / name / "model" / parent).resolve() == chosen.resolve()
    assert set(report["stages"]["evaluate-2"]["figures"]["exact_match"]) == {"base", "sft", "ppo", "ppo-2"}
    assert find_model(str(folder)).folder == folder / "09-ppo-2" / "model"  # no gate stands after it


def test_gold_and_a_second_reward_model_judge(
    voted: tuple[Path, Path, Path], write_recipe: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    folder, _, votes = voted
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    second = REWARD.replace("[reward]", '[other]\nkind = "reward"')
    samples = "judged_prompts = 4\nmax_new_tokens = 16\n"
    tables = second + f'[promote]\njudge = "reward"\nreward = "other"\n{samples}'
    recipe = write_recipe(votes, REWARD + PPO + tables)
    found = jielong.run(recipe, copy, quiet=True)["stages"]["promote"]["figures"]
    assert found["judged_by"] == "other" and found["judged"] == 3 * 4
    low = figures(copy, "other")["heldout_accuracy_ci95"][0]
    assert found["judge_accuracy_at_least"] == low
    assert found["judge_trusted"] is (low > 0.5)
    assert found["promoted"] is (found["judge_trusted"] and found["win_rate_ci95"][0] > 0.5)
    shutil.rmtree(copy / "08-promote")
    path = copy / "07-other" / "model" / "jielong.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_hash": "0" * 64}), encoding="utf-8")
    with pytest.raises(jielong.JielongError, match="reads the tokens of another tokenizer"):
        jielong.run(recipe, copy, quiet=True)
    shutil.rmtree(copy / "07-other")
    recipe = write_recipe(votes, REWARD + PPO + f'[promote]\njudge = "gold"\n{samples}')
    shutil.rmtree(copy / "08-promote", ignore_errors=True)
    found = jielong.run(recipe, copy, quiet=True)["stages"]["promote"]["figures"]
    assert found["judged"] == 12 and 0 <= found["gold_reward_before"] <= 5.6 and "gold_reward_after" in found


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('judge = "votes"', 'judge = "votes" wants a votes table'),
        ('judge = "gut"', "judge"),
        ('judge = "heldout"\njudged_prompts = 9', 'judged_prompts has no effect with judge = "heldout"; delete it'),
        ('judge = "gold"\nvotes.files = ["x"]', 'votes has no effect with judge = "gold"'),
        ('judge = "gold"\nreward = "reward"', 'reward has no effect with judge = "gold"'),
        ('judge = "reward"', "[reward] cannot judge [ppo], which was trained to please it and always will"),
        ('judge = "heldout"\nreward = "rewrad"', "which reward = 'rewrad' is not; did you mean 'reward'?"),
        ('judge = "votes"\nvotes.files = []', "votes.files"),
        ('judge = "votes"\nvotes.files = ["x"]\nvotes.cap = 3', "unknown key"),
        ('judge = "gold"\nthreshold = 0.4', "threshold"),
    ],
)
def test_a_gate_that_cannot_judge_is_refused(
    table: str, message: str, write_recipe: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    path = write_recipe(tmp_path / "v", REWARD + PPO + f"[promote]\n{table}\n")
    with pytest.raises(jielong.JielongError) as refused:
        parse_recipe(path)
    assert message in str(refused.value), str(refused.value)


def test_a_gate_without_a_new_policy_is_refused(write_recipe: Callable[[Path, str], Path], tmp_path: Path) -> None:
    gate = '[promote]\njudge = "heldout"\n'
    again = gate.replace("[promote]", '[again]\nkind = "promote"')
    for tables in (REWARD + gate, REWARD + PPO + gate + again):
        with pytest.raises(jielong.JielongError, match="there is no new policy to judge"):
            parse_recipe(write_recipe(tmp_path / "v", tables))


def test_a_vote_in_the_place_of_a_comparison_is_told_where_it_belongs(tmp_path: Path) -> None:
    write(tmp_path / "votes.jsonl", thirty())
    with pytest.raises(jielong.JielongError, match="this is a vote; name its file in the stage's votes table"):
        list(read_comparisons(Source("mine", "votes.jsonl"), tmp_path))


def test_a_recipe_without_votes_has_the_hashes_that_it_had_before_there_were_any(recipe: Path) -> None:
    parsed = parse_recipe(recipe)
    for stage in parsed.stages:
        settings = stage.settings.model_dump(mode="json")
        assert settings.pop("votes", None) is None
        younger = {"mixture": None, "z_loss": 0.0, "router_balance": 0.01, "router_z": 0.001, "keep_out": []}
        assert all(settings.pop(name, value) == value for name, value in younger.items())
        content = {"name": stage.name, "kind": stage.kind, "settings": settings, "before": "x"}
        assert stage_hash(parsed, stage, {}, "x") == config_hash(content)
