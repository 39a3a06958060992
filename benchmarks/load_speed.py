"""Loading a large model folder: time and peak memory of load_model against from_pretrained of transformers.

    python benchmarks/load_speed.py [--gigabytes 1.5] [--stored float32 bfloat16] [--repeats 5]

A folder of that size with random weights is made in a temporary directory. Every measurement is a process of its own,
in turns, with the files in the page cache; the first turn does not count. Both are asked for float32. "load" is the
call alone, after all imports; "first logits" goes on until the logits of 16 tokens are there, because both map the
file and read weights when they are first used; "computed" are the processor's seconds up to there, which a busy machine
spoils less; "process" is the command from its start to its end, imports included. "memory" is the most that the process
held, less what it held before loading, as a multiple of the weights in float32.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from child import run_child
from table import markdown_table

OURS, THEIRS = "jielong", "transformers"
LENGTH, VOCAB, WIDTH, FFN = 16, 32000, 1024, 2816


def peak_bytes() -> int:
    """The largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cpu_seconds() -> float:
    """What this process has computed so far, on all cores, the kernel's work for it included."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def make_folder(folder: Path, gigabytes: float, stored: str) -> None:
    """A decoder in the shape of Llama with about that many bytes of weights, each layer 12.1M parameters."""
    import torch

    from jielong.model.config import ModelConfig
    from jielong.model.hf import save_model
    from jielong.model.transformer import Transformer

    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[stored]
    per_layer = WIDTH * (WIDTH + 2 * WIDTH // 2) + WIDTH * WIDTH + 3 * WIDTH * FFN
    num_layers = max(1, round((gigabytes * 1e9 / dtype.itemsize - 2 * VOCAB * WIDTH) / per_layer))
    config = ModelConfig(
        vocab_size=VOCAB, max_length=2048, width=WIDTH, decoder_layers=num_layers, num_heads=16, num_kv_heads=8,
        head_size=64, ffn_width=FFN, tie_embeddings=False,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model.to(dtype), folder)


def load_once(name: str, folder: Path) -> dict[str, Any]:
    """One measurement, in this process."""
    import torch

    if name == OURS:
        from jielong.model.hf import load_model
    else:
        from transformers import LlamaForCausalLM
    tokens = torch.arange(LENGTH)[None]
    before, computed, started = peak_bytes(), cpu_seconds(), time.perf_counter()
    model: torch.nn.Module
    if name == OURS:
        model = load_model(folder)
    else:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loaded = time.perf_counter()
    with torch.inference_mode():
        answer = model(tokens)
    done, computed = time.perf_counter(), cpu_seconds() - computed
    logits = answer if name == OURS else answer.logits
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    return {
        "load": loaded - started,
        "first logits": done - started,
        "computed": computed,
        "memory": (peak_bytes() - before) / weights,
        "told": logits.abs().sum().item(),
    }


def measure(name: str, folder: Path, threads: int) -> dict[str, float]:
    """One measurement in a process of its own."""
    log = folder / f"{name}.log"
    command = [sys.executable, __file__, "--one", name, str(folder)]
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    child = run_child(command, log, environment=quiet)
    if child.exit_code:
        raise SystemExit(f"{name} failed:\n{child.tail()}")
    return {**json.loads(child.output.splitlines()[-1]), "process": child.seconds}


def compare(stored: str, options: argparse.Namespace) -> list[list[str]]:
    """The rows of the table for folders of one precision."""
    with tempfile.TemporaryDirectory(dir=options.directory) as temporary:
        folder = Path(temporary)
        making = run_child(
            [sys.executable, __file__, "--make", str(folder), str(options.gigabytes), stored], folder / "make.log"
        )
        if making.exit_code:
            raise SystemExit(f"the folder could not be made:\n{making.tail()}")
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        runs: dict[str, list[dict[str, float]]] = {OURS: [], THEIRS: []}
        for turn in range(options.repeats + 1):
            for name in (OURS, THEIRS) if turn % 2 else (THEIRS, OURS):
                run = measure(name, folder, options.threads)
                if turn:
                    runs[name].append(run)
    told = {one["told"] for both in runs.values() for one in both}
    if max(told) - min(told) > 1e-4 * max(told):
        raise SystemExit(f"the two compute different logits: {told}")
    rows = []
    for name, found in runs.items():
        middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
        times = [f"{middle[key]:.2f} s" for key in ("load", "first logits", "computed", "process")]
        rows.append([stored, f"{size / 1e9:.2f} GB", name, *times, f"{middle['memory']:.2f}"])
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Time and memory of loading", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.5, help="size of the weights on disk")
    parser.add_argument("--stored", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5, help="turns that count; medians over them are told")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--directory", help="where the temporary directory is made; the system's when left out")
    options = parser.parse_args(arguments)
    header = ["stored as", "on disk", "with", "load", "first logits", "computed", "process", "memory"]
    print(markdown_table(header, [row for stored in options.stored for row in compare(stored, options)]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(load_once(sys.argv[2], Path(sys.argv[3]))))
    elif sys.argv[1:2] == ["--make"]:
        make_folder(Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
    else:
        main()
