"""Decoding beside other engines: a Llama-shaped model of 110 million random weights, one row and eight.

    python benchmarks/engine_speed.py [--rows 1 8] [--new-tokens 128] [--contenders jielong transformers ...]

All decode greedily from the same prompts of 16 tokens, stop at nothing, and make the same number of tokens; a rate is
new tokens over the whole time, prompts included. Contenders that are not installed (ctranslate2, xllamacpp) are left
out, and a line says so. llama.cpp answers over its own HTTP server, one request a row, as it is used. Each family runs
in a process of its own: in one process the threads of the others made ours a quarter slower on two threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from apart import SPINNING_SECONDS, Apart, apart
from table import machine, markdown_table
from timing import Work, interleaved, median_ratio

import jielong
from jielong import Engine, Tokenizer, Transformer
from jielong.export.gguf import write_gguf
from jielong.export.vocabulary import read_vocabulary
from jielong.generate.batching import Batcher
from jielong.generate.requests import Request
from jielong.generate.sampling import Sampling
from jielong.launch import relaunch_with_allocator
from jielong.model.config import ModelConfig
from jielong.runtime import detect, environment

KINDS = ("float32", "float16", "bfloat16", "int8", "int4")
SHAPE: dict[str, Any] = {
    "width": 768, "decoder_layers": 12, "num_heads": 12, "num_kv_heads": 12, "head_size": 64, "ffn_width": 2048,
}  # fmt: skip
Prompts = list[list[int]]


def build_tokenizer(vocab_size: int) -> Tokenizer:
    """As many ids as asked for, made of pairs of bytes: what they spell does not matter here."""
    num_merges = vocab_size - 256 - len(Tokenizer.SPECIALS)
    return Tokenizer.from_merges([(bytes([n // 256]), bytes([n % 256])) for n in range(num_merges)])


def build_model(vocab_size: int, length: int) -> Transformer:
    """Random weights, ten times as large as at the start of a training, so that the text does not stand still."""
    model = Transformer(ModelConfig(vocab_size=vocab_size, max_length=length, **SHAPE))
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.layers.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)
    return model.eval()


def ours(model: Transformer, tokenizer: Tokenizer, prompts: Prompts, num_new: int) -> dict[str, Work]:
    """`Engine.generate` with weights of each kind, and `Batcher` as a server drives it."""
    found: dict[str, Work] = {}
    for kind in KINDS:
        engine = Engine(model, tokenizer, weights=kind)

        def generate(engine: Engine = engine) -> int:
            made = engine.generate(prompts, max_new_tokens=num_new, temperature=0.0, stop_ids=())
            return sum(len(each.tokens) for each in made)

        found[f"jielong {kind}"] = generate
    for kind in ("float16", "bfloat16", "int8"):
        batcher = Batcher(model, tokenizer, weights=kind, cache_bytes=0)

        def serve(batcher: Batcher = batcher) -> int:
            for prompt in prompts:
                batcher.submit(Request(tuple(prompt), num_new, Sampling(0.0), stop_ids=frozenset()))
            num_tokens = 0
            while not batcher.is_idle:
                num_tokens += sum(len(delta.tokens) for delta in batcher.step())
            return num_tokens

        found[f"jielong Batcher {kind}"] = serve
    return found


def of_transformers(folder: Path, prompts: Prompts, num_new: int) -> dict[str, Work]:
    """`generate` in float32 and bfloat16."""
    from transformers import AutoModelForCausalLM

    found: dict[str, Work] = {}
    ids = torch.tensor(prompts)
    for dtype in (torch.float32, torch.bfloat16):
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        model.generation_config.eos_token_id = None  # never stop early

        def generate(model: Any = model) -> int:
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_new, do_sample=False
            )
            return int(out[:, ids.shape[1] :].numel())

        found[f"transformers {str(dtype).removeprefix('torch.')}"] = generate
    return found


def of_ctranslate2(folder: Path, prompts: Prompts, num_new: int) -> dict[str, Work]:
    """Its generator in float32 and int8, from the same folder by its own converter."""
    import ctranslate2
    from transformers import AutoTokenizer

    words = [AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(prompt) for prompt in prompts]
    found: dict[str, Work] = {}
    for kind in ("float32", "int8"):
        target = str(folder / f"ctranslate2-{kind}")
        ctranslate2.converters.TransformersConverter(str(folder)).convert(target, quantization=kind, force=True)
        generator = ctranslate2.Generator(target, compute_type=kind, intra_threads=torch.get_num_threads())

        def generate(generator: Any = generator) -> int:
            made = generator.generate_batch(
                words, max_length=num_new, min_length=num_new, sampling_topk=1, include_prompt_in_result=False,
                max_batch_size=len(words),
            )  # fmt: skip
            return sum(len(each.sequences_ids[0]) for each in made)

        found[f"ctranslate2 {kind}"] = generate
    return found


def of_llamacpp(
    model: Transformer, tokenizer: Tokenizer, folder: Path, prompts: Prompts, num_new: int
) -> dict[str, Work]:
    """llama.cpp on F16 and Q8_0 files, as many slots as rows."""
    import xllamacpp

    vocabulary = read_vocabulary(folder, tokenizer)
    found: dict[str, Work] = {}
    for kind in ("F16", "Q8_0"):
        path = folder / f"{kind}.gguf"
        write_gguf(path, model, vocabulary, kind, "benchmark")
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = len(prompts)
        params.n_ctx = len(prompts) * (len(prompts[0]) + num_new + 16)
        params.warmup = params.fit_params = False
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        found[f"llama.cpp {kind}"] = _completions(xllamacpp.Server(params), prompts, num_new)
    return found


def _completions(server: Any, prompts: Prompts, num_new: int) -> Work:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def post(prompt: list[int]) -> int:
        body = {"prompt": prompt, "n_predict": num_new, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
        data = json.dumps(body).encode()
        url = server.listening_address + "/completion"
        with opener.open(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as reply:
            return int(json.load(reply)["tokens_predicted"])

    def generate() -> int:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return sum(pool.map(post, prompts))

    return generate


def make(family: str, folder: Path, num_rows: int, num_new: int, threads: int) -> dict[str, Work]:
    """The contenders of one family, in the process that runs them. Raises ImportError where it is not installed."""
    detect("cpu", "float32", threads)
    model, tokenizer = jielong.load(folder)
    generator = torch.Generator().manual_seed(num_rows)
    last = tokenizer.vocab_size - len(Tokenizer.SPECIALS)
    prompts = torch.randint(256, last, (num_rows, 16), generator=generator).tolist()
    makers: dict[str, Callable[[], dict[str, Work]]] = {
        "jielong": lambda: ours(model, tokenizer, prompts, num_new),
        "transformers": lambda: of_transformers(folder, prompts, num_new),
        "ctranslate2": lambda: of_ctranslate2(folder, prompts, num_new),
        "llamacpp": lambda: of_llamacpp(model, tokenizer, folder, prompts, num_new),
    }
    return makers[family]()


def measure(num_rows: int, options: argparse.Namespace, folder: Path, threads: int) -> None:
    """Print the table of one batch size."""
    with ExitStack() as stack:
        contenders: dict[str, Work] = {}
        processes: list[Apart] = []
        for family in options.contenders:
            one = stack.enter_context(apart(partial(make, family, folder, num_rows, options.new_tokens, threads)))
            processes.append(one)
            contenders |= one.works
            if one.missing:
                print(f"{family} is left out: {one.missing}")

        def processor() -> float:
            return sum(one.cpu_seconds() for one in processes)

        clock = processor if options.cpu_time else time.perf_counter
        rates = interleaved(contenders, options.blocks, options.block_seconds, clock, SPINNING_SECONDS)
    others = [name for name in rates if not name.startswith("jielong")]
    rows = []
    for name, found in rates.items():
        ratios = [f"{median_ratio(rates, name, other):.2f}" for other in others]
        rows.append([name, f"{statistics.median(found):,.1f}", f"{min(found):,.1f} – {max(found):,.1f}", *ratios])
    print(f"\n{num_rows} rows:\n")
    print(markdown_table(["engine", "tokens/s", "min – max", *(f"× {other}" for other in others)], rows), flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--threads", type=int, help="of every contender; as torch takes by itself when left out")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--block-seconds", type=float, default=2.0)
    names = ["jielong", "transformers", "ctranslate2", "llamacpp"]
    parser.add_argument(
        "--cpu-time", action="store_true", help="seconds of the processor, for a busy machine; use with --threads 1"
    )
    parser.add_argument("--contenders", nargs="+", choices=names, default=names)
    options = parser.parse_args(arguments)
    relaunch_with_allocator()
    runtime = detect("cpu", "float32", options.threads)
    tokenizer = build_tokenizer(options.vocab_size)
    model = build_model(options.vocab_size, 16 + options.new_tokens + 16)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        jielong.save(model, tokenizer, folder)
        for num_rows in options.rows:
            measure(num_rows, options, folder, torch.get_num_threads())
    print(
        f"\nMedians of {options.blocks} interleaved blocks; prompt 16, {options.new_tokens} new tokens a row, greedy."
    )
    if options.cpu_time:
        print("Seconds are those of the processor, of all threads together; the machine did other work.")
    print(machine(environment(runtime)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
