"""The way from text to batches: tokens a second of the loader, megabytes a second of encoding, and what start-up costs.

    python benchmarks/loader_speed.py [--megabytes 1 100 1000] [--row-tokens 1024] [--directory DIR]

Everything runs on one thread, and seconds are the processor's, so that a machine that does other work spoils them
least. Corpora are the built-in world's text over and over, encoded once and then repeated on the disk, so that a
gigabyte of corpus costs the benchmark seconds. "loader" is what a training step waits for: the rows of a step chosen,
read from the shards in the page cache, and made a batch, with its mask and segments. The first pass, in which the
system maps each page for the first time, is told apart. "start" is a process of its own, from opening the shards to its
first batch; "process" is the whole of it, imports included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from table import machine, markdown_table

TEXT_BYTES = 8_000_000  # of the world, encoded to be repeated
BATCH_ROWS = 32
STEPS = 64  # of one measurement


def write_text(path: Path, num_bytes: int) -> None:
    """Documents of the built-in world, as the curation leaves them."""
    from jielong import World

    with open(path, "w", encoding="utf-8") as file:
        for document in World(1).documents(num_bytes, "train", junk=False):
            file.write(json.dumps({"text": document.text, "source": document.source}, ensure_ascii=False) + "\n")


def encoding_rates(documents: Path, tokenizer: Path, folder: Path, repeats: int) -> list[float]:
    """Megabytes of documents.jsonl a second of the processor: reading, parsing, encoding, writing and hashing."""
    from jielong.data.encoding import Plan, encode_corpus

    rates = []
    for turn in range(repeats):
        started = time.process_time()
        encode_corpus(folder / f"turn-{turn}", Plan(documents, tokenizer), 1)
        rates.append(documents.stat().st_size / 1e6 / (time.process_time() - started))
    return rates


def repeat_shard(source: Path, folder: Path, times: int) -> None:
    """A folder whose one shard holds the text of another's `times` times."""
    from jielong.data.shards import INDEX, read_index

    index = read_index(source)
    (name, (shard, *_)), *_ = index.sources.items()
    folder.mkdir()
    tokens = (source / f"{shard.name}.bin").read_bytes()
    ends = np.fromfile(source / f"{shard.name}.ends.bin", "<i8")
    digests = hashlib.sha256(), hashlib.sha256()
    with open(folder / f"{shard.name}.bin", "wb") as file, open(folder / f"{shard.name}.ends.bin", "wb") as ends_file:
        for turn in range(times):
            moved = (ends + turn * shard.num_tokens).tobytes()
            for number, (target, block) in enumerate(((file, tokens), (ends_file, moved))):
                target.write(block)
                digests[number].update(block)
    sums = [digest.hexdigest() for digest in digests]
    larger = replace(
        shard, num_tokens=shard.num_tokens * times, num_documents=shard.num_documents * times,
        bytes=shard.bytes * times, ends_bytes=shard.ends_bytes * times, sha256=sums[0], ends_sha256=sums[1],
    )  # fmt: skip
    (folder / INDEX).write_text(replace(index, sources={name: [larger]}).text())


class Reader:
    """A loader over a folder of shards, and where it is."""

    def __init__(self, folder: Path, row_tokens: int) -> None:
        from jielong.data.loader import RowLoader
        from jielong.data.shards import open_streams, read_index
        from jielong.data.stream import StreamRows

        index = read_index(folder)
        streams = open_streams(folder, index.tokenizer_hash, index.vocab_size)
        rows = StreamRows(list(streams.values()), row_tokens, index.vocab_size)
        self.loader = RowLoader(rows, min(BATCH_ROWS, len(rows)), 1)
        self.num_tokens, self._row_tokens, self._step = rows.num_tokens, row_tokens, 0

    def seconds_per_token(self, num_steps: int) -> float:
        """Of the processor, over so many steps from where it is."""
        started, num_tokens = time.process_time(), 0
        for self._step in range(self._step + 1, self._step + 1 + num_steps):
            num_tokens += self.loader.batches(self._step)[0].tokens.numel()
        return (time.process_time() - started) / num_tokens

    def one_pass(self) -> float:
        """Seconds a token of a first pass over all rows."""
        return self.seconds_per_token(self.loader.num_steps_per_epoch)


def start_once(folder: Path, row_tokens: int) -> dict[str, float]:
    """Seconds from opening the shards to the first batch, and the most memory held; for a process of its own."""
    import torch

    torch.set_num_threads(1)
    from jielong.data import loader, stream  # noqa: F401  # imports are not counted here

    before, started = time.process_time(), time.perf_counter()
    Reader(folder, row_tokens).loader.batches(100_000)
    batch = Reader(folder, row_tokens).loader.batches(100_000)[0]
    assert batch.num_units
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": time.process_time() - before, "wall": time.perf_counter() - started, "peak_megabytes": peak}


def measure_starts(folder: Path, row_tokens: int, repeats: int) -> dict[str, float]:
    """Medians over processes of their own."""
    found = []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        told = subprocess.run(
            [sys.executable, __file__, "--start", str(folder), str(row_tokens)], check=True, capture_output=True
        ).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append({**json.loads(told), "process": process})
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def loader_rows(folders: dict[str, Path], options: argparse.Namespace) -> list[list[str]]:
    """The table: sizes take turns, and the median over the turns is told."""
    readers = {label: Reader(folder, options.row_tokens) for label, folder in folders.items()}
    first = {label: reader.one_pass() for label, reader in readers.items()}
    costs: dict[str, list[float]] = {label: [] for label in readers}
    for turn in range(options.turns):
        for label in list(readers)[:: 1 if turn % 2 == 0 else -1]:
            costs[label].append(readers[label].seconds_per_token(STEPS))
    smallest = statistics.median(next(iter(costs.values())))
    rows = []
    for label, found in costs.items():
        cost, start = statistics.median(found), measure_starts(folders[label], options.row_tokens, options.repeats)
        rows.append([
            label, f"{readers[label].num_tokens / 1e6:.1f}M", f"{1e-6 / cost:.0f}M", f"{1e9 * cost:.2f}",
            f"{100 * (cost / smallest - 1):+.0f} %", f"{1e-6 / first[label]:.0f}M",
            f"{1e3 * start['seconds']:.1f} ms", f"{start['process']:.1f} s", f"{start['peak_megabytes']:.0f} MB",
        ])  # fmt: skip
    return rows


def run(options: argparse.Namespace, folder: Path) -> None:
    from jielong import Tokenizer, detect
    from jielong.runtime import environment

    documents = folder / "documents.jsonl"
    write_text(documents, TEXT_BYTES)
    with open(documents, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    text_bytes = sum(len(text.encode()) for text in texts)
    rows = []
    for vocab_size in options.vocab_sizes:
        tokenizer = folder / f"tokenizer-{vocab_size}"
        Tokenizer.train(texts[: len(texts) // 4], vocab_size).save(tokenizer)
        rates = encoding_rates(documents, tokenizer, folder / f"encoded-{vocab_size}", options.repeats)
        rows.append([str(vocab_size), *(f"{rate:.1f}" for rate in (statistics.median(rates), min(rates), max(rates)))])
    print(markdown_table(["vocabulary", "MB/s a core", "slowest", "fastest"], rows) + "\n")
    folders: dict[str, Path] = {}
    for megabytes in options.megabytes:
        folders[f"{megabytes:g} MB"] = folder / f"{megabytes:g}"
        encoded = folder / f"encoded-{options.vocab_sizes[0]}" / "turn-0"
        if megabytes * 1e6 >= text_bytes:
            repeat_shard(encoded, folder / f"{megabytes:g}", round(megabytes * 1e6 / text_bytes))
        else:
            write_text(folder / "small.jsonl", round(megabytes * 1e6))
            from jielong.data.encoding import Plan, encode_corpus

            plan = Plan(folder / "small.jsonl", folder / f"tokenizer-{options.vocab_sizes[0]}")
            encode_corpus(folder / f"{megabytes:g}", plan, 1)
    header = ["corpus", "tokens", "loader, tokens/s", "ns a token", "beside the smallest", "first pass", "start",
              "process", "peak memory"]  # fmt: skip
    print(markdown_table(header, loader_rows(folders, options)) + "\n")
    print(machine(environment(detect(threads=1))))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Loader, encoding and start-up", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1.0, 100.0, 1000.0], help="of text in a corpus")
    parser.add_argument(
        "--vocab-sizes", type=int, nargs="+", default=[4096, 32768], help="the loader reads the first's"
    )
    parser.add_argument("--row-tokens", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=21, help="of each corpus size; medians over them are told")
    parser.add_argument("--repeats", type=int, default=3, help="of encoding and of starts")
    parser.add_argument("--directory", help="where the temporary directory is made; the system's when left out")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.directory) as temporary:
        run(options, Path(temporary))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--start"]:
        print(json.dumps(start_once(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
