"""One thread owns the batcher; the event loop hands it requests and gets back what every step made.

An idle engine sleeps in its inbox; a working one looks into it between two steps. What a step made goes to the loop by
an `Outbox`. Everything here but the methods that say so runs on the loop's thread.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from jielong.errors import UsageError
from jielong.generate.batching import Batcher
from jielong.generate.requests import Delta, Request
from jielong.generate.translating import TranslationBatcher
from jielong.model.config import ModelConfig
from jielong.serve.errors import ApiError, bad_request, unavailable
from jielong.serve.jobs import Job
from jielong.serve.metrics import ModelMetrics
from jielong.serve.outbox import Outbox
from jielong.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")
AnyBatcher = Batcher | TranslationBatcher
_STEP_SECONDS = 10.0  # longer than any step should take


@dataclass(frozen=True)
class Loaded:
    """A model ready to be served. The batcher belongs to the engine's thread; created: seconds since 1970."""

    batcher: AnyBatcher
    created: int

    @property
    def translates(self) -> bool:
        """Whether it is an encoder-decoder: it reads a source and writes another text."""
        return isinstance(self.batcher, TranslationBatcher)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.batcher.tokenizer

    @property
    def config(self) -> ModelConfig:
        return self.batcher.model.config

    @property
    def context(self) -> int:
        return self.config.max_length


@dataclass
class _Owner:
    """Whose a request of the batcher is. has_begun: its first delta was sent."""

    job: Job
    index: int
    has_begun: bool = False


class EngineThread:
    """Loads the model, then makes tokens. state: "loading", "ready", "draining", "dead" or "stopped".

    load: runs on the engine's thread, where the model stays. most_open: most sequences that run or wait together.
    metrics: counts what it does, under the model's name. on_death: called on the loop with what made loading or a step
    fail; error keeps it.
    """

    def __init__(self, load: Callable[[], Loaded], most_open: int, metrics: ModelMetrics) -> None:
        self.state, self.metrics, self.most_open = "loading", metrics, most_open
        self.name = metrics.model  # what clients call the model
        self.num_open = 0
        self.error: BaseException | None = None
        self.idle = asyncio.Event()  # set while nothing runs or waits
        self.idle.set()
        self.on_death: Callable[[BaseException], None] = lambda error: None
        self._load = load
        self._loaded: Loaded | None = None
        self._mean_seconds = 1.0  # of a sequence, lately
        self._jobs: set[Job] = set()
        self._calls: set[asyncio.Future[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="jielong-engine", daemon=True)
        self._inbox: queue.SimpleQueue[Callable[[AnyBatcher], object] | None] = queue.SimpleQueue()
        self._owners: dict[int, _Owner] = {}  # by the batcher's number; the engine's thread only
        self._outbox = Outbox(self._tell)
        self._settled: asyncio.Future[None] | None = None

    # The loop's side.

    @property
    def was_ready(self) -> bool:
        """Whether the model has ever been there."""
        return self._loaded is not None

    def start(self) -> None:
        """Start loading; must be called with the loop running."""
        self._loop = asyncio.get_running_loop()
        self._settled = self._loop.create_future()
        self._thread.start()

    async def loaded(self) -> Loaded:
        """The model, once it is there. Raises what made loading fail."""
        assert self._settled is not None, "start() comes first"
        await asyncio.shield(self._settled)
        return self.ready()

    def ready(self) -> Loaded:
        """The model, now. Raises ApiError 503 while it is loading, and after the engine has failed or stopped."""
        if self._loaded is None and self.state == "loading":
            raise unavailable(f"the model {self.name!r} is still being loaded", "loading")
        if self._loaded is None or self.state in ("dead", "stopped"):
            text = f"the engine of {self.name!r} has failed and must be started anew; the server's log says why"
            raise unavailable(text, "engine_dead")
        return self._loaded

    def submit(self, requests: Sequence[Request]) -> Job:
        """Hand in the sequences of one HTTP request, all or none; `Batcher.check` has passed them.

        Raises ApiError: 503 unless ready, 429 when there is no room for them now, 400 when there never is.
        """
        self.ready()
        if self.state == "draining":
            raise unavailable("the server is about to stop and takes no new requests", "draining")
        if len(requests) > self.most_open:
            raise ApiError(400, f"{len(requests)} sequences in one request; this server holds {self.most_open} at most")
        if self.num_open + len(requests) > self.most_open:
            wait = str(self._seconds_until_room())
            message = f"the queue is full: {self.num_open} sequences run or wait, of {self.most_open}; come back later"
            raise ApiError(429, message, code="queue_full", headers={"retry-after": wait})
        job = Job(self, requests)
        self.num_open += len(requests)
        self.metrics.open.set(self.num_open)
        self.idle.clear()
        self._jobs.add(job)
        self.order(partial(self._admit, job))
        return job

    async def call(self, work: Callable[[], T]) -> T:
        """The result of work(), done by the engine's thread between two steps. Raises what it does, or ApiError 503."""
        self.ready()
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.add(done)
        try:
            self.order(partial(self._do, work, done))
            return await done
        finally:
            self._calls.discard(done)

    def cancel(self, job: Job, index: int | None) -> None:
        """End a job's sequences, one or all, before the next step."""
        self.order(partial(self._drop, job, index))

    def order(self, command: Callable[[AnyBatcher], object]) -> None:
        """Have something done by the engine's thread before its next step."""
        self._inbox.put(command)

    async def drain(self, seconds: float) -> bool:
        """Take nothing new and wait for what runs, so long at most. Whether all of it has ended."""
        if self.state == "ready":
            self.state = "draining"
        try:
            await asyncio.wait_for(self.idle.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True

    def halt(self) -> None:
        """Have the thread end after the step it is in; who still waits gets an error now."""
        if self.state != "dead":
            self.state = "stopped"
        self._inbox.put(None)
        self._fail_all(unavailable("the server has stopped", "stopped"))

    def stop(self) -> None:
        """`halt`, and wait for the thread."""
        self.halt()
        if self.was_ready:  # else it is loading, which nobody need wait for
            self._thread.join(timeout=_STEP_SECONDS)

    def closed(self, job: Job, reason: str) -> None:
        """A sequence of this job has ended."""
        self.num_open -= 1
        self.metrics.open.set(self.num_open)
        self.metrics.finished.add(1, reason)
        self._mean_seconds += 0.1 * (time.monotonic() - job.began - self._mean_seconds)
        if job.num_open == 0:
            self._jobs.discard(job)
        if self.num_open == 0:
            self.idle.set()

    def _seconds_until_room(self) -> int:
        """A guess: by then one sequence of average length has ended."""
        return int(min(60.0, max(1.0, self._mean_seconds)))

    def _dropped(self, job: Job, num_dropped: int) -> None:
        self._outbox.fetch()  # what was made before comes before
        for _ in range(num_dropped):
            job.close("cancelled")

    def _refused(self, job: Job, error: ApiError) -> None:
        self._outbox.fetch()
        job.fail(error)
        while job.num_open:
            job.close("error")

    def _finish(self, done: asyncio.Future[Any], value: object, error: BaseException | None) -> None:
        if done.done():  # who asked has gone
            return
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)

    def _settle(self, loaded: Loaded) -> None:
        assert self._settled is not None
        if self.state == "loading":
            self._loaded, self.state = loaded, "ready"
        self._settled.set_result(None)

    def _die(self, error: BaseException) -> None:
        """Loading or a step has failed: everybody who waits is told, and nobody is taken any more."""
        assert self._settled is not None
        self.state, self.error = "dead", error
        if not self._settled.done():
            self._settled.set_exception(error)
            self._settled.exception()  # fetched, so that nobody is warned when nobody waits for it
        self._fail_all(unavailable("the engine has failed while it worked on this request", "engine_dead"))
        self.on_death(error)

    def _fail_all(self, error: ApiError) -> None:
        self._outbox.fetch()
        for job in list(self._jobs):
            self._refused(job, error)
        for done in list(self._calls):
            self._finish(done, None, error)

    # The engine's side: only its own thread comes here.

    def _run(self) -> None:
        try:
            loaded = self._load()
            self._tell(self._settle, loaded)
            while self._obey(loaded.batcher):
                self._send(loaded.batcher.step())
        except BaseException as error:
            self._tell(self._die, error)

    def _obey(self, batcher: AnyBatcher) -> bool:
        """Do what the loop has ordered; with nothing else to do, wait for an order. False when it was to stop."""
        wait = batcher.is_idle
        while True:
            try:
                command = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command(batcher)
            wait = False

    def _send(self, deltas: Sequence[Delta]) -> None:
        """Send what a step made to those who asked for it."""
        told, is_awaited = [], False
        for delta in deltas:
            owner = self._owners.get(delta.request)
            if owner is None:
                continue
            told.append((owner.job, owner.index, delta))
            if not owner.has_begun:
                owner.has_begun = is_awaited = True
            if delta.finish_reason is not None:
                is_awaited = True
                del self._owners[delta.request], owner.job.ids[owner.index]
        if told:
            self._outbox.put(told, is_awaited)

    def _admit(self, job: Job, batcher: AnyBatcher) -> None:
        try:
            for index, request in enumerate(job.requests):
                job.ids[index] = batcher.submit(request)
                self._owners[job.ids[index]] = _Owner(job, index)
        except UsageError as error:  # although `check` has let it pass; one request must not end the thread
            self._drop(job, None, batcher)
            self._tell(self._refused, job, bad_request(str(error)))

    def _drop(self, job: Job, index: int | None, batcher: AnyBatcher) -> None:
        """Cancel the sequences of a job that still run: one, or all."""
        gone = [number for number in job.ids if index is None or number == index]
        for number in gone:
            request = job.ids.pop(number)
            del self._owners[request]
            batcher.cancel(request)
        if gone:
            self._tell(self._dropped, job, len(gone))

    def _do(self, work: Callable[[], T], done: asyncio.Future[T], batcher: AnyBatcher) -> None:
        try:
            value = work()
        except Exception as error:
            self._tell(self._finish, done, None, error)
        else:
            self._tell(self._finish, done, value, None)

    def _tell(self, what: Callable[..., object], *told: object) -> None:
        """Have the loop's thread do something; a loop that is closed has nobody left to tell."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(what, *told)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
