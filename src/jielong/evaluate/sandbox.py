"""Programs that a model wrote, run where they can do no harm: `confined.py` shuts them in, this starts and judges them.

What a program may not do: start processes or threads, take more memory or time than it is given, write large files. On
Linux (x86-64, ARM) as well: reach the network, signal other processes, use root's powers, and, where the kernel has
Landlock, write any file at all. It can read what the user who started it can read. This keeps accidents small; it is
no wall against someone who means harm: for programs of people you do not know, use a machine of their own.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jielong.errors import UsageError

_CONFINED = Path(__file__).with_name("confined.py")
_TAIL_BYTES = 4096  # of what a program printed, as much as is looked at
_START_SECONDS = 3.0  # for two interpreters to begin, on a machine with much to do


@dataclass(frozen=True)
class Limits:
    """What a program is given."""

    seconds: float = 5.0
    memory_bytes: int = 512 * 2**20


@dataclass(frozen=True)
class Outcome:
    """passed: it ran to its last line. reason: "passed", "failed" or "timed out". told: the end of its output.

    shut: what was taken from it, {"network", "powers", "writes", "processes"} -> bool; see confined.py.
    """

    passed: bool
    reason: str
    told: str
    shut: dict[str, bool]


def run_program(program: str, limits: Limits | None = None) -> Outcome:
    """Run a Python program, standard library only, in a process of its own that is gone when this returns.

    It passes when its last line is reached: one that leaves early, with whatever code, has not passed.
    Raises UsageError on systems where a process cannot be kept from starting others.
    """
    if sys.platform == "win32":
        raise UsageError("programs of a model are run only where a process can be limited: Linux or macOS, not Windows")
    limits = limits or Limits()
    password = secrets.token_hex(16)  # it cannot be told without reaching the last line, unless read from the file
    with tempfile.TemporaryDirectory(prefix="jielong-program-") as folder:
        os.chmod(folder, 0o755)  # it is read by another user, where this one is root
        path, output = Path(folder) / "program.py", Path(folder) / "output"
        path.write_text(f"{program}\nprint()\nprint({password!r})\n", encoding="utf-8", errors="replace")
        path.chmod(0o644)
        timed_out = _run(path, output, limits)
        first, told = _read(output)
    if not first.get("processes"):
        raise UsageError(
            f"programs of a model are not run here: this system let a test process start another one ({told[-200:]!r})"
        )
    passed = told.rstrip("\n").endswith(f"\n{password}")
    reason = "passed" if passed else "timed out" if timed_out else "failed"
    return Outcome(passed, reason, told.replace(password, "").strip(), first)


def _run(path: Path, output: Path, limits: Limits) -> bool:
    """Whether it had to be stopped."""
    seconds = str(math.ceil(limits.seconds) + 1)  # of the processor; the clock below is the stricter one
    command = [sys.executable, "-I", "-S", "-B", str(_CONFINED), str(path), str(limits.memory_bytes), seconds]
    with open(output, "wb") as told:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=subprocess.STDOUT,
            cwd=path.parent,
            start_new_session=True,
        )
        try:
            process.wait(timeout=limits.seconds + _START_SECONDS)
            return process.returncode == -signal.SIGXCPU
        except subprocess.TimeoutExpired:
            return True
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _read(output: Path) -> tuple[dict[str, bool], str]:
    """What confined.py told of itself, and the end of what came after."""
    with open(output, "rb") as file:
        first = file.readline(_TAIL_BYTES)
        start, size = file.tell(), file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _TAIL_BYTES))
        rest = file.read().decode("utf-8", errors="replace")
    try:
        return json.loads(first), rest
    except json.JSONDecodeError:
        return {}, (first.decode("utf-8", errors="replace") + rest)
