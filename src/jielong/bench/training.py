"""A training step as a contender: ours, and that of transformers' LlamaForCausalLM with the same sizes.

Both get the same tokens, optimizer, autocast and allocator. Rows are packed (several documents, each attending to
itself alone) or hold one document, which is all that transformers does here.
"""

from __future__ import annotations

import importlib.util
import statistics

import torch

from jielong.bench.table import Section
from jielong.bench.timing import Work, clock_for, interleaved, median_ratio
from jielong.data.batch import Batch
from jielong.model.config import ModelConfig
from jielong.model.hf import config_to_hf
from jielong.model.presets import preset_config
from jielong.model.transformer import Transformer
from jielong.plan.cost import flops_per_token, probe_flops
from jielong.runtime import Runtime
from jielong.train.loop import train_step
from jielong.train.objectives import next_token
from jielong.train.optim import OptimizerConfig, build_optimizer

CLIP = 1.0
DOCUMENTS_PER_ROW = 4  # in packed rows
OURS, UNPACKED, THEIRS = "jielong, packed", "jielong, unpacked", "transformers, unpacked"


def make_batch(config: ModelConfig, num_rows: int, documents_per_row: int, runtime: Runtime) -> Batch:
    """Rows of random tokens, each cut into documents of equal length."""
    length = config.max_length
    tokens = torch.randint(config.vocab_size, (num_rows, length), generator=runtime.generator("tokens"))  # (B, T)
    segments = (1 + torch.arange(length) * documents_per_row // length).int().repeat(num_rows, 1)  # (B, T)
    mask = torch.zeros(num_rows, length, dtype=torch.bool)
    mask[:, 1:] = segments[:, 1:] == segments[:, :-1]
    return Batch(tokens, mask, segments, int(mask.sum())).to(runtime.device)


def our_step(config: ModelConfig, batch: Batch, runtime: Runtime) -> Work:
    """Forward, loss, backward, clipping and fused AdamW of a fresh model on one batch."""
    model = Transformer(config)
    model.init_weights(runtime.generator("weights"))
    model.to(runtime.device).train()
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-3))

    def step() -> int:
        return train_step(model, optimizer, [batch], next_token, runtime, CLIP).num_tokens

    return step


def their_step(config: ModelConfig, batch: Batch, runtime: Runtime) -> Work:
    """The same with transformers, which must be installed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model: torch.nn.Module = LlamaForCausalLM(LlamaConfig.from_dict({**config_to_hf(config), "use_cache": False}))
    model.to(runtime.device).train()
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-3))

    def step() -> int:
        optimizer.zero_grad(set_to_none=True)
        with runtime.autocast():
            loss = model(input_ids=batch.tokens, labels=batch.tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        loss.item()
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)
        return batch.tokens.numel()

    return step


def has_transformers() -> bool:
    """Whether the peer is installed."""
    return importlib.util.find_spec("transformers") is not None


def training_section(
    presets: list[str], runtime: Runtime, blocks: int, block_seconds: float, batch_rows: int = 32
) -> Section:
    """Tokens a second of a whole training step, in rows of 256 tokens with a vocabulary of 2048."""
    clock = clock_for(runtime)
    peak = probe_flops(runtime, clock=clock)
    rows, figures = [], []
    for preset in presets:
        config = preset_config(preset, 2048, 256)
        unpacked = make_batch(config, batch_rows, 1, runtime)
        contenders = {
            OURS: our_step(config, make_batch(config, batch_rows, DOCUMENTS_PER_ROW, runtime), runtime),
            UNPACKED: our_step(config, unpacked, runtime),
        }
        if has_transformers():
            contenders[THEIRS] = their_step(config, unpacked, runtime)
        rates = interleaved(contenders, blocks, block_seconds, clock)
        for name, found in rates.items():
            rate = statistics.median(found)
            mfu = rate * flops_per_token(config, config.max_length) / peak
            ratio = median_ratio(rates, name, THEIRS) if THEIRS in rates else None
            spread = f"{min(found):,.0f} – {max(found):,.0f}"
            told = "–" if ratio is None else f"{ratio:.2f}"
            rows.append([preset, name, f"{rate:,.0f}", spread, f"{100 * mfu:.0f} %", told])
            figures.append(
                {"preset": preset, "contender": name, "tokens_per_second": rate, "mfu": mfu,
                 "times_transformers": ratio}
            )  # fmt: skip
    note = f"{batch_rows} rows of 256 tokens, vocabulary 2048, {runtime.dtype}; medians of {blocks} interleaved blocks."
    header = ("preset", "contender", "tokens/s", "min – max", "of the peak", "× transformers")
    return Section("Training", header, rows, figures, note)
