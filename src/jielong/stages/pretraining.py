"""The stage `pretrain`: a decoder learns to continue the curated text.

Nothing that it holds grows with the corpus: training rows come from token shards, and of a large corpus the baselines
count, and the evaluation measures, a part that is spread over all of it.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch

from jielong.data.batch import Batch
from jielong.data.loader import RowLoader
from jielong.data.pack import Rows, pack_stream
from jielong.evaluate.likelihood import bits_per_byte, heldout_nats, scored_bytes
from jielong.evaluate.ngram import fit_ngram
from jielong.folder import save
from jielong.generate.engine import Engine
from jielong.model.config import ModelConfig
from jielong.model.induction import plant_induction
from jielong.model.transformer import Transformer
from jielong.plan.cost import flops_per_token, probe_flops
from jielong.plan.count import count_parameters
from jielong.stages.context import Context, each_jsonl, write_json
from jielong.stages.evaluation import check_prompts
from jielong.stages.speaking import MOST_TOKENS, speaking
from jielong.stages.tokens import corpus_rows, encode_tokens, epochs_by_source, mixed
from jielong.stages.training import micro_batches, train
from jielong.tokenizer import Tokenizer
from jielong.train.objectives import Objective, next_token, next_token_and_z, next_token_of_experts

# Beyond these, every n-th row or document is taken: n-grams of more tokens, and longer held-out text, would not fit.
NGRAM_TOKENS = 1 << 24
HELDOUT_BYTES = 1 << 26


def model_config(settings: Any, vocab_size: int) -> ModelConfig:
    """The decoder that a [pretrain.model] table names: a preset, or all its sizes."""
    return ModelConfig(vocab_size=vocab_size, max_length=settings.context_tokens, **settings.model.sizes())


def run_pretrain(context: Context) -> dict[str, Any]:
    """Pre-train, and compare with n-gram models over the same tokens, text and scored positions."""
    settings = context.settings
    tokenizer = Tokenizer.load(context.folder_of("tokenizer") / "model")
    check_prompts(context.recipe.evaluation_prompts, tokenizer, settings.context_tokens)
    corpus = context.folder_of("curate")
    with context.leader_first():
        encode_tokens(context)
        heldout = heldout_rows(context, tokenizer, corpus / "heldout.jsonl")
    rows = corpus_rows(context, tokenizer)
    heldout_bytes = scored_bytes(heldout, tokenizer)
    config = model_config(settings, tokenizer.vocab_size)
    model = _beginning(context, config)
    num_rows, num_micro = micro_batches(context)
    loader = RowLoader(rows, num_rows, context.seed, num_micro, mixed(context, rows))
    num_steps = settings.steps(loader.num_steps_per_epoch)

    def evaluate(_step: int) -> dict[str, float]:
        nats, num_tokens = heldout_nats(model, heldout, context.runtime)
        return {"heldout_loss_nats": nats / num_tokens, "heldout_bits_per_byte": bits_per_byte(nats, heldout_bytes)}

    openings = _openings(tokenizer, corpus / "heldout.jsonl", config.max_length)
    speak = speaking(context, model, tokenizer, openings)

    def watch(step: int) -> dict[str, float]:
        speak(step)
        return evaluate(step)

    totals = train(context, model, _objective(settings, config), loader.batches, num_steps, watch)
    save(model, tokenizer, context.folder / "model", context.provenance(totals.steps))
    write_json(context.folder / "samples.json", _continuations(context, model, tokenizer, openings))
    context.progress.say(f"{context.name}: counting n-grams for the baselines")
    counted = rows.sample(NGRAM_TOKENS)
    grams = fit_ngram(counted, 5, tokenizer.vocab_size)
    flops = flops_per_token(config, settings.context_tokens) * totals.tokens_per_second
    return {
        **evaluate(totals.steps),
        "trigram_bits_per_byte": bits_per_byte(grams.nats(heldout, order=3)[0], heldout_bytes),
        "fivegram_bits_per_byte": bits_per_byte(grams.nats(heldout, order=5)[0], heldout_bytes),
        "tokens_per_second": totals.tokens_per_second,
        "model_flops_per_second": flops,
        "mfu": flops / probe_flops(context.runtime),
        "tokens_seen": totals.tokens,
        "training_tokens": rows.num_scored,
        "ngram_tokens": counted.num_scored,
        **epochs_by_source(context, rows, totals.steps * num_rows * num_micro),
        "parameters": sum(count_parameters(config).values()),
        "steps": totals.steps,
    }


def _objective(settings: Any, config: ModelConfig) -> Objective[Transformer, Batch]:
    """What is learned. Experts want more than the next token: a router left alone sends all to a few of them."""
    if config.num_experts:
        return next_token_of_experts(settings.router_balance, settings.router_z, settings.z_loss)
    return next_token_and_z(settings.z_loss) if settings.z_loss else next_token


def _beginning(context: Context, config: ModelConfig) -> Transformer:
    """The model before its first step; without memory, for `train` to fill, where no process is to hold all of it."""
    if context.runtime.mesh is not None and context.settings.start == "random":
        with torch.device("meta"):
            return Transformer(config)
    model = Transformer(config)
    generator = context.runtime.generator(context.name, "weights")
    model.init_weights(generator)
    if context.settings.start == "induction":
        plant_induction(model, generator)
    return model


def heldout_rows(context: Context, tokenizer: Tokenizer, documents: Path) -> Rows:
    """The held-out documents as packed rows, encoded once and kept beside the stage's other files."""
    path = context.folder / "heldout.safetensors"
    if path.exists():
        return Rows.load(path)
    every = -(-documents.stat().st_size // HELDOUT_BYTES)
    texts = [record["text"] for record in islice(each_jsonl(documents), 0, None, every)]
    ids = (tokenizer.document(piece) for piece in tokenizer.encode_batch(texts))
    rows = pack_stream(ids, context.settings.context_tokens)
    rows.save(path)
    return rows


def _openings(tokenizer: Tokenizer, heldout: Path, max_length: int) -> list[tuple[str, list[int]]]:
    """The first words of a few held-out documents, as text and as ids, few enough that a continuation fits behind."""
    room = max_length - MOST_TOKENS - 2
    limit = room if room > 0 else max_length // 2  # a context that is shorter than a continuation is halved
    texts = [record["text"] for record in islice(each_jsonl(heldout), 6)]
    prompts = [text[: max(12, len(text) // 8)] for text in texts]
    return [(prompt, [*tokenizer.prefix_ids, *tokenizer.encode(prompt)][:limit]) for prompt in prompts]


def _continuations(
    context: Context, model: Transformer, tokenizer: Tokenizer, openings: list[tuple[str, list[int]]]
) -> list[dict[str, str]]:
    """How the base model goes on from them, greedily."""
    engine = Engine(model, tokenizer, context.runtime)
    made = engine.generate([ids for _, ids in openings], max_new_tokens=MOST_TOKENS, temperature=0.0)
    return [{"prompt": prompt, "base": one.text} for (prompt, _), one in zip(openings, made, strict=True)]
