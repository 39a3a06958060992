"""Recorded steps against steps as they are written, replayed on a CPU as a GPU would: from the same addresses.

A `Tape` notes each operation of a step with the very tensors that it read and made. To replay it is to do the same to
the same tensors, in the same shapes, without a line of the model's Python: what a CUDA graph does, and what goes wrong
if a step depends on anything that is not in those tensors.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jielong.errors import ModelError
from jielong.generate import recording
from jielong.generate.batching import Batcher
from jielong.generate.cache import FixedCache, KeyValueCache
from jielong.generate.engine import Completion, Engine
from jielong.generate.recording import (
    Recorder,
    Recordings,
    Step,
    as_written,
    choose_recorder,
    cuda_graph,
    num_recorded_keys,
)
from jielong.generate.requests import Request
from jielong.generate.rows import RowCache
from jielong.generate.sampling import Sampling
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.tokenizer.tokenizer import Tokenizer

from ..model.conftest import FAMILIES, SIZES, randomise

DECODERS = [name for name, fields in FAMILIES.items() if not fields.get("encoder_layers")]
ASKS_THE_HOST = ("aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh", "aten::bincount")


class Tape(TorchDispatchMode):
    """Notes what is done; refuses what a recording cannot hold, as CUDA does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []
        self.own: list[Tensor] = []  # what lies in memory of its own, one of each piece
        self._known: set[int] = set()  # addresses

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith(ASKS_THE_HOST):
            raise RuntimeError(f"{func.name()} is not permitted while a step is recorded")
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_leaves(made)))
        self._known |= {address(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and address(one) not in self._known:
                self._known.add(address(one))
                self.own.append(one)
        return made


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Taped:
    """A Record, and what was done with it.

    Recordings share memory on a GPU. So before one is replayed nothing of any is left but what they gave last.
    """

    def __init__(self) -> None:
        self.num_recorded = self.num_replayed = 0
        self.beside: Step | None = None  # of the newest
        self._tapes: list[tuple[Tape, Tensor]] = []

    def __call__(self, step: Step, beside: Step | None = None) -> Step:
        self.num_recorded += 1
        self.beside = beside
        with Tape() as tape:
            logits = step()
        self._tapes.append((tape, logits))

        def replay() -> Tensor:
            self.num_replayed += 1
            self._forget()
            for func, args, kwargs, made in tape.calls:
                for old, new in zip(made, tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and address(old) != address(new):
                        old.copy_(new)
            return logits

        return replay

    def _forget(self) -> None:
        given = {address(logits) for _, logits in self._tapes}
        for tape, _ in self._tapes:
            for one in tape.own:
                if address(one) not in given:
                    one.fill_(math.nan if one.is_floating_point() else 0)


def build(family: str, vocab_size: int, **changes: Any) -> Transformer:
    sizes = {**SIZES, **FAMILIES[family], "vocab_size": vocab_size, **changes}
    model = randomise(Transformer(ModelConfig(**sizes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.5 if "embed" in name else 3)  # else all say the same
    return model.eval()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many short recordings, for there are few steps in a test."""
    monkeypatch.setattr(recording, "PLAIN_STEPS", 1)
    monkeypatch.setattr(recording, "KEYS_A_RECORDING", 16)


def prompts_of(num: int, seed: int = 1, longest: int = 20) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(270) for _ in range(source.randint(1, longest))] for _ in range(num)]


def assert_alike(ours: list[Completion], theirs: list[Completion]) -> None:
    assert [one.tokens for one in ours] == [one.tokens for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


@pytest.mark.parametrize("family", [name for name in DECODERS if "num_experts" not in FAMILIES[name]])
@pytest.mark.parametrize(("temperature", "stops"), [(0.0, ()), (1.0, tuple(range(0, 275, 12)))])
def test_replayed_steps_say_what_written_ones_say(
    family: str, temperature: float, stops: tuple[int, ...], tokenizer: Tokenizer
) -> None:
    """Ragged prompts: all rows to the end, so that there are more keys than one recording's; or batches get smaller."""
    engine = Engine(build(family, tokenizer.vocab_size), tokenizer)
    assert engine.recorder is None  # on a CPU
    asked: dict[str, Any] = {"max_new_tokens": 22, "temperature": temperature, "seed": 3, "stop_ids": stops}
    prompts = prompts_of(10)
    plain = engine.generate(prompts, **asked)
    record = Taped()
    engine.recorder = Recorder(record)
    found = engine.generate(prompts, **asked)
    assert_alike(found, plain)
    assert record.num_recorded >= 2 and record.num_replayed > 2 * record.num_recorded
    lengths = {len(one.tokens) for one in found}
    assert (len(lengths) > 3) == bool(stops) and len({token for one in found for token in one.tokens}) > 15


@pytest.mark.parametrize("family", DECODERS)
def test_the_fixed_step_is_the_ordinary_one(family: str, tokenizer: Tokenizer) -> None:
    """Called as it is written, experts among them: the same logits but for the order of sums."""
    model = build(family, tokenizer.vocab_size)
    tokens = torch.randint(270, (3, 30), generator=torch.Generator().manual_seed(2))
    caches = [kind(model.config, 3, 40, torch.float32, torch.device("cpu")) for kind in (KeyValueCache, FixedCache)]
    with torch.inference_mode():
        for cache in caches:
            model(tokens[:, :7], cache=cache.view(7))
            cache.advance(torch.tensor([7, 3, 5]))
        kept = caches[1].lengths
        for step in range(7, 30):
            ordinary, fixed = (model(tokens[:, step : step + 1], cache=cache.view(1)) for cache in caches)
            torch.testing.assert_close(fixed, ordinary, rtol=1e-5, atol=1e-5)
            for cache in caches:
                cache.advance(torch.tensor([1, 1, step % 2]))
    assert caches[1].lengths is kept and kept.tolist() == caches[0].lengths.tolist()


def test_a_fixed_cache_sees_keys_by_the_recording(model: Transformer) -> None:
    cache = FixedCache(model.config, 2, 40, torch.float32, torch.device("cpu"))
    new = torch.ones(2, 2, 15, 8)
    assert cache.update(0, new, new)[0].shape[2] == 15  # as many as are read, while a prompt is
    cache.advance(torch.tensor([15, 2]))
    assert cache.num_keys(1) == 16 and cache.edition == 0
    addresses = [buffer.data_ptr() for buffer in (*cache.keys, *cache.values)]
    for num_keys in (16, 32, 32):
        assert cache.update(0, new[:, :, :1], new[:, :, :1])[0].shape[2] == cache.num_keys(1) == num_keys
        cache.advance(torch.tensor([1, 1]))
    assert [buffer.data_ptr() for buffer in (*cache.keys, *cache.values)] == addresses  # there was room for all
    cache.select(torch.tensor([1]))
    assert cache.num_keys(1) == 16 and cache.edition == 1  # other addresses
    assert num_recorded_keys(33) == 48
    long = FixedCache(model.config, 1, 20, torch.float32, torch.device("cpu"))
    long.update(0, torch.ones(1, 2, 17, 8), torch.ones(1, 2, 17, 8))
    long.advance(torch.tensor([17]))
    assert long.num_keys(1) == 20  # there are no more


def test_in_bfloat16_and_with_penalties(model: Transformer, tokenizer: Tokenizer) -> None:
    wide = build("jie", tokenizer.vocab_size, width=64, ffn_width=128)
    asked: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.0, "stop_ids": (), "repetition_penalty": 1.3}
    engine = Engine(wide, tokenizer)
    engine.runtime = Runtime(torch.device("cpu"), torch.bfloat16)
    plain = engine.generate(prompts_of(4, longest=9), **asked)
    record = Taped()
    engine.recorder = Recorder(record)
    found = engine.generate(prompts_of(4, longest=9), **asked)
    assert [one.tokens for one in found] == [one.tokens for one in plain] and record.num_replayed > 6


def test_a_stream_is_replayed_and_weights_are_read_anew(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer)
    plain = "".join(engine.stream("the cat", max_new_tokens=20, temperature=0.0, stop_ids=()))
    record = Taped()
    engine.recorder = Recorder(record)
    assert "".join(engine.stream("the cat", max_new_tokens=20, temperature=0.0, stop_ids=())) == plain
    assert record.num_replayed > 10
    with torch.no_grad():
        model.layers[0].ffn.up.weight.neg_()
    changed = "".join(engine.stream("the cat", max_new_tokens=20, temperature=0.0, stop_ids=()))
    engine.recorder = None
    assert changed == "".join(engine.stream("the cat", max_new_tokens=20, temperature=0.0, stop_ids=())) != plain


def test_what_cannot_be_recorded_goes_on_as_it_is_written(tokenizer: Tokenizer) -> None:
    calls = []

    def broken(step: Step, beside: Step | None) -> Step:
        calls.append(step)
        raise RuntimeError("operation not permitted when stream is capturing\nand more lines")

    engine = Engine(build("jie", tokenizer.vocab_size), tokenizer)
    asked: dict[str, Any] = {"max_new_tokens": 20, "temperature": 0.0, "stop_ids": ()}
    plain = engine.generate(prompts_of(3), **asked)
    engine.recorder = Recorder(broken)
    with pytest.warns(UserWarning, match=r"without CUDA graphs.*\(operation not permitted when stream is capturing\)"):
        found = engine.generate(prompts_of(3), **asked)
    assert_alike(found, plain)
    assert_alike(engine.generate(prompts_of(3), **asked), plain)
    assert len(calls) == 1  # it is not tried again


def test_the_tape_refuses_what_a_gpu_refuses(tokenizer: Tokenizer) -> None:
    """Guards the tests above: a step that asks the host, or brings numbers from it, is none that can be recorded."""
    for step in (lambda: torch.ones(2) * int(torch.ones(1).sum()), lambda: torch.ones(2) + torch.tensor([1.0, 2.0])):
        with pytest.raises(RuntimeError, match="not permitted"):
            Taped()(step)
    counter = torch.zeros(1)
    replay = Taped()(lambda: counter.add_(1).clone())
    assert [float(replay()) for _ in range(3)] == [2.0, 3.0, 4.0]  # the first was the recording
    taped, left = Taped(), list[Tensor]()
    first = taped(lambda: left.append(counter * 2) or left[0] + 1)  # type: ignore[func-returns-value]
    second = taped(lambda: left[0] + 1)
    assert first() == 9 and second().isnan()  # what one leaves in the memory that they share is not to be read


def test_where_steps_are_recorded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, gpu = build("jie", tokenizer.vocab_size), Runtime(torch.device("cuda", 0), torch.bfloat16)
    assert isinstance(choose_recorder(model, gpu), Recorder)
    assert choose_recorder(model, replace(gpu, device=torch.device("cpu"))) is None
    assert choose_recorder(model, replace(gpu, cuda_graphs=False)) is None
    assert choose_recorder(model, replace(gpu, mesh=object())) is None  # type: ignore[arg-type]
    assert choose_recorder(build("mixtral", tokenizer.vocab_size), gpu) is None


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torch's part of a recording is asked for, in order, with stand-ins for it: no GPU is here."""
    told: list[str] = []

    @contextmanager
    def within(name: str, *_: Any, **settings: Any) -> Iterator[None]:
        told.append(" ".join([name, *(key for key, value in settings.items() if value is not None)]))
        try:
            yield
        finally:
            told.append(f"end of {name}")

    class Stream:
        def __init__(self, device: Any = None) -> None: ...

        def wait_stream(self, other: Any) -> None:
            told.append("wait")

    class Graph:
        def replay(self) -> None:
            told.append("replay")

        def pool(self) -> object:
            return self

    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *args, name=name, **settings: within(name, *args, **settings))
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(recording, "_stream_aside", Stream)
    return told


def test_a_cuda_graph_is_warmed_up_aside_and_then_recorded(told: list[str]) -> None:
    logits = torch.ones(2, 3)

    def step() -> Tensor:
        told.append("step")
        return logits

    replay = cuda_graph(torch.device("cuda", 0), step)
    recorded = ["graph stream capture_error_mode", "step", "end of graph"]
    begun = ["device", "stream", "wait", "stream", "step", "end of stream", "wait"]
    assert told == [*begun, *recorded, "end of stream", "end of device"]
    assert replay() is logits and told[-1] == "replay" and told.count("step") == 2
    told.clear()
    cuda_graph(torch.device("cuda", 0), step, as_written(step))
    assert recorded[0] in told  # what was not recorded has no memory to share
    told.clear()
    cuda_graph(torch.device("cuda", 0), step, replay)
    assert "graph pool stream capture_error_mode" in told


def test_two_threads_record_one_after_the_other(told: list[str]) -> None:
    """As a server of two models does: what the second did on the stream would be in the recording of the first."""
    first_is_in, second_is_in = threading.Event(), threading.Event()

    def first() -> Tensor:
        first_is_in.set()
        second_is_in.wait(0.1)  # it would be here at once
        told.append("first")
        return torch.ones(1)

    def second() -> Tensor:
        second_is_in.set()
        told.append("second")
        return torch.ones(1)

    device = torch.device("cuda", 0)
    other = threading.Thread(target=lambda: first_is_in.wait(10) and cuda_graph(device, second))
    other.start()
    cuda_graph(device, first)
    other.join(10)
    assert [name for name in told if name in ("first", "second")] == ["first", "first", "second", "second"]


def test_recordings_are_kept_by_shape_and_the_oldest_goes() -> None:
    record = Taped()
    held = Recordings(Recorder(record), most=2)

    def ask(shape: int, value: float) -> float:
        return float(held.run(edition, (shape,), lambda x: x * 2, torch.tensor([value])))

    edition = 0

    assert [ask(1, 1.0), ask(1, 2.0), ask(1, 3.0), ask(1, 4.0)] == [2.0, 4.0, 6.0, 8.0]
    assert (record.num_recorded, record.num_replayed) == (1, 3)  # the first ran as it is written
    assert record.beside is None
    assert [ask(2, 1.0), ask(2, 5.0), ask(1, 7.0)] == [2.0, 10.0, 14.0] and record.num_recorded == 2
    assert record.beside is not None  # they work in the same memory
    assert ask(3, 1.0) == 2.0 and ask(2, 6.0) == 12.0 and record.num_recorded == 2
    assert [ask(1, 8.0), ask(1, 9.0)] == [16.0, 18.0] and record.num_recorded == 3  # had been dropped
    edition = 1
    assert [ask(3, 1.0), ask(3, 2.0)] == [2.0, 4.0] and record.num_recorded == 4
    assert record.beside is None, "what was recorded over other addresses is kept no longer"


def on_a_gpu(model: Transformer, tokenizer: Tokenizer, record: recording.Record | None, **settings: Any) -> Batcher:
    """A Batcher as it is on a GPU: with the model itself, no row but those there are, recorded steps."""
    batcher = Batcher(model, tokenizer, **settings)
    batcher.model, batcher.least_rows = model, 1
    batcher.rows = RowCache(model.config, batcher.max_rows, torch.float32, torch.device("cpu"))
    if record is not None:
        batcher.recordings = Recordings(Recorder(record), most=3)
    return batcher


def requests_of(num: int, seed: int) -> list[Request]:
    source = random.Random(seed)
    beginning = [source.randrange(270) for _ in range(20)]
    kinds = [Sampling(0.0), Sampling(), Sampling(0.7, top_k=9), Sampling(1.3, top_p=0.8)]
    found = []
    for number in range(num):
        own = [source.randrange(270) for _ in range(source.randint(1, 20))]
        prompt = tuple(beginning[: source.choice([0, 8, 17])] + own)
        found.append(Request(prompt, source.randint(1, 22), sampling=kinds[number % 4], seed=number, logprobs=1))
    return found


def serve(batcher: Batcher, requests: list[Request]) -> list[tuple[list[int], list[float]]]:
    """All answers, when one request comes with each step and every ninth is cancelled three steps later."""
    waiting, numbers, deltas = list(requests), [], []
    cancelled: dict[int, int] = {}
    step = 0
    while waiting or not batcher.is_idle:
        if waiting:
            numbers.append(batcher.submit(waiting.pop(0)))
            if len(numbers) % 9 == 0:
                cancelled[step + 3] = numbers[-1]
        if step in cancelled:
            batcher.cancel(cancelled[step])
        deltas += batcher.step()
        step += 1
    answers = []
    for number in numbers:
        own = [delta for delta in deltas if delta.request == number]
        told = [entry for delta in own for entry in delta.logprobs]
        tokens = [token for delta in own for token in delta.tokens]
        answers.append((tokens, [float(entry.logprob or 0) for entry in told]))
    return answers


@pytest.mark.parametrize("family", ["jie", "gpt3", "mistral", "learned-capped-window"])
def test_a_batcher_replays_what_it_would_compute(family: str, tokenizer: Tokenizer) -> None:
    """Requests that come and go, prompts read between the steps, rows that move, the buffer growing."""
    model = build(family, tokenizer.vocab_size)
    requests = requests_of(24, seed=4)
    record = Taped()
    settings: dict[str, Any] = {"max_rows": 6, "prefill_tokens": 9}
    plain = serve(on_a_gpu(model, tokenizer, None, **settings), requests)
    found = serve(on_a_gpu(model, tokenizer, record, **settings), requests)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in plain]
    for (_, logprobs), (_, others) in zip(found, plain, strict=True):
        assert logprobs == pytest.approx(others, abs=1e-5)
    assert record.num_recorded > 3 and record.num_replayed > 20


def test_rows_for_a_recorded_step_must_fit(model: Transformer) -> None:
    rows = RowCache(model.config, 4, torch.float32, torch.device("cpu"))
    rows.reserve(2, 20)
    edition = rows.edition
    assert list(rows.expect(0, [3, 5], 1)) == [0, 1]
    with pytest.raises(ModelError, match="do not fit"):
        rows.expect(0, [3, 5, 1], 1)
    rows.reserve(2, 20)
    assert rows.edition == edition
    rows.reserve(3, 20)
    assert rows.edition == edition + 1


def test_as_written_is_the_step_itself() -> None:
    step = torch.ones(1).clone
    assert as_written(step) is step
