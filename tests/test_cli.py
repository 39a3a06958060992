"""The verbs as people meet them: help, exit codes, one clear message, figures as JSON, a chat that keeps its thread."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jielong import __version__
from jielong.cli import main
from jielong.cli.chat import Conversation, command
from jielong.cli.models import find_model
from jielong.errors import JielongError, ModelError, RecipeError, UsageError
from jielong.folder import save
from jielong.generate.engine import Engine
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.tokenizer.tokenizer import Tokenizer
from jielong.train.checkpoint import save_checkpoint

CONTEXT = 96
RECIPE = '[data.world]\nmegabytes = 1\n\n[curate]\nsources = ["world"]\n'

Outcome = tuple[int, str, str]  # exit code, stdout, stderr
Invoke = Callable[..., Outcome]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """The command in this process: fast, and what it prints is caught."""
    monkeypatch.setenv("JIELONG_ALLOCATOR", "0")  # else `run` would start this very process again
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("JIELONG_TRACEBACK", raising=False)

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["jielong", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
            raise SystemExit(0)
        caught = capsys.readouterr()
        code = left.value.code
        return (code if isinstance(code, int) else 0), caught.out, caught.err

    return call


def make_model(folder: Path, kind: str) -> None:
    tokenizer = Tokenizer.train(["to be or not to be"], 263)
    config = ModelConfig(
        vocab_size=263, max_length=CONTEXT, width=32, decoder_layers=2, num_heads=2, num_kv_heads=1, head_size=16,
        ffn_width=64,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save(model, tokenizer, folder, {"kind": kind, "parent": "../../elsewhere/model"})


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with two finished models, a reward model and one that is not finished."""
    folder = tmp_path_factory.mktemp("run")
    make_model(folder / "01-pretrain" / "model", "pretrain")
    make_model(folder / "02-sft" / "model", "sft")
    make_model(folder / "04-ppo" / "model", "ppo")
    reward = folder / "03-reward" / "model"
    reward.mkdir(parents=True)
    (reward / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    for name in ("01-pretrain", "02-sft", "03-reward"):
        (folder / name / "DONE").touch()
    (folder / "recipe.toml").write_text(RECIPE + "[run]\nseed = 5\n")
    return folder


@pytest.fixture
def engine(run_folder: Path) -> Engine:
    from jielong.folder import load

    return Engine(*load(run_folder / "02-sft" / "model"))


# Help, version, wrong use.


def test_version(invoke: Invoke) -> None:
    assert invoke("--version") == (0, f"jielong {__version__}\n", "")


def test_help_teaches(invoke: Invoke) -> None:
    code, out, _ = invoke("--help")
    assert code == 0
    assert all(verb in out for verb in ("run", "plan", "chat", "complete", "evaluate"))
    for verb in ("run", "plan", "chat", "complete", "evaluate", "lens"):
        code, out, _ = invoke(verb, "--help")
        assert code == 0 and "Examples:" in out and f"jielong {verb}" in out


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, jielong.cli; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    "arguments", [("fly",), ("run",), ("chat",), ("complete", "x"), ("plan", "jie-s", "--flops", "fast")]
)
def test_wrong_use_leaves_with_2(invoke: Invoke, arguments: tuple[str, ...]) -> None:
    code, _, err = invoke(*arguments)
    assert code == 2 and err


# run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    return path


def fake_pipeline(monkeypatch: pytest.MonkeyPatch, run_recipe: Callable[..., Any]) -> None:
    """The pipeline itself is tested elsewhere; here only what the verb makes of it."""
    module = types.ModuleType("jielong.stages.pipeline")
    module.run_recipe = run_recipe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jielong.stages.pipeline", module)


REPORT = {
    "stages": {
        "curate": {
            "kind": "curate",
            "seconds": 2.0,
            "figures": {"documents_in": 3, "documents_kept": 2, "removed": {"too_short": 1}},
        }
    }
}


def test_run_hands_its_options_on_and_shows_the_verdicts(
    invoke: Invoke, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def run_recipe(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        return REPORT

    fake_pipeline(monkeypatch, run_recipe)
    code, out, _ = invoke("run", str(recipe), "--out", "here", "--set", "run.seed=1", "--set", "curate.mask_pii=false")
    assert code == 0
    assert calls == [(recipe, Path("here"), ["run.seed=1", "curate.mask_pii=false"], None, False)]
    assert "✓ the ledger adds up: 3 = 2 kept + 1 removed" in out and "report: here" in out
    assert "jielong chat" not in out  # there is no model yet
    code, out, _ = invoke("run", str(recipe), "--json", "--quiet", "--until", "curate")
    assert json.loads(out) == REPORT
    assert calls[-1][3:] == ("curate", True)


def test_rules_that_do_not_hold_are_said_and_leave_the_exit_code_alone(
    invoke: Invoke, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_recipe(*_: Any) -> dict[str, Any]:
        sft = {"kind": "sft", "seconds": 1.0, "figures": {"end_of_turn_rate": 0.5}}
        ppo = {"kind": "ppo", "seconds": 1.0, "figures": {}}  # not measured, so not counted
        return {"stages": {**REPORT["stages"], "chatty": sft, "ppo": ppo}}

    fake_pipeline(monkeypatch, run_recipe)
    code, out, _ = invoke("run", str(recipe))
    assert code == 0
    assert out.splitlines()[-1] == "1 of 2 pass rules do not hold: chatty: more than 95 % of turns end"
    assert "jielong chat runs" in out
    fake_pipeline(monkeypatch, lambda *_: REPORT)
    assert "do not hold" not in invoke("run", str(recipe))[1]


def test_wrong_recipe_is_told_before_anything_runs(invoke: Invoke, recipe: Path) -> None:
    code, out, err = invoke("run", str(recipe), "--set", "curate.mask_pi=false")
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and "did you mean `mask_pii`?" in err and "Traceback" not in err


def test_traceback_on_demand(invoke: Invoke, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["jielong", "run", str(recipe), "--set", "curate.mask_pi=false"])
    monkeypatch.setenv("JIELONG_TRACEBACK", "1")
    with pytest.raises(RecipeError):
        main()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (JielongError("the loss is not finite at step 3"), 1, "error: the loss is not finite at step 3"),
        (UsageError("first line\nsecond line"), 2, "error: first line\n       second line"),
        (OSError(28, "No space left on device", "runs/x/model"), 1, "error: runs/x/model: No space left on device"),
    ],
)
def test_errors_become_a_message_and_a_code(
    invoke: Invoke, recipe: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, text: str
) -> None:
    def run_recipe(*_: Any) -> None:
        raise error

    fake_pipeline(monkeypatch, run_recipe)
    found, _, err = invoke("run", str(recipe))
    assert found == code and err.startswith(text)


def test_interrupt_says_where_the_same_command_goes_on(
    invoke: Invoke, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_recipe(*_: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    (out / "01-curate").mkdir(parents=True)
    (out / "01-curate" / "DONE").touch()
    model = torch.nn.Linear(2, 2)
    save_checkpoint(out / "02-pretrain" / "checkpoints", 400, {"model": model}, {}, {})
    fake_pipeline(monkeypatch, run_recipe)
    code, _, err = invoke("run", str(recipe), "--out", str(out))
    assert code == 1
    assert err.strip() == "stopped; the same command goes on from step 400 of pretrain"


# plan


def test_plan_of_a_recipe(invoke: Invoke, recipe: Path) -> None:
    code, out, _ = invoke("plan", str(recipe), "--flops", "1e11", "--json")
    plan = json.loads(out)
    assert code == 0 and plan["stages"]["curate"]["seconds"] > 0


def test_plan_of_a_preset(invoke: Invoke) -> None:
    arguments = ("plan", "jie-s", "--flops", "1e12", "--tokens", "1e6", "--vocab-size", "1000", "--context", "128")
    plan = json.loads(invoke(*arguments, "--json", "--price", "2")[1])
    assert plan["kind"] == "decoder" and plan["tokens_are"] == "given"
    assert plan["model"]["parts"]["embedding"] == 1000 * plan["model"]["width"]
    assert plan["model"]["config"]["max_length"] == 128
    assert plan["flops"]["training"] == 1_000_000 * plan["flops"]["training_per_token"]
    here, *others = plan["hardware"]
    assert here["device"] == "this machine" and {"h100", "a100-80gb", "rtx-4090"} <= {row["device"] for row in others}
    assert here["price"] == pytest.approx(2 * here["seconds"] / 3600)
    code, out, _ = invoke(*arguments)
    assert code == 0 and "parameters" in out and "FLOP" in out and "h100" in out


@pytest.mark.parametrize("name", ["gpt3-175b", "transformer-base", "bert-base", "mixtral-8x7b", "jie-s"])
def test_plan_fits_a_terminal(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = invoke("plan", name, "--flops", "4e11", "--gpus", "8")
    assert code == 0 and max(len(line) for line in out.splitlines()) <= 80
    assert "…" not in out, "a column was cut"


def test_plan_says_the_published_numbers(invoke: Invoke) -> None:
    plan = json.loads(invoke("plan", "gpt3-175b", "--on", "a100-80gb", "--gpus", "1024", "--json")[1])
    assert plan["model"]["parameters"] == plan["model"]["built_parameters"] == 174_604_259_328
    assert plan["tokens_are"] == "published" and plan["tokens"] == 300_000_000_000
    assert plan["flops"]["six_n_d"] == pytest.approx(3.14e23, rel=0.002)
    (row,) = plan["hardware"]
    assert row["device"] == "a100-80gb" and row["devices"] == 1024
    out = invoke("plan", "gpt3-175b", "--on", "a100-80gb", "--gpus", "1024")[1]
    assert "174,604,259,328" in out and "6 N D is 3.14e23" in out and "h100" not in out


def test_plan_of_a_model_folder(invoke: Invoke, run_folder: Path) -> None:
    folder = str(run_folder / "02-sft" / "model")
    plan = json.loads(invoke("plan", folder, "--flops", "1e11", "--json")[1])
    assert plan["model"]["vocab_size"] == 263 and plan["row_tokens"] == CONTEXT
    assert plan["model"]["parameters"] == plan["model"]["built_parameters"]
    assert json.loads(invoke("plan", str(run_folder), "--flops", "1e11", "--json")[1])["model"] == plan["model"]
    assert invoke("plan", folder, "--flops", "1e11")[0] == 0


def test_plan_of_a_recipe_on_other_hardware(invoke: Invoke) -> None:
    recipe = str(Path(__file__).parents[1] / "recipes" / "gpt2-124m.toml")
    one = json.loads(invoke("plan", recipe, "--on", "h100", "--json")[1])
    two = json.loads(invoke("plan", recipe, "--on", "h100", "--gpus", "2", "--json", "--price", "5")[1])
    assert one["machine"] == {"flops_per_second": 989.4e12, "probed": False, "device": "1 x h100"}
    seconds = one["stages"]["pretrain"]["seconds"]
    assert two["stages"]["pretrain"]["seconds"] == pytest.approx(seconds / 2)
    assert one["price"] == pytest.approx(2.5 * one["totals"]["seconds"] / 3600)
    assert two["price"] == pytest.approx(2 * 5 * two["totals"]["seconds"] / 3600)
    assert "2 x h100, as given" in invoke("plan", recipe, "--on", "h100", "--gpus", "2")[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("jie-z",), "neither a recipe (.toml) nor a preset nor a model folder"),
        (("gpt2-124",), "did you mean gpt2-124m"),
        (("some/folder",), "nor a model folder"),
        (("jie-s", "--on", "h1000"), "did you mean h100?"),
        (("jie-s", "--on", "h100", "--flops", "1e12"), "which --on leaves without effect"),
        (("jie-s", "--flops", "-1"), "--flops is -1.0; it must be above 0"),
        (("jie-s", "--tokens", "0"), "--tokens is 0.0; it must be above 0"),
        (("jie-s", "--price", "-1"), "--price is -1.0; it must be 0 or more"),
        (("jie-s", "--set", "run.seed=1"), "--set is for recipes"),
        (("RECIPE", "--tokens", "1e9"), "--tokens is for presets and model folders"),
        (("RECIPE", "--vocab-size", "1000"), "--vocab-size is for presets"),
        (("RECIPE", "--context", "1000"), "--context is for presets"),
        (("RECIPE", "--gpus", "2"), "--gpus has no effect without --on"),
        (("MODEL", "--vocab-size", "1000"), "a model folder has its vocabulary"),
    ],
)
def test_wrong_plans_are_refused(
    invoke: Invoke, recipe: Path, run_folder: Path, arguments: tuple[str, ...], expected: str
) -> None:
    places = {"RECIPE": str(recipe), "MODEL": str(run_folder)}
    code, out, err = invoke("plan", *(places.get(argument, argument) for argument in arguments))
    assert (code, out) == (2, "") and expected in err


def test_plan_of_rows_that_the_model_cannot_read(invoke: Invoke, run_folder: Path) -> None:
    code, _, err = invoke("plan", str(run_folder), "--context", "1000", "--flops", "1e11")
    assert code == 1 and f"the model reads at most {CONTEXT}" in err


# Finding models.


def test_a_run_folder_means_its_last_finished_language_model(run_folder: Path) -> None:
    found = find_model(str(run_folder))
    assert found.folder == run_folder / "02-sft" / "model"
    assert "last model" in found.note and "01-pretrain" in found.note
    assert found.recipe == run_folder.resolve() / "recipe.toml"
    assert find_model(str(run_folder / "01-pretrain")).folder == run_folder / "01-pretrain" / "model"
    exact = find_model(str(run_folder / "04-ppo" / "model"))
    assert exact.folder == run_folder / "04-ppo" / "model" and exact.note == ""


def test_folders_without_a_model_are_explained(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such folder; did you mean .*02-sft"):
        find_model(str(run_folder / "02-stf"))
    with pytest.raises(ModelError, match=r"is a file. .* did you mean .*02-sft/model"):
        find_model(str(run_folder / "02-sft" / "model" / "config.json"))
    with pytest.raises(ModelError, match="it holds nothing"):
        find_model(str(tmp_path))
    (tmp_path / "01-pretrain").mkdir()
    with pytest.raises(ModelError, match="no model is finished yet"):
        find_model(str(tmp_path))


# complete


def test_complete_streams_what_generate_makes(invoke: Invoke, run_folder: Path, engine: Engine) -> None:
    made = engine.generate(["to be"], max_new_tokens=12, temperature=0.9, seed=4)[0]
    options = ("-n", "12", "--temperature", "0.9", "--seed", "4", "--device", "cpu")
    code, out, err = invoke("complete", str(run_folder), "to be", *options)
    assert code == 0 and out == f"to be{made.text}\n"
    assert "model:" in err and f"context 96 tokens, sft, from {run_folder / 'elsewhere' / 'model'}" in err
    record = json.loads(invoke("complete", str(run_folder), "to be", "-k", "3", "--json", *options)[1])
    assert record["tokens"] == made.tokens and record["finish_reason"] == made.finish_reason
    probabilities = [entry["probability"] for entry in record["top"]]
    assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)


def test_complete_may_only_look(invoke: Invoke, run_folder: Path) -> None:
    code, out, _ = invoke("complete", str(run_folder), "to be", "-k", "4", "-n", "0")
    assert code == 0 and len(out.splitlines()) == 4 and all(" %" in line for line in out.splitlines())


def test_prompt_longer_than_the_context(invoke: Invoke, run_folder: Path) -> None:
    code, _, err = invoke("complete", str(run_folder), "x" * 200)
    assert code == 2 and "context is 96" in err


def test_broken_model_folder(invoke: Invoke, tmp_path: Path) -> None:
    make_model(tmp_path / "model", "sft")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, _, err = invoke("complete", str(tmp_path / "model"), "x")
    assert code == 1 and "model.safetensors" in err and "Traceback" not in err


# lens


def test_lens_writes_its_files_and_a_table(invoke: Invoke, run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "look"
    code, told, err = invoke("lens", str(run_folder), "to be or", "--out", str(out))
    assert code == 0 and "its last model is" in err
    lines = told.splitlines()
    assert lines[0] == "decoder: 8 tokens: t o · b e · o r" or "<|bos|>" in lines[0]
    assert [line.split("  ")[0] for line in (text.strip() for text in lines[2:5])] == [
        "layer 1",
        "layer 0",
        "embedding",
    ]
    assert {path.name for path in out.iterdir()} == {"attention.json", "logits.json", "lens.html"}
    attention, logits = (json.loads((out / f"{name}.json").read_text("utf-8")) for name in ("attention", "logits"))
    weights = torch.tensor(attention["decoder"]["weights"])
    assert list(weights.shape) == attention["decoder"]["shape"] == [2, 2, *(2 * (len(attention["decoder"]["keys"]),))]
    assert (weights.sum(dim=-1) - 1).abs().max() < 0.01
    assert logits["rows"] == ["embedding", "layer 0", "layer 1"] and len(logits["top"][2]) == len(logits["tokens"])


def test_lens_predicts_what_complete_predicts(invoke: Invoke, run_folder: Path, tmp_path: Path) -> None:
    top = json.loads(invoke("complete", str(run_folder), "to be", "-k", "5", "-n", "0", "--json")[1])["top"]
    options = ("--out", str(tmp_path), "--layer", "1", "--head", "0", "--json")
    code, told, _ = invoke("lens", str(run_folder), "to be", *options)
    record = json.loads(told)
    assert code == 0 and record["heads"]["decoder"]["shown"] == [1, 0] and record["source"] is None
    found = record["next"]["layer 1"]
    assert [each["id"] for each in found] == [each["id"] for each in top]
    assert [each["probability"] for each in found] == pytest.approx([each["probability"] for each in top], abs=2e-6)


def test_lens_refuses_and_cuts_with_a_word(invoke: Invoke, run_folder: Path, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "look"))
    code, _, err = invoke("lens", str(run_folder), "", *out)
    assert code == 2 and "has no tokens" in err
    code, _, err = invoke("lens", str(run_folder), "to be", *out, "--head", "2")
    assert code == 2 and "--head is 2" in err and "legal are 0 to 1" in err
    code, _, err = invoke("lens", str(run_folder), "to be", *out, "--target", "x")
    assert code == 2 and "--target is for models with an encoder" in err
    code, _, err = invoke("lens", str(tmp_path / "nothing"), "to be", *out)
    assert code == 1 and "no such folder" in err
    (tmp_path / "file").touch()
    code, _, err = invoke("lens", str(tmp_path / "file"), "to be", *out)
    assert code == 1 and "is a file" in err
    assert not (tmp_path / "look").exists()
    code, told, err = invoke("lens", str(run_folder), "to " * 200, *out)
    assert code == 0 and "TEXT has 600 tokens; the first" in err and f"decoder: {CONTEXT} tokens" in told


# chat


def told(conversation: Conversation, text: str) -> tuple[str, list[str]]:
    notices: list[str] = []
    return "".join(conversation.ask(text, notices.append)), notices


def test_conversation_alternates_and_can_be_repeated(engine: Engine) -> None:
    first, second = (Conversation(engine, max_new_tokens=6, temperature=1.0, seed=1) for _ in range(2))
    replies = [told(first, "hi")[0], told(first, "you")[0]]
    assert [told(second, "hi")[0], told(second, "you")[0]] == replies
    assert [message["role"] for message in first.messages] == ["user", "assistant"] * 2
    assert [message["content"] for message in first.messages] == ["hi", replies[0], "you", replies[1]]


def test_the_oldest_turns_are_forgotten_with_a_notice(engine: Engine) -> None:
    conversation = Conversation(engine, max_new_tokens=8)
    conversation.reset("be kind")
    for text in ("a" * 21, "b" * 21):
        conversation.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]
    _, notices = told(conversation, "c" * 21)
    # bos + (role + 7 + end) + 2 (21 + 2 + 3 + 2) + (21 + 2) + role = 90 of 96 leave no 8: one pair goes
    assert notices == ["the context of 96 tokens is full: the oldest 1 turn forgotten"]
    assert [message["content"][:3] for message in conversation.messages[:4]] == ["be ", "bbb", "yes", "ccc"]


def test_a_turn_that_is_too_long_changes_nothing(engine: Engine) -> None:
    conversation = Conversation(engine, max_new_tokens=8)
    with pytest.raises(UsageError, match="context"):
        told(conversation, "x" * 200)
    assert conversation.messages == []
    told(conversation, "ok")
    assert conversation.messages[0] == {"role": "user", "content": "ok"}


def test_a_reply_stopped_half_way_is_kept(engine: Engine) -> None:
    conversation = Conversation(engine, max_new_tokens=30, temperature=1.0)
    reply = conversation.ask("hi", lambda text: None)
    piece = next(iter(reply))
    reply.close()  # type: ignore[attr-defined]
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]
    assert conversation.messages[1]["content"] == piece


def test_commands(engine: Engine) -> None:
    conversation = Conversation(engine)
    command(conversation, "/system be kind ")
    assert conversation.messages == [{"role": "system", "content": "be kind"}]
    conversation.messages += [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"}]
    assert command(conversation, "/reset") == "forgotten (the system message stays)"
    assert conversation.messages == [{"role": "system", "content": "be kind"}]
    command(conversation, "/system")
    assert conversation.messages == []
    assert "/reset" in str(command(conversation, "/help"))
    assert "no such command" in str(command(conversation, "/rest"))
    assert command(conversation, "/quit") is None


def test_chat_without_a_terminal(invoke: Invoke, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n\n/system be kind\nyou\n/quit\nnever\n"))
    code, out, err = invoke("chat", str(run_folder), "-n", "5", "--temperature", "0")
    assert code == 0
    assert len(out.splitlines()) >= 2 and "never" not in out
    assert "system message set" in err and "02-sft" in err and "parameters" in err


def test_chat_warns_of_a_base_model(invoke: Invoke, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, out, err = invoke("chat", str(run_folder / "01-pretrain"))
    assert (code, out) == (0, "") and "a base model" in err


# evaluate


def test_evaluate_asks_the_world_of_the_run(invoke: Invoke, run_folder: Path) -> None:
    code, out, err = invoke(
        "evaluate", str(run_folder), "--tasks", "arithmetic,story", "--questions", "2", "-n", "4", "--json"
    )
    table = json.loads(out)
    assert code == 0 and list(table["tasks"]) == ["arithmetic", "story"]
    assert all(0.0 <= row["rate"] <= 1.0 for row in table["tasks"].values())
    assert "--world-seed" not in err


def test_evaluate_names_the_legal_tasks(invoke: Invoke, run_folder: Path) -> None:
    code, _, err = invoke("evaluate", str(run_folder), "--tasks", "arithmetics")
    assert code == 2 and "did you mean arithmetic?" in err


def test_evaluate_asks_benchmarks(invoke: Invoke, run_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "zero_shot" / "copa.jsonl"
    path.parent.mkdir()
    choices = ["to be.", "not to be, or to be."]
    rows = [{"query": f"It was {n}, therefore", "choices": choices, "gold": n % 2} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("evaluate", str(run_folder), "--tasks", "copa", "--data-root", str(tmp_path))
    code, out, _ = invoke(*asked, "--json", "--items", str(tmp_path / "items.jsonl"))
    table = json.loads(out)["tasks"]
    assert code == 0 and table["copa"]["chance"] == 0.5 and table["copa"]["figures"]["acc"]["num"] == 4
    assert len((tmp_path / "items.jsonl").read_text().splitlines()) == 4
    code, out, _ = invoke(*asked, "--shots", "1", "--limit", "2")
    assert code == 0 and "50.0 %" in out and "copa" in out
    code, _, err = invoke("evaluate", str(run_folder), "--tasks", "piqa", "--data-root", str(tmp_path))
    assert code == 1 and "piqa_valid.jsonl" in err
