"""One side of a comparison as a process of its own: `python -m jielong.bench.contender JOB`, driven by its parent.

JOB is a `Job` as JSON. The process builds its model, takes WARM_STEPS steps and writes one JSON line, {"losses": […]};
then, for each line on stdin, it takes one more step and writes {"tokens", "cpu_seconds"}. At the end of stdin it writes
{"peak_memory_bytes", "before_bytes"} and leaves. So both sides have the environment of their own that an allocator
wants, and yet take turns.

nanoGPT and nanochat are your own copies of their repositories: their models are imported from there, and nothing of
them is shipped.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jielong.data.batch import Batch
from jielong.errors import UsageError
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime, detect, peak_memory_bytes, resident_bytes
from jielong.train.compiling import compiled_layers
from jielong.train.loop import train_step
from jielong.train.objectives import next_token
from jielong.train.optim import OptimizerConfig, build_optimizer

WARM_STEPS = 3
NUM_BATCHES = 8  # made before the clock starts, and used again and again
LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP = 1e-3, 0.1, (0.9, 0.95), 1.0
FOLLOWERS = 4  # how many tokens may follow each in the made-up language of the batches


@dataclass(frozen=True)
class Job:
    """What one contender does. The defaults are nanoGPT's "baby GPT", without dropout and biases.

    side: of SIDES. folder: a copy of nanoGPT's repository, from whose model both take their first weights, or of
    nanochat's; "" for fresh weights of ours. fused: nanoGPT's optimizer is torch's fused AdamW, which it takes on a GPU
    only. llama: ours is Llama-shaped, with as many weights in its matrices. muon: Muon trains them, as nanochat has it.
    """

    side: str
    rows: int
    vocab_size: int
    threads: int
    folder: str = ""
    dtype: str = "bfloat16"
    compiled: bool = False
    fused: bool = False
    llama: bool = False
    muon: bool = False
    layers: int = 6
    heads: int = 6
    width: int = 384
    context_tokens: int = 256

    def config(self) -> ModelConfig:
        """The model in our words: GPT-2 with an exact GELU, no biases in the matrices; or Llama."""
        gpt2 = {"positions": "learned", "norm": "layer", "activation": "gelu", "init_std": 0.02}
        shape: dict[str, Any] = {"tie_embeddings": False} if self.llama else gpt2
        return ModelConfig(
            vocab_size=self.vocab_size,
            max_length=self.context_tokens,
            width=self.width,
            decoder_layers=self.layers,
            num_heads=self.heads,
            num_kv_heads=self.heads,
            head_size=self.width // self.heads,
            ffn_width=8 * self.width // 3 if self.llama else 4 * self.width,
            **shape,
        )

    def tokens(self, index: int) -> Tensor:
        """(B, T) int64, the same for both sides: each token is followed by one of FOLLOWERS: much can be learned."""
        generator = torch.Generator().manual_seed(index)
        steps = torch.randint(FOLLOWERS, (self.rows, self.context_tokens), generator=generator)
        tokens = torch.randint(self.vocab_size, (self.rows, 1), generator=generator).repeat(1, self.context_tokens)
        for place in range(1, self.context_tokens):
            tokens[:, place] = (5 * tokens[:, place - 1] + 1 + steps[:, place]) % self.vocab_size
        return tokens

    def pairs(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Inputs and targets of every batch, both (B, T). A row's last token has no successor here: -1 is skipped."""
        batches = [self.tokens(index).to(device) for index in range(NUM_BATCHES)]
        return [(tokens, torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-1)) for tokens in batches]


def load_nanogpt(folder: Path) -> Any:
    """The module model.py of a copy of nanoGPT. Raises UsageError when there is none."""
    path = folder / "model.py"
    spec = importlib.util.spec_from_file_location("nanogpt_model", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise UsageError(f"--nanogpt {folder}: it has no model.py; it must name a copy of nanoGPT's repository")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def nanogpt_model(job: Job) -> nn.Module:
    """Its model with the job's sizes; the same weights at every call."""
    module = load_nanogpt(Path(job.folder))
    torch.manual_seed(0)
    config = module.GPTConfig(
        block_size=job.context_tokens,
        vocab_size=job.vocab_size,
        n_layer=job.layers,
        n_head=job.heads,
        n_embd=job.width,
        dropout=0.0,
        bias=False,
    )
    model: nn.Module = module.GPT(config)
    return model


def our_model(job: Job, runtime: Runtime) -> Transformer:
    """Ours, with nanoGPT's first weights where the job has its folder. Its norms have no biases: ours stay 0."""
    model = Transformer(job.config())
    model.init_weights(runtime.generator("weights"))
    if job.folder:
        names = {"embed": "wte", "positions": "wpe", "norm": "ln_f"}
        for index in range(job.layers):
            inside = {
                "attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
                "ffn_norm": "ln_2", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj",
            }  # fmt: skip
            names |= {f"layers.{index}.{ours}": f"h.{index}.{theirs}" for ours, theirs in inside.items()}
        theirs = nanogpt_model(job).state_dict()
        state = {f"{ours}.weight": theirs[f"transformer.{name}.weight"] for ours, name in names.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected and all(name.endswith("norm.bias") for name in missing)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.bias"):
            parameter.requires_grad_(False)
    return model.to(runtime.device).train()


def our_step(job: Job, runtime: Runtime) -> Callable[[int], float]:
    """index of a batch -> the loss of a step on it."""
    model = our_model(job, runtime)
    rates = {"matrix_learning_rate": 0.02} if job.muon else {}
    optimizer = build_optimizer(
        model, OptimizerConfig(LEARNING_RATE, weight_decay=WEIGHT_DECAY, beta1=BETAS[0], beta2=BETAS[1], **rates)
    )
    mask = torch.ones(job.rows, job.context_tokens, dtype=torch.bool)
    mask[:, 0] = False
    batches = [Batch(job.tokens(index), mask, mask.int() | 1, int(mask.sum())) for index in range(NUM_BATCHES)]

    def step(index: int) -> float:
        return train_step(model, optimizer, [batches[index % NUM_BATCHES]], next_token, runtime, CLIP).loss

    if job.compiled:
        compiled_layers(model, runtime).__enter__()  # for as long as this process lives
    return step


def nanogpt_step(job: Job, runtime: Runtime) -> Callable[[int], float]:
    """The same with nanoGPT's model and optimizer, as its train.py has the step; autocast too, which that leaves out on
    a CPU.
    """
    model: Any = nanogpt_model(job).to(runtime.device).train()
    optimizer = model.configure_optimizers(WEIGHT_DECAY, LEARNING_RATE, BETAS, "cuda" if job.fused else "cpu")
    run = torch.compile(model) if job.compiled else model
    pairs = job.pairs(runtime.device)

    def step(index: int) -> float:
        inputs, targets = pairs[index % NUM_BATCHES]
        with runtime.autocast():
            _, loss = run(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        told = float(loss.item())
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)
        return told

    return step


def require_nanochat(folder: Path) -> None:
    """Raises UsageError when the folder is no copy of nanochat."""
    if not (folder / "nanochat" / "gpt.py").is_file():
        raise UsageError(
            f"--nanochat {folder}: it has no nanochat/gpt.py; it must name a copy of nanochat's repository"
        )


def load_nanochat(folder: Path) -> Any:
    """The module nanochat.gpt of a copy of nanochat. NANOCHAT_DTYPE names its dtype: see started."""
    require_nanochat(folder)
    sys.path.insert(0, str(folder))
    return importlib.import_module("nanochat.gpt")


def nanochat_step(job: Job, runtime: Runtime) -> Callable[[int], float]:
    """The same with nanochat's model and optimizer, as its base_train.py has the step: torch.compile, no clipping."""
    module = load_nanochat(Path(job.folder))
    config = module.GPTConfig(
        sequence_len=job.context_tokens,
        vocab_size=job.vocab_size,
        n_layer=job.layers,
        n_head=job.heads,
        n_kv_head=job.heads,
        n_embd=job.width,
        window_pattern="L",
    )
    with torch.device("meta"):  # as its own script builds it; the weights come after
        model: Any = module.GPT(config)
    model.to_empty(device=runtime.device)
    model.init_weights()
    optimizer = model.setup_optimizer()
    run = torch.compile(model, dynamic=False) if job.compiled else model
    pairs = job.pairs(runtime.device)

    def step(index: int) -> float:
        loss = run(*pairs[index % NUM_BATCHES])
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return float(loss.item())

    return step


def _load_libraries(runtime: Runtime) -> None:
    """Two steps of a tiny model: torch loads what it multiplies and optimizes with when it first does."""
    step = our_step(Job("jielong", 4, 256, 1, layers=1, heads=2, width=128, context_tokens=64), runtime)
    step(0), step(1)


SIDES = {"jielong": our_step, "nanogpt": nanogpt_step, "nanochat": nanochat_step}


def main(arguments: list[str] | None = None) -> int:
    """The process described at the top."""
    (text,) = sys.argv[1:] if arguments is None else arguments
    job = Job(**json.loads(text))
    runtime = detect("auto", job.dtype, job.threads)
    _load_libraries(runtime)
    before = resident_bytes()
    with contextlib.redirect_stdout(io.StringIO()):  # nanoGPT and nanochat print
        step = SIDES[job.side](job, runtime)
        losses = [step(index) for index in range(WARM_STEPS)]
    print(json.dumps({"losses": losses}), flush=True)
    num_tokens = job.rows * job.context_tokens
    for index, _ in enumerate(sys.stdin):
        started = time.process_time()
        step(WARM_STEPS + index)
        print(json.dumps({"tokens": num_tokens, "cpu_seconds": time.process_time() - started}), flush=True)
    peak = max(peak_memory_bytes(), before)  # the kernel counts the one in batches, and may lag behind the other
    print(json.dumps({"peak_memory_bytes": peak, "before_bytes": before}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
