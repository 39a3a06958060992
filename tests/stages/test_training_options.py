"""Options of training through a recipe: z-loss in the metrics, compiling where it is asked for, and their hashes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import jielong
from jielong.align.learner import Learner
from jielong.errors import RecipeError, UsageError
from jielong.recipe import parse_recipe
from jielong.runtime import Runtime
from jielong.stages import alignment, pipeline, training
from jielong.stages.context import Context
from jielong.stages.identity import run_hash, stage_hash
from jielong.stages.pipeline import run_recipe
from jielong.train.fp8 import Fp8Linear

from .conftest import NOTES, RUN, notes


@pytest.fixture
def recipe(no_probe: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text(notes(150))
    path = tmp_path / "small.toml"
    path.write_text(f'{RUN}[data]\nroot = "."\n{NOTES}')
    return path


def test_options_reach_training(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler the run is the same to the bit as one that did not ask for one."""
    asked: list[torch.nn.Module] = []

    @contextmanager
    def without_compiler(model: torch.nn.Module, runtime: Runtime) -> Iterator[str]:
        asked.append(model)
        yield "there is no compiler"

    monkeypatch.setattr(training, "compiled_layers", without_compiler)
    losses = []
    for name, settings in (("plain", []), ("compile", ["run.compile=true"]), ("z", ["pretrain.z_loss=0.01"])):
        run_recipe(recipe, name, settings, until="pretrain", quiet=True)
        lines = (Path(name) / "03-pretrain" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line) for line in lines])
    assert len(asked) == 1
    plain, compiled, with_z = losses
    assert [line["loss_nats"] for line in plain] == [line["loss_nats"] for line in compiled]
    assert "label_nats" not in plain[0] and with_z[0]["label_nats"] == plain[0]["loss_nats"]
    added = [line["loss_nats"] - line["label_nats"] for line in with_z]
    assert all(0.1 < number < 1 for number in added), "log Z of 263 even logits is 5.6, whose square has weight 0.01"


def test_only_what_is_asked_for_enters_the_hashes(recipe: Path) -> None:
    """What was run before there were these options is still finished."""
    runtime = Runtime(torch.device("cpu"), torch.float32)
    plain = parse_recipe(recipe)
    with_z, compiled = parse_recipe(recipe, ["pretrain.z_loss=0.01"]), parse_recipe(recipe, ["run.compile=true"])
    narrow = parse_recipe(recipe, ["run.fp8=true", "run.dtype=bfloat16"])
    settings = plain.stages[2].settings.model_dump(mode="json")
    assert settings["z_loss"] == 0.0 and plain.stages[2].kind == "pretrain"
    hashes = [stage_hash(one, one.stages[2], {}, "before") for one in (plain, parse_recipe(recipe), with_z)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert run_hash(plain, runtime) == run_hash(with_z, runtime) != run_hash(compiled, runtime)
    assert len({run_hash(one, runtime) for one in (plain, compiled, narrow)}) == 3


def test_8_bits_reach_training_and_no_file(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in bfloat16, but for the losses; and only where the device multiplies 8 bits, which no CPU says of itself."""
    narrow = ["run.fp8=true", "run.dtype=bfloat16"]
    with pytest.raises(UsageError, match="fp8 = true: the device is cpu"):
        run_recipe(recipe, "refused", narrow, until="pretrain", quiet=True)
    assert not Path("refused").exists()
    monkeypatch.setattr(pipeline, "check_fp8", lambda runtime: None)
    losses, weights = [], []
    for name, settings in (("plain", ["run.dtype=bfloat16"]), ("narrow", narrow)):
        run_recipe(recipe, name, settings, until="pretrain", quiet=True)
        lines = (Path(name) / "03-pretrain" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss_nats"] for line in lines])
        weights.append(load_file(Path(name) / "03-pretrain" / "model" / "model.safetensors"))
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], abs=0.05)
    assert {name: (one.shape, one.dtype) for name, one in weights[0].items()} == {
        name: (one.shape, one.dtype) for name, one in weights[1].items()
    }
    model, _ = jielong.load("narrow/03-pretrain/model")
    assert not any(isinstance(module, Fp8Linear) for module in model.modules())


def test_experts_are_kept_in_balance_as_they_train(recipe: Path) -> None:
    model = "{width = 32, decoder_layers = 1, num_heads = 2, ffn_width = 32, num_experts = 4, experts_per_token = 2}"
    settings = [f"pretrain.model={model}", "pretrain.z_loss=0.01"]
    run_recipe(recipe, "experts", settings, until="pretrain", quiet=True)
    lines = (Path("experts") / "03-pretrain" / "metrics.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        assert line["router_balance"] >= 0.99 and line["router_peak"] <= 0.5
        added = 0.01 * line["router_balance"] + 0.001 * line["router_z"]
        assert 0.2 < line["loss_nats"] - line["label_nats"] - added < 0.5, "0.01 times (log Z)^2, with log Z about 5.6"
    with pytest.raises(RecipeError, match="router_balance = 0.1 has no effect: the model has no experts; delete it"):
        parse_recipe(recipe, ["pretrain.router_balance=0.1"])


@pytest.mark.parametrize("asked", ["fp8", "compile"])
def test_ppo_says_that_it_trains_without(asked: str) -> None:
    """Before anything else: who asked for 8 bits and got none would take the figures for theirs."""
    told: list[str] = []

    def start_model() -> None:
        raise ZeroDivisionError

    run = SimpleNamespace(**{"fp8": False, "compile": False, asked: True})
    context = SimpleNamespace(
        name="ppo-2", kind="ppo", settings=None, start_model=start_model,
        recipe=SimpleNamespace(run=run), progress=SimpleNamespace(say=told.append),
    )  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        alignment.run_policy(cast(Context, context))
    assert told == [f"ppo-2: [run] {asked} is on, but ppo trains without it: it decodes between steps"]


def test_dpo_says_that_it_trains_without_8_bits() -> None:
    """Its objective puts the policy into eval(), as its reference was read; there 8 bits would silently be off."""
    told: list[str] = []
    model = torch.nn.Linear(2, 2)
    run = SimpleNamespace(fp8=True, compile=False)
    for kind in ("dpo", "reward"):
        context = SimpleNamespace(
            name=kind, kind=kind, recipe=SimpleNamespace(run=run), progress=SimpleNamespace(say=told.append)
        )
        with training._as_asked(cast(Context, context), model):
            pass
    assert told == [
        "dpo: [run] fp8 is on, but dpo trains without it, for the policy must be read as its reference was",
        "reward: [run] fp8 is on, but for no layer: only a Transformer's layers multiply in 8 bits",
    ]


def test_ppo_goes_on_from_what_all_processes_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As other stages do: one that sees no checkpoint would begin anew beside those that go on."""

    def differ(what: str, text: str, runtime: Runtime) -> None:
        raise UsageError(f"process 1 of 2 has another {what} than process 0 (process 0 has {text!r})")

    monkeypatch.setattr(training, "check_agreement", differ)
    (tmp_path / "step-000004").mkdir()
    context = SimpleNamespace(
        settings=None, seed=1, checkpoints=tmp_path, runtime=Runtime(torch.device("cpu"), torch.float32)
    )
    learner = SimpleNamespace(actors=SimpleNamespace(policy=None, tokenizer=None))
    with pytest.raises(UsageError, match="another newest checkpoint than process 0 .process 0 has 'step-000004'"):
        alignment._train(cast(Context, context), cast(Learner, learner), [], [])


@pytest.mark.parametrize(
    ("world_size", "most", "rows"), [(1, None, 8), (1, 5, 5), (1, 9, 8), (2, 7, 3), (4, 7, 1), (8, 3, 1), (1, 0, 1)]
)
def test_few_rows_are_shared_as_far_as_they_go(world_size: int, most: int | None, rows: int) -> None:
    """How many replies best_of_n keeps is no setting: where seven are left, two processes take three each."""
    runtime = Runtime(torch.device("cpu"), torch.float32, world_size=world_size)
    settings = SimpleNamespace(batch_rows=8, accumulate=2)
    context = cast(Context, SimpleNamespace(name="best_of_n", settings=settings, runtime=runtime))
    assert training.micro_batches(context, most) == (rows, 2 * world_size)


def test_dropout_of_several_processes_is_a_function_of_the_step() -> None:
    """A checkpoint holds one generator's state: after a stop all processes would drop alike, and not as before."""

    def drawn(step: int, **place: int) -> Tensor:
        runtime = Runtime(torch.device("cpu"), torch.float32, **place)
        training.seed_dropout(cast(Context, SimpleNamespace(seed=7, runtime=runtime)), step)
        return torch.rand(4)

    first, other = drawn(3, rank=0, world_size=2), drawn(3, rank=1, world_size=2)
    assert not torch.equal(first, other) and not torch.equal(first, drawn(4, rank=0, world_size=2))
    assert torch.equal(first, drawn(3, rank=0, world_size=2))
    assert torch.equal(drawn(3, tensor_rank=0, tensor_size=2), drawn(3, tensor_rank=1, tensor_size=2))
    torch.manual_seed(1)
    goes_on = torch.rand(4)
    torch.manual_seed(1)
    assert torch.equal(drawn(3), goes_on)  # of a single process the checkpoint holds it
