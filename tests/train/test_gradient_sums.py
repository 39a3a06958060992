"""Gradients summed while others are made are, bit for bit, those summed afterwards one by one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from jielong.data.batch import Batch
from jielong.errors import TrainingError
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime, detect
from jielong.train import gradient_sums
from jielong.train.gradient_sums import GradientSums
from jielong.train.loop import train_step
from jielong.train.objectives import Objective, next_token, next_token_of_experts
from jielong.train.optim import OptimizerConfig, build_optimizer
from jielong.train.parallel import joined

CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32)
ROWS, COMPARED = 4, 6  # steps in which bits are compared
SMALL = 5000  # bytes of a bucket: a dozen of them, some with several gradients
SIZES = {"vocab_size": 41, "max_length": 16, "width": 32, "decoder_layers": 2, "head_size": 8, "ffn_width": 48}


@dataclass(frozen=True)
class Case:
    """config: beside SIZES. muon: trains the matrices. unused: the model has two parameters more, see `Partly`."""

    config: dict[str, Any]
    num_steps: int = 12
    muon: bool = False
    unused: bool = False

    @property
    def objective(self) -> Objective[Any, Batch]:
        if "num_experts" in self.config:
            return next_token_of_experts(0.01, 0.001)
        return partly if self.unused else next_token


class Partly(Transformer):
    """With one parameter that nothing reads, and one that rows of the second process alone do."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.unread = nn.Parameter(torch.zeros(7, 3))
        self.seldom = nn.Parameter(torch.zeros(()))

    def start_of(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        own = name in ("unread", "seldom")
        return torch.full(shape, 0.5) if own else super().start_of(name, shape, generator)


def partly(model: Partly, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    loss, metrics = next_token(model, batch)
    return (loss * model.seldom if batch.num_units % 4 == 1 else loss), metrics


CASES = {
    "tied": Case({"tie_embeddings": True}, 50),
    "untied": Case({"tie_embeddings": False}),
    "muon": Case({}, muon=True),
    "experts": Case({"num_experts": 4, "experts_per_token": 2}),
    "unused": Case({}, unused=True),
}


def rows(step: int) -> list[Batch]:
    """Four rows that score 3, 5, 7 and 9 of their tokens; the second process of two has those of 5 and 9."""
    tokens = torch.randint(0, 41, (ROWS, 16), generator=torch.Generator().manual_seed(step % 5))
    found = []
    for row in range(ROWS):
        mask = torch.zeros(1, 16, dtype=torch.bool)
        mask[0, 1 : 4 + 2 * row] = True
        found.append(Batch(tokens[row : row + 1], mask, torch.ones(1, 16, dtype=torch.int32), int(mask.sum())))
    return found


def build(case: Case) -> tuple[Transformer, torch.optim.Optimizer]:
    config = ModelConfig(num_heads=4, num_kv_heads=2, **{**SIZES, **case.config})
    model = Partly(config) if case.unused else Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    if case.muon:  # whose products in bfloat16 would make a rounding of float32 a difference
        model.double()
    settings = OptimizerConfig(learning_rate=1e-3, matrix_learning_rate=0.02 if case.muon else None)
    return model, build_optimizer(model, settings)


def learn(case: Case, runtime: Runtime, num_steps: int = 0) -> dict[str, Any]:
    """Two micro-batches a step and process. Losses, norms, and whether the unread parameter is as it was."""
    model, optimizer = build(case)
    found: dict[str, Any] = {"losses": [], "norms": [], "state": model.state_dict()}
    for step in range(num_steps or case.num_steps):
        own = rows(step)[runtime.rank :: runtime.world_size]
        stats = train_step(model, optimizer, own, case.objective, runtime, 1.0, step + 1)
        found["losses"].append(stats.loss)
        found["norms"].append(stats.grad_norm)
    if case.unused:
        assert isinstance(model, Partly) and bool((model.unread == 0.5).all()) and model.seldom.item() != 0.5
    return found


def test_parameters_come_from_the_last_to_the_first() -> None:
    model, optimizer = build(CASES["untied"])
    foreign = nn.Parameter(torch.zeros(3))
    learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sums = GradientSums(model, [foreign, *learned], replace(CPU, world_size=2))
    ordered = [parameter for bucket in sums._buckets for parameter in bucket]
    assert [id(p) for p in ordered] == [id(p) for p in (*reversed(list(model.parameters())), foreign)]


def test_one_process_sums_nothing() -> None:
    model, optimizer = build(CASES["tied"])
    assert not GradientSums(model, list(model.parameters()), CPU)._buckets


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Case -> what each of two processes found."""
    folder = tmp_path_factory.mktemp("summed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)], env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    told = [child.communicate(timeout=300)[1].decode() for child in children]
    assert [child.returncode for child in children] == [0, 0], told
    return {case: [json.loads((folder / f"{case}-{rank}.json").read_text()) for rank in range(2)] for case in CASES}


@pytest.mark.parametrize("case", list(CASES))
def test_two_processes_learn_what_one_does(case: str, together: dict[str, list[dict[str, Any]]]) -> None:
    alone = learn(CASES[case], CPU)
    assert alone["losses"][-1] < alone["losses"][0] - 0.05  # there was something to learn: the rows are the same
    for found in together[case]:
        assert found["losses"] == pytest.approx(alone["losses"], abs=1e-6, rel=0)
        assert found["norms"] == pytest.approx(alone["norms"], rel=1e-4)


@pytest.mark.parametrize("case", list(CASES))
def test_when_they_are_summed_changes_no_bit(case: str, together: dict[str, list[dict[str, Any]]]) -> None:
    for found in together[case]:
        assert found["equal"] == {"afterwards": True, "one by one": True}


@pytest.mark.parametrize("case", list(CASES))
def test_most_are_on_their_way_before_the_last_is_made(case: str, together: dict[str, list[dict[str, Any]]]) -> None:
    for found in together[case]:
        num_begun, num_buckets = found["begun"]
        assert num_buckets > 5 and num_begun == num_buckets - (case == "unused")  # whose two parameters come last


# ---- in each of the two processes ----


def one_by_one(case: Case, runtime: Runtime) -> dict[str, Tensor]:
    """The same training in plain words: every gradient a sum of its own, after the way back."""
    model, optimizer = build(case)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in range(COMPARED):
        own = rows(step)[runtime.rank :: runtime.world_size]
        optimizer.zero_grad(set_to_none=True)
        for batch in own:
            (case.objective(model, batch)[0] / sum(each.num_units for each in rows(step))).backward()
        for parameter in parameters:
            there = torch.tensor(float(parameter.grad is not None))
            dist.all_reduce(there)
            if there:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(parameter.grad)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return model.state_dict()


def equal(states: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return all(torch.equal(states[name], value) for name, value in others.items())


def num_begun(case: Case, runtime: Runtime) -> tuple[int, int]:
    """(buckets that had begun when the way back had ended, all buckets)."""
    model, optimizer = build(case)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sums = GradientSums(model, parameters, runtime)
    loss, _ = case.objective(model, rows(0)[runtime.rank])
    with sums.as_they_come():
        loss.backward()
    begun = len(sums._begun)
    sums.finish()
    return begun, len(sums._buckets)


def refuses_what_comes_too_late(runtime: Runtime) -> None:
    model, optimizer = build(CASES["tied"])
    sums = GradientSums(model, list(model.parameters()), runtime)
    loss = model(rows(0)[0].tokens).square().mean()
    with sums.as_they_come():
        loss.backward(retain_graph=True)
        with pytest.raises(AssertionError, match="added to when its sum had begun"):
            loss.backward()
    sums.finish()


def parts_are_summed_likewise(runtime: Runtime) -> None:
    """By what sums in replicas of whole weights: AdamW would let an unread parameter decay for a gradient of zeros."""
    from jielong.train.sharding import sum_parts

    model, optimizer = build(CASES["unused"])
    assert isinstance(model, Partly)
    partly(model, rows(0)[runtime.rank])[0].backward()
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert ("seldom" in grads) == (runtime.rank == 1)  # of the first two rows that of 5 alone reads it
    sum_parts([parameter for group in optimizer.param_groups for parameter in group["params"]], runtime)
    assert model.unread.grad is None
    for name, parameter in model.named_parameters():
        if name != "unread":
            expected = grads.get(name, torch.zeros_like(parameter))
            dist.all_reduce(expected)
            assert parameter.grad is not None and torch.equal(parameter.grad, expected), name


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    gradient_sums.BUCKET_BYTES = SMALL
    as_they_come: Callable[[GradientSums], Any] = GradientSums.as_they_come
    with joined(detect("cpu", "float32")) as runtime:
        for name, case in CASES.items():
            found = learn(case, runtime)
            state = learn(case, runtime, COMPARED)["state"]
            GradientSums.as_they_come = lambda self: nullcontext()  # type: ignore[method-assign]
            others = {"afterwards": learn(case, runtime, COMPARED)["state"], "one by one": one_by_one(case, runtime)}
            GradientSums.as_they_come = as_they_come  # type: ignore[method-assign]
            found["equal"] = {how: equal(state, other) for how, other in others.items()}
            found["begun"] = num_begun(case, runtime)
            del found["state"]
            (folder / f"{name}-{runtime.rank}.json").write_text(json.dumps(found), encoding="utf-8")
        refuses_what_comes_too_late(runtime)
        parts_are_summed_likewise(runtime)
        if runtime.rank == 1:
            os._exit(0)
        with pytest.raises(TrainingError, match="process 0 of 2 has lost another one"):
            learn(CASES["tied"], runtime, 3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
