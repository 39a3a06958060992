from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from jielong import runtime as module
from jielong.errors import UsageError
from jielong.runtime import Runtime, derive_seed, detect, environment, peak_memory_bytes, release_memory, resident_bytes

CPU = torch.device("cpu")


def test_seeds_differ_by_seed_names_order_and_type() -> None:
    seeds = [
        derive_seed(0), derive_seed(1), derive_seed(0, "a"), derive_seed(0, "a", "b"), derive_seed(0, "b", "a"),
        derive_seed(0, "ab"), derive_seed(0, 1), derive_seed(0, "1"), derive_seed(0, 11), derive_seed(0, 1, 1),
    ]  # fmt: skip
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "a", 3) == derive_seed(0, "a", 3)


def test_seed_is_the_same_in_every_process() -> None:
    code = "from jielong.runtime import derive_seed; print(derive_seed(7, 'pretrain', 3))"
    environment = {**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert int(told.stdout) == derive_seed(7, "pretrain", 3)


def test_generators_are_apart() -> None:
    runtime = Runtime(CPU, torch.float32, seed=3)
    first, again = (torch.rand(4, generator=runtime.generator("weights")) for _ in range(2))
    other = torch.rand(4, generator=runtime.generator("data"))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_autocast() -> None:
    x = torch.ones(2, 2)
    with Runtime(CPU, torch.bfloat16).autocast():
        assert (x @ x).dtype == torch.bfloat16
    with Runtime(CPU, torch.float32).autocast():
        assert (x @ x).dtype == torch.float32


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx2 avx512f", torch.float32), ("avx512f avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16)],
)
def test_dtype_follows_the_processor(flags: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cpu_info", lambda field: flags)
    assert detect(device="cpu").dtype == expected
    assert detect(device="cpu", dtype="float32").dtype == torch.float32


def test_cuda_graphs_have_an_off_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in ((None, True), ("1", True), ("0", False)):
        monkeypatch.delenv("JIELONG_CUDA_GRAPHS", raising=False)
        if value is not None:
            monkeypatch.setenv("JIELONG_CUDA_GRAPHS", value)
        assert detect(device="cpu").cuda_graphs is Runtime(CPU, torch.float32).cuda_graphs is expected


def test_rank_comes_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = detect(device="cpu", seed=9)
    assert (found.rank, found.world_size, found.seed) == (2, 4, 9)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"device": "gpu"}, "device is 'gpu'; legal are auto, cpu"),
        ({"device": "cuda:99"}, "this machine has none"),
        ({"device": "meta"}, "device is 'meta'"),
        ({"dtype": "bfloat"}, "did you mean bfloat16"),
        ({"dtype": "float64"}, "legal are auto, float32 and bfloat16"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        detect(**{"device": "cpu", **settings})  # type: ignore[arg-type]


def test_environment_says_what_a_report_needs() -> None:
    told = environment(Runtime(CPU, torch.bfloat16, seed=5))
    assert told["torch"] == torch.__version__ and told["dtype"] == "bfloat16" and told["seed"] == 5
    assert told["device"] == "cpu" and told["cores"] == os.cpu_count() and told["cpu"]


def test_peak_memory_counts_bytes() -> None:
    before = peak_memory_bytes()
    block = torch.ones(before // 4 + 25_000_000)  # more than the process has ever held
    assert 2**20 < before < block.nbytes < peak_memory_bytes()


def test_modules_of_unix_are_not_needed() -> None:
    code = (
        "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
        "import jielong.stages.pipeline as pipeline, jielong.runtime as runtime, pathlib, tempfile\n"
        "with pipeline._locked(pathlib.Path(tempfile.mkdtemp()) / 'run'): print(runtime.peak_memory_bytes())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["0"]


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc alone keeps it")
def test_memory_that_is_free_goes_back_to_the_system() -> None:
    """Even where something that is still in use lies above it."""
    blocks = [torch.zeros(25_000) for _ in range(800)]  # 100 kB each, which glibc takes from its heap
    kept = blocks[::50]
    del blocks
    before = resident_bytes()
    release_memory()
    assert before - resident_bytes() > 40e6
    assert all(not block.any() for block in kept)


def test_cuda_is_each_processs_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for rank, wanted in (("0", 0), ("1", 1)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert detect("cuda", "float32").device == torch.device("cuda", wanted)
    assert detect("cuda:0", "float32").device == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("cuda", "auto"):
        with pytest.raises(
            UsageError, match="process 2 of this machine, counted from 0, has no GPU of its own: it sees 2"
        ):
            detect(name, "float32")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="device is 'cuda:0', but 2 processes run on this machine"):
        detect("cuda:0", "float32")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert detect("cuda:0", "float32").device == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match="this machine has none"):
        detect("cuda", "float32")
