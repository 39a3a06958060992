"""Two processes that share weights out learn what one does, and either goes on from the other's checkpoint."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jielong.data.batch import Batch
from jielong.errors import CheckpointError, TrainingError, UsageError
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime, detect
from jielong.train import sharding
from jielong.train.checkpoint import load_checkpoint
from jielong.train.checkpoint_writer import CheckpointWriter
from jielong.train.loop import train_step
from jielong.train.lora import LoraConfig, attach
from jielong.train.objectives import next_token
from jielong.train.optim import OptimizerConfig, build_optimizer
from jielong.train.parallel import Layout, arranged, check_divisible, check_equal_shares, joined, told_when_lost
from jielong.train.sharded_muon import ShardedMuon

CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32)
STEPS, SAVED, MICRO = 20, 8, 4
ACCUMULATED = (0, 1, SAVED)  # steps in which each of two processes has two micro-batches; one is quicker
LAYOUTS = {
    "full": Layout("full"),
    "replicas": Layout("hybrid"),  # on two machines of one process each
    "recompute": Layout("full"),
    "meta": Layout("full"),
    "tensor": Layout("none", 2),
    "lora": Layout("full"),
    "bfloat16": Layout("full"),
    "async": Layout("full"),
    "muon": Layout("full"),
    "muon-tensor": Layout("none", 2),
}
SIZES = {"vocab_size": 41, "max_length": 16, "width": 32, "decoder_layers": 2, "head_size": 8, "ffn_width": 48}


def model_of(case: str) -> Transformer:
    """Rows of 41 do not divide by two, so that the shares of the embedding differ in size."""
    config = ModelConfig(num_heads=4, num_kv_heads=2, qk_norm=True, tie_embeddings=case != "meta", **SIZES)
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def rows(step: int) -> Iterator[Batch]:
    """Four rows that score 1, 5, 9 and 13 of their tokens, or the last two, cut into micro-batches of one."""
    tokens = torch.randint(0, 41, (MICRO, 16), generator=torch.Generator().manual_seed(step % 5))
    for row in range(0 if step in ACCUMULATED else MICRO // 2, MICRO):
        mask = torch.zeros(1, 16, dtype=torch.bool)
        mask[0, 1 : 2 + 4 * row] = True
        yield Batch(tokens[row : row + 1], mask, torch.ones(1, 16, dtype=torch.int32), int(mask.sum()))


def learn(case: str, runtime: Runtime, folder: Path, start: Path | None = None) -> dict[str, list[float]]:
    """Train from the beginning, or from a checkpoint; save one on the way. The losses, gradient norms and logits."""
    model = model_of(case)
    learned: torch.nn.Module = model
    runtime = replace(runtime, dtype=torch.bfloat16 if case == "bfloat16" else torch.float32)
    if case in ("meta", "tensor") and runtime.mesh is not None:
        with torch.device("meta"):
            learned = model = Transformer(model.config)
    if "tensor" in case or "muon" in case:  # in which nothing but a mistake makes a difference
        model.double()
    if case == "lora":
        learned = attach(model, LoraConfig(4, 8.0, ("q", "v", "down")), torch.Generator().manual_seed(1))
    model.recompute = case == "recompute"
    skeleton = sharding.skeleton_of(model)
    if runtime.mesh is not None:
        sharding.shard(model, runtime)
        sharding.rebind(learned, model)
    if model.embed.weight.is_meta:
        sharding.fill(model, runtime, torch.Generator().manual_seed(0))
    config = OptimizerConfig(learning_rate=1e-3, matrix_learning_rate=0.02 if "muon" in case else None)
    muon = torch.optim.Muon if runtime.mesh is None else ShardedMuon
    optimizer = build_optimizer(model, config, sharding.split_parameters(model), muon)
    first = 0 if start is None else load_checkpoint(start, {"model": learned}, {"optimizer": optimizer}, runtime)[0]
    found: dict[str, list[float]] = {"losses": [], "norms": []}
    with CheckpointWriter(folder / case, runtime, beside=case == "async") as writer:
        for step in range(first, STEPS):
            own = list(rows(step))[runtime.rank :: runtime.world_size]
            stats = train_step(model, optimizer, own, next_token, runtime, 1.0, step + 1)
            found["losses"].append(stats.loss)
            found["norms"].append(stats.grad_norm)
            if step + 1 == SAVED and start is None:
                writer.save(SAVED, {"model": learned}, {"optimizer": optimizer}, {})
    if runtime.mesh is not None:
        sharding.unshard(model, skeleton, runtime)
        sharding.rebind(learned, model)
    assert type(model) is Transformer
    if case == "lora":
        assert all(parameter is model.get_parameter(n.replace("/", ".")) for n, parameter in learned.named_parameters())
    with torch.no_grad():
        found["logits"] = model(torch.arange(16)[None]).flatten().tolist()
    return found


CASES = tuple(LAYOUTS)
Found = dict[str, list[float]]


def processes(folder: Path, start: Path) -> dict[str, list[Found]]:
    """Case -> what each of two processes found; "on" goes on from the checkpoint `start`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = [sys.executable, __file__, str(folder), str(start)]
    children = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE) for rank in range(2)
    ]
    told = [child.communicate(timeout=300)[1].decode() for child in children]
    assert [child.returncode for child in children] == [0, 0], told
    return {
        case: [json.loads((folder / f"{case}-{rank}.json").read_text()) for rank in range(2)] for case in (*CASES, "on")
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Callable[[str], Found]:
    """What a single process finds, which also leaves a checkpoint."""
    known: dict[str, Found] = {}

    def find(case: str) -> Found:
        case = {"replicas": "full", "async": "full"}.get(case, case)  # which differ in how it lies and is kept only
        if case not in known:
            known[case] = learn(case, CPU, folder / "alone")
        return known[case]

    return find


@pytest.fixture(scope="module")
def together(folder: Path, alone: Callable[[str], Found]) -> dict[str, list[Found]]:
    alone("full")
    return processes(folder, folder / "alone" / "full" / f"step-{SAVED:06d}")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_does(
    case: str, alone: Callable[[str], Found], together: dict[str, list[Found]]
) -> None:
    own = alone(case)
    assert own["losses"][-1] < own["losses"][0] - 0.1  # there was something to learn
    # In bfloat16 norms' weights have 3 digits. Muon makes a matrix orthogonal in it, and where layers are cut the rows
    # of q, k and v stand in another order, which alone rounds one matrix of 14 otherwise (14 of 200 drawn ones).
    near, far = (1e-2, 2e-1) if case in ("bfloat16", "muon-tensor") else (1e-6, 1e-4)
    for found in together[case]:
        assert found["losses"] == pytest.approx(own["losses"], abs=near, rel=0)
        assert found["norms"] == pytest.approx(own["norms"], abs=far)
        assert found["logits"] == pytest.approx(own["logits"], abs=far)


def test_computing_again_changes_nothing(alone: Callable[[str], Found]) -> None:
    assert alone("recompute") == alone("full")


def test_layers_in_another_number_of_parts_are_told(together: dict[str, list[Found]], folder: Path) -> None:
    with pytest.raises(CheckpointError, match="saved with .run. tensor_parallel = 2, now it is 1. Go on with"):
        learn("tensor", CPU, folder / "on", folder / "tensor" / f"step-{SAVED:06d}")


@pytest.mark.parametrize("case", ["full", "meta", "lora", "async", "muon"])
def test_one_process_goes_on_where_two_were(
    case: str, alone: Callable[[str], Found], together: dict[str, list[Found]], folder: Path
) -> None:
    found = learn(case, CPU, folder / "on", folder / case / f"step-{SAVED:06d}")
    assert found["losses"] == pytest.approx(alone(case)["losses"][SAVED:], abs=1e-6, rel=0)


def test_two_processes_go_on_where_one_was(alone: Callable[[str], Found], together: dict[str, list[Found]]) -> None:
    for found in together["on"]:
        assert found["losses"] == pytest.approx(alone("full")["losses"][SAVED:], abs=1e-6, rel=0)


def test_a_checkpoint_in_pieces_holds_no_pickle(together: dict[str, list[Found]], folder: Path) -> None:
    files = sorted(path.name for path in (folder / "full" / f"step-{SAVED:06d}").rglob("*") if path.is_file())
    assert [name.partition("-")[0] for name in files] == ["shard", "shard", "state.json"]
    assert all(name.endswith((".safetensors", ".json")) for name in files)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_piece_that_is_broken_is_told(
    together: dict[str, list[Found]], folder: Path, tmp_path: Path, damage: str
) -> None:
    whole = folder / "full" / f"step-{SAVED:06d}"
    path = tmp_path / whole.name
    (path / "shards").mkdir(parents=True)
    for file in whole.rglob("*"):
        if file.is_file():
            (path / file.relative_to(whole)).write_bytes(file.read_bytes())
    piece = sorted((path / "shards").iterdir())[1]
    piece.write_bytes(piece.read_bytes()[:-100]) if damage == "cut" else piece.unlink()
    model = model_of("full")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-2))
    with pytest.raises(CheckpointError, match="shards"):
        load_checkpoint(path, {"model": model}, {"optimizer": optimizer})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_skeleton_has_no_memory_and_the_same_parts() -> None:
    model = model_of("full")
    skeleton = sharding.skeleton_of(model)
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    assert [(name, p.shape) for name, p in skeleton.named_parameters()] == [
        (name, p.shape) for name, p in model.named_parameters()
    ]
    want = model(torch.arange(8)[None])
    sharding.unshard(model, skeleton, CPU)
    assert torch.equal(model(torch.arange(8)[None]), want)


def test_muon_of_shares_is_torchs_where_nothing_is_shared_out() -> None:
    """Bit for bit, on matrices higher than wide, wider than high and square."""
    found = []
    for muon in (torch.optim.Muon, ShardedMuon):
        model = model_of("full")
        config = OptimizerConfig(learning_rate=1e-3, matrix_learning_rate=0.02)
        optimizer = build_optimizer(model, config, muon=muon)
        for step in range(3):
            train_step(model, optimizer, list(rows(step)), next_token, CPU, 1.0, step + 1)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


@pytest.mark.parametrize(
    ("sizes", "parts", "message"),
    [
        ({}, 3, "tensor_parallel = 3 must divide the model's num_heads = 4; legal for this model: 1, 2"),
        ({}, 4, "must divide the model's num_kv_heads = 2"),
        ({"ffn_width": 47}, 2, "must divide the model's ffn_width = 47; legal for this model: 1$"),
        ({"num_experts": 4, "experts_per_token": 2}, 2, "experts are not cut into parts"),
    ],
)
def test_sizes_that_cannot_be_cut_are_told(sizes: dict[str, int], parts: int, message: str) -> None:
    config = ModelConfig(num_heads=4, num_kv_heads=2, **{**SIZES, **sizes})
    with pytest.raises(UsageError, match=message):
        check_divisible(config, parts)


@pytest.mark.parametrize(
    ("layout", "world_size", "local_size", "message"),
    [
        (Layout(tensor_parallel=2), 1, 1, "tensor_parallel = 2 must divide .* which is 1; start 2 of them"),
        (Layout(tensor_parallel=4), 6, 6, "tensor_parallel = 4 must divide .* which is 6; start 4 or 8"),
        (Layout("hybrid"), 6, 4, "this one has 4 of 6"),
        (Layout("hybrid", 4), 8, 2, "a multiple of tensor_parallel = 4; this one has 2 of 8"),
    ],
)
def test_processes_that_do_not_fit_are_told(layout: Layout, world_size: int, local_size: int, message: str) -> None:
    runtime = Runtime(CPU.device, CPU.dtype, world_size=world_size, local_size=local_size)
    with pytest.raises(UsageError, match=message):
        layout.sizes(runtime)


@pytest.mark.parametrize(
    ("layout", "sizes"),
    [
        (Layout(), (8, 1, 1)),
        (Layout("full"), (1, 8, 1)),
        (Layout("hybrid"), (2, 4, 1)),
        (Layout("full", 2), (1, 4, 2)),
        (Layout("hybrid", 2), (2, 2, 2)),
        (Layout("none", 4), (2, 1, 4)),
    ],
)
def test_processes_are_arranged(layout: Layout, sizes: tuple[int, int, int]) -> None:
    runtime = Runtime(CPU.device, CPU.dtype, world_size=8, local_size=4)
    assert layout.sizes(runtime) == sizes


def main(folder: Path, start: Path) -> None:
    torch.set_num_threads(1)
    with joined(detect("cpu", "float32")) as runtime:
        check_equal_shares(2, runtime)
        with pytest.raises(TrainingError, match="micro-batches of this step, another has more or fewer"):
            check_equal_shares(2 + runtime.rank, runtime)
        for case in (*CASES, "on"):
            layout = LAYOUTS["full" if case == "on" else case]
            placed = arranged(replace(runtime, local_size=1 if case == "replicas" else 2), layout)
            found = learn(case, placed, folder, start if case == "on" else None)
            (folder / f"{case}-{runtime.process}.json").write_text(json.dumps(found), encoding="utf-8")
        model = model_of("full")
        sharding.shard(model, arranged(runtime, Layout("full")))
        if runtime.rank == 1:
            os._exit(0)
        with pytest.raises(TrainingError, match="process 0 of 2 has lost another one"), told_when_lost(runtime):
            model.hidden(torch.arange(16)[None])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
