"""The settings that a process must be born with: once, on request, and before anything heavy is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jielong.launch import ALLOCATOR_SETTINGS, allocator_is_tuned, child_variables

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc only")


@pytest.mark.parametrize("switch", ["0", "1"])
def test_relaunch_happens_once_and_can_be_turned_off(switch: str) -> None:
    code = (
        "import os, sys; from jielong.launch import relaunch_with_allocator as go; print('start', flush=True); go();"
        "print(os.environ.get('MALLOC_TOP_PAD_'), os.environ.get('GLIBC_TUNABLES'), sys.argv[1:])"
    )
    given = {key: value for key, value in os.environ.items() if key not in ALLOCATOR_SETTINGS}
    given |= {"JIELONG_ALLOCATOR": switch, "MALLOC_TOP_PAD_": "4096", "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run([sys.executable, "-c", code, "a b"], capture_output=True, text=True, check=True, env=given)
    tuned = "None" if switch == "0" else ALLOCATOR_SETTINGS["GLIBC_TUNABLES"]
    assert told.stdout.split("\n")[-2] == f"4096 {tuned} ['a b']"  # the user's own setting is kept
    assert told.stdout.count("start") == (1 if switch == "0" else 2)


def test_run_starts_itself_again_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "def again(*_): print('torch' in sys.modules, flush=True); os._exit(0)\n"
        "os.execve = again\n"
        "from jielong.cli import main; main()"
    )
    given = {key: value for key, value in os.environ.items() if key not in (*ALLOCATOR_SETTINGS, "JIELONG_ALLOCATOR")}
    command = [sys.executable, "-c", code, "run", str(tmp_path / "any.toml")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=given)
    assert told.stdout.split() == ["False"]


def test_tuned_means_all_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in ALLOCATOR_SETTINGS.items():
        monkeypatch.setenv(key, value)
    assert allocator_is_tuned()
    monkeypatch.setenv("GOMP_SPINCOUNT", "1")
    assert not allocator_is_tuned()


def test_a_child_gets_the_settings_or_an_environment_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {**ALLOCATOR_SETTINGS, "JIELONG_ALLOCATOR": "set", "MINE": "kept"}.items():
        monkeypatch.setenv(key, value)
    without, tuned = child_variables(False), child_variables(True)
    assert not {*ALLOCATOR_SETTINGS, "JIELONG_ALLOCATOR"} & set(without) and without["MINE"] == "kept"
    assert {key: tuned[key] for key in ALLOCATOR_SETTINGS} == ALLOCATOR_SETTINGS
    assert {key: tuned[key] for key in without} == without
