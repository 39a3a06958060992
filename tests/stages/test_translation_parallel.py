"""The stage `translate` in two processes, weights shared out or layers cut: what one makes, and troubles told."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jielong.errors import CheckpointError, JielongError
from jielong.recipe import costing
from jielong.stages import training, translation
from jielong.stages.pipeline import run_recipe
from jielong.tokenizer import Tokenizer

STAGE = "02-translate"
STEPS = 16  # an evaluation after every fourth, a checkpoint after every sixth
STOPS = (9, 14)  # by two processes, then by one
LAYOUTS = {"plain": [], "full": ["run.sharding=full"], "tensor": ["run.tensor_parallel=2"]}


FEW = ["translate.batch_tokens=20", "translate.num_steps=8"]  # some batches have one pair alone


class Stopped(Exception):
    """A kill, for a process that has more to do."""


@contextmanager
def stopped_after(step: int) -> Iterator[None]:
    """Within the block a run ends when so many steps are recorded."""
    record = training._record

    def and_stop(context: Any, totals: Any, stats: Any, figures: Any, num_steps: int) -> None:
        record(context, totals, stats, figures, num_steps)
        if stats.step == step:
            raise Stopped

    training._record = and_stop
    try:
        yield
    except Stopped:
        pass
    finally:
        training._record = record


def losses(out: Path, name: str = "loss_nats") -> list[float]:
    lines = (out / STAGE / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record[name] for record in map(json.loads, lines) if name in record]


def figures(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / STAGE / "figures.json").read_text(encoding="utf-8"))["figures"])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from .test_translation import RECIPE, phrases

    root = tmp_path_factory.mktemp("pairs")
    dev = list(dict.fromkeys(phrases(12, 2)))
    for name, pairs in (("train", phrases(200, 1)), ("dev", dev)):
        for side, language in enumerate(("en", "zh")):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            (root / f"{name}.{language}").write_text(text, encoding="utf-8")
    (root / "dev.tsv").write_text("".join(f"{en}\t{zh}\n" for en, zh in dev), encoding="utf-8")
    path = root / "phrases.toml"
    text = RECIPE.format(root=root)
    for old, new in (
        ("dropout = 0.1", "dropout = 0.0"),  # which would draw otherwise for other rows
        ("learning_rate = 1e-2", "learning_rate = 1e-3"),
        ("num_steps = 24", f"num_steps = {STEPS}"),
        ("watch_pairs = 8", "watch_pairs = 4"),
    ):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(recipe: Path, no_probe: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    run_recipe(recipe, out, quiet=True)
    return out


@pytest.fixture(scope="module")
def together(recipe: Path, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes made: a run for each layout and more, and what either was told."""
    folder = tmp_path_factory.mktemp("together")
    ports = []
    for _ in range(12):  # one for each time that they meet
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(str(free.getsockname()[1]))
    command = [sys.executable, "-m", "tests.stages.test_translation_parallel", str(recipe), str(folder), *ports]
    place = Path(__file__).parents[2]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE, cwd=place)
        for rank in range(2)
    ]
    told = [child.communicate(timeout=400)[1].decode() for child in children]
    assert [child.returncode for child in children] == [0, 0], told
    return folder


@pytest.mark.parametrize("case", [*LAYOUTS, "resumed"])
def test_two_processes_make_what_one_does(case: str, alone: Path, together: Path) -> None:
    out = together / case
    assert losses(out) == pytest.approx(losses(alone), abs=1e-6, rel=0) and len(losses(out)) == STEPS
    for name in ("heldout_loss_nats", "watched_bleu"):
        assert losses(out, name) == pytest.approx(losses(alone, name), abs=1e-5)
        assert len(losses(out, name)) == STEPS // 4
    found, wanted = figures(out), figures(alone)
    assert found["averaged_evaluations"] == wanted["averaged_evaluations"] == 3
    for name in ("heldout_loss_nats", "last_heldout_loss_nats", "bleu", "greedy_bleu", "chrf"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-5), name
    assert abs(found["heldout_loss_nats"] - found["last_heldout_loss_nats"]) > 1e-3  # the mean is another model
    assert found["parameters"] == wanted["parameters"]
    assert (out / STAGE / "samples.json").read_bytes() == (alone / STAGE / "samples.json").read_bytes()
    mine, theirs = (load_file(folder / STAGE / "model" / "model.safetensors") for folder in (out, alone))
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, atol=1e-4, rtol=0)
    assert not list(out.glob("*/.process-*")) and not (out / STAGE / "checkpoints").exists()


def test_a_process_without_a_pair_is_in_step(recipe: Path, together: Path, tmp_path: Path) -> None:
    run_recipe(recipe, tmp_path / "few", FEW, quiet=True)
    assert losses(together / "few") == pytest.approx(losses(tmp_path / "few"), abs=1e-6, rel=0)
    tokenizer = Tokenizer.load(together / "few" / "01-tokenizer" / "model")
    lines = (recipe.parent / "train.en").read_text(encoding="utf-8").splitlines()
    num_alone = sum(len(tokenizer.encode(line)) + 2 > 10 for line in lines)
    assert num_alone > len(lines) / 4  # pairs with no room for another in their batch, which are as many batches


def test_resumed_was_stopped_twice(together: Path) -> None:
    """By two processes and by one; what two left in pieces, and what lay averaged, was taken up."""
    assert json.loads((together / "stops.json").read_text()) == [
        {"recorded": STOPS[0], "checkpoints": [6], "averaged": [4, 8]},
        {"recorded": STOPS[1], "checkpoints": [6, 12], "averaged": [4, 8, 12]},
    ]


def test_troubles_are_told_in_both(together: Path) -> None:
    told = [json.loads((together / f"told-{rank}.json").read_text()) for rank in range(2)]
    assert "the loss is nan in another process" in told[0]["nan"]
    assert "step 3: the loss of micro-batch 1 of 1 is nan" in told[1]["nan"]
    assert all("has another recipe or code than process 0" in each["recipe"] for each in told)
    assert "process 0 of 2 has lost another one" in told[0]["dead"] and "dead" not in told[1]


def test_a_piece_that_is_cut_is_told_before_it_is_loaded(recipe: Path, together: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    shutil.copytree(together / "stopped", out)
    piece = sorted(out.glob(f"{STAGE}/checkpoints/step-000006/shards/*"))[1]
    piece.write_bytes(piece.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="shards"):
        run_recipe(recipe, out, quiet=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["run.sharding=full", "translate.architecture=recurrent"], "architecture = 'recurrent' is none"),
        (["run.tensor_parallel=3"], "must divide the model's num_heads"),
    ],
)
def test_what_cannot_be_shared_out_is_told_before_anything_runs(
    settings: list[str], message: str, recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(JielongError, match=message):
        run_recipe(recipe, tmp_path / "not", settings, quiet=True)
    assert not (tmp_path / "not").exists()


# ---- in each of the two processes ----


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*"))


def left(out: Path) -> dict[str, Any]:
    checkpoints = out / STAGE / "checkpoints"
    return {
        "recorded": len(losses(out)),
        "checkpoints": steps_in(checkpoints),
        "averaged": steps_in(checkpoints / "snapshots"),
    }


def resumed(recipe: Path, out: Path, ports: Iterator[str], rank: int) -> None:
    """Two processes, then one, then two."""
    found = []
    for world_size, stop in zip((2, 1), STOPS, strict=True):
        if rank < world_size:
            meet(ports, world_size)
            with stopped_after(stop):
                run_recipe(recipe, out, LAYOUTS["full"], quiet=True)
            if rank == 0:
                found.append(left(out))
                if world_size == 2:
                    shutil.copytree(out, out.parent / "stopped")
        else:
            next(ports)
    meet(ports, 2)
    run_recipe(recipe, out, LAYOUTS["full"], quiet=True)
    if rank == 0:
        (out.parent / "stops.json").write_text(json.dumps(found), encoding="utf-8")


def meet(ports: Iterator[str], world_size: int) -> None:
    os.environ |= {"MASTER_PORT": next(ports), "WORLD_SIZE": str(world_size)}


def trouble(recipe: Path, out: Path, settings: list[str]) -> str:
    with pytest.raises(JielongError) as caught:
        run_recipe(recipe, out, [*LAYOUTS["full"], *settings], quiet=True)
    return str(caught.value)


def broken(rank: int, how: str) -> Any:
    """The stage's objective, which goes wrong in the second process at the third step."""
    learned, count = translation.translation(0.1), iter(range(1, 100))

    def objective(model: Any, batch: Any) -> Any:
        loss, metrics = learned(model, batch)
        if rank == 1 and model.training and next(count) == 3:
            if how == "dead":
                os._exit(0)
            return loss * float("nan"), metrics
        return loss, metrics

    return objective


def main(recipe: Path, folder: Path, ports: Iterator[str], rank: int) -> None:
    torch.set_num_threads(1)
    costing.probe_flops = lambda runtime: 1e11  # as the fixture no_probe, which is for the tests' own process
    for case, layout in (*LAYOUTS.items(), ("few", [*LAYOUTS["full"], *FEW])):
        meet(ports, 2)
        run_recipe(recipe, folder / case, layout, quiet=True)
    resumed(recipe, folder / "resumed", ports, rank)
    told = {}
    meet(ports, 2)
    told["recipe"] = trouble(recipe, folder / "other", [f"translate.num_steps={20 + rank}"])
    original = translation.translation
    for how in ("nan", "dead"):
        meet(ports, 2)
        objective = broken(rank, how)
        translation.translation = lambda smoothing, chosen=objective: chosen if smoothing else original(0.0)
        told[how] = trouble(recipe, folder / how, [])
        translation.translation = original
        (folder / f"told-{rank}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), iter(sys.argv[3:]), int(os.environ["RANK"]))
