from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import httpx2
import pytest
import torch

from jielong.generate.batching import PREFILL_TOKENS, Batcher
from jielong.generate.requests import Delta
from jielong.generate.translating import TranslationBatcher
from jielong.model.config import ModelConfig
from jielong.model.transformer import Transformer
from jielong.runtime import Runtime
from jielong.serve.api import build_app
from jielong.serve.engine_thread import AnyBatcher, Loaded
from jielong.serve.launch import make_service
from jielong.serve.server import Server, listen
from jielong.serve.service import Service
from jielong.serve.settings import ServeSettings
from jielong.tokenizer.tokenizer import Tokenizer

from ..generate.conftest import build_model as decoder

CONTEXT = 160
NAME, OTHER = "tiny", "other"
OTHER_CONTEXT = 64
MAX_ROWS = 4

TEXTS = ["你好,接龙! the cat sat on the mat 😀", "Who sat there? The cat, I think; it sat there all day."]
OTHER_TEXTS = ["Where does the dog sleep? It sleeps under the table.", "小狗睡在桌子下面。", "a dog, a table, a bone"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, 290)


def build_model(tokenizer: Tokenizer, seed: int = 0, context: int = CONTEXT) -> Transformer:
    """That of tests/generate, which reads more."""
    return decoder(tokenizer, seed, context).eval()


def build_translator(tokenizer: Tokenizer) -> Transformer:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, max_length=CONTEXT, width=32, encoder_layers=1, decoder_layers=2, num_heads=4,
        num_kv_heads=4, head_size=8, ffn_width=48, positions="sinusoidal", norm="layer", norm_at="post",
        activation="relu", ffn_bias=True, embedding_scale=4.0,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.embed.weight *= 3.0
    return model.eval()


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Transformer:
    return build_model(tokenizer)


class GatedBatcher(Batcher):
    """Makes a step only when it is allowed one, so that tests can stop time; after `free` as many as it likes."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, max_rows: int) -> None:
        super().__init__(model, tokenizer, max_rows=max_rows)
        self.allowed, self.num_steps, self.is_free = threading.Semaphore(0), 0, False
        self.failure: Exception | None = None

    def step(self) -> list[Delta]:
        if not self.is_free:
            assert self.allowed.acquire(timeout=30), "no step was allowed for 30 seconds"
        if self.failure is not None:
            raise self.failure
        deltas = super().step()
        self.num_steps += 1
        return deltas

    def allow(self, num_steps: int) -> None:
        self.allowed.release(num_steps)

    def free(self) -> None:
        self.is_free = True
        self.allowed.release()


@dataclass
class Lab:
    """Makes services over the tiny model."""

    model: Transformer
    tokenizer: Tokenizer
    settings: ServeSettings = field(default_factory=ServeSettings)
    max_rows: int = MAX_ROWS

    def load(self) -> Loaded:
        return Loaded(self.batcher(), 1_700_000_000)

    def batcher(self) -> AnyBatcher:
        if self.model.config.encoder_layers:
            runtime = Runtime(torch.device("cpu"), torch.float32)
            return TranslationBatcher(
                self.model, self.tokenizer, runtime, max_rows=self.max_rows, prefill_tokens=PREFILL_TOKENS
            )
        return Batcher(self.model, self.tokenizer, max_rows=self.max_rows)

    def gated(self) -> tuple[Service, GatedBatcher]:
        """A service whose steps the test allows one by one."""
        batcher = GatedBatcher(self.model, self.tokenizer, self.max_rows)
        return self.service(lambda: Loaded(batcher, 1)), batcher

    def service(self, load: Callable[[], Loaded] | None = None) -> Service:
        return make_service({NAME: load or self.load}, self.settings, self.max_rows)

    def beside(
        self, other: Lab, load: Callable[[], Loaded] | None = None, load_other: Callable[[], Loaded] | None = None
    ) -> Service:
        """A service of two models: this one and, as OTHER, another one."""
        loads = {NAME: load or self.load, OTHER: load_other or other.load}
        return make_service(loads, self.settings, self.max_rows)

    @asynccontextmanager
    async def client(self, service: Service | None = None, wait: bool = True) -> AsyncIterator[httpx2.AsyncClient]:
        """A client of the application itself, in this loop, without a socket."""
        service = service or self.service()
        app = build_app(service)
        async with app.router.lifespan_context(app):
            if wait:
                for engine in service.engines:
                    await engine.loaded()
            transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
                yield client


@pytest.fixture(scope="session")
def lab(model: Transformer, tokenizer: Tokenizer) -> Lab:
    return Lab(model, tokenizer)


@pytest.fixture(scope="session")
def other() -> Lab:
    """Another tiny decoder: other weights, other words, a shorter context."""
    tokenizer = Tokenizer.train(OTHER_TEXTS * 3, 300)
    return Lab(build_model(tokenizer, 1, OTHER_CONTEXT), tokenizer)


@pytest.fixture(scope="session")
def translating(tokenizer: Tokenizer) -> Lab:
    """A tiny encoder-decoder."""
    return Lab(build_translator(tokenizer), tokenizer)


@pytest.fixture
async def client(lab: Lab) -> AsyncIterator[httpx2.AsyncClient]:
    async with lab.client() as client:
        yield client


@dataclass
class Running:
    """A server with a socket, in a thread of this process."""

    url: str
    port: int
    service: Service
    server: Server


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """For what another thread or process does; see test_engine_thread.until for the loop's own."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.002)


@contextmanager
def running(service: Service) -> Iterator[Running]:
    taken = listen(service.settings)
    server = Server(build_app(service), service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    port = taken.getsockname()[1]
    thread.start()
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            wait_until(lambda: client.get("/health").status_code == 200)
        yield Running(f"http://127.0.0.1:{port}", port, service, server)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def live(lab: Lab) -> Iterator[Running]:
    with running(Lab(lab.model, lab.tokenizer, ServeSettings(port=0)).service()) as found:
        yield found
