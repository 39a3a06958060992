"""Works in processes of their own, so that the threads that one leaves waiting do not slow another's."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from timing import Work

# How long threads of Intel's OpenMP, which CTranslate2 brings, wait for more work by taking a core (KMP_BLOCKTIME is
# 200 ms); GNU's, torch's, were seen to for 11 ms.
SPINNING_SECONDS = 0.25
Maker = Callable[[], Mapping[str, Work]]


@dataclass(frozen=True)
class Apart:
    """Works that run in a process of their own. missing: why there are none, where a package is not installed."""

    pid: int
    works: Mapping[str, Work]
    missing: str = ""

    def cpu_seconds(self) -> float:
        """Processor time that the process has used, all its threads together."""
        return cpu_seconds(self.pid)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, all its threads together; 0 where the system does not tell."""
    path = Path("/proc") / str(pid) / "stat"
    if not path.exists():
        return 0.0
    fields = path.read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def apart(make: Maker) -> Iterator[Apart]:
    """What make() gives, made and run in a new process. make: can be pickled, a `partial` of a module's function."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make), daemon=True)
    process.start()
    there.close()
    try:
        names, missing = here.recv()
        assert process.pid is not None
        yield Apart(process.pid, {name: partial(_ask, here, name) for name in names}, missing)
    finally:
        here.close()  # the process ends when nobody can ask any more
        process.join(timeout=10)
        if process.is_alive():
            process.terminate()


def _ask(pipe: Connection, name: str) -> int:
    pipe.send(name)
    return int(pipe.recv())


def _serve(pipe: Connection, make: Maker) -> None:
    try:
        works, missing = make(), ""
    except ImportError as error:
        works, missing = {}, str(error)
    pipe.send((list(works), missing))
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        pipe.send(works[name]())
