"""Where and how we compute: device, dtype, seeds, rank. Found once, then passed; never global.

This, `config` and `launch` are the only modules that read the environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from jielong.errors import UsageError, nearest
from jielong.launch import allocator_is_tuned

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Runtime:
    """What a computation needs to know about its place.

    dtype: the compute dtype (float32 or bfloat16); weights stay float32 and autocast does the rest.
    rank, world_size: this process among those that read different rows, which are all unless tensors are split.
    tensor_rank, tensor_size: among those that read the same rows and compute each a part of every layer.
    local_size: how many processes of the run are on this machine. group: those that read other rows, None for all.
    mesh: who holds which part of the weights, ("replicate", "shard", "tensor"); None when everyone holds all of them.
    The last two are there within `train.parallel.joined`.
    cuda_graphs: steps of decoding may be recorded and replayed on a GPU (see `generate.recording`), which the
    environment variable JIELONG_CUDA_GRAPHS=0 forbids.
    """

    device: torch.device
    dtype: torch.dtype
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    tensor_rank: int = 0
    tensor_size: int = 1
    local_size: int = 1
    group: ProcessGroup | None = None
    mesh: DeviceMesh | None = None
    cuda_graphs: bool = field(default_factory=lambda: os.environ.get("JIELONG_CUDA_GRAPHS") != "0")

    @property
    def process(self) -> int:
        """The number of this process among all of the run, as torchrun counts them."""
        return self.rank * self.tensor_size + self.tensor_rank

    @property
    def num_processes(self) -> int:
        """All processes of the run."""
        return self.world_size * self.tensor_size

    def autocast(self) -> AbstractContextManager[None]:
        """Context in which matrix products run in `dtype`; does nothing for float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def generator(self, *names: str | int) -> torch.Generator:
        """A CPU generator of its own for the purpose spelt by `names`: equal names give equal numbers."""
        return torch.Generator().manual_seed(derive_seed(self.seed, *names))


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one purpose: sha256 over the seed and the names, so that purposes do not share numbers."""
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def detect(device: str = "auto", dtype: str = "auto", threads: int | None = None, seed: int = 0) -> Runtime:
    """The runtime of this process.

    device: "auto" (CUDA, else MPS, else CPU) or a torch device name. dtype: "auto" (bfloat16 where the hardware
    multiplies it, else float32), "float32" or "bfloat16". threads: CPU threads of torch; None leaves them as they are.
    Raises UsageError for a device that is not there or a dtype that we do not compute in.
    """
    found = _device(device)
    if dtype != "auto" and dtype not in DTYPES:
        hint = nearest(dtype, DTYPES)
        raise UsageError(
            f"dtype is {dtype!r}; legal are auto, float32 and bfloat16" + (f"; did you mean {hint}?" if hint else "")
        )
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads is {threads}; it must be 1 or more, or left out")
        torch.set_num_threads(threads)
    chosen = DTYPES[dtype] if dtype != "auto" else (torch.bfloat16 if _fast_bfloat16(found) else torch.float32)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))
    return Runtime(device=found, dtype=chosen, seed=seed, rank=rank, world_size=world_size, local_size=local_size)


def _device(name: str) -> torch.device:
    own = int(os.environ.get("LOCAL_RANK", "0"))  # of several processes on this machine each has a GPU of its own
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device("cuda" if name == "auto" else name)
    except RuntimeError:
        raise UsageError(f"device is {name!r}; legal are auto, cpu, cuda, cuda:0 and on, mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device is {name!r}; legal are auto, cpu, cuda, cuda:0 and on, mps")
    if device.type == "cuda":
        return _gpu(name, device.index, own)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"device is {name!r}, but this machine has none; use auto or cpu")
    return device


def _gpu(name: str, asked: int | None, own: int) -> torch.device:
    """The GPU of this number, or this process's own. Raises UsageError where there is none, or not one for each."""
    num_gpus, num_processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if asked is not None and num_processes > 1 and num_gpus > 1:  # of a single one each may see another
        raise UsageError(
            f"device is {name!r}, but {num_processes} processes run on this machine, and each needs a GPU of its own; "
            "use cuda or auto"
        )
    if asked is None and 0 < num_gpus <= own:
        raise UsageError(
            f"process {own} of this machine, counted from 0, has no GPU of its own: it sees {num_gpus}. Start at most "
            "one process a GPU, or set device = 'cpu'; where each sees its own GPU alone, set device = 'cuda:0'"
        )
    if (own if asked is None else asked) >= num_gpus:
        raise UsageError(f"device is {name!r}, but this machine has none; use auto or cpu")
    return torch.device("cuda", own if asked is None else asked)


def _fast_bfloat16(device: torch.device) -> bool:
    """True where bfloat16 products run in hardware; emulated ones are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    flags = _cpu_info("flags").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _cpu_info(field: str) -> str:
    """One field of /proc/cpuinfo (the first core's), or "" where there is no such file or field."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    for line in path.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def environment(runtime: Runtime) -> dict[str, object]:
    """What a report says about the machine: versions, processor, cores, threads, device, dtype, platform, seed."""
    on_cuda = runtime.device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": _cpu_info("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_bytes": memory_bytes(torch.device("cpu")),
        "device": torch.cuda.get_device_name(runtime.device) if on_cuda else str(runtime.device),
        "dtype": str(runtime.dtype).removeprefix("torch."),
        "seed": runtime.seed,
        "world_size": runtime.num_processes,
        "allocator_tuned": allocator_is_tuned(),
    }


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def memory_bytes(device: torch.device) -> int:
    """Memory of the accelerator, or of the machine; 0 where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if sys.platform != "win32" else 0


def peak_memory_bytes() -> int:
    """The most memory this process has held so far (resident set); 0 where the system does not tell."""
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes


def resident_bytes() -> int:
    """Memory that this process holds now (resident set); 0 where there is no /proc."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


def release_memory() -> None:
    """Give memory that is free back to the system, where glibc is told to keep it (see `launch`); nothing elsewhere.

    For where what comes next is of other sizes than what came before: between the stages of a run. What is kept fits
    the next step of the same training best.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
