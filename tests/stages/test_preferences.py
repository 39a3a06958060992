"""The kinds of alignment beside PPO, end to end: GRPO, RLOO, DPO, best of n, and other judges than a reward model."""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import jielong
from jielong.recipe import parse_recipe
from jielong.stages import alignment, preferences
from jielong.stages.context import Context

StageOf = Callable[[Path, str], Path]
WITHOUT_PPO = """
[grpo]
num_iterations = 4
rollout_rows = 8
group_size = 4
minibatch_rows = 8
max_new_tokens = 16
kl_coefficient = 0.02
learning_rate = 1e-3
warmup_iterations = 0
watch_every = 2
judged_prompts = 8
checkpoint_every = 2

[rloo]
kind = "grpo"
estimator = "rloo"
reward = "verifiable"
skills = ["arithmetic", "identity"]
num_iterations = 2
rollout_rows = 8
group_size = 4
minibatch_rows = 8
max_new_tokens = 8
kl_coefficient = 0.02
learning_rate = 1e-3
judged_prompts = 4

[dpo]
comparisons = "reward"
beta = 0.1
num_steps = 8
batch_rows = 4
learning_rate = 1e-3
max_new_tokens = 16
judged_prompts = 8
checkpoint_every = 4

[best_of_n]
num_prompts = 12
replies_per_prompt = 4
num_steps = 4
batch_rows = 2
learning_rate = 1e-3
max_new_tokens = 16
judged_prompts = 8
checkpoint_every = 2
"""
NAMES = ("grpo", "rloo", "dpo", "best_of_n")


@pytest.fixture(scope="module")
def recipe_text(recipe: Path) -> str:
    before, _, rest = recipe.read_text(encoding="utf-8").partition("[ppo]")
    return before + WITHOUT_PPO + "[evaluate]" + rest.partition("[evaluate]")[2]


@pytest.fixture(scope="module")
def told() -> list[tuple[str, str]]:
    """(stage, whether it reads a model or learns) of `run`, as it went."""
    return []


@pytest.fixture(scope="module")
def run(
    recipe_text: str, reference: Path, told: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The reference run up to its reward model, and all that is made of it here."""

    def telling(what: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def do(context: Context, *others: Any) -> Any:
            told.append((context.name, what))
            return work(context, *others)

        return do

    root = tmp_path_factory.mktemp("preferences")
    (root / "r.toml").write_text(recipe_text, encoding="utf-8")
    folder = root / "micro"
    shutil.copytree(reference, folder, ignore=lambda _, names: [n for n in names if n[3:] in ("ppo", "evaluate")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Context, "load_model", telling("reads", Context.load_model))
        patch.setattr(alignment, "_train", telling("learns", alignment._train))
        patch.setattr(preferences, "train", telling("learns", preferences.train))
        jielong.run(root / "r.toml", folder, quiet=True)
    return folder


def figures_of(run: Path) -> dict[str, Any]:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    return {name: stage["figures"] for name, stage in report["stages"].items()}


def test_every_kind_leaves_a_model_and_its_figures(run: Path) -> None:
    figures = figures_of(run)
    for number, name in enumerate(NAMES, start=6):
        folder = run / f"{number:02d}-{name}"
        model, _ = jielong.load(folder / "model")
        assert model.config.head == "lm"
        assert math.isfinite(figures[name]["kl_nats_per_reply"]) and figures[name]["heldout_bits_per_byte_after"] > 0
        provenance = json.loads((folder / "model" / "jielong.json").read_text(encoding="utf-8"))
        assert provenance["parent"] == "../../04-sft/model" and provenance["steps"] > 0
    for name in ("grpo", "dpo", "best_of_n"):
        found = figures[name]
        assert 0 <= found["gold_win_rate_ci95"][0] <= found["gold_win_rate"] <= found["gold_win_rate_ci95"][1] <= 1
        assert "proxy_reward_after" in found
        assert 0 < found["distinct_2_after"] <= 1 and 0 <= found["repeated_4gram_rate_after"] <= 1
        liked = json.loads((run / f"{6 + NAMES.index(name):02d}-{name}" / "best_liked.json").read_text("utf-8"))
        rewards = [each["proxy_reward"] for each in liked]
        assert len(liked) == 10 and rewards == sorted(rewards, reverse=True)
        assert all(0 <= each["gold_reward"] <= 5.6 and each["reply"] is not None for each in liked)
    assert figures["grpo"]["episodes"] == 32 and figures["rloo"]["episodes"] == 16
    # the second stage of kind grpo goes by its own name
    assert set(figures["evaluate"]["exact_match"]) == {"base", "sft", "grpo", "rloo", "dpo", "best_of_n"}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "GRPO" in page and "DPO" in page and "Best of n" in page


def test_what_a_model_is_compared_with_is_not_in_memory_while_it_learns(run: Path, told: list[tuple[str, str]]) -> None:
    for name in NAMES:
        assert [what for stage, what in told if stage == name] == ["reads", "learns", "reads"]


def test_verified_answers_need_no_reward_model(run: Path) -> None:
    figures = figures_of(run)["rloo"]
    low, high = figures["verified_rate_after_ci95"]
    assert low <= figures["verified_rate_after"] <= high and "gold_win_rate" not in figures
    metrics = [json.loads(line) for line in (run / "07-rloo" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["skipped_rate"] == 0 and 0 <= row["proxy_reward"] <= 1 for row in metrics)
    assert all(0 < row["distinct_1"] <= 1 and 0 < row["ended_rate"] + row["reply_tokens"] for row in metrics)
    assert not any("gold_reward" in row for row in metrics)


def test_dpo_learns_from_the_comparisons_of_the_reward_stage(run: Path) -> None:
    figures = figures_of(run)
    assert figures["dpo"]["comparisons"] == figures["reward"]["comparisons"]
    assert not (run / "08-dpo" / "comparisons.jsonl").exists()
    metrics = [json.loads(line) for line in (run / "08-dpo" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["loss_nats"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics[-1]["loss_nats"] < metrics[0]["loss_nats"] and metrics[-1]["margin"] > 0


def test_best_of_n_has_its_curve(run: Path) -> None:
    points = json.loads((run / "09-best_of_n" / "curve.json").read_text(encoding="utf-8"))
    assert [point["n"] for point in points] == [1, 2, 4]
    assert points[0]["proxy"] <= points[1]["proxy"] <= points[2]["proxy"]
    figures = figures_of(run)["best_of_n"]
    assert figures["chosen"] == 12 and figures["kl_bound_nats"] == pytest.approx(math.log(4) - 0.75)
    assert set(figures["best_of_n_gold"]) == {"1", "2", "4"}


@pytest.mark.parametrize(("name", "step", "start"), [("grpo", 3, 2), ("dpo", 6, 4), ("best_of_n", 3, 2)])
def test_killed_and_given_again_it_is_bit_equal(
    name: str,
    step: int,
    start: int,
    run: Path,
    tmp_path: Path,
    trouble: Callable[..., tuple[int, str]],
    invoke: Callable[..., tuple[int, str, str]],
    sha256: Callable[[Path], str],
    lasting: Callable[[Any], Any],
    metrics_of: Callable[[Path], list[dict[str, Any]]],
) -> None:
    folder, later = tmp_path / "micro", (*NAMES[NAMES.index(name) :], "evaluate")
    shutil.copytree(run, folder, ignore=lambda _, names: [n for n in names if n[3:] in later])
    command = ("run", run.parent / "r.toml", "--out", folder, "--until", name)
    code, errors = trouble(*command, stage=name, step=step, moment="after_step")
    assert code == -signal.SIGKILL, errors
    code, _, said = invoke(*command)
    unit = "iteration" if name == "grpo" else "step"
    assert code == 0 and f"{name}: going on from {unit} {start}\n" in said, said
    ours, theirs = (each / f"{6 + NAMES.index(name):02d}-{name}" for each in (folder, run))
    assert sha256(ours / "model" / "model.safetensors") == sha256(theirs / "model" / "model.safetensors")
    assert lasting(metrics_of(ours)) == lasting(metrics_of(theirs))
    for left in ("samples.json", "best_liked.json", "curve.json"):
        assert (ours / left).exists() == (theirs / left).exists()
        assert not (theirs / left).exists() or (ours / left).read_bytes() == (theirs / left).read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["dpo.comparisons=rewards"],
            "comparisons = 'rewards' is no stage of kind reward before it; did you mean",
        ),
        (['dpo.sources=["world"]'], "set exactly one of sources and comparisons"),
        (["dpo.beta=0.0"], "beta is 0.0; it must be above 0"),
        (["dpo.num_prompts=4"], 'num_prompts = 4 has no effect without "world" in sources'),
        (["grpo.reward=mean"], 'reward = "mean" wants 2 or more stages of kind reward before it, there is 1'),
        (["grpo.reward=http"], 'reward = "http" wants a reward_url'),
        (["grpo.reward=verifiable"], 'reward = "verifiable" wants skills'),
        (["grpo.group_size=3"], "a divisor of rollout_rows = 8"),
        (["grpo.estimator=rlo"], "did you mean 'rloo'"),
        (["grpo.max_skipped_fraction=0.5"], 'max_skipped_fraction has no effect with reward = "model"'),
        (['rloo.skills=["arithmetik"]'], "skills names 'arithmetik'; did you mean 'arithmetic'"),
        (["rloo.reward_url=http://x"], 'reward_url has no effect without reward = "http"'),
        (["grpo.critic_learning_rate=0.1"], "unknown key"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    settings: list[str], message: str, recipe_text: str, tmp_path: Path
) -> None:
    path = tmp_path / "r.toml"
    path.write_text(recipe_text, encoding="utf-8")
    assert parse_recipe(path).stages
    with pytest.raises(jielong.JielongError) as refused:
        parse_recipe(path, settings)
    assert message in str(refused.value), str(refused.value)


def test_a_reward_model_of_another_tokenizer_is_refused(
    recipe: Path, copied: Callable[[str], Path], invoke: Callable[..., tuple[int, str, str]], stage_of: StageOf
) -> None:
    folder = copied("ppo")
    path = stage_of(folder, "reward") / "model" / "jielong.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_hash": "0" * 64}), encoding="utf-8")
    code, _, said = invoke("run", recipe, "--out", folder, "--until", "ppo")
    assert code == 1 and "reads the tokens of another tokenizer (hash 000000000000)" in said.replace("\n", " "), said


def test_two_reward_models_judge_as_one(recipe: Path, copied: Callable[[str], Path], tmp_path: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    before, _, after = text.partition("[ppo]")
    second = before.partition("[reward]")[2]
    both = f'{before}[reward-2]\nkind = "reward"\n{second}[ppo]{after}'
    path = tmp_path / "two.toml"
    path.write_text(both, encoding="utf-8")
    folder = copied("ppo")
    settings = ["ppo.reward=min", "ppo.num_iterations=2", "ppo.warmup_iterations=0"]
    report = jielong.run(path, folder, overrides=settings, until="ppo", quiet=True)
    assert report["stages"]["ppo"]["figures"]["episodes"] == 16
    scales = [
        json.loads((folder / name / "model" / "jielong.json").read_text(encoding="utf-8"))["reward"]
        for name in ("05-reward", "06-reward-2")
    ]
    assert scales[0] != scales[1]


def test_a_service_that_is_down_stops_the_run(
    recipe: Path, copied: Callable[[str], Path], invoke: Callable[..., tuple[int, str, str]], stage_of: StageOf
) -> None:
    folder = copied("ppo")
    command = ["run", recipe, "--out", folder, "--until", "ppo", "--set", "ppo.reward=http"]
    command += ["--set", "ppo.reward_url=http://127.0.0.1:9/none", "--set", "ppo.reward_timeout_seconds=0.5"]
    code, _, said = invoke(*command)
    assert code == 1 and "[ppo] the reward could not judge 8 of 8 replies" in said.replace("\n", " "), said
    assert not (stage_of(folder, "ppo") / "DONE").exists()


class Service(BaseHTTPRequestHandler):
    """Judges by length; `down_at` is the request from which on it fails, until it is mended."""

    asked = 0
    down_at: int | None = None

    def do_POST(self) -> None:
        items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
        Service.asked += 1
        if Service.down_at is not None and Service.asked >= Service.down_at:
            self.send_error(503)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"scores": [len(item["reply"]) / 10 for item in items]}).encode())

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_service_that_goes_down_costs_nothing_but_the_time(
    recipe: Path,
    copied: Callable[[str], Path],
    invoke: Callable[..., tuple[int, str, str]],
    stage_of: StageOf,
    sha256: Callable[[Path], str],
    tmp_path: Path,
) -> None:
    """It fails in the fourth of six iterations; the same command then goes on from the second, to the same weights."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder, whole = copied("ppo"), tmp_path / "whole"
    shutil.copytree(folder, whole)
    settings = ["--until", "ppo", "--set", "ppo.reward=http", "--set", "ppo.judged_prompts=2"]
    settings += ["--set", f"ppo.reward_url=http://127.0.0.1:{server.server_address[1]}/score"]
    try:
        Service.asked, Service.down_at = 0, 4
        code, _, said = invoke("run", recipe, "--out", folder, *settings)
        assert code == 1 and "could not judge 8 of 8 replies" in said.replace("\n", " "), said
        Service.down_at = None
        code, _, said = invoke("run", recipe, "--out", folder, *settings)
        assert code == 0 and "ppo: going on from iteration 2\n" in said, said
        assert invoke("run", recipe, "--out", whole, *settings)[0] == 0
    finally:
        server.shutdown()
        server.server_close()
    weights = [sha256(stage_of(each, "ppo") / "model" / "model.safetensors") for each in (folder, whole)]
    assert weights[0] == weights[1]
