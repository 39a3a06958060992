"""A command as a child process: how long it took, and the most memory it held."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

JIELONG = (sys.executable, "-m", "jielong")


@dataclass(frozen=True)
class Child:
    """seconds: wall time from start to end. peak_memory_bytes: resident set, of the largest process."""

    exit_code: int
    seconds: float
    peak_memory_bytes: int
    output: str

    def tail(self, num_lines: int = 15) -> str:
        return "\n".join(self.output.splitlines()[-num_lines:])


def run_child(
    command: Sequence[str], log: Path, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> Child:
    """Run a command to its end, with stdout and stderr in the file `log` (made anew).

    folder: where it runs; here when None. environment: variables set beside those of this process.
    The kernel's account of exactly this process is read (wait4), so that several children may run at the same time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=folder, env={**os.environ, **(environment or {})}
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)  # it is gone: Popen must not wait for it again
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    output = log.read_text(encoding="utf-8", errors="replace")
    return Child(process.returncode, seconds, usage.ru_maxrss * unit, output)
