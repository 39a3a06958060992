"""What a program of a model may do, and what it may not: each tried for real."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from jielong.errors import UsageError
from jielong.evaluate import sandbox
from jielong.evaluate.sandbox import Limits, run_program

LINUX = sys.platform.startswith("linux")
SHORT = Limits(seconds=1.0, memory_bytes=256 * 2**20)


def test_a_right_program_passes() -> None:
    outcome = run_program("def one():\n    return 1\nassert one() == 1\nprint('said')")
    assert outcome.passed and outcome.reason == "passed"
    assert outcome.told == "said" and outcome.shut["processes"]


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 == 2",
        "def one(:",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "print('passed')\nraise SystemExit",
        "print('\\ud800')",
        "import sys; sys.stdout.close()",
    ],
)
def test_a_program_that_does_not_reach_its_end_fails(program: str) -> None:
    outcome = run_program(program)
    assert not outcome.passed and outcome.reason == "failed"


def test_a_fork_bomb_makes_no_process() -> None:
    program = "import os, sys\nwhile True:\n    try:\n        os.fork()\n    except OSError as error:\n"
    outcome = run_program(program + "        print('refused', error.errno)\n        break", SHORT)
    assert outcome.passed and outcome.told in ("refused 1", "refused 11")  # EPERM or EAGAIN, at the first attempt


def test_threads_and_commands_are_processes_too() -> None:
    program = "import threading\nthreading.Thread(target=print).start()"
    assert "can't start new thread" in run_program(program, SHORT).told
    outcome = run_program("import subprocess\nsubprocess.run(['/bin/true'])", SHORT)
    assert outcome.reason == "failed" and ("PermissionError" in outcome.told or "BlockingIOError" in outcome.told)


def test_memory_ends() -> None:
    outcome = run_program("block = []\nwhile True:\n    block.append(bytearray(10_000_000))", SHORT)
    assert outcome.reason == "failed" and "MemoryError" in outcome.told


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(60)"])
def test_time_ends(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_START_SECONDS", 0.5)
    started = time.monotonic()
    outcome = run_program(program, Limits(seconds=0.3))
    assert outcome.reason == "timed out" and time.monotonic() - started < 5


def test_output_ends() -> None:
    outcome = run_program("while True: print('x' * 100_000)", SHORT)
    assert outcome.reason == "failed" and len(outcome.told) <= 4096


@pytest.mark.skipif(not LINUX, reason="elsewhere the network stays open")
def test_the_network_is_not_there() -> None:
    program = "import socket\nsocket.create_connection(('127.0.0.1', 1), timeout=1)"
    outcome = run_program(program, SHORT)
    if not outcome.shut["network"]:
        pytest.skip("this kernel has neither namespaces nor filters")
    assert not outcome.passed and "refused" not in outcome.told  # nobody was there to refuse: not even the loopback
    assert not run_program("import socket\nsocket.socket(socket.AF_UNIX)", SHORT).passed


def test_files_are_not_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    kept = tmp_path / "kept"
    kept.write_text("mine")
    kept.chmod(0o666)
    outcome = run_program(f"open({str(tmp_path / 'new')!r}, 'w')", SHORT)
    if not outcome.shut["writes"]:
        pytest.skip("this kernel has no Landlock")
    assert not outcome.passed and not (tmp_path / "new").exists()
    assert not run_program(f"import os; os.remove({str(kept)!r})", SHORT).passed
    assert not run_program(f"open({str(kept)!r}, 'w')", SHORT).passed
    assert kept.read_text() == "mine"


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "do not tell")
    outcome = run_program("import os\nprint(sorted(os.environ))")
    assert outcome.passed and "SECRET_KEY" not in outcome.told


@pytest.mark.skipif(not LINUX, reason="elsewhere signals are not refused")
def test_others_are_not_signalled_and_root_has_no_powers() -> None:
    outcome = run_program(f"import os\nos.kill({os.getpid()}, 0)", SHORT)
    assert outcome.shut["powers"] and "PermissionError" in outcome.told
    assert not run_program("import os\nos.chroot('/tmp')", SHORT).passed


def test_where_processes_cannot_be_forbidden_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    open_prison = tmp_path / "confined.py"
    text = sandbox._CONFINED.read_text(encoding="utf-8")
    text = text.replace("resource.RLIMIT_NPROC: 0,", "").replace("and _refuse_calls(linux)", "and False")
    open_prison.write_text(text, encoding="utf-8")
    monkeypatch.setattr(sandbox, "_CONFINED", open_prison)
    witness = tmp_path / "ran"
    with pytest.raises(UsageError, match="let a test process start another"):
        run_program(f"open({str(witness)!r}, 'w')")
    assert not witness.exists()
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UsageError, match="not Windows"):
        run_program("pass")


def test_nothing_is_left_behind() -> None:
    before = {name for name in os.listdir("/tmp") if name.startswith("jielong-program-")}
    run_program("pass")
    assert {name for name in os.listdir("/tmp") if name.startswith("jielong-program-")} <= before
