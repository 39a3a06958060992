"""Several processes that train one model: each reads its rows of every step, and their gradients are summed.

Which rows make up a step does not depend on how many processes there are (see `data.loader`), and neither does what
the loss is divided by: the units of all rows, counted over all processes. So a run goes on with another number of them
where it stopped.
Source: data parallelism as in Li et al. 2020, arXiv:2006.15704; see gradient_sums.py.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from jielong.errors import TrainingError, UsageError
from jielong.model.config import ModelConfig
from jielong.runtime import Runtime

ItemT = TypeVar("ItemT")
TensorT = TypeVar("TensorT", bound=Tensor)

BUCKET_BYTES = 64 << 20  # tensors are summed in pieces of about so much, each copied once
# How long a process waits for the others. One may curate or encode a large corpus while they wait, so it is long; that
# one has died is noticed at once, for the connection closes, and by torchrun, which then ends them all.
TIMEOUT = datetime.timedelta(days=2)


@dataclass(frozen=True)
class Layout:
    """How the processes of a run share the work; it does not change what they compute.

    sharding: who holds the weights, their gradients and the optimizer's state. "none": every process all of them.
    "full": each an equal part of every tensor. "hybrid": a machine's processes share them out, and every machine has
    all of them. tensor_parallel: how many processes compute each a part of every layer, for the same rows.
    """

    sharding: str = "none"
    tensor_parallel: int = 1

    def sizes(self, runtime: Runtime) -> tuple[int, int, int]:
        """(replicas of the weights, processes that a replica is shared out to, processes that split a layer).

        Raises UsageError, naming what is legal, when the run's processes cannot be arranged like that.
        """
        world, parts = runtime.num_processes, self.tensor_parallel
        if world % parts:
            below = world // parts * parts
            legal = " or ".join(str(number) for number in (below, below + parts) if number)
            raise UsageError(
                f"[run] tensor_parallel = {parts} must divide the number of processes, which is {world}; "
                f"start {legal} of them, or set run.tensor_parallel = 1"
            )
        if self.sharding == "none":
            return world // parts, 1, parts
        if self.sharding == "full":
            return 1, world // parts, parts
        local = runtime.local_size
        if local % parts or world % local:
            raise UsageError(
                f'[run] sharding = "hybrid" shares weights out within a machine, so every one needs as many processes, '
                f"a multiple of tensor_parallel = {parts}; this one has {local} of {world}. Start as many on each, or "
                'set run.sharding = "full"'
            )
        return world // local, local // parts, parts


def arranged(runtime: Runtime, layout: Layout) -> Runtime:
    """The runtime with this process's place in the layout; all processes of the run call it. Raises UsageError."""
    replicas, shards, parts = layout.sizes(runtime)
    if runtime.num_processes == 1 or (layout.sharding == "none" and parts == 1):
        return runtime
    kind, process = runtime.device.type, runtime.process
    # In neighbours' numbers: those that split a layer talk the most, machines with each other the least.
    mesh = init_device_mesh(kind, (replicas, shards, parts), mesh_dim_names=("replicate", "shard", "tensor"))
    placed = replace(runtime, mesh=mesh, world_size=replicas * shards, tensor_size=parts)
    placed = replace(placed, rank=process // parts, tensor_rank=process % parts)
    if parts == 1:
        return placed
    rows = init_device_mesh(kind, (replicas * shards, parts), mesh_dim_names=("rows", "tensor"))
    return replace(placed, group=rows.get_group("rows"))


@contextmanager
def joined(runtime: Runtime, layout: Layout = Layout()) -> Iterator[Runtime]:  # noqa: B008 (it is frozen)
    """Within the block, this process and the others of its run can talk. Yields the runtime, arranged by the layout.

    After an error over NCCL the process cannot talk to others again: it is to say what was wrong, and to end.
    Raises UsageError when the variables that torchrun sets are missing, the others do not come, or their number does
    not fit the layout.
    """
    layout.sizes(runtime)
    if runtime.world_size == 1:
        yield runtime
        return
    backend = "nccl" if runtime.device.type == "cuda" else "gloo"
    try:
        if runtime.device.type == "cuda":
            torch.cuda.set_device(runtime.device)
        dist.init_process_group(backend, rank=runtime.rank, world_size=runtime.world_size, timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"process {runtime.rank} of {runtime.world_size} cannot reach the others ({error}); start with torchrun"
        ) from None
    ended = False
    try:
        yield arranged(runtime, layout)
        ended = True
    finally:
        # NCCL takes its leave when all sums are done and all others leave: after an error here they wait for this
        # process and it for them, and nobody would read what was wrong. Its sums are given up when the process ends.
        if ended or backend == "gloo":
            dist.destroy_process_group()


def wait_for_all(runtime: Runtime) -> None:
    """Go on when every process has come here."""
    if runtime.num_processes > 1:
        _sum([0.0], runtime, None)  # a sum, not a barrier: NCCL's barrier guesses a device


def total(values: Sequence[float], runtime: Runtime) -> list[float]:
    """The sum of each number over the processes that read different rows, in float64."""
    return list(values) if runtime.world_size == 1 else _sum(values, runtime, runtime.group)


def total_of_all(values: Sequence[float], runtime: Runtime) -> list[float]:
    """The sum of each number over all processes, in float64, whatever rows they read."""
    return list(values) if runtime.num_processes == 1 else _sum(values, runtime, None)


def _sum(values: Sequence[float], runtime: Runtime, group: dist.ProcessGroup | None) -> list[float]:
    sums = torch.tensor(values, dtype=torch.float64, device=runtime.device)
    reduce_sum(sums, runtime, group)
    return [float(value) for value in sums.tolist()]


def reduce_sum(tensor: Tensor, runtime: Runtime, group: dist.ProcessGroup | None) -> None:
    """The sum over a group's processes, None for all, in place. Raises TrainingError when one of them is gone."""
    try:
        dist.all_reduce(tensor, group=group)
    except RuntimeError as error:
        raise _lost(error, runtime) from None


def begin_sum(tensor: Tensor, runtime: Runtime, group: dist.ProcessGroup | None) -> Callable[[], None]:
    """`reduce_sum` beside what goes on: returns what waits for it. Both raise TrainingError when a process is gone."""
    try:
        work = dist.all_reduce(tensor, group=group, async_op=True)
    except RuntimeError as error:
        raise _lost(error, runtime) from None

    def wait() -> None:
        try:
            work.wait()
        except RuntimeError as error:
            raise _lost(error, runtime) from None

    return wait


def _lost(error: RuntimeError, runtime: Runtime) -> TrainingError:
    return TrainingError(
        f"process {runtime.process} of {runtime.num_processes} has lost another one, which says why in its own "
        f"output; the same command goes on from the last checkpoint ({str(error).splitlines()[0]})"
    )


@contextmanager
def told_when_lost(runtime: Runtime) -> Iterator[None]:
    """Within the block an error of torch's own communication is a TrainingError: another process is gone."""
    try:
        yield
    except RuntimeError as error:
        talking = isinstance(error, dist.DistError) or "gloo" in str(error)  # gloo's errors have no class of their own
        if runtime.num_processes == 1 or not talking:
            raise
        raise _lost(error, runtime) from None


def check_agreement(what: str, text: str, runtime: Runtime) -> None:
    """Raises UsageError in every process unless all have the same text, as a recipe's hash or the code's version."""
    if runtime.num_processes == 1:
        return
    digest = list(hashlib.sha256(text.encode()).digest())
    mine = torch.tensor(digest, dtype=torch.int64, device=runtime.device)
    everyone = [torch.empty_like(mine) for _ in range(runtime.num_processes)]
    dist.all_gather(everyone, mine)
    others = [rank for rank, other in enumerate(everyone) if not torch.equal(other, everyone[0])]
    if others:
        raise UsageError(
            f"process {others[0]} of {runtime.num_processes} has another {what} than process 0 (process "
            f"{runtime.process} has {text!r}); start all with the same command, code and files"
        )


def own_share(items: Sequence[ItemT], runtime: Runtime) -> list[ItemT]:
    """This process's items: every world_size-th. All of them where there are fewer than processes.

    Then each does the same work, which changes no mean: what is summed over processes is divided by what is.
    """
    if len(items) < runtime.world_size:
        return list(items)
    return list(items[runtime.rank :: runtime.world_size])


def gather_rows(own: Sequence[Sequence[float]], num_rows: int, runtime: Runtime) -> list[list[float]]:
    """The rows of all processes in the order they were dealt out by `own_share`, of num_rows in all.

    own: this process's rows of numbers that float64 holds exactly, each of any length.
    """
    if runtime.world_size == 1 or num_rows < runtime.world_size:
        return [list(row) for row in own]
    most_rows = -(-num_rows // runtime.world_size)
    longest = torch.tensor([max((len(row) for row in own), default=0)], device=runtime.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=runtime.group)
    table = torch.zeros(most_rows, int(longest) + 1, dtype=torch.float64)
    for index, row in enumerate(own):
        table[index, : len(row) + 1] = torch.tensor([float(len(row)), *row], dtype=torch.float64)
    table = table.to(runtime.device)
    tables = [torch.empty_like(table) for _ in range(runtime.world_size)]
    dist.all_gather(tables, table, group=runtime.group)
    dealt = [tables[index % runtime.world_size][index // runtime.world_size].tolist() for index in range(num_rows)]
    return [row[1 : 1 + int(row[0])] for row in dealt]


def from_leader(values: Sequence[float] | None, num: int, runtime: Runtime) -> list[float]:
    """The leading process's numbers, NaN among them, in every process. values: None in the others."""
    if runtime.num_processes == 1:
        assert values is not None
        return list(values)
    told = torch.full((num,), float("nan"), dtype=torch.float64)
    if values is not None:
        told = torch.tensor(values, dtype=torch.float64)
    told = told.to(runtime.device)
    dist.broadcast(told, 0)
    return [float(value) for value in told.tolist()]


def sum_tensors(tensors: Iterable[Tensor], runtime: Runtime) -> None:
    """Replace each tensor by its sum over the processes that read different rows, in place."""
    for bucket in buckets(tensors, BUCKET_BYTES):
        flat = torch.cat([one.flatten() for one in bucket])
        reduce_sum(flat, runtime, runtime.group)
        for one, piece in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
            one.copy_(piece.view_as(one))


def buckets(tensors: Iterable[TensorT], most_bytes: int) -> Iterator[list[TensorT]]:
    """Tensors in their order, cut where a bucket is full or the dtype changes."""
    bucket: list[TensorT] = []
    num_bytes = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if bucket and (num_bytes + size > most_bytes or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, num_bytes = [], 0
        bucket.append(tensor)
        num_bytes += size
    if bucket:
        yield bucket


def check_equal_weights(model: nn.Module, runtime: Runtime) -> None:
    """Raises TrainingError if a parameter differs between processes: one started from something else."""
    if runtime.num_processes == 1:
        return
    for name, parameter in model.named_parameters():
        own = parameter.detach().to(runtime.device)  # NCCL sends nothing that lies on the CPU, where models are made
        first = own.clone()
        dist.broadcast(first, 0)
        differs = total_of_all([float(not torch.equal(first, own))], runtime)[0]
        if differs:
            raise TrainingError(
                f"{name} is not the same in all {runtime.num_processes} processes before training begins"
            )


def check_equal_shares(num_micro_batches: int, runtime: Runtime) -> None:
    """Raises TrainingError, in every process, unless all have as many micro-batches of a step.

    Shared-out weights are gathered by all at once, for each of them: a process with one more would wait for ever.
    """
    summed, squares = total([num_micro_batches, num_micro_batches**2], runtime)
    if squares * runtime.world_size != summed**2:
        raise TrainingError(
            f"process {runtime.process} has {num_micro_batches} micro-batches of this step, another has more or fewer, "
            'which shared-out weights do not allow; set run.sharding = "none", or start fewer processes'
        )


def rows_each(what: str, num_rows: int, runtime: Runtime) -> int:
    """How many of a micro-batch's rows each process takes.

    what: the setting's name, for the message. Raises UsageError when they cannot be shared equally, naming the nearest
    numbers of rows and of processes that can.
    """
    if num_rows % runtime.world_size == 0:
        return num_rows // runtime.world_size
    below = num_rows // runtime.world_size * runtime.world_size
    legal = [str(number) for number in (below, below + runtime.world_size) if number]
    processes = max(number for number in range(1, runtime.world_size) if num_rows % number == 0)
    raise UsageError(
        f"{what} = {num_rows} cannot be shared equally by {runtime.world_size} processes; nearest: {what} = "
        f"{' or '.join(legal)}, or {processes} process{'es' if processes > 1 else ''}"
    )


def check_divisible(config: ModelConfig, parts: int) -> None:
    """Raises UsageError, naming the size and the legal numbers, for a model that cannot be cut into so many parts."""
    sizes = {"num_heads": config.num_heads, "num_kv_heads": config.num_kv_heads, "ffn_width": config.ffn_width}
    for name, size in sizes.items():
        if size % parts:
            legal = [n for n in range(1, max(sizes.values()) + 1) if not any(each % n for each in sizes.values())]
            raise UsageError(
                f"[run] tensor_parallel = {parts} must divide the model's {name} = {size}; legal for this model: "
                f"{', '.join(map(str, legal))}"
            )
    if config.num_experts and parts > 1:
        raise UsageError(
            f"[run] tensor_parallel = {parts}: experts are not cut into parts; set run.tensor_parallel = 1, and "
            'run.sharding = "full" to share their weights out'
        )
