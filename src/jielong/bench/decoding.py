"""Decoding as a contender: Engine.generate, and generate of transformers with the same weights, greedily."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from jielong.bench.table import Section
from jielong.bench.timing import clock_for, interleaved, median_ratio
from jielong.bench.training import has_transformers
from jielong.folder import save
from jielong.generate.engine import Engine
from jielong.model.presets import preset_config
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.tokenizer import Tokenizer

OURS, THEIRS = "jielong", "transformers"
PROMPT_TOKENS, NEW_TOKENS = 16, 112
Decode = Callable[[], list[list[int]]]  # the new tokens of every row


def build(preset: str, tokenizer: Tokenizer, length: int, runtime: Runtime) -> Transformer:
    """A decoder with random weights: speed does not depend on what they say.

    The layers' are ten times as large as at the start of a training, for a tied model would else repeat its last token
    for ever, and equal tokens would prove nothing.
    """
    model = Transformer(preset_config(preset, tokenizer.vocab_size, length))
    model.init_weights(runtime.generator("weights"))
    with torch.no_grad():
        for parameter in model.layers.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)
    return model.eval()


def our_decode(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    num_new: int,
    runtime: Runtime,
    weights: str | None = None,
) -> Decode:
    """weights: as `Engine` has it."""
    engine = Engine(model.to(runtime.device), tokenizer, runtime, weights)

    def decode() -> list[list[int]]:
        found = engine.generate(prompts, max_new_tokens=num_new, temperature=0.0, stop_ids=(), batch_rows=len(prompts))
        return [completion.tokens for completion in found]

    return decode


def their_decode(
    model: Transformer, tokenizer: Tokenizer, prompts: list[list[int]], num_new: int, runtime: Runtime
) -> Decode:
    """The same with transformers, which must be installed; it reads the model from a folder of ours."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        save(model, tokenizer, folder)
        theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=runtime.dtype)
    theirs.to(runtime.device).eval()
    theirs.generation_config.eos_token_id = None  # never stop early
    ids = torch.tensor(prompts, device=runtime.device)  # (B, T)

    def decode() -> list[list[int]]:
        out = theirs.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_new, do_sample=False
        )
        return list(out[:, ids.shape[1] :].tolist())

    return decode


def agreement(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Share of new tokens that are equal, place by place."""
    pairs = [pair for row, other in zip(ours, theirs, strict=True) for pair in zip(row, other, strict=True)]
    return sum(mine == other for mine, other in pairs) / len(pairs)


def decoding_section(
    presets: list[str], runtime: Runtime, blocks: int, block_seconds: float, batches: tuple[int, ...] = (1, 16)
) -> Section:
    """New tokens a second, PROMPT_TOKENS before NEW_TOKENS in every row."""
    tokenizer = Tokenizer.train(["a few words, and a few more words"], 270)
    rows, figures = [], []
    for preset in presets:
        model = build(preset, tokenizer, PROMPT_TOKENS + NEW_TOKENS, runtime)
        for num_rows in batches:
            shape = (num_rows, PROMPT_TOKENS)
            prompts = torch.randint(256, shape, generator=runtime.generator("prompts", num_rows)).tolist()
            decoders = {OURS: our_decode(model, tokenizer, prompts, NEW_TOKENS, runtime)}
            if has_transformers():
                decoders[THEIRS] = their_decode(model, tokenizer, prompts, NEW_TOKENS, runtime)
            counting = {name: _counting(decode) for name, decode in decoders.items()}
            rates = interleaved(counting, blocks, block_seconds, clock_for(runtime))
            for name, found in rates.items():
                rate, ratio = statistics.median(found), median_ratio(rates, name, THEIRS) if THEIRS in rates else None
                told = "–" if ratio is None else f"{ratio:.2f}"
                spread = f"{min(found):,.0f} – {max(found):,.0f}"
                rows.append([preset, str(num_rows), name, f"{rate:,.0f}", spread, told])
                figures.append(
                    {"preset": preset, "rows": num_rows, "contender": name, "tokens_per_second": rate,
                     "times_transformers": ratio}
                )  # fmt: skip
    note = (
        f"{PROMPT_TOKENS} prompt and {NEW_TOKENS} new tokens a row, vocabulary {tokenizer.vocab_size}, greedy, random "
        f"weights, {runtime.dtype} asked; medians of {blocks} interleaved blocks."
    )
    header = ("preset", "rows", "contender", "tokens/s", "min – max", "× transformers")
    return Section("Decoding", header, rows, figures, note)


def _counting(decode: Decode) -> Callable[[], int]:
    return lambda: sum(len(row) for row in decode())
