"""Beam search: ours against transformers' generate on the same translator: equal hypotheses, and tokens a second.

    python benchmarks/beam_speed.py runs/multi30k-en-de --file val.en [--sentences 200] [--beam 4]

Both read the same ids in the same batches, sentences of like length together, in float32. "same" is the share of
sentences whose best hypotheses, as many as the beam is wide, are equal token for token and in score to 1e-4. "served"
is a request for each sentence, as a server has them; its one hypothesis is compared with the best of the batch.
CTranslate2, where it is installed, searches in its own way; of it too the best one is compared, tokens alone. With
--random a tiny model of random weights stands for the folder, and random ids for the file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from apart import SPINNING_SECONDS
from ctranslate import ctranslate_search, their_translator
from table import machine, markdown_table
from timing import interleaved, median_ratio
from transformers import MarianMTModel

from jielong import Tokenizer, Transformer, detect
from jielong.cli.models import find_model
from jielong.data.buckets import padded
from jielong.data.formats import lines
from jielong.folder import load, save
from jielong.generate.batching import MAX_ROWS, PREFILL_TOKENS
from jielong.generate.beam import BeamConfig, Hypothesis, beam_search
from jielong.generate.decoders import begin_decoding
from jielong.generate.requests import Request
from jielong.generate.sampling import Sampling
from jielong.generate.translating import TranslationBatcher
from jielong.generate.translator import source_ids, start_id
from jielong.model.presets import preset_config
from jielong.runtime import Runtime, environment

OURS, THEIRS, SERVED = "jielong", "transformers", "jielong, served"
COMPILED = ("CTranslate2 float32", "CTranslate2 int8")
Found = list[list[Hypothesis]]  # of every sentence, best first
Batch = tuple[torch.Tensor, torch.Tensor]  # ids and segments of some sources


def their_model(folder: Path) -> Any:
    """The same folder as transformers reads it."""
    theirs: Any = MarianMTModel.from_pretrained(folder, dtype=torch.float32)
    return theirs.eval()


def our_search(
    model: Transformer, tokenizer: Tokenizer, batches: Sequence[Batch], config: BeamConfig, most: int
) -> Found:
    runtime = Runtime(torch.device("cpu"), torch.float32)
    found: Found = []
    for source, segments in batches:
        decoder = begin_decoding(model, source, segments, config.beam, most, runtime)
        found += beam_search(decoder, start_id(tokenizer), [_end(tokenizer)], [most] * len(source), config)
    return found


def their_search(theirs: Any, tokenizer: Tokenizer, batches: Sequence[Batch], config: BeamConfig, most: int) -> Found:
    found: Found = []
    for source, segments in batches:
        made = theirs.generate(
            input_ids=source, attention_mask=segments.long(), num_beams=config.beam, num_return_sequences=config.beam,
            do_sample=False, length_penalty=config.length_penalty, early_stopping=False, max_new_tokens=most,
            output_scores=True, return_dict_in_generate=True, eos_token_id=_end(tokenizer),
        )  # fmt: skip
        rows = [_cut(row, _end(tokenizer)) for row in made.sequences[:, 1:].tolist()]
        all_of = [Hypothesis(*one, 0.0) for one in zip(rows, made.sequences_scores.tolist(), strict=True)]
        found += [all_of[first : first + config.beam] for first in range(0, len(all_of), config.beam)]
    return found


def served_search(
    model: Transformer, tokenizer: Tokenizer, sources: Sequence[Sequence[int]], config: BeamConfig, most: int
) -> Found:
    """The same sentences as `jielong serve` makes them: a request each, 16 of them beside each other."""
    runtime = Runtime(torch.device("cpu"), torch.float32)
    batcher = TranslationBatcher(model, tokenizer, runtime, max_rows=MAX_ROWS, prefill_tokens=PREFILL_TOKENS)
    stop_ids, best = frozenset([_end(tokenizer)]), replace(config, num_best=1)
    for ids in sources:
        batcher.submit(Request(tuple(ids), most, Sampling(temperature=0), stop_ids=stop_ids, beam=best))
    found: dict[int, Hypothesis] = {}
    while not batcher.is_idle:
        found |= {delta.request: Hypothesis(list(delta.tokens), 0.0, 0.0) for delta in batcher.step()}
    return [[found[number]] for number in range(len(sources))]


def _end(tokenizer: Tokenizer) -> int:
    assert tokenizer.eos_id is not None
    return tokenizer.eos_id


def _cut(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def same_share(ours: Found, theirs: Found) -> float:
    """Of the sentences, those with equal hypotheses in equal order, their scores to 1e-4."""
    equal = [
        len(mine) == len(other)
        and all(a.tokens == b.tokens and abs(a.score - b.score) < 1e-4 for a, b in zip(mine, other, strict=True))
        for mine, other in zip(ours, theirs, strict=True)
    ]
    return sum(equal) / len(equal)


def compiled_searches(
    folder: Path, tokenizer: Tokenizer, batches: Sequence[Batch], config: BeamConfig, most: int, scratch: Path
) -> dict[str, Callable[[], Found]]:
    """CTranslate2 on the same batches; nothing where it is not installed, and a line says so."""
    rows = [
        [ids[: int(row.sum())] for ids, row in zip(source.tolist(), segments, strict=True)]
        for source, segments in batches
    ]
    start, end, threads = start_id(tokenizer), _end(tokenizer), torch.get_num_threads()
    found: dict[str, Callable[[], Found]] = {}
    for name in COMPILED:
        try:
            translator = their_translator(folder, scratch / name, start, end, name.split()[1], threads)
        except ImportError as error:
            print(f"{name} is left out: {error}")
            continue
        found[name] = partial(ctranslate_search, translator, end, rows, config, most)
    return found


def best_share(found: Found, ours: Found) -> float:
    """Of the sentences, those whose best hypotheses are equal token for token."""
    return sum(one[0].tokens == mine[0].tokens for one, mine in zip(found, ours, strict=True)) / len(ours)


def measure(folder: Path, sources: list[list[int]], options: argparse.Namespace, scratch: Path) -> list[list[str]]:
    """The rows of the table. Tokens are those of the best hypotheses."""
    model, tokenizer = load(folder)
    theirs = their_model(folder)
    config = BeamConfig(options.beam, 0.6, "length", num_best=options.beam)
    order = sorted(sources, key=len)
    batches = [padded(order[first : first + options.rows]) for first in range(0, len(order), options.rows)]
    contenders: dict[str, Callable[[], Found]] = {
        OURS: lambda: our_search(model, tokenizer, batches, config, options.new_tokens),
        THEIRS: lambda: their_search(theirs, tokenizer, batches, config, options.new_tokens),
        SERVED: lambda: served_search(model, tokenizer, order, config, options.new_tokens),
    }
    contenders |= compiled_searches(folder, tokenizer, batches, config, options.new_tokens, scratch)
    found = {name: search() for name, search in contenders.items()}
    same = {name: best_share(one, found[OURS]) for name, one in found.items()}
    same[OURS] = same[THEIRS] = same_share(found[OURS], found[THEIRS])

    def counting(search: Callable[[], Found]) -> Callable[[], int]:
        return lambda: sum(len(hypotheses[0].tokens) for hypotheses in search())

    clock = time.process_time if options.cpu_time else time.perf_counter
    works = {name: counting(search) for name, search in contenders.items()}
    rates = interleaved(works, options.blocks, 0.0, clock, SPINNING_SECONDS)
    rows = []
    for name, speeds in rates.items():
        spread = f"{min(speeds):,.0f} – {max(speeds):,.0f}"
        ratio = f"{median_ratio(rates, name, THEIRS):.2f}"
        batch = f"{MAX_ROWS}, as they come" if name == SERVED else str(options.rows)
        rows.append([name, batch, f"{statistics.median(speeds):,.0f}", spread, ratio, f"{100 * same[name]:.1f} %"])
    return rows


def random_translator(folder: Path) -> None:
    """A tiny translator of random weights, sharp enough to say different things."""
    tokenizer = Tokenizer.train(["a few words, and a few words more, to learn some merges from"], 300)
    model = Transformer(preset_config("transformer-tiny", tokenizer.vocab_size, 64))
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.embed.weight.mul_(1.5)
    save(model, tokenizer, folder)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", help="a translator's folder or run; left out with --random")
    parser.add_argument("--file", type=Path, help="sentences to translate, one a line")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--rows", type=int, default=32, help="sentences of a batch")
    parser.add_argument("--new-tokens", type=int, default=60, help="most tokens of a translation")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--cpu-time", action="store_true", help="seconds of the processor, for a busy machine; use with --threads 1"
    )
    options = parser.parse_args(arguments)
    if options.random == (options.model is not None) or (options.file is None) != options.random:
        parser.error("give MODEL and --file, or --random alone")
    runtime = detect("cpu", "float32", options.threads)
    with tempfile.TemporaryDirectory() as made:
        folder, scratch = Path(made) / "random", Path(made)
        if options.random:
            random_translator(folder)
        else:
            folder = find_model(options.model).folder
        _, tokenizer = load(folder)
        if options.random:
            draw = torch.Generator().manual_seed(1)
            sources = [torch.randint(3, 250, (5 + n % 9,), generator=draw).tolist() for n in range(options.sentences)]
        else:
            texts = [line.strip() for _, line in lines(options.file)][: options.sentences]
            sources = [source_ids(tokenizer, tokenizer.encode(text)) for text in texts if text]
        rows = measure(folder, sources, options, scratch)
    head = ["", "sentences a batch", "tokens/s", "range", f"to {THEIRS}", "same"]
    print(markdown_table(head, rows))
    print(machine(environment(runtime)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
