"""The way from text to batches: tokens a second of the loader, megabytes a second of encoding, and what start-up costs.

    python benchmarks/loader_speed.py [--megabytes 1 100 1000] [--row-tokens 1024] [--text FILE] [--directory DIR]

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

import numpy as np
from table import machine, markdown_table

TEXT_BYTES = 8_000_000  # of the world, encoded to be repeated
BATCH_ROWS = 32
STEPS = 64  # of one measurement


def write_world(path: Path, num_bytes: int) -> None:
    """Documents of the built-in world, as the curation leaves them."""
    from jielong import World

    with open(path, "w", encoding="utf-8") as file:
        for document in World(1).documents(num_bytes, "train", junk=False):
            file.write(json.dumps({"text": document.text, "source": document.source}, ensure_ascii=False) + "\n")


def write_text(path: Path, source: Path, num_bytes: int) -> None:
    """Documents of another file, whole, up to so many bytes of text."""
    from jielong.data.sources import Source, read_documents

    with open(path, "w", encoding="utf-8") as file:
        for document in read_documents(Source("text", str(source.resolve())), Path()):
            num_bytes -= len(document.text.encode())
            file.write(json.dumps({"text": document.text, "source": "text"}, ensure_ascii=False) + "\n")
            if num_bytes <= 0:
                break


def read_texts(documents: Path) -> list[str]:
    with open(documents, encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def encoding_rows(documents: Path, folder: Path, options: argparse.Namespace) -> list[list[str]]:
    """Megabytes of text a second of the processor: reading, parsing, encoding, writing and hashing.

    From the first piece to the last: the tokenizer's own start, a second for a large vocabulary, comes once.
    """
    from jielong import Tokenizer
    from jielong.data.encoding import Plan, encode_corpus

    texts, rows = read_texts(documents), []
    num_bytes = sum(len(text.encode()) for text in texts)
    for vocab_size in options.vocab_sizes:
        tokenizer = folder / f"tokenizer-{documents.stem}-{vocab_size}"
        trained = Tokenizer.train(texts[: max(1, len(texts) // 4)], vocab_size)
        trained.save(tokenizer)
        rates, alone = [], []
        for turn in range(options.repeats):
            marks: list[tuple[int, float]] = []

            def mark(done: int, _total: int, marks: list[tuple[int, float]] = marks) -> None:
                marks.append((done, time.process_time()))

            plan = Plan(documents, tokenizer)
            encode_corpus(folder / f"encoded-{documents.stem}-{vocab_size}-{turn}", plan, 1, mark)
            (first, started), (last, ended) = marks[0], marks[-1]
            rates.append(num_bytes / 1e6 * (last - first) / last / (ended - started))
            started = time.process_time()
            for text in texts:
                trained.encode(text)
            alone.append(num_bytes / 1e6 / (time.process_time() - started))
        told = (f"{rate:.1f}" for rate in (statistics.median(rates), min(rates), max(rates), statistics.median(alone)))
        rows.append([documents.stem, f"{num_bytes / 1e6:.1f} MB", str(vocab_size), *told])
    return rows


def repeat_shard(source: Path, folder: Path, times: int) -> None:
    """A folder whose one shard holds the text of another's `times` times."""
    from jielong.data.shards import INDEX, read_index

    index = read_index(source)
    (name, (shard, *_)), *_ = index.sources.items()
    folder.mkdir()
    tokens = (source / f"{shard.name}.bin").read_bytes()
    bits = np.unpackbits(np.fromfile(source / f"{shard.name}.starts.bin", np.uint8), bitorder="little")
    starts = np.packbits(np.tile(bits[: shard.num_tokens], times), bitorder="little").tobytes()
    sums = []
    for suffix, content in ((".bin", tokens * times), (".starts.bin", starts)):
        (folder / f"{shard.name}{suffix}").write_bytes(content)
        sums.append(hashlib.sha256(content).hexdigest())
    larger = replace(
        shard, num_tokens=shard.num_tokens * times, num_documents=shard.num_documents * times,
        bytes=shard.bytes * times, starts_bytes=len(starts), sha256=sums[0], starts_sha256=sums[1],
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
        for step in range(self._step, self._step + num_steps):
            num_tokens += self.loader.batches(step)[0].tokens.numel()
        self._step += num_steps
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
    batch = Reader(folder, row_tokens).loader.batches(100_000)[0]
    assert batch.num_units
    seconds, wall = time.process_time() - before, time.perf_counter() - started
    # The kernel's own account, where it gives one: getrusage's also counts what the parent held when it forked.
    status = Path("/proc/self/status")
    held = (
        [int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        if status.exists()
        else []
    )
    return {"seconds": seconds, "wall": wall, "peak_megabytes": held[0] / 1024 if held else float("nan")}


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


def make_corpora(folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Label -> a folder of shards of the world's text; beyond what was encoded, the same again and again."""
    from jielong.data.encoding import Plan, encode_corpus

    vocab_size, folders = options.vocab_sizes[0], {}
    for megabytes in options.megabytes:
        target = folders[f"{megabytes:g} MB"] = folder / f"{megabytes:g}"
        if megabytes * 1e6 >= TEXT_BYTES:
            repeat_shard(folder / f"encoded-world-{vocab_size}-0", target, round(megabytes * 1e6 / TEXT_BYTES))
        else:
            write_world(folder / "small.jsonl", round(megabytes * 1e6))
            encode_corpus(target, Plan(folder / "small.jsonl", folder / f"tokenizer-world-{vocab_size}"), 1)
    return folders


def run(options: argparse.Namespace, folder: Path) -> None:
    from jielong import detect
    from jielong.runtime import environment

    write_world(folder / "world.jsonl", TEXT_BYTES)
    rows = encoding_rows(folder / "world.jsonl", folder, options)
    if options.text is not None:
        write_text(folder / "text.jsonl", options.text, TEXT_BYTES)
        rows += encoding_rows(folder / "text.jsonl", folder, options)
    print(
        markdown_table(["text", "size", "vocabulary", "MB/s a core", "slowest", "fastest", "`encode` alone"], rows)
        + "\n"
    )
    header = ["corpus", "tokens", "loader, tokens/s", "ns a token", "beside the smallest", "first pass", "start",
              "process", "peak memory"]  # fmt: skip
    print(markdown_table(header, loader_rows(make_corpora(folder, options), options)) + "\n")
    print(machine(environment(detect(threads=1))))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Loader, encoding and start-up", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1.0, 100.0, 1000.0], help="of text in a corpus")
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[4096], help="the loader reads the first's")
    parser.add_argument("--text", type=Path, help="another file of text to encode, as a recipe's source may be")
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
